"""The launch scripts: what a dry run prints, and that a real run does just that.

No cloud or cluster can be had here, so gcloud, kubectl, sbatch and what runs on the machines they start are stand-ins
that note how they were called.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import jsonschema
import pytest
import yaml

from tests.conftest import ROOT

TRAIN = ["train", "--config=configs/mae/in1k.py:size=L/16", "--workdir=/mnt/shared/run", "--config.train_for=3 epochs"]
WHERE = ["--name=job", "--project=mine", "--zone=there", "--nfs=10.0.0.2:/runs"]
SCRIPTS = {
    "tpu_vm": [*WHERE, "--topology=v4:2x2x4"],
    "tpu_queued": [*WHERE, "--topology=v5p:4x4x8", "--repository=https://host/code", "--spot"],
    "slurm": ["--name=job", "--nodes=4", "--gpus=8", "--time=24:00:00"],
    "gke": ["--name=job", "--topology=v5e:8x8", "--image=registry/image", "--nfs=10.0.0.2:/runs"],
}
TEMPORARY = re.compile(r"(?<=mae_pp_jax\.)\w{8}(?=/)")  # what is random in the name of a private folder


def launch(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(ROOT / "launch" / f"{name}.sh"), *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def dry(name: str, *options: str) -> str:
    done = launch(name, *(options or SCRIPTS[name]), "--dry-run", *TRAIN)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tools(tmp_path):
    """A folder for PATH whose gcloud, kubectl and sbatch write their arguments, a JSON list a line, into `calls`."""
    for name in ("gcloud", "kubectl", "sbatch"):
        stub = tmp_path / name
        stub.write_text(
            f"#!{sys.executable}\nimport json, sys\n"
            f"open('{tmp_path}/calls', 'a').write(json.dumps(['{name}', *sys.argv[1:]]) + '\\n')\n"
        )
        stub.chmod(0o755)
    return tmp_path


def calls(tools: pathlib.Path) -> list[list[str]]:
    return [json.loads(line) for line in (tools / "calls").read_text().splitlines()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_dry_run_prints_what_a_run_calls(name, tools):
    printed = [
        words
        for line in dry(name).splitlines()
        if (words := shlex.split(line.removeprefix("# ")))[:1] in (["gcloud"], ["kubectl"], ["sbatch"])
    ]
    done = launch(name, *SCRIPTS[name], *TRAIN, PATH=f"{tools}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    called = [call for call in calls(tools) if "describe" not in call]
    assert [[TEMPORARY.sub("", word) for word in call] for call in called] == [
        [TEMPORARY.sub("", word) for word in call] for call in printed
    ]
    assert called


@pytest.mark.parametrize("name", SCRIPTS)
def test_files_on_the_way_are_private_and_gone_at_the_end(name, tools):
    """Nobody else can have made the folder they lie in, or guess its name, or read it."""
    folder = tools / "temporary"
    folder.mkdir()
    for tool in ("gcloud", "kubectl", "sbatch"):
        (tools / tool).write_text(f"#!/bin/sh\nls -l {folder} >> {tools}/seen\n")
    for _ in range(2):
        done = launch(name, *SCRIPTS[name], *TRAIN, PATH=f"{tools}:{os.environ['PATH']}", TMPDIR=str(folder))
        assert done.returncode == 0, done.stderr
        assert not any(folder.iterdir())
    made = set(re.findall(r"^(\S+) .* (\S+)$", (tools / "seen").read_text(), re.M))
    assert {rights for rights, _ in made} == {"drwx------"} and len(made) == 2


@pytest.mark.parametrize("name", [*SCRIPTS, "local"])
def test_a_dry_run_calls_nothing(name, tools):
    options = SCRIPTS.get(name, ["-n", "2"])
    done = launch(name, *options, "--dry-run", *TRAIN, PATH=f"{tools}:{os.environ['PATH']}", PYTHON="/no/python")
    assert done.returncode == 0 and not (tools / "calls").exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_argument_of_the_training_arrives_whole(name):
    text = dry(name)
    if name == "gke":
        assert manifest(text)["spec"]["template"]["spec"]["containers"][0]["args"][: len(TRAIN)] == TRAIN
        return
    (line,) = (line for line in text.splitlines() if "mae_pp_jax train" in line)
    words = shlex.split(line.removeprefix("# "))
    if name == "tpu_vm":  # the shell there reads it once more
        words = shlex.split(next(word for word in words if word.startswith("--command=")))
    start = words.index("train")
    assert words[start : start + len(TRAIN)] == TRAIN


@pytest.mark.parametrize(
    ("topology", "accelerator"),
    [("v4:2x2x4", "v4-32"), ("v5p:4x4x8", "v5p-256"), ("v5e:8x8", "v5litepod-64"), ("v6e:2x4", "v6e-8")],
)
def test_slices_by_their_name_at_google(topology, accelerator):
    for name in ("tpu_vm", "tpu_queued"):
        options = [option for option in SCRIPTS[name] if not option.startswith("--topology")]
        assert f"--accelerator-type={accelerator} " in dry(name, *options, f"--topology={topology}")


def test_slurm_starts_a_process_for_each_gpu_and_queues_a_preempted_job_again(tools):
    text = dry("slurm")
    for line in ("--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--requeue", "--time=24:00:00"):
        assert f"#SBATCH {line}\n" in text
    assert "#SBATCH --ntasks-per-node=1\n" in dry("slurm", "--name=job", "--gpus=0")
    script = tools / "job.sbatch"
    script.write_text(text.partition("\n")[2].rpartition("sbatch ")[0])
    for code, queued in ((75, True), (0, False), (3, False)):
        (tools / "srun").write_text(f"#!/bin/sh\nexit {code}\n")
        (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tools}/queued\n')
        (tools / "queued").unlink(missing_ok=True)
        for name in ("srun", "scontrol"):
            (tools / name).chmod(0o755)
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
        assert subprocess.run(["bash", str(script)], env=environment).returncode == code
        assert (tools / "queued").exists() == queued
        assert not queued or (tools / "queued").read_text() == "requeue 17\n"


def manifest(text: str) -> dict:
    """The JobSet that a dry run prints; its only job's specification when indexed by "spec"."""
    whole = next(iter(yaml.safe_load_all(text)))
    return {**whole, "whole": whole, "spec": whole["spec"]["replicatedJobs"][0]["template"]["spec"]}


