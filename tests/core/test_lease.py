"""A run folder has one owner at a time, whatever happens to the processes that want it."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.core import lease
from mae_pp_jax.core.errors import RunStopped, UserError
from tests.conftest import ROOT, TINY_MAE, arguments
from tests.faults.conftest import files, finish, started, train_arguments, trained, until

# Holds the folder of its first argument and says how that went; signs of life and patience are shortened.
HOLDER = """
import pathlib, sys, time
from mae_pp_jax.core import lease
from mae_pp_jax.core.errors import RunStopped, UserError, line
lease.BEAT_SECONDS, lease.STALE_SECONDS = 0.1, {stale}
try:
    with lease.hold(pathlib.Path(sys.argv[1])) as check:
        print("held", flush=True)
        sys.stdin.readline()
        check()
except (UserError, RunStopped) as stop:
    print(line(stop), flush=True)
"""


class Holder:
    """A process that holds the lease of a folder until it is told to go."""

    def __init__(self, folder, stale=90.0):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER.format(stale=stale), str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def said(self) -> str:
        return self.process.stdout.readline().strip()

    def end(self) -> str:
        """Lets the holder go and returns what it still said."""
        out, _ = self.process.communicate("\n", timeout=60)
        return out.strip()


@pytest.fixture
def holders():
    made: list[Holder] = []

    def make(*args, **kwargs) -> Holder:
        made.append(Holder(*args, **kwargs))
        return made[-1]

    yield make
    for holder in made:
        holder.process.kill()
        holder.process.communicate()


def wait_for(happened, seconds=60):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def stopped(pid: int) -> bool:
    """Whether all threads of a process have stopped."""
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/stat")
    return all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)


def owner_file(folder, **changes) -> pathlib.Path:
    """The lease of an owner on another machine."""
    owner = dict(host="elsewhere", pid=7, machine="another", process_began="1", token="t", started=time.time())
    path = folder / "lease" / "4.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**owner, "beat": time.time(), **changes}))
    return path


def test_of_processes_that_race_one_wins_and_the_others_say_whose_it_is(holders, tmp_path):
    racers = [holders(tmp_path / "run") for _ in range(3)]
    said = {holder: holder.said() for holder in racers}
    winners = [holder for holder, line in said.items() if line == "held"]
    assert len(winners) == 1
    for holder, line in said.items():
        if holder not in winners:
            owner = winners[0].process.pid
            assert line.startswith(f"error: --workdir: {tmp_path / 'run'} is in use by process {owner}")
    assert winners[0].end() == ""
    assert not (tmp_path / "run").exists()  # nothing was written into it, so nothing is left


def test_a_killed_owner_loses_the_folder_at_once(holders, tmp_path):
    first = holders(tmp_path)
    assert first.said() == "held"
    first.process.kill()
    first.process.wait()
    assert (tmp_path / "lease" / "1.json").is_file()
    began = time.monotonic()
    with lease.hold(tmp_path):
        assert os.listdir(tmp_path / "lease") == ["2.json"]
    assert time.monotonic() - began < lease.STALE_SECONDS / 3
    assert os.listdir(tmp_path) == []


def test_a_process_number_that_another_process_has_by_now_is_no_owner(tmp_path):
    owner_file(tmp_path, machine=lease._machine(), pid=os.getpid(), process_began="0")
    with lease.hold(tmp_path):
        assert os.listdir(tmp_path / "lease") == ["5.json"]


def test_owners_on_other_machines(tmp_path, monkeypatch):
    path = owner_file(tmp_path, beat=time.time() - lease.STALE_SECONDS - 1)
    with lease.hold(tmp_path):
        assert not path.exists()
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    owner_file(tmp_path)  # was at work lately, and is not any more
    with lease.hold(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_an_owner_on_another_machine_that_is_at_work(holders, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "_machine", lambda: "yet another")
    holder = holders(tmp_path)
    assert holder.said() == "held"
    began = time.monotonic()
    with pytest.raises(UserError, match=f"in use by process {holder.process.pid} on "), lease.hold(tmp_path):
        pass
    assert time.monotonic() - began < lease.STALE_SECONDS / 3  # its next sign of life is enough
    assert holder.end() == ""


def test_a_damaged_lease_counts_by_its_age(tmp_path):
    path = owner_file(tmp_path)
    path.write_text("")
    os.utime(path, (0, 0))
    with lease.hold(tmp_path):
        assert os.listdir(tmp_path / "lease") == ["5.json"]


def test_a_paused_owner_that_wakes_after_a_takeover_writes_nothing_more(holders, tmp_path):
    paused = holders(tmp_path)
    assert paused.said() == "held"
    paused.process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    second = holders(tmp_path, stale=0.4)
    assert second.said() == "held"
    paused.process.send_signal(signal.SIGCONT)
    assert paused.end().startswith(f"stopped: {tmp_path} was taken over by process {second.process.pid}")
    assert second.end() == ""
    assert os.listdir(tmp_path) == []


def test_a_paused_owner_wakes_when_its_successor_is_done(holders, tmp_path):
    paused = holders(tmp_path)
    assert paused.said() == "held"
    paused.process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    second = holders(tmp_path, stale=0.4)
    assert second.said() == "held" and second.end() == ""
    paused.process.send_signal(signal.SIGCONT)
    assert "was given up or removed" in paused.end()
    assert os.listdir(tmp_path) == []


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    with lease.hold(tmp_path) as check:
        path = tmp_path / "lease" / "1.json"
        first = json.loads(path.read_text())["beat"]
        wait_for(lambda: json.loads(path.read_text())["beat"] > first)
        check()
        (tmp_path / "lease" / "2.json").write_text(json.dumps({"beat": 0.0}))
        with pytest.raises(RunStopped):
            check()
        (tmp_path / "lease" / "2.json").unlink()


def test_an_exception_gives_the_folder_free(tmp_path):
    with pytest.raises(ZeroDivisionError), lease.hold(tmp_path / "run"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_train_beside_train_ends_with_one_line_and_a_killed_one_resumes(tmp_path, capsys):
    folder = tmp_path / "run"
    command = ["train", f"--config={ROOT / 'configs/mae/digits.py'}", f"--workdir={folder}"]
    with started("mae", folder) as process:
        until(process, trained(folder, 9))
        process.send_signal(signal.SIGSTOP)  # so that its files stay as they are
        wait_for(lambda: stopped(process.pid))
        before = files(folder)
        assert main([*command, *arguments(TINY_MAE)]) == 2  # another config: refused for that
        assert "another config" in capsys.readouterr().err
        assert main(train_arguments("mae", folder)) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"error: --workdir: {folder} is in use by process {process.pid} on ")
        assert files(folder) == before
        process.kill()
        process.wait()
    finish("mae", folder)
    assert not (folder / "lease").exists()


def test_pipeline_beside_pipeline(holders, tmp_path, capsys):
    (tmp_path / "recipe.py").write_text(
        f"def get_config():\n  stage = dict(name='m', config={str(ROOT / 'configs/mae/digits.py')!r})\n"
        "  return dict(title='', data='', stages=[stage])\n"
    )
    holder = holders(tmp_path / "run")
    assert holder.said() == "held"
    command = ["pipeline", f"--config={tmp_path / 'recipe.py'}", f"--workdir={tmp_path / 'run'}"]
    assert main(command) == 2
    assert f"is in use by process {holder.process.pid}" in capsys.readouterr().err
    assert os.listdir(tmp_path / "run") == ["lease"]
