"""Stages through the loop: handoff, freezing, and every recipe's shapes."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.commands.train import train
from mae_pp_jax.core import checkpoint, partition
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import program as program_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import unflatten
from mae_pp_jax.data import fields
from mae_pp_jax.data.source import Subset
from mae_pp_jax.models.positions import sincos_2d
from mae_pp_jax.stages import registry
from tests.conftest import RECIPES, ROOT, TINY


def params_of(run: pathlib.Path) -> dict[str, np.ndarray]:
    step = checkpoint.find(run)
    shapes = checkpoint.shapes(run, step)["params"]
    whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole) for p, s in shapes.items()}
    return {p: np.asarray(v) for p, v in checkpoint.read(run, step, "params", wanted).items()}


@pytest.fixture(scope="module")
def chain(tmp_path_factory, mae_run):
    """MAE → WSP → classify, linear and low-shot, each a finished tiny run: name → (folder, result)."""
    folder, runs = tmp_path_factory.mktemp("chain"), {"mae": (mae_run, None)}
    for name, source in [("wsp", "mae"), ("classify", "wsp"), ("linear", "wsp"), ("low_shot", "wsp")]:
        overrides = {**RECIPES[name], "init_from.run": str(runs[source][0])}
        runs[name] = folder / name, train(str(ROOT / f"configs/{name}/digits.py"), folder / name, overrides)
    return runs


def test_handoff_moves_the_encoder_exactly_and_prints_every_leaf(tmp_path, chain):
    mae, _ = chain["mae"]
    overrides = {**TINY, "init_from.run": str(mae), "train_for": "1 steps", "optim.lr": "0", "optim.weight_decay": "0"}
    train(str(ROOT / "configs/wsp/digits.py"), tmp_path / "wsp", overrides)
    source, target = params_of(mae), params_of(tmp_path / "wsp")
    for path in (p for p in source if p.startswith("encoder/")):
        np.testing.assert_array_equal(source[path], target[path], err_msg=path)
    assert not np.any(target["head/kernel"])
    log = (tmp_path / "wsp" / "log.txt").read_text()
    assert all(path in log for path in {*source, *target})


def test_lineage_names_all_ancestors(chain):
    _, result = chain["classify"]
    assert [parent["stage"] for parent in result["lineage"]] == ["mae", "wsp"]
    assert result["lineage"][1]["run"] == str(chain["wsp"][0])


@pytest.mark.parametrize("name", ["linear", "low_shot"])
def test_frozen_encoder_stays_the_source_encoder(chain, name):
    source, target = params_of(chain["wsp"][0]), params_of(chain[name][0])
    for path in (p for p in source if p.startswith("encoder/")):
        np.testing.assert_array_equal(source[path], target[path], err_msg=path)
    head = "head/kernel" if name == "linear" else "heads/kernel"
    assert np.any(target[head])


class _Unlabelled(Subset):
    """Digits without labels, as `data build` writes images that have none in a dataset that has classes."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"label": -1}


@pytest.mark.parametrize("name, needs_labels", [("mae", False), ("wsp", False), ("classify", True), ("linear", True)])
def test_images_without_a_label_stop_only_stages_that_need_it(name, needs_labels):
    path = str(ROOT / f"configs/{name}/digits.py")
    stage = registry.create(registry.resolve(config_lib.load_file(path), RECIPES[name]))
    stage.reader = (0, 1)
    stage.train_source = stage.eval_sources["test"] = _Unlabelled(stage.train_source, np.arange(40))
    for batches in (stage.train_batches(0), stage.eval_batches("test")):
        if needs_labels:
            with pytest.raises(UserError, match="has no label"):
                next(batches)
        else:
            assert next(batches)["image"].shape[0] == stage.config.global_batch


def test_fixed_positions_do_not_move_in_mae_and_do_in_wsp(chain):
    mae, wsp = params_of(chain["mae"][0]), params_of(chain["wsp"][0])
    np.testing.assert_array_equal(mae["encoder/pos_embed"], sincos_2d(16, 2, 2, True))
    assert np.any(mae["encoder/pos_embed"] != wsp["encoder/pos_embed"])


def test_statistics_of_frozen_features_normalise_them(chain):
    """What `linear` measures before its first step is the mean and variance of the features."""
    folder, _ = chain["linear"]
    stage = registry.create(registry.resolve(_config(folder)))
    params = unflatten(params_of(folder))
    batches, rows = stage.train_batches(0), []
    for _ in range(-(-stage.records // stage.config.global_batch)):
        rows.append(np.asarray(stage.features(params, {n: jnp.asarray(v) for n, v in next(batches).items()})))
    rows = np.concatenate(rows)
    np.testing.assert_allclose(params["feature_norm"]["mean"][0], rows.mean(0), atol=1e-4)
    np.testing.assert_allclose(params["feature_norm"]["variance"][0], rows.var(0), rtol=1e-2, atol=1e-5)


def test_low_shot_uses_only_its_few_images(chain):
    stage = registry.create(registry.resolve(_config(chain["low_shot"][0])))
    assert [len(subset) for subset in stage.subsets] == [20] * 5
    labels = fields.labels(stage.train_source)
    assert all((np.bincount(fields.labels(subset), minlength=10) == 2).all() for subset in stage.subsets)
    batch = next(stage.train_batches(0))
    assert np.bincount(batch["group"]).tolist() == [8] * 5 and len(labels) == 1437
    _, result = chain["low_shot"]
    assert result["metrics"]["test/splits"] == 5 and "test/accuracy_std" in result["metrics"]


def test_positions_are_resized_to_another_resolution(tmp_path, chain):
    overrides = {**TINY, "init_from.run": str(chain["mae"][0]), "data.image_size": "16", "train_for": "1 steps"}
    overrides |= {"optim.lr": "0", "optim.weight_decay": "0"}
    train(str(ROOT / "configs/classify/digits.py"), tmp_path / "large", overrides)
    small, large = params_of(chain["mae"][0]), params_of(tmp_path / "large")
    assert large["encoder/pos_embed"].shape == (17, 16)
    np.testing.assert_array_equal(large["encoder/pos_embed"][0], small["encoder/pos_embed"][0])
    assert "resized  encoder/pos_embed 5×16 → encoder/pos_embed 17×16" in (tmp_path / "large" / "log.txt").read_text()


def test_another_stage_than_expected_is_refused(tmp_path, chain):
    with pytest.raises(UserError, match="is a run of stage 'linear'; this stage starts from mae or wsp or classify"):
        train(str(ROOT / "configs/wsp/digits.py"), tmp_path / "x", {**TINY, "init_from.run": str(chain["linear"][0])})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((ROOT / "configs").rglob("*.py")) if p.parent.name != "pipelines"],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_every_recipe_builds_and_its_step_has_shapes(path):
    """STYLE section D (c): parameters, optimizer and one step of every config, by abstract evaluation."""
    stage = registry.create(registry.resolve(config_lib.load_file(str(path))))
    mesh = partition.make_mesh(config_lib.resolve(partition.MeshConfig, {}), jax.devices()[:1])
    prog = program_lib.make(stage, mesh)
    after = jax.eval_shape(prog.step, prog.shapes, stage.batch_spec())
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), prog.shapes)


def _config(folder: pathlib.Path) -> dict:
    return json.loads((folder / "config.json").read_text())
