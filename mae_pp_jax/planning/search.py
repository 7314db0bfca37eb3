"""Tries meshes, microbatches and rematerialisation policies on a TPU slice, one compilation each; resumable."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Mapping

import tqdm

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import console, storage
from mae_pp_jax.core.errors import RunStopped, UserError
from mae_pp_jax.planning import candidates, slices
from mae_pp_jax.planning.candidates import Candidate
from mae_pp_jax.planning.report import gib

POLL_SECONDS = 0.2

log = logging.getLogger(__name__)

FOLDER = storage.Path("runs/plan")  # of searches that are given no file


class Journal:
    """What was compiled so far: a file of JSON lines, appended to as each candidate is done.

    A line counts only for the same config, slice, code and compiler.

    Args:
      path: the file; None: one of its own in `runs/plan/` for each such question.
      config: the resolved config, nested dict.
      chosen: the slice.
    """

    def __init__(self, path: storage.Path | None, config: Mapping, chosen: slices.Slice):
        fixed = config_lib.merge(config, Candidate(0, 0, 0, "").overrides())
        asked = json.dumps([fixed, chosen.name, _versions()], sort_keys=True)
        self._question = hashlib.sha256(asked.encode()).hexdigest()[:12]
        name = f"{config['stage']}_{chosen.name.replace(':', '-').replace('*', 'x')}_{self._question}.jsonl"
        self.path = path or FOLDER / name

    def read(self) -> dict[Candidate, dict]:
        """Candidate → report of this very question; lines of other questions, and a torn last line, are left out."""
        done = {}
        for line in storage.read_text(self.path).splitlines() if storage.is_file(self.path) else ():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if row["question"] == self._question:
                    done[Candidate(**row["candidate"])] = row["report"]
        return done

    def add(self, candidate: Candidate, report: dict) -> None:
        """Appends a finished candidate.

        Raises:
          UserError: the file cannot be written.
        """
        row = dict(question=self._question, candidate=vars(candidate), report=report)
        with storage.writing(self.path, "--search-file"):
            storage.make_folder(self.path.parent)
            whole = not storage.is_file(self.path) or storage.read_bytes(self.path)[-1:] in (b"", b"\n")
            with storage.appending(self.path) as file:
                file.write(("" if whole else "\n") + json.dumps(row) + "\n")


def search(
    config: Mapping, chosen: slices.Slice, space: candidates.Space, journal: Journal, jobs: int, compilation: Callable
) -> dict:
    """Compiles candidates until none is left that may be better, and returns {candidate: report}.

    Args:
      config: the resolved config, nested dict.
      chosen: the slice.
      space: what may be tried.
      journal: what was tried before, and where to write on.
      jobs: compilations at once.
      compilation: (config, slice) → a compilation under way, as `workers.compilation.Compilation`.
    """
    done = {c: report for c, report in journal.read().items() if c in space.candidates}
    if done:
        log.info("%d candidates were compiled before, as %s says", len(done), journal.path)
    running = {}
    with contextlib.ExitStack() as cleanup, _Progress(space, done) as progress:
        while running or space.next(done):
            while len(running) < jobs and (candidate := space.next(done, list(running))):
                work = compilation(config_lib.merge(config, candidate.overrides()), chosen)
                running[candidate] = cleanup.enter_context(work)
            for candidate in [c for c, work in running.items() if work.done]:
                try:
                    done[candidate] = running.pop(candidate).report()
                    journal.add(candidate, done[candidate])
                except RunStopped as stop:  # tells nothing about others, and is tried again by the next search
                    done[candidate] = dict(fits=None, failed=str(stop), compile_seconds=0.0)
                progress.finished(candidate, done)
            progress.show(done, running)
            time.sleep(POLL_SECONDS)
    return done


def lines(space: candidates.Space, done: Mapping[Candidate, dict], journal: Journal) -> list[str]:
    """The table of all that was tried and the best as overrides to paste."""
    out = ["data × fsdp  microbatches  remat     HBM per device          op cycles  utilisation"]
    order = {candidate: i for i, candidate in enumerate(space.candidates)}
    out += [_row(c, done[c], space) for c in sorted(done, key=order.get)]
    best = space.best(done)
    out += ["", f"{len(done)} compiled, {len(space.candidates) - len(done)} ruled out by them; kept in {journal.path}"]
    if best is None:
        return [*out, "nothing that was tried fits with 10% of HBM to spare; use a larger slice or a smaller batch"]
    return [*out, "the best that fits:", overrides_text(best)]


def overrides_text(candidate: Candidate) -> str:
    """A candidate as arguments of `train` and `plan`."""
    return " ".join(f"--config.{name}={value}" for name, value in candidate.overrides().items())


def check(chosen: slices.Slice, space: candidates.Space, global_batch: int) -> None:
    """Raises `UserError` where there is nothing to search."""
    if not space.candidates:
        raise UserError(
            f"config.global_batch: {global_batch} does not divide over the devices of {chosen.name}; "
            f"use a multiple of {chosen.devices}"
        )


def _row(candidate: Candidate, report: dict, space: candidates.Space) -> str:
    tried = f"{candidate.data:>4} × {candidate.fsdp:<4}  {candidate.microbatches:>12}  {candidate.remat:<8}  "
    if "failed" in report:
        return tried + report["failed"]
    total, capacity = report["hbm_bytes"]["total"], report["hbm_capacity_bytes"]
    share = f"{total / capacity:4.0%}" if capacity else "   –"
    fits = "fits" if space.fits(report) else "above 90%" if report["fits"] else "does not fit"
    seconds = report["op_cycle_seconds"]
    speed = f"{seconds:8.4f} s  {report['utilization_bound']:10.1%}" if seconds else "       –            –"
    return f"{tried}{gib(total):>10} {share} {fits:<12} {speed}"


def _versions() -> list[str]:
    """What a compilation depends on beside the config: the compiler's versions, and our code that is compiled."""
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    code = hashlib.sha256()
    package = storage.Path(__file__).parents[1]
    parts = ("core", "models", "ops", "stages")
    names = [f"{part}/{name}" for part in parts for name in storage.files(package / part) if name.endswith(".py")]
    for name in [*names, "data/augment.py"]:
        code.update(storage.read_bytes(package / name))
    return [code.hexdigest(), *(f"{name} {found.get(name)}" for name in ("jax", "jaxlib", "libtpu", "flax"))]


