"""`pipeline`: runs stages in order, each from the weights of an earlier one, and reports."""

import argparse
import logging
import os
import time

import jax

from mae_pp_jax import reporting
from mae_pp_jax.commands import runs
from mae_pp_jax.commands.arguments import overrides as parse_overrides
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import handoff, hardware, hosts, lease, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import recognition
from mae_pp_jax.stages import registry
from mae_pp_jax.suites import config as suite_config
from mae_pp_jax.suites import entry as suite_entry
from mae_pp_jax.workers import pipeline_pool

log = logging.getLogger(__name__)

DESCRIPTION = """Runs the stages of a pipeline in order, each in WORKDIR/STAGE, then writes WORKDIR/report.html.
Finished stages are skipped and an interrupted one resumes: run the same command again.

example:
  python -m mae_pp_jax pipeline --config=configs/pipelines/demo.py --workdir=runs/demo
  python -m mae_pp_jax pipeline --config=configs/pipelines/demo.py:data=/my/photos --workdir=runs/photos

--config.STAGE.KEY=VALUE sets a key of one stage, such as --config.mae.train_for='20 epochs'."""

MOST_WORKERS = 4
STAGE_KEYS = {"name", "config", "overrides", "init_from", "report"}
SUITE_KEYS = {"name", "suite", "of", "overrides", "report"}


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "pipeline",
        help="run stages in order and report",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:args]", help="configs/pipelines/RECIPE.py[:name=value,…]"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of all stages")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="stages trained side by side; default: on CPUs one per core, at most 4, else 1",
    )
    hosts.add_arguments(parser)
    parser.set_defaults(run=run, takes_overrides=True)


def run(args, rest: list[str]) -> None:
    with hosts.together(args):
        pipeline(args.config, args.workdir, parse_overrides(rest), workers=args.workers)


def pipeline(
    config: str, workdir: str | os.PathLike, overrides: dict[str, str] | None = None, *, workers: int | None = None
) -> storage.Path:
    """Runs all stages and returns the path of the report.

    Args:
      config: `configs/pipelines/RECIPE.py[:args]`. Its `get_config` gives `title`, `data` and `stages`: a list of
        dicts with `name`, `config` (a config file, relative to the pipeline's), `overrides`, `init_from` (name of an
        earlier stage, or of one for each part) and `report` (which row and column of the table the stage fills). An
        entry with `suite` ("image") judges the run of the earlier stage `of`; its tasks are columns of the row
        that `report` names by `init`.
      workdir: folder of all stages.
      overrides: STAGE.KEY → text.
      workers: stages trained side by side in processes of their own; None: as many as suit the machine.

    Raises:
      UserError: before anything is trained, when any stage's config is wrong.
    """
    recognition.refuse_dataset(storage.path(workdir))
    hardware.enable_compilation_cache()
    plan = config_lib.load_file(config)
    folder = storage.path(workdir)
    here = storage.path(config.partition(".py:")[0], "--config").parent
    stages = _resolve(plan, folder, here, overrides or {})
    written = dict(
        name=folder.name,
        config=config,
        title=plan["title"],
        data=plan["data"],
        stages=[
            dict(
                name=name,
                stage=resolved.stage,
                init_from=entry.get("of", entry.get("init_from")),
                report=entry.get("report"),
            )
            for name, (entry, resolved) in stages.items()
        ],
    )
    workers = _default_workers() if workers is None else workers
    if workers > 1 and hosts.count() > 1:
        raise UserError("--workers: stages side by side need a run of one process; leave --workers out with several")
    if hosts.first():
        storage.check_writable(folder, "--workdir", folder=True)
    with lease.hold(folder):
        if hosts.first():
            storage.write_json(folder / "pipeline.json", written)
        began = time.monotonic()
        configs = {name: resolved for name, (_, resolved) in stages.items()}
        _locate(configs, folder)
        if workers > 1:
            pipeline_pool.train_all(configs, folder, workers, runs.locate)
        else:
            for index, (name, resolved) in enumerate(configs.items(), 1):
                log.info("[%d/%d] %s", index, len(configs), name)
                pipeline_pool.run_entry(resolved, folder / name, runs.locate)
        log.info("%d stages in %.0f s", len(configs), time.monotonic() - began)
        html = storage.Path(hosts.from_first(lambda: str(reporting.write(folder)[0])))
    log.info("report: %s", html)
    return html


