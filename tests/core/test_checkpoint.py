"""Checkpoints: what is saved comes back, from wherever it lies; what does not fit is told as what it is."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands import embed, evaluate
from mae_pp_jax.commands.train import train
from mae_pp_jax.core import checkpoint, leaves, optim, run_folder, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten, unflatten
from mae_pp_jax.core.state import TrainState
from mae_pp_jax.stages.mae import MaeStage
from tests.conftest import RECIPES, ROOT, TINY_MAE, arguments
from tests.faults.conftest import files, result

MAE, LINEAR = str(ROOT / "configs/mae/digits.py"), str(ROOT / "configs/linear/digits.py")


def state(value: float, ema=("a", "b/c"), metrics=("loss",)) -> TrainState:
    """A small state; the average of a weight is the weight plus 100."""
    params = {"a": jnp.full((3, 2), value), "b": {"c": jnp.full((2,), value + 1)}}
    average = {path: leaf + 100 for path, leaf in flatten(params).items() if path in ema}
    return TrainState(
        step=jnp.int32(5),
        params=params,
        opt_state=optax.adam(0.1).init(params),
        ema=unflatten(average) if ema else None,
        rng=jax.random.key_data(jax.random.key(0)),
        metrics={name: (jnp.float32(2), jnp.float32(4)) for name in metrics},
        counts={},
        bad_step=jnp.int32(-1),
    )


def like(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def save(folder: pathlib.Path, step: int, state: TrainState, **meta) -> checkpoint.Checkpoints:
    saves = checkpoint.Checkpoints(storage.Path(folder) / "checkpoints", 3, lambda: None)
    saves.save(step, state, dict(revision="A", lineage=[], **meta))
    saves.wait()
    return saves


def values(run, step, **kwargs) -> dict[str, np.ndarray]:
    found = checkpoint.weights(storage.Path(run), step, **kwargs)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {p: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) for p, leaf in found.items()}
    return {path: np.asarray(leaf) for path, leaf in leaves.read(found, wanted).items()}


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_state_comes_back(tmp_path):
    before = state(1.0)
    after, meta = save(tmp_path, 5, before).restore(like(before), "B")
    assert_same(before, after)
    assert meta["revision"] == "A"
    assert save(tmp_path / "empty", 5, before) and not checkpoint.steps(tmp_path / "none")


@pytest.mark.parametrize("averaged", [("a",), ("a", "b/c")])  # of the trainable weights; in older runs of all
def test_the_average_stands_for_the_weights_that_have_one(tmp_path, averaged):
    saves = save(tmp_path, 5, state(1.0, ema=averaged))
    found = values(tmp_path, 5)
    assert found["a"][0, 0] == 101 and found["b/c"][0] == (102 if "b/c" in averaged else 2)
    assert values(tmp_path, 5, average=False)["a"][0, 0] == 1
    restored, _ = saves.restore(like(state(0.0, ema=("a",))), "B")
    assert list(flatten(restored.ema)) == ["a"]
    assert_same(restored.ema["a"], jnp.full((3, 2), 101.0))


def test_sums_of_older_and_newer_code(tmp_path, caplog):
    saves = save(tmp_path, 5, state(1.0, metrics=("loss", "gone")))
    with caplog.at_level("INFO", "mae_pp_jax"):
        restored, _ = saves.restore(like(state(0.0, metrics=("loss", "new"))), "B")
    assert jax.tree.map(float, restored.metrics) == {"loss": (2.0, 4.0), "new": (0.0, 0.0)}


@pytest.mark.parametrize("other", [optax.sgd(0.1, momentum=0.9), optax.adafactor(0.1)])
def test_another_optimizer_is_not_damage(tmp_path, other):
    saves, now = save(tmp_path, 5, state(1.0)), state(0.0)
    now = TrainState(**{**vars(now), "opt_state": other.init(now.params)})
    with pytest.raises(UserError, match="the optimizer or the code has changed .*opt_state/.*code A, now B.*init_from"):
        saves.restore(like(now), "B")
    assert checkpoint.steps(storage.Path(tmp_path) / "checkpoints") == [5]


def test_frozen_weights_that_lie_elsewhere(tmp_path):
    source, run = tmp_path / "source", tmp_path / "run"
    save(source, 5, state(1.0, ema=("a",)))
    whole = state(7.0, ema=())
    whole = TrainState(**{**vars(whole), "params": {**whole.params, "a": jnp.full((3, 2), 101.0)}})
    sources = {"a": checkpoint.weights(storage.Path(source), 5)["a"]}
    frozen = leaves.references(sources, flatten(whole.params))
    assert [entry["leaves"] for entry in frozen] == [{"a": ["ema", "a"]}]
    saves = save(run, 6, whole, frozen=frozen)
    assert list(leaves.of_item(storage.Path(run), 6, "params")) == ["b/c"]
    assert_same(values(run, 6), {"a": np.full((3, 2), 101.0), "b/c": np.full(2, 8.0)})
    assert_same(saves.restore(like(whole), "B")[0], whole)
    # A run that takes over from this one refers to the first, not to a reference.
    assert checkpoint.weights(storage.Path(run), 6)["a"].run == storage.Path(source)
    moved = source.rename(tmp_path / "moved")
    for read in (lambda: checkpoint.weights(storage.Path(run), 6), lambda: saves.restore(like(whole), "B")):
        with pytest.raises(UserError, match=f"{source}/checkpoints/5, which is gone"):
            read()
    moved.rename(source)
    shutil.rmtree(source / "checkpoints")
    save(source, 5, state(2.0, ema=("a",)))
    for read in (lambda: checkpoint.weights(storage.Path(run), 6), lambda: saves.restore(like(whole), "B")):
        with pytest.raises(UserError, match=f"{source}/checkpoints/5, which has changed since"):
            read()


@pytest.fixture
def unfinished(mae_run, tmp_path) -> pathlib.Path:
    """A copy of a tiny MAE run as a kill after its last checkpoint leaves it."""
    folder = pathlib.Path(shutil.copytree(mae_run, tmp_path / "unfinished"))
    (folder / "result.json").unlink()
    return folder


def test_a_run_that_other_code_cannot_resume_is_left_as_it_is(unfinished, monkeypatch, capsys):
    before, chain = files(unfinished), optax.chain
    monkeypatch.setattr(optim.optax, "chain", lambda *steps: chain(*steps, optax.trace(0.5)))
    assert main(["train", f"--config={MAE}", f"--workdir={unfinished}", *arguments(TINY_MAE)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the optimizer or the code has changed since this run was started (opt_state/" in line
    assert "damaged" not in line and files(unfinished) == before


def test_a_run_goes_on_under_code_with_other_metrics(unfinished, monkeypatch):
    shutil.rmtree(unfinished / "checkpoints" / "12")
    loss = MaeStage.loss

    def with_another(self, *args):
        total, found = loss(self, *args)
        return total, {**found, "another": (jnp.float32(3), jnp.float32(1))}

    monkeypatch.setattr(MaeStage, "loss", with_another)
    train(MAE, unfinished, TINY_MAE)
    last = [row for row in map(json.loads, (unfinished / "metrics.jsonl").read_text().splitlines())][-2:]
    assert any(row.get("train/another") == 3 for row in last)


def test_the_code_that_goes_on_with_a_run_is_noted_beside_the_first(unfinished, monkeypatch):
    shutil.rmtree(unfinished / "checkpoints" / "12")
    first = result_revision(unfinished)
    monkeypatch.setattr(run_folder, "code_revision", lambda: "another")
    found = train(MAE, unfinished, TINY_MAE)
    assert found["revision"] == "another"
    assert found["revisions"] == [{"step": 0, "revision": first}, {"step": 8, "revision": "another"}]
    (unfinished / "result.json").unlink()
    assert train(MAE, unfinished, TINY_MAE)["revisions"] == found["revisions"]


def result_revision(folder) -> str:
    """The revision as runs noted it that knew one alone."""
    path = folder / "checkpoints" / "8" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    assert meta.pop("revisions") == [{"step": 0, "revision": meta["revision"]}]
    path.write_text(json.dumps(meta))
    checkpoint.write_digest(storage.Path(path.parents[1]))
    return meta["revision"]


def test_lineage_names_the_weights_that_were_handed_over(mae_run, tmp_path):
    wsp = str(ROOT / "configs/wsp/digits.py")
    overrides = {**RECIPES["wsp"], "train_for": "2 steps", "init_from.run": str(mae_run)}
    record = train(wsp, tmp_path / "last", overrides)["lineage"][-1]
    assert record["params_sha256"] == result(mae_run)["params_sha256"]
    record = train(wsp, tmp_path / "earlier", {**overrides, "init_from.step": "8"})["lineage"][-1]
    assert record["params_sha256"] == run_folder.params_sha256(unflatten(jax.tree.map(jnp.asarray, values(mae_run, 8))))
    assert record["params_sha256"] != result(mae_run)["params_sha256"]


def test_nothing_to_refer_to_is_one_line(mae_run, tmp_path, capsys):
    classify = f"--config={ROOT / 'configs/classify/digits.py'}"  # all of it trains
    overrides = {**RECIPES["classify"], "init_from.run": str(mae_run), "checkpoint.frozen": "reference"}
    assert main(["train", classify, f"--workdir={tmp_path / 'run'}", *arguments(overrides)]) == 2
    assert "config.checkpoint.frozen: 'reference' has nothing to refer to" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def bytes_of(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_linear_probe_that_refers_to_its_backbone(mae_run, tmp_path, capsys):
    backbone = pathlib.Path(shutil.copytree(mae_run, tmp_path / "backbone"))
    overrides = {**RECIPES["linear"], "init_from.run": str(backbone)}
    copied = train(LINEAR, tmp_path / "copy", overrides)
    referred = train(LINEAR, tmp_path / "reference", {**overrides, "checkpoint.frozen": "reference"})
    assert referred["params_sha256"] == copied["params_sha256"] and referred["metrics"] == copied["metrics"]
    run = storage.Path(tmp_path / "reference")
    own = leaves.of_item(run, 12, "params")
    assert {path.split("/")[0] for path in own} == {"head", "feature_norm"}
    written = [bytes_of(tmp_path / name / "checkpoints/12/params") for name in ("copy", "reference")]
    encoder = sum(leaf.nbytes for path, leaf in values(run, 12).items() if path.startswith("encoder/"))
    assert written[0] - written[1] > encoder / 2 and written[1] < encoder
    # Whoever reads the run follows.
    assert evaluate.evaluate(run)["test/accuracy"] == copied["metrics"]["test/accuracy"]
    picture = str(tmp_path / "picture.png")
    storage.write_whole(picture, next((mae_run / "pictures").glob("*.png")).read_bytes())
    features = [embed.embed(tmp_path / name, picture, str(tmp_path / "f.npz"))[0] for name in ("copy", "reference")]
    np.testing.assert_array_equal(*features)
    # Resumed, also with copies from there on.
    for frozen in ("reference", "copy"):
        (run / "result.json").unlink()
        shutil.rmtree(run / "checkpoints" / "12")
        again = train(LINEAR, run, {**overrides, "checkpoint.frozen": frozen})
        assert again["params_sha256"] == copied["params_sha256"]
        assert ("encoder/pos_embed" in leaves.of_item(run, 12, "params")) == (frozen == "copy")
    assert evaluate.evaluate(run)["test/accuracy"] == copied["metrics"]["test/accuracy"]
    shutil.rmtree(run / "checkpoints" / "12")
    shutil.rmtree(backbone)
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={run}"]) == 2
    assert f"{backbone}/checkpoints/12, which is gone" in capsys.readouterr().err
