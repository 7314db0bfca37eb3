"""Features kept beside a checkpoint: computed once, found again, resumed, and never taken for others."""

import dataclasses

import numpy as np
import pytest

from mae_pp_jax.core import checkpoint, partition, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.partition import MeshConfig
from mae_pp_jax.data import fields, images, source
from mae_pp_jax.data.evals import EvalConfig
from mae_pp_jax.data.faults import Unreadable
from mae_pp_jax.stages.shared import feature_sets, saved_encoder

HOW = feature_sets.How(image_size=(8, 8), batch=64)


class Reading(fields.Wrapper):
    """Some digits; notes which are read, and one of them is damaged."""

    def __init__(self, damaged=(), stop_at=None):
        whole = source.open_source(source.DataConfig(image_size=8, cache="ram"), "test")
        super().__init__(source.Subset(whole, np.arange(200)))
        self.read, self.damaged, self.stop_at = [], damaged, stop_at

    def __getitem__(self, index):
        if self.stop_at is not None and index >= self.stop_at:
            raise KeyboardInterrupt
        self.read.append(index)
        if index in self.damaged:
            raise Unreadable("cut off")
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def run(mae_run):
    folder = storage.path(mae_run)
    return folder, checkpoint.find(folder)


@pytest.fixture(scope="module")
def mesh():
    return partition.make_mesh(MeshConfig(rules="replicate"))


def features(run, mesh, own, config=EvalConfig(), **how):
    return feature_sets.of(*run, own, config, dataclasses.replace(HOW, **how), name="digits", mesh=mesh)


def test_rows_are_the_features_of_the_images_and_are_computed_once(run, mesh):
    found = features(run, mesh, own := Reading())
    assert set(own.read) == set(range(200))
    pixels = np.stack([images.center_crop(own[i]["image"], (8, 8)) for i in range(200)])
    wanted = saved_encoder.load(run[0], mesh).features(pixels)
    np.testing.assert_allclose(found.features, wanted, rtol=1e-5, atol=1e-5)
    assert found.labels.tolist() == fields.labels(own).tolist() and found.records.tolist() == list(range(200))
    again = features(run, mesh, own := Reading())
    assert not own.read and isinstance(again.features, np.memmap)
    np.testing.assert_array_equal(again.features, found.features)
    for other in (dict(pool="mean"), dict(dtype="float16"), dict(config=EvalConfig(crop="squeeze"))):
        assert features(run, mesh, own := Reading(), **other).mark != found.mark and own.read


def test_a_damaged_file_is_computed_again(run, mesh, caplog):
    found = features(run, mesh, Reading(), dtype="float16")
    (file,) = [n for n in storage.names(run[0] / "features") if n.endswith(f"{found.mark[:8]}.npy")]
    content = bytearray(storage.read_bytes(run[0] / "features" / file))
    content[-1] ^= 1
    wanted = np.array(found.features)
    del found
    storage.write_whole(run[0] / "features" / file, bytes(content))
    with caplog.at_level("WARNING", "mae_pp_jax"):
        again = features(run, mesh, own := Reading(), dtype="float16")
    assert own.read and "has changed since it was written: computed again" in caplog.text
    assert caplog.text.count("has changed") == 1
    np.testing.assert_array_equal(again.features, wanted)


def test_a_computation_goes_on_where_it_was_stopped(run, mesh, monkeypatch):
    monkeypatch.setattr(feature_sets, "NOTE_SECONDS", -1.0)
    wanted = features(run, mesh, Reading(), pool="mean")
    (base := run[0] / "features")
    for name in storage.names(base):
        if wanted.mark[:8] in name:
            storage.remove(base / name)
    with pytest.raises(KeyboardInterrupt):
        features(run, mesh, Reading(stop_at=150), pool="mean", threads=1)
    assert not any(wanted.mark[:8] in n and ".part" not in n for n in storage.names(base))
    again = features(run, mesh, own := Reading(), pool="mean")
    assert min(own.read) >= 64 and max(own.read) == 199
    np.testing.assert_array_equal(again.features, wanted.features)
    assert not [n for n in storage.names(base) if ".part" in n or n.endswith(".lock")]


def test_images_that_cannot_be_read_are_left_out_and_counted(run, mesh):
    whole = features(run, mesh, Reading(), config=EvalConfig(share=0.5))
    for name in storage.names(run[0] / "features"):
        if whole.mark[:8] in name:
            storage.remove(run[0] / "features" / name)
    found = features(run, mesh, Reading(damaged=(3, 150)), config=EvalConfig(share=0.5))
    assert found.unreadable == 2 and found.unlabelled == 0
    assert found.records.tolist() == [i for i in range(200) if i not in (3, 150)]
    np.testing.assert_allclose(found.features, whole.features[found.records], rtol=1e-5, atol=1e-5)


def test_a_run_without_space_is_refused_before_work(run, mesh, monkeypatch):
    monkeypatch.setattr(storage, "free_space", lambda _: 100)
    with pytest.raises(UserError, match="no space left for features in .*: 12,800 bytes are needed, 100 are free"):
        features(run, mesh, own := Reading(), config=EvalConfig(share=0.7))
    assert not own.read
