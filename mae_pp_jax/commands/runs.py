"""Runs that a command starts from or reads, and the configs of new runs that start from them."""

import logging
from collections.abc import Mapping

from mae_pp_jax.core import checkpoint, handoff, hosts, storage
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.stages import registry

log = logging.getLogger(__name__)


def resolved(
    mapping: Mapping,
    overrides: dict[str, str] | None = None,
    *,
    workdir: storage.Path | None = None,
    planned: Mapping[str, Mapping] | None = None,
):
    """The resolved config of a training, whose model is that of the run in `init_from` as far as it is not stated.

    A run that goes on keeps the keys it began with.

    Args:
      mapping: what a config file says.
      overrides: dotted key → text.
      workdir: folder of the training; None where nothing is trained.
      planned: name of a run in `init_from` → its config, of runs that are not there yet.

    Raises:
      UserError: as `registry.resolve`; or no such run.
    """
    file = workdir / "config.json" if workdir else None
    if file and storage.is_file(file):
        own = storage.read_json(file)
        return registry.resolve(mapping, overrides, saved=True, origin=lambda part, source: own)

    def origin(part: str, source) -> Mapping:
        return (planned or {}).get(source.run) or config_of(source, handoff.key_of(part))

    config = registry.resolve(mapping, overrides, origin=origin)
    if workdir and planned is None and (runs := [source.run for source in handoff.sources(config.init_from).values()]):
        plain = registry.resolve({**mapping, "from_scratch": {}}, overrides, saved=True)
        if taken := config_lib.differences(type(config), *map(config_lib.to_dict, (plain, config))):
            log.info("config: as in %s: %s", ", ".join(runs), "; ".join(taken))
    return config


def config_of(source, key: str) -> dict:
    """The config of a run that `init_from` names.

    Args:
      source: with `run` and `step`.
      key: its name in the config, for errors.

    Raises:
      UserError: no such run.
    """
    run = storage.path(source.run, f"{key}.run")
    file = run / "config.json"
    if storage.is_file(file):
        return hosts.from_first(lambda: storage.read_json(file))
    return checkpoint.meta(run, checkpoint.find(run, source.step, key))["config"]
