"""What a search tries: sane meshes, nothing that earlier compilations rule out, and still the best of all."""

import itertools
import json

import pytest

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.planning import candidates, search, slices
from mae_pp_jax.planning.candidates import Candidate
from mae_pp_jax.stages import registry
from mae_pp_jax.workers import compilation
from tests.conftest import ROOT, TINY

GIB = 2**30
POLICIES = ("none", "full", "dots")  # as a config lists them: not in the order of their cost


def outline(parameters: float, global_batch: int, fsdp_sizes: list[int]) -> dict:
    """A model of so many parameters with Adam, in float32."""
    return dict(
        params_bytes=4 * parameters, state_bytes=12 * parameters, global_batch=global_batch, fsdp_sizes=fsdp_sizes
    )


def compiled(
    space: candidates.Space, candidate: Candidate, image_bytes: float, dots: float = 1.02, piece: float = 0.05
) -> dict:
    """What a compiler would say if activations grew with the images of a microbatch, and recomputing cost time."""
    weight, time = {"none": (10, 1.0), "dots": (4, dots), "full": (1, 1.3)}[candidate.remat]
    held = (space.state_bytes + space.gradient_bytes) / candidate.fsdp
    total = held + weight * image_bytes * space.images / candidate.microbatches
    return dict(
        fits=total <= space.limit / 0.9,
        hbm_bytes=dict(total=total),
        hbm_capacity_bytes=space.limit / 0.9,
        op_cycle_seconds=time + piece * candidate.microbatches,
        utilization_bound=0.5,
        compile_seconds=60.0,
        collectives=[dict(kind="all-gather", bytes=1000 * candidate.fsdp, count=1)],
    )


def searched(space: candidates.Space, image_bytes: float, *times: float) -> dict[Candidate, dict]:
    done: dict[Candidate, dict] = {}
    while candidate := space.next(done):
        done[candidate] = compiled(space, candidate, image_bytes, *times)
    return done


# Recomputing a part costs time, or saves that of writing and reading; and so do smaller pieces.
@pytest.mark.parametrize(("dots", "piece"), [(1.02, 0.05), (0.96, 0.05), (0.96, -0.02)])
@pytest.mark.parametrize("mib", [1, 20, 60, 150, 400, 3000])
def test_few_compilations_find_one_within_two_percent_of_the_best(mib, dots, piece):
    chosen = slices.parse("v5e:16x16")
    space = candidates.space(chosen, outline(2e9, 64 * 256, [1, 2, 4, 8, 16, 32, 64, 128, 256]), POLICIES, tensor=1)
    done = searched(space, mib * 2**20, dots, piece)
    everything = {c: compiled(space, c, mib * 2**20, dots, piece) for c in space.candidates}
    found, best = space.best(done), space.best(everything)
    assert (found is None) == (best is None) == (mib == 3000)
    assert found is None or done[found]["op_cycle_seconds"] <= 1.021 * everything[best]["op_cycle_seconds"]
    assert len(done) < len(space.candidates) / 2


def test_meshes_hold_the_state_and_avoid_three_torus_axes():
    # 12 + 4 bytes a parameter: 104 GB, in half of 95.74 GiB a chip from 4 chips on; 128 would take all three axes.
    sizes = candidates.fsdp_sizes(slices.parse("v5p:4x4x8"), outline(6.5e9, 2048, [1, 4, 8, 16, 32, 128]))
    assert sizes == [4, 8, 16, 32]


def test_shards_do_not_become_tiny():
    sizes = candidates.fsdp_sizes(slices.parse("v5e:8x8"), outline(22e6, 4096, [1, 2, 4, 8, 16, 32, 64]))
    assert sizes == [1, 2, 4, 8]  # 88 MB of parameters: over 16 chips less than 8 MiB each


def test_a_model_that_no_mesh_holds_is_still_tried_on_the_largest():
    sizes = candidates.fsdp_sizes(slices.parse("v5e:2x2"), outline(6.5e9, 64, [1, 2, 4]))
    assert sizes == [4]


def test_microbatches_divide_the_batch_and_leave_enough_images():
    space = candidates.space(slices.parse("v5e:2x2"), outline(1e8, 4 * 48, [1, 2, 4]), POLICIES, tensor=1)
    assert sorted({c.microbatches for c in space.candidates}) == [1, 2, 4]  # 48, 24, 12 images; 16 does not divide 8


def test_a_batch_that_does_not_split_has_no_candidates():
    space = candidates.space(slices.parse("v5e:2x2"), outline(1e8, 30, [1, 2, 4]), POLICIES, tensor=1)
    assert space.candidates == [] and space.best({}) is None