def test_the_jobset_fits_its_definition():
    schema = json.loads((ROOT / "tests/launch/jobset.schema.json").read_text())
    found = manifest(dry("gke"))["whole"]
    jsonschema.Draft202012Validator(schema).validate(found)
    found["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimits"] = 0
    with pytest.raises(jsonschema.ValidationError, match="backoffLimits"):
        jsonschema.Draft202012Validator(schema).validate(found)


def test_the_jobset_takes_the_whole_slice():
    job = manifest(dry("gke"))["spec"]
    pod = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 16
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "8x8"
    assert pod["volumes"][0]["nfs"] == {"server": "10.0.0.2", "path": "/runs"}


@pytest.mark.parametrize(
    ("code", "action"),
    [(75, "RestartJobSetAndIgnoreMaxRestarts"), (2, "FailJobSet"), (3, "FailJobSet"), (137, "RestartJobSet")],
)
def test_what_the_jobset_does_after_an_exit_code(code, action):
    """Follows the rules as the Job and JobSet controllers document them: the first that matches decides."""
    found = manifest(dry("gke"))
    rules = [rule["onExitCodes"] for rule in found["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    if any(rule["operator"] == "In" and code in rule["values"] for rule in rules):
        reason = "PodFailurePolicy"
        message = f"Container train for pod default/job failed with exit code {code} matching FailJob rule at index 0"
    for rule in found["whole"]["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            assert rule["action"] == action
            return
    assert action == "RestartJobSet"  # what the controller does where no rule matches


def test_a_slice_that_was_taken_away_is_asked_for_again(tools):
    gcloud = (tools / "gcloud").read_text() + "if 'describe' in sys.argv: print('SUSPENDED')\n"
    (tools / "gcloud").write_text(gcloud)
    done = launch("tpu_queued", *SCRIPTS["tpu_queued"], *TRAIN, PATH=f"{tools}:{os.environ['PATH']}")
    assert done.returncode == 0
    assert [call[4] for call in calls(tools)] == ["describe", "delete", "create"]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        *((name, ["--nmae=job", *TRAIN], "--nmae=job: unknown option") for name in SCRIPTS),
        *((name, [], "give a verb") for name in SCRIPTS),
        *((name, TRAIN[:2], "--workdir") for name in SCRIPTS),
        *((name, ["--name=", *TRAIN], "--name") for name in SCRIPTS),
        *(
            (name, [*TRAIN, "--workdir=gs://b/run"], "--workdir: gs://b/run is no folder")
            for name in (*SCRIPTS, "local")
        ),
        *(
            (name, [*TRAIN, "--workdir=runs/a"], "--workdir: runs/a is not below")
            for name in SCRIPTS
            if name != "slurm"
        ),
        ("tpu_vm", ["--topology=v9:2x2", *TRAIN], "--topology: v9:2x2 is not a slice"),
        ("tpu_queued", ["--topology=v5p:4x4", *TRAIN], "--topology: a v5p slice has 3 sides"),
        ("gke", ["--topology=v5e:3x5", *TRAIN], "--topology: 3x5 is not made of whole hosts"),
        ("gke", ["--nfs=runs", *TRAIN], "--nfs: runs is not HOST:/FOLDER"),
        ("slurm", ["--nodes=few", *TRAIN], "--nodes: few is not a number"),
        ("local", ["-n", "0", *TRAIN], "-n: 0 is not a number of processes"),
        ("local", ["-n", "2", *TRAIN[:2]], "--workdir"),
    ],
)
def test_wrong_options_are_one_line(name, arguments, said, tools):
    done = launch(name, *SCRIPTS.get(name, []), *arguments, PATH=f"{tools}:{os.environ['PATH']}")
    assert done.returncode == 2 and not (tools / "calls").exists()
    assert done.stderr.startswith(f"error: {said}") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", [*SCRIPTS, "local"])
def test_help_shows_an_example_and_every_option(name):
    done = launch(name, "--help")
    script = (ROOT / "launch" / f"{name}.sh").read_text()
    assert done.returncode == 0 and f"launch/{name}.sh -" in done.stdout and "--dry-run" in done.stdout
    for option in re.findall(r'^options "([^"]*)"', script, re.M):
        for flag in option.split():
            assert f"--{flag.removesuffix('!')}" in done.stdout


def test_a_detached_command_goes_on_when_the_connection_is_cut_and_is_shown_again(tmp_path):
    wait = f"echo begun; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo done; exit 75"
    command = [str(ROOT / "launch/detached.sh"), str(tmp_path / "state"), "bash", "-c", wait]
    # Where the tests themselves run under nohup, children would ignore the signal.
    heard = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    heard = [sys.executable, "-c", heard, *command]
    first = subprocess.Popen(heard, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert first.stdout.readline() == "begun\n"
    os.killpg(first.pid, signal.SIGHUP)  # what a terminal that goes away sends
    first.communicate(timeout=60)
    (tmp_path / "go").touch()
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 75 and again.stdout == "begun\ndone\n"


def test_a_detached_command_that_was_killed_is_one_line(tmp_path):
    kill = "echo begun; kill -9 $PPID $$"  # the command, and the shell that would write its exit code
    command = [str(ROOT / "launch/detached.sh"), str(tmp_path / "state"), "bash", "-c", kill]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == "begun\n"
    assert done.stderr == "error: the command was killed before it ended; the same line starts it again\n"


def test_shellcheck_has_nothing_to_say():
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("needs shellcheck, of the extra 'test'")
    scripts = sorted(path.name for path in (ROOT / "launch").glob("*.sh"))
    done = subprocess.run([shellcheck, "-x", *scripts], cwd=ROOT / "launch", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_colab_cell_names_what_is_there():
    cell = re.search(r"```python\n(.*?)```", (ROOT / "launch/colab.md").read_text(), re.S)[1]
    for config in re.findall(r"--config=(\S+)", cell):
        assert (ROOT / config).is_file()
    compile("\n".join("pass" if line[:1] in "!%" else line for line in cell.splitlines()), "cell", "exec")
