"""`embed` through the command line, and imported weights as the start of every stage."""

import cv2
import jax
import numpy as np
import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands import convert, embed
from mae_pp_jax.core import checkpoint, handoff, partition, storage
from mae_pp_jax.core.functional import Model, flatten
from mae_pp_jax.interop import stream
from mae_pp_jax.models import vit
from mae_pp_jax.stages import registry
from mae_pp_jax.stages.shared import saved_encoder
from tests.commands.conftest import WIDTH, encoder_file
from tests.conftest import RECIPES, ROOT
from tests.parity import checks


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The folder of an imported encoder for digits: 8×8 pixels, patches of 4, width 16."""
    folder = tmp_path_factory.mktemp("imported")
    convert.import_file(str(encoder_file(folder)), str(folder / "run"), heads=2)
    return folder / "run"


@pytest.fixture
def photos(tmp_path):
    """Five images of 8×8 pixels as PNG, and their pixels in RGB."""
    pixels = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), np.uint8)
    for i, image in enumerate(pixels):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image[:, :, ::-1])
    return tmp_path, pixels


def features_of(run, pixels, side=8):
    """Tokens [images, tokens, width] of the model itself, without `embed`."""
    stage, params = checks.load(run)
    normal = (pixels / 255.0 - np.array(stage.config.data.mean)) / np.array(stage.config.data.std)
    return np.asarray(stage.model.apply(params["encoder"], normal.astype(np.float32)))


def test_writes_features_and_names(imported, photos, capsys):
    folder, pixels = photos
    out = folder / "features.npz"
    arguments = ["embed", f"--workdir={imported}", f"--images={folder}/*.png", f"--out={out}", "--batch=2"]
    assert main(arguments) == 0
    assert "features of 5 images, 16 numbers each" in capsys.readouterr().out
    written = np.load(out)
    assert written["files"].tolist() == [str(folder / f"{i}.png") for i in range(5)]
    assert written["features"].dtype == np.float32
    tokens = features_of(imported, pixels)
    np.testing.assert_allclose(written["features"], tokens[:, 0], rtol=1e-4, atol=1e-5)
    assert main([*arguments, "--pool=mean"]) == 0
    np.testing.assert_allclose(np.load(out)["features"], tokens[:, 1:].mean(1), rtol=1e-4, atol=1e-5)


def test_a_folder_stands_for_its_pictures(imported, photos, capsys):
    folder, _ = photos
    (folder / "below").mkdir()
    (folder / "4.png").rename(folder / "below" / "4.png")
    (folder / "notes.txt").write_text("mine")
    out = folder / "features.npz"
    assert main(["embed", f"--workdir={imported}", f"--out={out}", "--images", str(folder), f"{folder}/0.png"]) == 0
    assert np.load(out)["files"].tolist() == [
        str(folder / f) for f in ("0.png", "1.png", "2.png", "3.png", "below/4.png", "0.png")
    ]
    features = np.load(out)["features"]
    np.testing.assert_array_equal(features[0], features[-1])


def test_another_input_resizes_positions_as_the_source_does(imported, photos):
    folder, _ = photos
    mesh = partition.make_mesh(partition.MeshConfig(rules="replicate"))
    small = saved_encoder.load(imported, mesh, image_size=(16, 16))
    with jax.set_mesh(mesh):
        images = np.random.default_rng(2).integers(0, 256, (8, 16, 16, 3), np.uint8)
        found = {
            m: np.asarray(saved_encoder.load(imported, mesh, image_size=(16, 16), resize=m).features(images))
            for m in ("mae", "timm")
        }
        np.testing.assert_array_equal(small.features(images), found["timm"])
    assert not np.array_equal(found["mae"], found["timm"])


@pytest.fixture(scope="module")
def oblong(tmp_path_factory):
    """A run of an encoder on 192×256 pixels in 12 × 16 patches, and its parameters."""
    config = dict(
        stage="encoder",
        model=dict(size="Ti/16", width=WIDTH, depth=1, heads=2, pool="cls", cls_token=True),
        data=dict(image_size=[192, 256], mean=[0.5] * 3, std=[0.25] * 3),
    )
    model = Model(lambda rngs: vit.Encoder(vit.VitConfig(**config["model"]), (192, 256), rngs=rngs))
    params = {"encoder": model.init(jax.random.key(1))}
    folder = tmp_path_factory.mktemp("oblong")
    pieces = {p: stream.Pieces(v.shape, v.shape, lambda v=v: [((), np.asarray(v))]) for p, v in flatten(params).items()}
    meta = dict(config=config, dataset={}, lineage=[], revision="", wall_seconds=0.0, step=0)
    stream.write_checkpoint(folder / "checkpoints" / "0", pieces, meta)
    storage.write_json(folder / "config.json", config)
    return folder, model, params["encoder"]


def test_an_oblong_run_embeds_at_its_own_size_and_at_others(oblong, tmp_path):
    run, model, params = oblong
    image = np.random.default_rng(0).integers(0, 256, (192, 256, 3), np.uint8)
    wide = cv2.copyMakeBorder(image, 0, 0, 50, 50, cv2.BORDER_CONSTANT)  # cut back to its centre
    for name, pixels in (("a", image), ("b", wide)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels[:, :, ::-1])
    arguments = ["embed", f"--workdir={run}", f"--images={tmp_path}/*.png", f"--out={tmp_path / 'f.npz'}", "--batch=2"]
    assert main(arguments) == 0
    own = np.load(tmp_path / "f.npz")["features"]
    expected = model.apply(params, (image[None] / np.float32(255) - 0.5) / 0.25)[0, 0]
    np.testing.assert_allclose(own, np.stack([expected] * 2), rtol=1e-4, atol=1e-5)
    assert main([*arguments, "--image_size=192x256"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "f.npz")["features"], own)
    assert main([*arguments, "--image_size=224"]) == 0
    assert np.load(tmp_path / "f.npz")["features"].shape == (2, WIDTH)


def test_an_oblong_run_is_not_exported(oblong, tmp_path, capsys):
    assert main(["convert", f"--from={oblong[0]}", f"--to={tmp_path / 'a.safetensors'}", "--to-format=timm"]) == 2
    said = capsys.readouterr().err.strip()
    assert "192x256" in said and "\n" not in said and not list(tmp_path.iterdir())


def test_a_masked_autoencoder_is_embedded_by_its_encoder(photos, tmp_path):
    folder, pixels = photos
    convert.import_file(str(ROOT / "tests/parity/stored/huggingface_mae"), str(tmp_path / "mae"), image_size=8)
    found, _ = embed.embed(str(tmp_path / "mae"), f"{folder}/*.png", str(folder / "f.npz"))
    stage, params = checks.load(tmp_path / "mae")
    encoder = Model(lambda rngs: vit.Encoder(stage.config.model, (8, 8), pooled=False, rngs=rngs))
    normal = (pixels / 255.0 - np.array(stage.config.data.mean)) / np.array(stage.config.data.std)
    tokens = encoder.apply(params["encoder"], normal.astype(np.float32))
    np.testing.assert_allclose(found, tokens[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change, words",
    [
        (["--images=nothing/*"], "no file matches"),
        (["--pool=projection"], "has no projection"),
        (["--image_size=10"], "--image_size: 10 does not divide"),
        (["--image_size=8x10"], "--image_size: 8x10 does not divide into patches of 4"),
        (["--image_size=8x"], "--image_size: '8x' is no size"),
        (["--image_size=0"], "--image_size: '0' is no size"),
        (["--out=features.txt"], "must end in .npz"),
        (["--workdir=nowhere"], "--workdir"),
        (["--batch=0"], "--batch"),
    ],
)
def test_wrong_arguments_are_one_line(imported, photos, capsys, change, words):
    folder, _ = photos
    base = {"--workdir": imported, "--images": f"{folder}/*.png", "--out": folder / "f.npz"}
    base |= dict(argument.split("=") for argument in change)
    assert main(["embed", *(f"{name}={value}" for name, value in base.items())]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said
    assert not (folder / "f.npz").exists()


def test_unreadable_images_stop_it_or_are_left_out(imported, photos, capsys):
    folder, _ = photos
    (folder / "2.png").write_bytes(b"no image")
    arguments = ["embed", f"--workdir={imported}", f"--images={folder}/*.png", f"--out={folder / 'f.npz'}"]
    assert main(arguments) == 2
    assert "2.png is no readable image" in capsys.readouterr().err
    assert not (folder / "f.npz").exists()
    assert main([*arguments, "--skip_unreadable"]) == 0
    assert np.load(folder / "f.npz")["features"].shape == (4, 16)


@pytest.mark.parametrize("name", ["mae", "wsp", "classify", "linear", "low_shot"])
def test_every_stage_starts_from_imported_weights(imported, name):
    from mae_pp_jax.core import config as config_lib

    mapping = config_lib.load_file(str(ROOT / f"configs/{name}/digits.py"))
    stage = registry.create(registry.resolve(mapping, RECIPES[name]))
    _, source = checks.load(imported)
    wanted = {p: leaf for p, leaf in flatten(source).items()}
    target = flatten(jax.eval_shape(stage.init, jax.random.key(0)))
    plan = handoff.plan(stage.handoff, wanted, target, "imported", checkpoint.meta(imported, 0))
    blocks = {path for path in wanted if path.startswith("encoder/blocks/")}
    assert blocks <= set(plan.moved) and "encoder/pos_embed" in plan.moved and not plan.resized


def test_an_encoder_alone_is_not_evaluated_or_trained(imported, capsys):
    assert main(["evaluate", f"--workdir={imported}"]) == 2
    assert "without a head to evaluate" in capsys.readouterr().err
