"""`plan` as a user runs it: for simulated devices everywhere, and for TPUs where their compiler is installed."""

import json
import subprocess
import sys

import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.planning import slices
from tests.conftest import RECIPES, ROOT, arguments, environment

KEYS = {
    *("fits", "hbm_bytes", "hbm_capacity_bytes", "model_flops", "op_cycle_seconds", "utilization_bound"),
    *("collectives", "compile_seconds"),
}
needs_libtpu = pytest.mark.skipif(not slices.libtpu_installed(), reason="the extra [tpu] is not installed")
# Facts of a data set that is not at hand.
ABSENT = ["--config.data.name=nowhere", "--config.declared.records=1000", "--config.declared.hashtags=40"]


def plan(stage: str, topology: str, *more: str) -> list[str]:
    config = ROOT / "configs" / stage / "digits.py"
    return ["plan", f"--config={config}", f"--topology={topology}", *arguments(RECIPES[stage]), *more]


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """What `plan` writes and prints of a stage on eight simulated devices, whose data set does not exist."""
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    command = plan("wsp", "cpu:8", "--config.mesh.fsdp=4", f"--json={file}", *ABSENT)
    done = subprocess.run(
        [sys.executable, "-m", "mae_pp_jax", *command], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


def test_json_has_the_promised_keys(figures):
    report, _ = figures
    assert set(report) >= KEYS
    assert set(report["hbm_bytes"]) >= {"params", "optimizer", "activations", "code", "total"}
    assert all(set(row) == {"kind", "bytes", "count"} for row in report["collectives"])


def test_figures_of_a_small_model(figures):
    report, _ = figures
    memory = report["hbm_bytes"]
    # Adam keeps two numbers a parameter; kernels lie on four devices, 8 · 16 · 16 of them and more.
    assert memory["optimizer"] == pytest.approx(2 * memory["params"], rel=0.01)
    assert 4 * 2 * 12 * 16 * 16 / 4 < memory["params"] < 4 * 2 * 12 * 16 * 16
    assert memory["total"] >= memory["params"] + memory["optimizer"] + memory["activations"]
    # Patches 4 × 4 of 8 × 8 pixels, five tokens; two blocks 16 wide; head of 40 hashtags; batch of 32; three passes.
    block = 2 * 5 * 16 * (4 * 16 + 2 * 5 + 2 * 64)
    assert report["model_flops"] == 3 * 32 * (2 * 4 * 48 * 16 + 2 * block + 2 * 16 * 40)


def test_parameters_over_fsdp_are_gathered_and_gradients_summed(figures):
    report, _ = figures
    assert {"all-gather", "all-reduce"} <= {row["kind"] for row in report["collectives"]}
    assert all(row["bytes"] > 0 and row["count"] > 0 for row in report["collectives"])


def test_cpus_have_no_cycles_and_it_is_said(figures):
    report, printed = figures
    assert report["op_cycle_seconds"] is None and report["utilization_bound"] is None
    assert report["fits"] is None and report["hbm_capacity_bytes"] is None
    assert "op cycles           none" in printed
    assert printed.startswith("cpu:8 (8 devices, data 2 × fsdp 4 × tensor 1): needs ")


@pytest.mark.parametrize(
    "topology, more, said",
    [
        ("v5q:4x4", [], "--topology: 'v5q:4x4' names no chip"),
        ("cpu:8", ["--config.mesh.fsdp=3"], "config.mesh: data × fsdp × tensor = -1 × 3 × 1 does not cover 8"),
        ("cpu:8", ["--config.global_batch=20"], "config.global_batch: 20 does not divide over 8 devices"),
        ("cpu:8", ["--config.modle.size=B/16"], "--config.modle.size: unknown key"),
        ("cpu:8", ["--search"], "--search: cpu:8 has no cycle estimates"),
    ],
)
def test_what_cannot_work_gets_one_line(topology, more, said, capsys):
    assert main(plan("wsp", topology, *more)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"error: {said}")


def test_absent_data_names_the_key_to_declare(capsys):
    assert main(plan("wsp", "cpu:8", *ABSENT[:2])) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "config.declared.hashtags" in error


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("stage", ["mae", "wsp"])
def test_a_slice_of_tpus(stage, tmp_path, capsys):
    file = tmp_path / "plan.json"
    assert main(plan(stage, "v5e:2x2", "--config.mesh.fsdp=2", f"--json={file}")) == 0
    report = json.loads(file.read_text())
    assert report["fits"] is True and report["hbm_bytes"]["total"] < report["hbm_capacity_bytes"]
    assert 0 < report["utilization_bound"] < 1
    assert report["op_cycle_seconds"] > report["model_flops"] / (4 * 197e12)
    assert report["collectives"] and not report["unread_loops"]
    assert "fits: " in capsys.readouterr().out.splitlines()[0]


@pytest.mark.slow
@needs_libtpu
def test_auto_means_the_dtype_of_the_slice_and_not_of_this_machine(tmp_path):
    cycles = {}
    for dtype in ("auto", "bfloat16", "float32"):
        file = tmp_path / f"{dtype}.json"
        assert main(plan("wsp", "v5e:1x1", f"--config.model.dtype={dtype}", f"--json={file}")) == 0
        cycles[dtype] = json.loads(file.read_text())["op_cycle_seconds"]
    # Of so small a model either may be the faster one.
    assert cycles["auto"] == cycles["bfloat16"] != cycles["float32"]


@pytest.mark.slow
@needs_libtpu
def test_too_large_a_model_is_a_result(tmp_path, capsys):
    file = tmp_path / "plan.json"
    assert main(plan("wsp", "v5e:1x1", "--config.model.width=65536", "--config.global_batch=1", f"--json={file}")) == 0
    report = json.loads(file.read_text())
    assert report["fits"] is False and report["hbm_bytes"]["total"] > report["hbm_capacity_bytes"]
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.slow
@needs_libtpu
def test_a_search_ends_with_overrides_and_goes_on_where_it_was(tmp_path, capsys):
    command = plan("wsp", "v5e:2x2", "--search", f"--search-file={tmp_path / 'search.jsonl'}")
    assert main(command) == 0
    first = capsys.readouterr().out
    assert first.splitlines()[-1].startswith("--config.mesh.data=4 --config.mesh.fsdp=1 --config.microbatches=1 ")
    tried = (tmp_path / "search.jsonl").read_text()
    assert main(command) == 0
    assert capsys.readouterr().out == first and (tmp_path / "search.jsonl").read_text() == tried


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:3x3", "v5p:5x5"])
def test_a_slice_that_does_not_exist(topology, capsys):
    assert main(plan("mae", topology)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{topology} is no slice" in error