def _locate(configs: dict, folder: storage.Path) -> None:
    """Gets the weights from elsewhere that stages start from, before the first one is trained."""
    own = {str(folder / name) for name in configs}
    trained = {name: config for name, config in configs.items() if hasattr(config, "init_from")}  # a suite has none
    for name, config in trained.items():
        finished = storage.is_file(folder / name / "result.json")
        for part, source in handoff.sources(config.init_from).items():
            if source.run not in own and not finished:
                runs.locate(source.run, f"{handoff.key_of(part)}.run")


def _default_workers() -> int:
    """One worker drives all accelerators; on CPUs small models gain from one process per core."""
    if jax.default_backend() != "cpu" or hosts.count() > 1:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores)


def _resolve(plan: dict, folder: storage.Path, here: storage.Path, overrides: dict[str, str]) -> dict:
    """Stage name → (entry, resolved config)."""
    stages: dict = {}
    planned: dict[str, dict] = {}
    given: dict[str, dict[str, str]] = {}
    names = [entry.get("name") for entry in plan.get("stages", ())]
    for dotted, text in overrides.items():
        name, _, key = dotted.partition(".")
        if name not in names or not key:
            raise UserError(
                f"--config.{dotted}: no stage '{name}'; write --config.STAGE.KEY=VALUE, stages: {', '.join(names)}"
            )
        given.setdefault(name, {})[key] = text
    for entry in plan.get("stages", ()):
        known = SUITE_KEYS if "suite" in entry else STAGE_KEYS
        if unknown := set(entry) - known:
            raise UserError(f"config.stages: unknown key '{min(unknown)}'; known: {', '.join(sorted(known))}")
        name, source = entry["name"], entry.get("init_from")
        if name in stages:
            raise UserError(f"config.stages: the name {name} is used twice")
        if "suite" in entry:
            stages[name] = (entry, _suite(entry, stages, folder, given.get(name)))
            continue
        mapping = config_lib.load_file(str(here / entry["config"]))
        mapping = config_lib.merge(mapping, entry.get("overrides", {}))
        for part, before in {"": source}.items() if isinstance(source, str) else (source or {}).items():
            if before not in stages:
                raise UserError(f"config.stages: {name} starts from '{before}', which is not a stage before it")
            run = {"run": str(folder / before)}
            mapping = config_lib.merge(mapping, {"init_from": {part: run} if part else run})
        try:
            resolved = runs.resolved(mapping, given.get(name), workdir=folder / name, planned=planned)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        stages[name], planned[str(folder / name)] = (entry, resolved), config_lib.to_dict(resolved)
    if not stages:
        raise UserError("config.stages: the pipeline has no stages")
    return stages


def _suite(entry: dict, stages: dict, folder: storage.Path, overrides: dict[str, str] | None) -> suite_entry.Entry:
    """An entry that judges the run of an earlier stage, resolved."""
    name, of = entry["name"], entry.get("of")
    if of not in stages or "suite" in stages[of][0]:
        raise UserError(f"config.stages: {name} judges '{of}', which is not a stage before it; name one in 'of'")
    run = stages[of][1]
    trained_on = registry.STAGES[run.stage].trained
    mapping = {**entry.get("overrides", {}), "suite": entry["suite"]}
    config = suite_config.for_run(config_lib.to_dict(run), trained_on, of, config_lib.merge({}, mapping), overrides)
    return suite_entry.Entry(str(folder / of), config)
