"""The stages by name. Adding one: its file, its configs, its test, and a line here."""

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


def resolve(mapping: dict, overrides: dict[str, str] | None = None):
    """The resolved config of a stage from a config file's content and textual overrides."""
    return config_lib.resolve(stage_class(mapping).Config, mapping, overrides)


def create(config) -> Stage:
    """The stage of a resolved config; opens its data."""
    return STAGES[config.stage](config)
