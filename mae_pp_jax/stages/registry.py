"""The stages by name. Adding one: its file, its configs, its test, and a line here."""

import operator

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.stage import Stage
from mae_pp_jax.stages.classify import ClassifyStage
from mae_pp_jax.stages.encoder import EncoderStage
from mae_pp_jax.stages.linear import LinearStage
from mae_pp_jax.stages.low_shot import LowShotStage
from mae_pp_jax.stages.mae import MaeStage
from mae_pp_jax.stages.wsp import WspStage

STAGES: dict[str, type[Stage]] = {
    "mae": MaeStage,
    "wsp": WspStage,
    "classify": ClassifyStage,
    "linear": LinearStage,
    "low_shot": LowShotStage,
    "encoder": EncoderStage,
}


def stage_class(mapping: dict) -> type[Stage]:
    """The stage that a config names by its key `stage`."""
    name = mapping.get("stage")
    if name not in STAGES:
        raise UserError(f"config.stage: {name!r} is not a stage; known: {', '.join(STAGES)}")
    return STAGES[name]


def resolve(mapping: dict, overrides: dict[str, str] | None = None, *, saved: bool = False):
    """The resolved config of a stage from a config file's content and textual overrides.

    Args:
      mapping: nested dict of values.
      overrides: dotted key → text.
      saved: whether `mapping` is the config of a run that there is already; in it keys may be set that have no effect.

    Raises:
      UserError: no such stage, what `config.resolve` refuses, or a key is set that has no effect.
    """
    schema = stage_class(mapping).Config
    config = config_lib.resolve(schema, schema.upgrade(mapping) if saved else mapping, overrides)
    default = type(config)(stage=config.stage)
    for dotted, why in () if saved else config.unused().items():
        value, usual = map(operator.attrgetter(dotted), (config, default))
        if value != usual:
            raise UserError(f"config.{dotted}: {value} has no effect: {why}; leave it out (its default is {usual})")
    return config


def create(config) -> Stage:
    """The stage of a resolved config; opens its data."""
    return STAGES[config.stage](config)
