"""The architecture of an encoder goes along with its weights: keys that a config leaves open are as in the run before."""

import logging
from collections.abc import Mapping

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.models import vit

log = logging.getLogger(__name__)

_NUMBERS = ("width", "depth", "heads", "mlp")  # each 0 where the size says it
_MODEL = ("size", *_NUMBERS, "norm_eps")  # without which the weights mean nothing
_INPUT = ("mean", "std")  # which the weights were trained on


def inherit(stated: Mapping, source: Mapping) -> dict:
    """The keys that a config states, and those it leaves open as they are in the run that it starts from.

    These are the shape of the encoder, its class token, `norm_eps`, and mean, deviation and size of the images. The kind
    of positions and of pooling belong to what is trained, and are not among them.

    Args:
      stated: nested dict of keys.
      source: config of the run.
    """
    theirs, seen = source.get("model", {}), source.get("data", {})
    if "size" not in theirs:  # of a run without an image encoder, which the handoff refuses
        return dict(stated)
    model = dict(stated.get("model", {}))
    # Another size that is stated has numbers of its own; then `check` finds whether they are the same.
    own = _name(model.get("size", theirs["size"])) != _name(theirs["size"])
    open_keys = [key for key in (*_MODEL, "cls_token") if key not in model and not (own and key in _NUMBERS)]
    model |= {key: theirs[key] for key in open_keys if key in theirs}
    data = {**{key: seen[key] for key in (*_INPUT, "image_size") if key in seen}, **stated.get("data", {})}
    return {**stated, "model": model, "data": data}


def check(model: vit.VitConfig, data, source: Mapping, where: str) -> None:
    """Compares a config with that of the run that its weights come from; says where their input is another one.

    Args:
      model: of the new run.
      data: likewise.
      source: config of the run that it starts from.
      where: the run and the key that names it, for messages.

    Raises:
      UserError: the weights are those of another architecture; names what differs and the overrides that fit.
    """
    if "size" not in source.get("model", {}):
        return
    theirs = config_lib.resolve(vit.VitConfig, source["model"])
    mine, other = _facts(model), _facts(theirs)
    if wrong := [name for name in mine if mine[name] != other[name]]:
        here, there = (", ".join(f"{name} {of[name]}" for name in wrong) for of in (mine, other))
        keys = [key for key in _MODEL if getattr(model, key) != getattr(theirs, key)]
        # Numbers that are left to another size come along once the size is right.
        keys = [key for key in keys if getattr(model, key) or model.size == theirs.size]
        key = f"config.model.{keys[0]}" if len(keys) == 1 else "config.model"
        fit = " ".join(f"--config.model.{key}={getattr(theirs, key)}" for key in keys)
        raise UserError(f"{key}: {here}, but the weights of {where} are for {there}; leave it out, or set {fit}")
    for key in _INPUT:
        here, there = getattr(data, key), tuple(source["data"].get(key, getattr(data, key)))
        if here != there:
            log.info("config.data.%s: %s; the weights of %s were trained with %s", key, here, where, there)


def _name(size: str) -> str:
    return size.partition("/")[0]


def _facts(model: vit.VitConfig) -> dict:
    return {**vit.dimensions(model)._asdict(), "norm_eps": model.norm_eps}
