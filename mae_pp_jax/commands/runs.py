"""Runs that a command starts from or reads, and the configs of new runs that start from them."""

import hashlib
import logging
import re
from collections.abc import Mapping

from mae_pp_jax.core import checkpoint, handoff, hosts, storage
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.interop import download, released
from mae_pp_jax.stages import registry

log = logging.getLogger(__name__)

_CACHE = "MAE_PP_JAX_CACHE"
_ENDS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".torch", ".npz", ".json")


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


def config_of(source, key: str) -> Mapping:
    """The config of a run that `init_from` names. For a released model that is not here yet, what is known of it.

    Args:
      source: with `run` and `step`.
      key: its name in the config, for errors.

    Raises:
      UserError: no such run.
    """
    field = f"{key}.run"
    release = released.find(source.run, field)
    if release and not hosts.from_first(lambda: _is_complete(_cached(source.run))):
        return release.config()
    run = locate(source.run, field)
    file = run / "config.json"
    if storage.is_file(file):
        return hosts.from_first(lambda: storage.read_json(file))
    return checkpoint.meta(run, checkpoint.find(run, source.step, key))["config"]


def locate(text: storage.PathLike, key: str) -> storage.Path:
    """The folder of the run that a user names, by its folder, or by a released name, a URL or a file of weights.

    Weights are fetched and converted once, into the user's cache; another process that wants the same waits meanwhile.

    Args:
      text: what the user gave; a folder is taken as it is, whether or not there is a run.
      key: what the user gave it with, for errors.

    Raises:
      UserError: a name that no release has, or weights that cannot be had, read or kept.
    """
    text = str(text)
    if not _is_weights(text, key):
        return storage.path(text, key)
    with hosts.first_goes_first():
        folder = _cached(text)
        if not _is_complete(folder):
            _convert(text, folder, key)
    return folder


def results(text: storage.PathLike, run: storage.Path) -> storage.Path:
    """Where what is measured of a run is kept: its folder, or `results/NAME` here where `text` names weights."""
    return run if run == storage.Path(text) else storage.Path("results") / _clean(str(text))


def _is_weights(text: str, key: str) -> bool:
    """Whether a user's text names weights that are no run yet."""
    if released.find(text, key) or text.startswith(("http://", "https://", "file://")):
        return True
    if "://" in text:
        return False
    path = storage.Path(text)
    if storage.is_file(path):
        return True
    from mae_pp_jax.interop import files  # slow to import for the --help of all verbs

    return not storage.is_dir(path / "checkpoints") and any(map(files.is_weights, storage.names(path)))


def _cached(text: str) -> storage.Path:
    """Where the cache keeps the run that weights become; a file of other content or age has another place."""
    release = released.find(text)
    if release or text.startswith("http"):
        identity = release.url if release else text
    else:
        path = storage.absolute(download.fetch(text) if download.is_url(text) else text)
        inside = [path] if storage.is_file(path) else [path / name for name in storage.names(path)]
        beside = [path.parent / name for name in ("config.json", "preprocessor_config.json") if len(inside) == 1]
        known = [file for file in (*inside, *beside) if storage.is_file(file)]
        identity = "\n".join(f"{file} {storage.size(file)} {storage.modified(file)}" for file in known)
    mark = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:12]
    return storage.Path(download.cache_folder("runs")) / f"{_clean(text)}-{mark}"


def _is_complete(folder: storage.Path) -> bool:
    return storage.is_file(folder / "result.json")  # a conversion gives the folder its name when all is written


def _convert(text: str, folder: storage.Path, key: str) -> None:
    """Makes the run of weights in its place in the cache, unless another process has meanwhile."""
    from mae_pp_jax.commands import convert

    storage.check_writable(folder.parent, _CACHE, folder=True)
    storage.make_folder(folder.parent)
    with storage.lock(folder.parent / f".{folder.name}.lock", f"a run of {text}"):
        if _is_complete(folder):
            return
        try:
            path, origin = convert.fetch(text)
            log.info("%s: converting it once, into %s", text, folder)
            _, result = convert.make_run(folder, path, origin)
        except UserError as error:
            raise UserError(_explained(text, str(error), key)) from error
    log.info("%s is a run of stage %s with %s parameters", text, result["stage"], f"{result['parameters']:,}")


def _explained(text: str, problem: str, key: str) -> str:
    """What was wrong with weights, in the words of the verb that names them."""
    option, _, rest = problem.partition(": ")
    if option in (own := {"--from": key, "--to": _CACHE}):
        return f"{own[option]}: {rest}"
    if not option.startswith("--"):
        return problem
    return (
        f"{key}: more has to be said of {text} ({problem}): make a run of it with python -m mae_pp_jax convert "
        f"--from={text} --to=DIR, and give that folder"
    )


def _clean(text: str) -> str:
    """A name for a folder: the last part of a path or URL, without its end, or a released name."""
    last = text.rstrip("/").rpartition("/")[2]
    stem = last.rpartition(".")[0] or last if last.endswith(_ENDS) else last
    return re.sub(r"[^A-Za-z0-9.-]+", "_", stem).strip("._") or "weights"
