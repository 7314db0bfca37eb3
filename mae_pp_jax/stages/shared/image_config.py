"""Keys of every stage on single images."""

import dataclasses
from collections.abc import Mapping

from mae_pp_jax.core.config import key, named, section
from mae_pp_jax.core.stage import StageConfig
from mae_pp_jax.data import evals
from mae_pp_jax.data.evals import EvalConfig
from mae_pp_jax.data.source import DataConfig
from mae_pp_jax.models import vit
from mae_pp_jax.stages.shared import architecture


@dataclasses.dataclass(frozen=True)
class DeclaredConfig:
    """Facts about the training data that a recipe states, so that it can be planned where the data is not at hand.

    0 asks the data. When training, a stated fact that the data contradicts is an error.
    """

    records: int = key(0, "training records", low=0)
    classes: int = key(0, "classes", low=0)
    hashtags: int = key(0, "size of the hashtag vocabulary", low=0)


@dataclasses.dataclass(frozen=True)
class ImageStageConfig(StageConfig):
    """Keys of every stage on single images."""

    data: DataConfig = section(DataConfig)
    evals: dict[str, EvalConfig] = named(EvalConfig, "evaluation sets, which name metrics", names=("test",))
    declared: DeclaredConfig = section(DeclaredConfig)
    model: vit.VitConfig = section(vit.VitConfig)

    def unused(self):
        data, found = self.data, {"data.max_tags": "only stage wsp reads hashtags of a batch"}
        if not data.crop.startswith("random_resized"):
            found |= dict.fromkeys(("data.crop_scale", "data.crop_ratio"), "only data.crop=random_resized uses it")
        if data.crop != "shift":
            found["data.shift"] = "only data.crop=shift uses it"
        if data.resample != "sqrt":
            found["data.resample_t"] = "only data.resample=sqrt uses it"
        if data.resample != "swag":
            found["data.resample_length"] = "only data.resample=swag uses it"
        return super().unused() | found

    @classmethod
    def inherit(cls, stated, part, source):
        return architecture.inherit(super().inherit(stated, part, source), source)

    def check_source(self, part, source, where):
        architecture.check(self.model, self.data, source, where)

    def recalled(self, meta):
        known = {kind: len(meta.get("identity", {}).get(field, ())) for kind, field in _NAMES.items()}
        known = {kind: number for kind, number in known.items() if number}
        return dataclasses.replace(self, declared=dataclasses.replace(self.declared, **known))

    @classmethod
    def upgrade(cls, mapping: Mapping) -> dict:
        """Runs of earlier versions had one evaluation set, in keys data.eval_…"""
        data = dict(mapping.get("data", {}))
        old = {new: data.pop(f"eval_{name}") for name, new in _ONE_SET.items() if f"eval_{name}" in data}
        return {**mapping, "data": data, "evals": {"test": old}} if old else dict(mapping)


_NAMES = {kind: field for field, kind in evals.NAMED.items()}  # key of config.declared → field
_ONE_SET = {"name": "data", "split": "split", "crop": "crop", "share": "share"}  # keys data.eval_… → of the set
# Of stages that train a head on a frozen encoder.
FROZEN_ENCODER = {"model.drop_path": "the encoder is frozen and always runs whole"}