def test_among_equals_the_fewest_bytes_between_devices_win():
    space = candidates.space(slices.parse("v5e:8x8"), outline(3e8, 4096, [8, 16]), POLICIES, tensor=1)
    done = {c: compiled(space, c, 2**20) for c in space.candidates}
    assert space.best(done) == Candidate(data=8, fsdp=8, microbatches=1, remat="none")


def test_several_jobs_never_get_the_same_candidate():
    space = candidates.space(slices.parse("v5e:8x8"), outline(3e8, 4096, [8, 16]), POLICIES, tensor=1)
    running = []
    while candidate := space.next({}, running):
        running.append(candidate)
    assert len(running) == len(set(running)) == len(space.candidates)


def test_the_journal_survives_a_torn_line_and_knows_its_question(tmp_path):
    config, chosen = {"stage": "wsp", "seed": 0}, slices.parse("v5e:8x8")
    file = tmp_path / "deep" / "search.jsonl"
    first, second = Candidate(8, 8, 1, "none"), Candidate(8, 8, 2, "none")
    search.Journal(file, config, chosen).add(first, {"fits": False})
    with file.open("a") as out:
        out.write('{"question": "torn')
    search.Journal(file, config, chosen).add(second, {"fits": True})
    assert search.Journal(file, config, chosen).read() == {first: {"fits": False}, second: {"fits": True}}
    for other, where in itertools.product(({"stage": "wsp", "seed": 1}, config), ("v5e:8x8", "v5e:4x4")):
        if (other, where) != (config, "v5e:8x8"):
            assert search.Journal(file, other, slices.parse(where)).read() == {}


def test_the_journals_question_ignores_what_is_searched(tmp_path):
    chosen, one = slices.parse("v5e:8x8"), Candidate(8, 8, 4, "dots")
    base = {
        "stage": "wsp",
        "microbatches": 1,
        "mesh": {"data": -1, "fsdp": 1},
        "model": {"remat": "none", "size": "B/16"},
    }
    file = tmp_path / "search.jsonl"
    search.Journal(file, base, chosen).add(one, {})
    changed = json.loads(json.dumps(base)) | {"microbatches": 8}
    assert one in search.Journal(file, changed, chosen).read()


def test_a_compiler_that_died_rules_nothing_out():
    space = candidates.space(slices.parse("v5e:8x8"), outline(3e8, 4096, [8]), POLICIES, tensor=1)
    died = {space.candidates[0]: dict(fits=None, failed="the compiler was killed")}
    assert len(space.open(died)) == len(space.candidates) - 1 and space.best(died) is None


def test_the_table_ends_with_the_best(tmp_path):
    chosen = slices.parse("v5e:8x8")
    space = candidates.space(chosen, outline(3e8, 4096, [8, 16]), POLICIES, tensor=1)
    done = searched(space, 40 * 2**20)
    done[space.candidates[-1]] = dict(fits=None, failed="the compiler was killed")
    table = search.lines(space, done, search.Journal(tmp_path / "search.jsonl", {"stage": "wsp"}, chosen))
    assert table[-1] == search.overrides_text(space.best(done))
    assert sum(" × " in line and "%" in line for line in table) == len(done) - 1
    assert any("does not fit" in line for line in table) and any("was killed" in line for line in table)
    assert "larger slice" in search.lines(space, {}, search.Journal(None, {"stage": "wsp"}, chosen))[-1]


@pytest.mark.slow
def test_a_search_compiles_side_by_side_and_goes_on_where_it_was(tmp_path):
    """On simulated devices, whose reports say neither fit nor speed, so that nothing is ruled out."""
    config = config_lib.to_dict(registry.resolve(config_lib.load_file(str(ROOT / "configs/wsp/digits.py")), TINY))
    chosen = slices.parse("cpu:2")
    space = candidates.Space(
        [Candidate(2, 1, 1, "none"), Candidate(1, 2, 2, "full")], ["none", "full"], 16, 1000, 1000, limit=1e9
    )
    journal = search.Journal(tmp_path / "search.jsonl", config, chosen)
    done = search.search(config, chosen, space, journal, 2, compilation.Compilation)
    assert {(c.fsdp, report["mesh"]["fsdp"]) for c, report in done.items()} == {(1, 1), (2, 2)}
    written = journal.path.read_text()
    assert search.search(config, chosen, space, journal, 2, compilation.Compilation) == done
    assert journal.path.read_text() == written


def test_overrides_are_ready_to_paste():
    text = search.overrides_text(Candidate(4, 32, 2, "dots"))
    assert text == ("--config.mesh.data=4 --config.mesh.fsdp=32 --config.microbatches=2 --config.model.remat=dots")
