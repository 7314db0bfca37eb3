"""`evaluate --suite`: judges checkpoints by a suite of tasks and writes one table of them."""

import functools
import logging

from mae_pp_jax.commands import runs
from mae_pp_jax.commands.measuring import evaluate
from mae_pp_jax.core import checkpoint, hardware, hosts, storage
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.reporting import suite_table
from mae_pp_jax.suites import image, published
from mae_pp_jax.suites.config import SuiteConfig

log = logging.getLogger(__name__)


def run(args, overrides: dict[str, str]) -> None:
    """What `evaluate --suite` does with its command line; `overrides` are dotted key of the suite → text."""
    if args.evaluators:
        raise UserError("--evaluators: names sets of a run, and --suite has tasks; use --evals=linear,knn,…")
    if args.keys:
        stated = config_lib.resolve(SuiteConfig, {}, overrides)
        print("\n".join(config_lib.describe(SuiteConfig, config_lib.to_dict(stated))))
        return
    if not args.workdir:
        raise UserError("--workdir: give folders of runs, such as --workdir=runs/mae,runs/wsp")
    with hosts.together(args):
        found = evaluate_suite(args.workdir.split(","), args.evals, args.data, overrides, args.out)
        print(suite_table.markdown(found["table"]), end="")


def evaluate_suite(
    workdirs: list[str],
    evals: str | None = None,
    data: str | None = None,
    overrides: dict[str, str] | None = None,
    out: str | None = None,
) -> dict:
    """Judges runs by the suite `image`; also written as `image.json`, `image.md` and `image.png`.

    Args:
      workdirs: folders of runs, released names or files of weights; see `runs.locate`.
      evals: what is measured, separated by commas; None: all.
      data: the labelled dataset; None: each run's own training data.
      overrides: dotted key of the suite → text.
      out: folder of the table; None: `suites/` in the first run, or see `runs.results`.

    Returns:
      The content of the JSON file: `results`, one for each run, and `table`.

    Raises:
      UserError: a run, dataset or key that there is not.
    """
    if hosts.count() > 1:
        raise UserError("--suite: needs a command of one process; start it on one host")
    hardware.enable_compilation_cache()
    stated = {"data": {"name": data}} if data else {}
    if evals:
        stated["evals"] = tuple(evals.split(","))
    folders = [runs.locate(workdir, "--workdir") for workdir in workdirs]
    for run in folders:
        checkpoint.find(run, field="--workdir")
    places = [runs.results(workdir, run) for workdir, run in zip(workdirs, folders, strict=True)]
    folder = storage.path(out, "--out") if out else places[0] / "suites"
    storage.check_writable(folder, "--out" if out else "--workdir", folder=True)
    configs = [image.config_for(run, stated, overrides) for run in folders]  # all, before any work
    results = []
    for run, config, place in zip(folders, configs, places, strict=True):
        log.info("judging %s", run)
        robustness = functools.partial(_robustness, run, place)
        results.append(image.judge(run, config, robustness, place=place))
    table = suite_table.build(results, published.beside(results))
    content = dict(suite="image", results=results, table=table)
    storage.make_folder(folder)
    storage.write_json(folder / "image.json", content)
    storage.write_whole(folder / "image.md", suite_table.markdown(table))
    storage.write_whole(folder / "image.png", suite_table.picture(table))
    log.info("wrote %s", folder / "image.{json,md,png}")
    return content


def _robustness(run: storage.Path, place: storage.Path, sets: dict[str, dict]) -> list[image.Column]:
    """A classifier on the evaluation sets of its own config and on `sets` (name → keys); absent ones are said."""
    own = storage.read_json(run / "config.json").get("evals", {"test": {}})
    overrides = {}
    for name, keys in sets.items():
        for key, value in keys.items():
            if value in ((), []):  # the default, which cannot be said in text
                continue
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            overrides[f"evals.{name}.{key}"] = text
    columns = []
    for name in dict.fromkeys((*own, *sets)):
        try:
            found = evaluate(str(run), [name], overrides, out=str(place))
        except UserError as error:
            if name in sets:
                raise
            log.warning("robustness: %s of %s left out: %s", name, run, error)
            continue
        values = {key.partition("/")[2]: [value] for key, value in found.items() if key.startswith(f"{name}/")}
        if "accuracy" in values:
            columns.append(dict(task=name, over=None, values=values, chosen={}))
    return columns
