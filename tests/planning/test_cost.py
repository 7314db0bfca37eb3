"""Trip counts, cycles, charges and collectives of a program that the TPU compiler made (`make_sample.py`).

The expected figures were worked out by hand from the sample's source and text: three layers, in each five products.
"""

import pathlib

import pytest

from mae_pp_jax.core.hardware import CHIPS
from mae_pp_jax.planning import cost, hlo

TEXT = (pathlib.Path(__file__).parent / "sample_v5e_2x2.hlo").read_text()
V5E = CHIPS["TPU v5 lite"]


@pytest.fixture(scope="module")
def module():
    return hlo.parse(TEXT)


@pytest.fixture(scope="module")
def measured(module):
    return cost.measure(module, V5E)


def named(found: cost.Cost, name: str) -> cost.Operation:
    return next(operation for operation in found.operations if operation.name.startswith(name))


def test_trip_counts_are_read_from_the_loops(module):
    trips = {
        module.trips(computation, instruction)
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "while"
    }
    assert trips == {3, 5}


def test_an_operation_in_a_nested_loop_counts_every_execution(measured):
    product = named(measured, "convolution_tanh_fusion")
    assert (product.count, product.estimated) == (15, True)
    assert product.seconds == pytest.approx(15 * 2450 / 1.5e9)
    assert measured.unread_loops == []


def test_all_seconds_are_the_sum_of_estimates_and_charges(measured):
    # Cycles × executions of the six operations with an estimate, read off the text.
    estimated = [(2239, 3), (2450, 15), (2098, 15), (2239, 1), (1824, 1)]
    by_hand = sum(cycles * times for cycles, times in estimated) / 1.5e9
    assert sum(o.seconds for o in measured.operations if o.estimated) == pytest.approx(by_hand)
    assert measured.seconds == pytest.approx(by_hand + sum(o.seconds for o in measured.operations if not o.estimated))


def test_a_kernel_is_charged_double_by_its_stated_cost(measured):
    kernel = named(measured, "said")
    assert not kernel.estimated
    assert kernel.flops == 2 * 128 * 256 * 256
    assert kernel.seconds == pytest.approx(2 * max(2 * 128 * 256 * 256 / V5E.flops, 4 * 512 * 256 / V5E.bandwidth))


def test_a_kernel_that_states_nothing_is_charged_its_bytes_and_marked(measured):
    kernel = named(measured, "silent")
    assert kernel.flops is None
    assert kernel.bytes == 2 * 128 * 256 * 2  # reads and writes [128, 256] bf16
    assert kernel.seconds == pytest.approx(2 * kernel.bytes / V5E.bandwidth)


def test_flops_counted_from_a_kernels_source_are_charged(module):
    kernel = named(cost.measure(module, V5E, {((128, 256), (128, 256)): 1e9}), "silent")
    assert kernel.seconds == pytest.approx(2 * 1e9 / V5E.flops)


def test_a_kernel_that_states_too_little_is_charged_what_its_source_does(module):
    kernel = named(cost.measure(module, V5E, {((128, 256), (128, 256)): 1e9}), "said")
    assert kernel.seconds == pytest.approx(2 * 1e9 / V5E.flops)


def test_a_kernel_inside_a_fusion_with_an_estimate_is_charged_too():
    text = """HloModule m

%f (p: bf16[128,256]) -> bf16[128,256] {
  %p = bf16[128,256]{1,0} parameter(0)
  ROOT %k = bf16[128,256]{1,0} custom-call(%p), custom_call_target="tpu_custom_call"
}

ENTRY %main (x: bf16[128,256]) -> bf16[128,256] {
  %x = bf16[128,256]{1,0} parameter(0)
  ROOT %c = bf16[128,256]{1,0} fusion(%x), kind=kCustom, calls=%f, backend_config={"estimated_cycles":"10"}
}
"""
    found = cost.measure(hlo.parse(text), V5E)
    assert found.seconds == pytest.approx(10 / V5E.clock + 2 * (2 * 128 * 256 * 2) / V5E.bandwidth)


def test_a_sort_is_charged_and_listed(measured):
    sort = named(measured, "sort")
    assert not sort.estimated
    assert sort.bytes == 2 * (512 * 4 + 512 * 4)  # values and indices, read and written
    assert sort.seconds == pytest.approx(2 * sort.bytes / V5E.bandwidth)


def test_collectives_by_kind_with_bytes_and_executions(measured):
    gathers = sorted((c.count, c.bytes) for c in measured.collectives)
    assert {c.kind for c in measured.collectives} == {"all-gather"}
    # One result of the sums on all four devices, and the whole weights of a layer for each of its five products.
    assert gathers == [(1, 512 * 4), (15, 15 * 256 * 256 * 2)]


def test_a_transfer_spread_over_several_fusions_counts_once():
    # A started gather, two products beside it and its end all hold the same gather in the compiler's text.
    one = """\
  %g{i} = bf16[256,256]{{1,0}} all-gather(%p{i}), channel_id=7, dimensions={{0}}, frontend_attributes={{chain_id="3"}}
"""
    fused = "".join(
        f"%f{i} (p{i}: bf16[128,256]) -> bf16[256,256] {{\n  %p{i} = bf16[128,256]{{1,0}} parameter(0)\n"
        f"{one.format(i=i)}  ROOT %r{i} = bf16[256,256]{{1,0}} bitcast(%g{i})\n}}\n\n"
        for i in range(3)
    )
    calls = "".join(
        f"  {'ROOT ' if i == 2 else ''}%c{i} = bf16[256,256]{{1,0}} fusion(%x), kind=kCustom, calls=%f{i}\n"
        for i in range(3)
    )
    text = f"HloModule m\n\n{fused}ENTRY %main (x: bf16[128,256]) -> bf16[256,256] {{\n"
    text += f"  %x = bf16[128,256]{{1,0}} parameter(0)\n{calls}}}\n"
    found = cost.measure(hlo.parse(text), V5E)
    assert [(c.kind, c.count, c.bytes) for c in found.collectives] == [("all-gather", 1, 256 * 256 * 2)]
    assert found.seconds == 0  # transfers between chips are left out


def test_operations_are_placed_in_the_functions_of_the_model(module):
    product = next(
        i
        for c in module.computations.values()
        for i in c.instructions.values()
        if i.name.startswith("convolution_tanh")
    )
    assert cost.where(module, product) == "dot_general"
    ours = hlo.parse(TEXT.replace('"tests/planning/make_sample.py"', '"/anywhere/mae_pp_jax/models/blocks.py"'))
    assert cost.where(ours, product) == "<module>/main/program.layer.<lambda>"


def test_a_loop_that_cannot_be_read_is_named():
    endless = TEXT.replace("direction=LT", "direction=EQ")
    assert len(cost.measure(hlo.parse(endless), V5E).unread_loops) == 2


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule nothing\n")
