"""What must be the same when a run goes on, and what is noted when it does."""

import logging

from mae_pp_jax.core import handoff, lineage, run_folder, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.core.stage import Stage

log = logging.getLogger(__name__)


def resumed(meta: dict, step: int, revision: str, frozen: str) -> dict:
    """The meta of a run that goes on: the code that it goes on with beside the code before, references as wished."""
    known = meta.get("revisions") or [{"step": 0, "revision": meta["revision"]}]  # older runs noted the first alone
    if known[-1]["revision"] != revision:
        known = [*known, {"step": step, "revision": revision}]
    if frozen == "copy":
        meta = {name: value for name, value in meta.items() if name != "frozen"}  # it is all in memory by now
    elif frozen == "reference" and "frozen" not in meta:
        log.info("config.checkpoint.frozen: this run was started with copies, and goes on with them")
    return {**meta, "revision": revision, "revisions": known}


def finished(folder: run_folder.RunFolder, stage: Stage) -> dict | None:
    """The result of a finished run, if it is that of this stage on the same data and from the same weights."""
    result = folder.result()
    if result is not None:
        if folder.renamed:
            check_same(result, stage.dataset, stage, folder)
        log.info("%s is finished; result.json holds its result", folder.path)
    return result


def check_same(record: dict, dataset: dict, stage: Stage, folder: run_folder.RunFolder) -> None:
    """Refuses to go on with other data, or with a run that started from other weights, than a run's record has."""
    _same_dataset(record["dataset"], dataset, folder)
    if folder.renamed:
        _same_sources(record, stage, folder)
        log.info("config: the same under other names: %s", "; ".join(folder.renamed))


def _same_dataset(saved: dict, now: dict, folder: run_folder.RunFolder) -> None:
    """Refuses other data; what only one of the two states (older code, a new evaluation set) is not compared.

    The name is not either: the same data may lie elsewhere by now, or be named by another path.
    """
    name, saved, now = now.get("name"), _unnamed(saved), _unnamed(now)
    if changes := ", ".join(f"{k} was {v}, is {now[k]}" for k, v in saved.items() if k in now and now[k] != v):
        raise UserError(
            f"config.data.name: {name} is not the data that {folder.path} was trained on ({changes}); "
            "restore the data or choose another --workdir"
        )


def _unnamed(dataset: dict) -> dict:
    """Path → value of what tells a dataset from others, without names."""
    return {path: value for path, value in flatten(dataset).items() if path.rpartition("/")[2] != "name"}


def _same_sources(record: dict, stage: Stage, folder: run_folder.RunFolder) -> None:
    """Refuses a run named in `init_from` that is another one than the weights came from.

    Args:
      record: of the run, with its `lineage` and `parents`.
      stage: of today, with its config.
      folder: of the run.
    """
    named, parents = (
        handoff.sources(stage.config.init_from),
        lineage.parents_of(record["lineage"], record.get("parents")),
    )
    for part in {**named, **parents}:
        field = handoff.key_of(part)
        before = record["lineage"][parents[part]] if part in parents else None
        now = named.get(part)
        if before and now:
            here = storage.absolute(before["run"]) == storage.absolute(now.run)
            if here or handoff.is_same(before, now, field, stage.locate):
                continue
        raise UserError(
            f"{field}.run: {now.run if now else 'no run'} is not what {folder.path} started from "
            f"({before['run'] if before else 'random weights'}); name that run where it lies now, or choose another "
            "--workdir"
        )
