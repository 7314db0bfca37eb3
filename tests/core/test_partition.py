"""Axes of parameters, and how parameters, train states and batches lie on a mesh."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import partition
from mae_pp_jax.core.errors import UserError


def leaf(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def mesh_of(*shape):
    config = config_lib.resolve(partition.MeshConfig, dict(zip(partition.MESH_AXES, shape, strict=True)))
    return partition.make_mesh(config, jax.devices()[: abs(int(np.prod(shape)))])


def test_the_first_rule_that_matches_the_whole_path_gives_the_axes():
    rules = ((r"a/kernel", (None, "fsdp")), (r".*/kernel", ("fsdp", "tensor")), (r".*/bias", (None,)))
    shapes = {"a/kernel": leaf(8, 8), "b/kernel": leaf(8, 8), "b/bias": leaf(8)}
    axes = partition.axes_of(rules, shapes)
    assert axes == {"a/kernel": (None, "fsdp"), "b/kernel": ("fsdp", "tensor"), "b/bias": (None,)}


def test_a_parameter_without_a_rule_is_whole_if_small_and_refused_above_a_hundredth_of_the_bytes():
    rules = ((r"large", ("fsdp",)),)
    axes = partition.axes_of(rules, {"large": leaf(990), "small": leaf(5, 2)})  # just 1%
    assert axes["small"] == (None, None)
    with pytest.raises(UserError, match=r"no rule covers part/other \(11,\), 1% of all bytes; add \(r'part/other'"):
        partition.axes_of(rules, {"large": leaf(989), "part/other": leaf(11)})
    # Bytes count, not entries.
    with pytest.raises(UserError, match="no rule covers wide"):
        partition.axes_of(rules, {"large": leaf(990, dtype=np.int8), "wide": leaf(10)})


@pytest.mark.parametrize("axes", [("fsdp",), ("fsdp", None, None), ("fsdp", "data"), ("layer", None)])
def test_axes_that_do_not_fit_a_parameter_are_refused(axes):
    with pytest.raises(UserError, match=r"kernel \(4, 6\) is said to have axes .* name each of its 2 axes by one of"):
        partition.axes_of(((".*", axes),), {"kernel": leaf(4, 6)})


@pytest.mark.parametrize(
    "table, shape, wanted",
    [
        ("replicate", (4, 2, 8, 6), (None, None, None, None)),
        ("fsdp", (4, 2, 8, 6), (None, None, "fsdp", None)),
        ("fsdp_tensor", (4, 2, 8, 6), (None, None, "fsdp", "tensor")),
        ("fsdp_tensor", (4, 2, 7, 6), (None, None, None, "tensor")),  # 7 does not divide over 2 devices
        ("fsdp_tensor", (4, 2, 8, 3), (None, None, "fsdp", None)),
    ],
)
def test_where_a_parameter_lies_under_each_table(table, shape, wanted):
    axes = ("splits", "layers", "fsdp", "tensor")
    assert partition.parameter_spec(axes, shape, table, mesh_of(2, 2, 2)) == PartitionSpec(*wanted)


def test_a_state_lies_as_its_parameters_do_and_the_rest_whole():
    mesh, axes = mesh_of(2, 2, 2), {"fc/kernel": ("fsdp", "tensor")}
    params = {"fc": {"kernel": leaf(4, 4)}}
    state = {"params": params, "opt": ({"mu": params}, leaf()), "sums": {"fc": {"kernel": leaf()}}}
    placed = partition.shardings(state, axes, "fsdp_tensor", mesh)
    split, whole = PartitionSpec("fsdp", "tensor"), PartitionSpec()
    assert placed["params"]["fc"]["kernel"].spec == placed["opt"][0]["mu"]["fc"]["kernel"].spec == split
    assert placed["opt"][1].spec == placed["sums"]["fc"]["kernel"].spec == whole


@pytest.mark.parametrize("shape", [(3, 1, 1), (2, 2, -1), (-1, -1, 1), (0, 8, 1), (8, 2, 1)])
def test_a_mesh_that_does_not_cover_the_devices_is_refused(shape):
    config = config_lib.resolve(partition.MeshConfig, dict(zip(partition.MESH_AXES, shape, strict=True)))
    devices = jax.devices()[: 5 if -1 in shape else 8]
    with pytest.raises(UserError, match=rf"config.mesh: data × fsdp × tensor = .* not cover {len(devices)} device"):
        partition.make_mesh(config, devices)


def test_one_size_of_a_mesh_takes_the_devices_that_the_others_leave():
    config = config_lib.resolve(partition.MeshConfig, dict(data=-1, fsdp=2, tensor=2))
    assert dict(partition.make_mesh(config, jax.devices()[:8]).shape) == dict(data=2, fsdp=2, tensor=2)


def test_a_batch_divides_over_devices_and_microbatches_or_is_refused_with_one_that_does():
    mesh = mesh_of(2, 2, 2)
    partition.check_batch(16, mesh, 4)
    with pytest.raises(UserError, match="config.global_batch: 18 does not divide over 4 devices .* such as 16"):
        partition.check_batch(18, mesh)
    with pytest.raises(UserError, match="3 microbatches of 4 devices .* a multiple of 12, such as 12"):
        partition.check_batch(16, mesh, 3)


def test_microbatches_hold_every_row_once_and_move_none_between_devices():
    mesh, rows = mesh_of(4, 2, 1), np.arange(32)
    batch = partition.to_global({"x": rows, "y": np.stack([rows, rows], 1)}, mesh)
    with jax.set_mesh(mesh):
        cut = jax.jit(lambda batch: partition.microbatches(batch, 2))(batch)
    assert cut["x"].shape == (2, 16) and cut["y"].shape == (2, 16, 2)
    np.testing.assert_array_equal(np.sort(np.asarray(cut["x"]).ravel()), rows)
    before = {shard.device: set(np.asarray(shard.data).tolist()) for shard in batch["x"].addressable_shards}
    for shard in cut["x"].addressable_shards:
        assert set(np.asarray(shard.data).ravel().tolist()) == before[shard.device]


def test_one_process_reads_the_whole_batch():
    assert partition.reader(mesh_of(2, 2, 2)) == (0, 1)


@pytest.mark.parametrize(
    "shape, devices_each, wanted",
    [
        ((4, 1, 1), 2, (1, 2)),  # each of two processes reads half
        ((2, 1, 2), 2, (1, 2)),  # channels stay inside a process
        ((1, 1, 4), 2, (0, 1)),  # both share channels of the same rows
        ((2, 1, 4), 2, (0, 2)),  # of four processes, two and two read the same
    ],
)
def test_what_each_process_reads_of_a_batch(monkeypatch, shape, devices_each, wanted):
    """Seen from process 1."""
    assert partition.reader.__wrapped__(_of_processes(monkeypatch, shape, devices_each)) == wanted


def test_processes_that_share_some_rows_are_refused(monkeypatch):
    with pytest.raises(UserError, match="config.mesh: tensor = 3 cuts across the devices of 3 processes"):
        partition.reader.__wrapped__(_of_processes(monkeypatch, (2, 1, 3), 2))


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


def _of_processes(monkeypatch, shape, devices_each):
    """A mesh of which `devices_each` devices belong to a process, as far as `reader` looks."""
    devices = [Device(i // devices_each) for i in range(int(np.prod(shape)))]

    def indices(_):
        return {device: (slice(i // shape[2], i // shape[2] + 1),) for i, device in enumerate(devices)}

    monkeypatch.setattr(partition, "batch_sharding", lambda _: types.SimpleNamespace(devices_indices_map=indices))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    return types.SimpleNamespace(shape=dict(zip(partition.MESH_AXES, shape, strict=True)))


def test_the_table_names_large_parts_that_stayed_whole():
    mesh = mesh_of(2, 2, 2)
    tree = {"split": leaf(64, 64), "odd": leaf(63, 63), "small": leaf(4)}
    axes = {"split": ("fsdp", "tensor"), "odd": ("fsdp", "tensor"), "small": ("fsdp",)}
    placed = partition.shardings(tree, axes, "fsdp_tensor", mesh)
    text = partition.table({"params": (tree, placed), "table": (tree["odd"], placed["odd"])}, mesh)
    assert "mesh: data 2 × fsdp 2 × tensor 2" in text and "31.52 KiB in all" in text
    assert text.splitlines()[-1].endswith("replicated, each above 1% of the total: params/odd, table")


def test_an_activation_keeps_its_values_and_lies_as_it_is_told():
    mesh, x = mesh_of(2, 2, 2), jnp.arange(64.0).reshape(8, 8)
    assert partition.constrain(x, ("batch", "tensor")) is x  # without a mesh
    with jax.set_mesh(mesh):
        placed = jax.jit(lambda x: partition.constrain(x, ("batch", "tensor")))(x)
        assert partition.local_shape((8, 8), ("batch", "tensor")) == (2, 4)
        doubled = jax.jit(partition.on_each_device(lambda x: 2 * x, ("batch", None), ("batch", None)))(x)
    np.testing.assert_array_equal(placed, x)
    np.testing.assert_array_equal(doubled, 2 * x)
    assert placed.addressable_shards[0].data.shape == (2, 4)


def test_each_device_gets_its_part_of_several_arrays():
    mesh, x, y = mesh_of(2, 2, 2), jnp.arange(16.0).reshape(8, 2), jnp.arange(8.0)

    def function(x, y, scale):
        return scale * x, y + len(x)

    assert partition.batch_shards() == 1  # without a mesh
    with jax.set_mesh(mesh):
        assert partition.batch_shards() == 4
        spread = partition.on_each_device(
            function, (("batch", "tensor"), ("batch",), ()), (("batch", "tensor"), ("batch",))
        )
        scaled, counted = jax.jit(spread)(x, y, 3.0)
    np.testing.assert_array_equal(scaled, 3 * x)
    np.testing.assert_array_equal(counted, y + 2)
