"""`plan`: compiles a stage's train step for a TPU slice that is not at hand, and says what it needs there."""

import argparse

from mae_pp_jax.commands import runs
from mae_pp_jax.commands.arguments import overrides as parse_overrides
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.planning import candidates, report, slices
from mae_pp_jax.planning import search as search_lib
from mae_pp_jax.workers import compilation

DESCRIPTION = """Compiles the real train step of a config for a TPU slice on a machine that has none, and prints
whether it fits, what takes the memory, where the cycles go and how high utilisation can be. Nothing runs, no data is
read; the TPU compiler comes with the extra [tpu].

examples:
  python -m mae_pp_jax plan --config=configs/mae/in1k.py:size=L/16 --topology=v5e:8x8 --config.mesh.fsdp=8
  python -m mae_pp_jax plan --config=configs/mae/in1k.py:size=L/16 --topology=v5e:8x8 --search
  python -m mae_pp_jax plan --config=configs/mae/digits.py --topology=cpu:8

A TPU slice is CHIP:SHAPE, chips along each side: v4:4x4x4, v5e:8x8, v5p:4x4x8, v6e:16x16, tpu7x:2x2x1; cpu:8 is eight
simulated devices. A config that does not fit is a result (exit code 0), said in the first line and by "fits" of
--json. --search compiles meshes, microbatches and rematerialisation policies, drops what earlier ones rule out, and
ends with the best that fits in 90% of HBM as overrides to paste; stopped, the same command goes on where it was."""


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "plan",
        help="whether a config fits a TPU slice, and how fast it may be",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:args]", help="configs/STAGE/RECIPE.py[:name=value,…]")
    parser.add_argument("--topology", required=True, metavar="SLICE", help="such as v5p:4x4x8, v5e:8x8 or cpu:8")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there, as JSON")
    parser.add_argument("--search", action="store_true", help="find mesh, microbatches and rematerialisation")
    parser.add_argument(
        "--search-file", metavar="FILE", help="where the search keeps what it has compiled; runs/plan/…"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="compilations at once (about 2 GB each); 1")
    parser.set_defaults(run=run, takes_overrides=True)


def run(args, rest: list[str]) -> None:
    if args.search:
        found = search(
            *(args.config, args.topology, parse_overrides(rest)),
            search_file=args.search_file,
            jobs=args.jobs,
            json_file=args.json,
        )
        print("\n".join(found))
        return
    found = plan(args.config, args.topology, parse_overrides(rest), json_file=args.json)
    print("\n".join(report.lines(found)))


def plan(config: str, topology: str, overrides: dict[str, str] | None = None, *, json_file: str | None = None) -> dict:
    """What the train step of a config needs on a slice.

    Args:
      config: `configs/STAGE/RECIPE.py[:args]`.
      topology: the slice, such as `v5p:4x4x8`.
      overrides: dotted key → text, as on the command line.
      json_file: where to write the result too.

    Returns:
      The dict that `planning.measure.measure` describes.

    Raises:
      UserError: the config, the slice or their combination cannot work.
      RunStopped: the compiler died.
    """
    chosen = slices.parse(topology)
    _check_outputs(json_file)
    resolved = runs.resolved(config_lib.load_file(config), overrides)
    found = compilation.answer(config_lib.to_dict(resolved), chosen)
    if json_file:
        storage.write_json(json_file, found, "--json")
    return found


def search(
    config: str,
    topology: str,
    overrides: dict[str, str] | None = None,
    *,
    search_file: str | None = None,
    jobs: int = 1,
    json_file: str | None = None,
) -> list[str]:
    """The best mesh, microbatches and rematerialisation policy of a config on a slice.

    Args:
      config: `configs/STAGE/RECIPE.py[:args]`.
      topology: the slice.
      overrides: dotted key → text, as on the command line; those of searched keys are searched all the same.
      search_file: keeps what was compiled, so that a stopped search goes on.
      jobs: compilations at once.
      json_file: where to write the best candidate's report, with its `overrides`.

    Returns:
      Lines: a table of what was tried, and the best as overrides.

    Raises:
      UserError: the config, the slice or their combination cannot work.
      RunStopped: the compiler died.
    """
    chosen = slices.parse(topology)
    if chosen.chip is None:
        raise UserError(f"--search: {topology} has no cycle estimates to compare; name a TPU slice such as v5e:8x8")
    if jobs < 1:
        raise UserError(f"--jobs: must be at least 1, got {jobs}")
    _check_outputs(json_file, search_file or str(search_lib.FOLDER / "any.jsonl"))
    resolved = runs.resolved(config_lib.load_file(config), overrides)
    mapping = config_lib.to_dict(resolved)
    policies = config_lib.choices(type(resolved), "model.remat")
    outline = compilation.answer(mapping, chosen, "outline")
    space = candidates.space(chosen, outline, policies, max(1, resolved.mesh.tensor))
    search_lib.check(chosen, space, resolved.global_batch)
    journal = search_lib.Journal(storage.path(search_file, "--search-file") if search_file else None, mapping, chosen)
    done = search_lib.search(mapping, chosen, space, journal, jobs, compilation.Compilation)
    best = space.best(done)
    if json_file and best is not None:
        storage.write_json(json_file, {**done[best], "overrides": best.overrides()}, "--json")
    return search_lib.lines(space, done, journal)


def _check_outputs(json_file: str | None, search_file: str | None = None) -> None:
    """Raises `UserError` where a file cannot be written, before minutes of compiling."""
    for file, key in ((json_file, "--json"), (search_file, "--search-file")):
        if file:
            storage.check_writable(storage.path(file, key), key)
