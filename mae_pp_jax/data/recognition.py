"""Whether a folder is a dataset, so that no run is written into it."""

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data.tree import EXTENSIONS

_INFO = "dataset_info.json"  # of TFDS and of Hugging Face's datasets
_RUN = ("config.json", "pipeline.json")
_OWN = ("pictures", "report")  # folders of a run that hold pictures
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".parquet", ".arrow", ".tfrecord")
_SPLITS = ("train", "test", "val", "validation")
_LOOKED_AT = 1000  # entries of a folder; one picture among them is enough


def refuse_dataset(folder: storage.Path, key: str = "--workdir") -> None:
    """Checks that a folder to be written is no dataset: what a run writes there would become part of it.

    Args:
      folder: a run's folder; it need not exist.
      key: what the user chose it with, for the error.

    Raises:
      UserError: it holds `dataset_info.json`, archives, pictures or class folders of pictures, and no run.
    """
    names = storage.names(folder)
    if any(name in names for name in _RUN):
        return
    found = _data_file(names) or next(filter(None, (_inside(folder / name) for name in names[:_LOOKED_AT])), None)
    if found:
        raise UserError(f"{key}: {folder} is a dataset (it holds {found}); give a folder of its own for the run")


def _inside(folder: storage.Path, splits: bool = True) -> str | None:
    """What in a folder of the folder makes it a dataset."""
    if folder.name in _OWN or folder.name.startswith("."):
        return None
    names = storage.names(folder)
    if any(name in names for name in _RUN):
        return None
    found = _data_file(names)
    if not found and splits and folder.name in _SPLITS:
        found = next(filter(None, (_inside(folder / name, splits=False) for name in names[:_LOOKED_AT])), None)
    return found and f"{folder.name}/{found}"


def _data_file(names: list[str]) -> str | None:
    def is_data(name: str) -> bool:
        lower = name.lower()
        return name == _INFO or lower.endswith((*EXTENSIONS, *_ARCHIVES)) or ".array_record-" in lower

    return next(filter(is_data, names[:_LOOKED_AT]), None)
