"""The stages by name. Adding one: its file, its configs, its test, and a line here."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import handoff
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.stage import Stage
from mae_pp_jax.stages.classify import ClassifyStage
from mae_pp_jax.stages.encoder import EncoderStage
from mae_pp_jax.stages.linear import LinearStage
from mae_pp_jax.stages.low_shot import LowShotStage
from mae_pp_jax.stages.mae import MaeStage
from mae_pp_jax.stages.text_encoder import TextEncoderStage
from mae_pp_jax.stages.wsp import WspStage

STAGES: dict[str, type[Stage]] = {
    "mae": MaeStage,
    "wsp": WspStage,
    "classify": ClassifyStage,
    "linear": LinearStage,
    "low_shot": LowShotStage,
    "encoder": EncoderStage,
    "text_encoder": TextEncoderStage,
}


def stage_class(mapping: Mapping) -> type[Stage]:
    """The stage that a config names by its key `stage`."""
    name = mapping.get("stage")
    if name not in STAGES:
        raise UserError(f"config.stage: {name!r} is not a stage; known: {', '.join(STAGES)}")
    return STAGES[name]


def resolve(
    mapping: Mapping,
    overrides: dict[str, str] | None = None,
    *,
    saved: bool = False,
    origin: Callable[[str, Any], Mapping] | None = None,
):
    """The resolved config of a stage from a config file's content and textual overrides.

    Args:
      mapping: nested dict of values. Those of its group `from_scratch` are for weights that start at random: they count
        where `init_from` names no run and nothing else is stated.
      overrides: dotted key → text.
      saved: whether `mapping` is the config of a run that there is already; in it keys may be set that have no effect.
      origin: (part, source in `init_from`) → config of that run, from which keys of the model come that are not stated;
        None: they have their defaults.

    Raises:
      UserError: no such stage, what `config.resolve` refuses, a key is set that has no effect, or the weights of a run in
        `init_from` cannot fit.
    """
    schema = stage_class(mapping).Config
    mapping = schema.upgrade(mapping) if saved else dict(mapping)
    scratch = mapping.pop("from_scratch", {})
    stated = config_lib.override(schema, mapping, overrides)
    sources = handoff.sources(config_lib.resolve(schema, stated).init_from) if origin else {}
    origins = {part: origin(part, source) for part, source in sources.items()}
    for part, config in origins.items():
        stated = schema.inherit(stated, part, config)
    config = config_lib.resolve(schema, stated if origins else config_lib.merge(scratch, stated))
    if saved:
        return config
    for part, other in origins.items():
        config.check_source(part, other, f"{sources[part].run} ({handoff.key_of(part)}.run)")
    default = type(config)(stage=config.stage)
    for dotted, why in config.unused().items():
        value, usual = map(operator.attrgetter(dotted), (config, default))
        if value != usual:
            raise UserError(f"config.{dotted}: {value} has no effect: {why}; leave it out (its default is {usual})")
    return config


def create(config, locate: handoff.Locate | None = None) -> Stage:
    """The stage of a resolved config.

    Args:
      config: the config.
      locate: as `Stage.locate`; None: runs are named by their folders.
    """
    stage = STAGES[config.stage](config)
    if locate:
        stage.locate = locate
    return stage