class _Progress:
    """A bar with the time left on a terminal, a line per candidate elsewhere. What is left is at most what is shown."""

    def __init__(self, space: candidates.Space, done: Mapping[Candidate, dict]):
        self._space, self._seconds = space, []
        self._bar = tqdm.tqdm(
            total=len(done) + len(space.open(done)),
            initial=len(done),
            bar_format="{n}/{total}|{bar}| {desc} [{elapsed}]",
            disable=not console.on_terminal(),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def finished(self, candidate: Candidate, done: Mapping[Candidate, dict]) -> None:
        self._seconds.append(done[candidate]["compile_seconds"])
        log.info("%s", _row(candidate, done[candidate], self._space))

    def show(self, done: Mapping[Candidate, dict], running: Mapping) -> None:
        left = len(self._space.open(done))
        self._bar.total, self._bar.n = len(done) + left, len(done)
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else None
        share = left / max(1, len(running))
        gone = max((time.monotonic() - work.began for work in running.values()), default=0.0)
        about = "…" if mean is None else f"at most {max(0.0, share * mean - gone) / 60:.0f} min"
        self._bar.set_description_str(f"{', '.join(map(_short, running))}; {about} left")


def _short(candidate: Candidate) -> str:
    return f"{candidate.data}×{candidate.fsdp} /{candidate.microbatches} {candidate.remat}"
