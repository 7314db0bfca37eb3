"""From an input to a TFDS dataset: plan, look at all parts, decide splits and classes, write all parts, put together.

A build may be killed at any moment: the same command goes on with the parts that are missing. The dataset's folder
appears last and whole.
"""

import collections
import contextlib
import dataclasses
import difflib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data.building import parts as parts_lib
from mae_pp_jax.data.building import runner as runner_lib
from mae_pp_jax.data.building import splitting as splitting_lib
from mae_pp_jax.data.building.encoding import Encoding
from mae_pp_jax.data.building.items import COLUMNS, Part, Reader, stable_hash
from mae_pp_jax.data.building.splitting import Splitting

log = logging.getLogger(__name__)

REPORT, LEFT_OUT = "build_report.json", "left_out.jsonl"
_FORMAT = 2  # of what is written; another one makes an unfinished build start over
_COLUMNS_SHOWN = 20  # in a message


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be built.

    Attributes:
      name, version: of the dataset.
      data_dir: TFDS's folder of datasets.
      source: the input as the user named it.
      reader: of the input.
      splitting: of the images.
      encoding: of the images.
    """

    name: str
    version: str
    data_dir: str
    source: str
    reader: Reader
    splitting: Splitting
    encoding: Encoding

    def __post_init__(self):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(f"--name: '{self.name}' must be lower-case letters, digits and _, beginning with a letter")
        if not re.fullmatch(r"\d+\.\d+\.\d+", self.version):
            raise UserError(f"--version: '{self.version}' must be three numbers, such as 1.0.0")

    @property
    def folder(self) -> epath.Path:
        """Where the finished dataset stands."""
        return epath.Path(self.data_dir).expanduser() / self.name / self.version

    @property
    def work(self) -> epath.Path:
        """Where an unfinished build stands."""
        return self.folder.parent / f"incomplete.build_{self.version}"


def build(request: Request, *, runner: str = "", options: Sequence[str] = (), workers: int = 0) -> dict:
    """Builds the dataset, or goes on where a killed build was, or finds it built already.

    The input is compared with that of before by what is read from it, not by the sizes and times of its files.

    Args:
      request: what.
      runner: name of a Beam runner; empty: this machine.
      options: Beam's own options.
      workers: threads on this machine; 0: one per core.

    Returns:
      The report that is written beside the dataset.

    Raises:
      UserError: the input cannot be read, holds no usable image, or another dataset has the name.
    """
    try:
        parts = request.reader.parts()
    except OSError as error:
        raise UserError(f"--from: cannot read {error.filename or request.source}: {error.strerror or error}") from error
    plan = _plan(request, parts)
    pool = dict(runner=runner, options=options, workers=workers or runner_lib.cores())
    with _as_user_error(request.work), _lock(request):
        if (request.folder / "dataset_info.json").exists():
            return _built_already(request, parts, plan, pool)
        scan = parts_lib.Scan(str(request.work), request.reader, request.splitting, request.encoding)
        _start(request, scan, parts, plan, pool)
        runner_lib.run("looking at the input", scan, parts, **pool)
        try:
            contents, keys, digests = _decide(request, scan, len(parts))
        except UserError:
            _remove(request.work)
            raise
        write = parts_lib.Write(str(request.work), request.reader, request.encoding, contents, digests)
        runner_lib.run("writing", write, parts, **pool)
        report = _assemble(request, write, plan, _others(request, keys))
    _remove(request.work)
    return report


def _built_already(request: Request, parts: list[Part], plan: dict, pool: dict) -> dict:
    """The report of a finished dataset, if the same input and options made it.

    Raises:
      UserError: other ones did, or something else.
    """
    report = request.folder / REPORT
    built = json.loads(report.read_text()) if report.exists() else {}
    made, now = built.get("made_from", {}), _digests(plan)
    differs = [what for what in now if made.get(what) != now[what]] if made else ["it has no record of them"]
    if not differs:
        _remove(request.work)
        if made["content"] != _content(_check(request, parts, pool)):
            differs = ["content of the input"]
        _remove(request.work)
    if differs:
        raise UserError(
            f"--name: {request.folder} holds another dataset or was built from other input or options "
            f"({', '.join(differs)}); choose another --name or --version, or remove it"
        )
    return built


def _check(request: Request, parts: list[Part], pool: dict) -> list[str]:
    """The digest of each part of the input as it is now."""
    check = parts_lib.Check(str(request.work), request.reader)
    request.work.mkdir(parents=True, exist_ok=True)
    for index in range(len(parts)):
        check.done(index).unlink(missing_ok=True)
    runner_lib.run("comparing the input with that of before", check, parts, **pool)
    return [check.done(index).read_text() for index in range(len(parts))]


def _content(digests: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _digests(plan: dict) -> dict:
    """A hash of each entry of a plan."""
    return {key: hashlib.sha256(json.dumps(plan[key], sort_keys=True).encode()).hexdigest()[:16] for key in plan}


def _plan(request: Request, parts: list[Part]) -> dict:
    """What the result depends on, but for the content of the input; the places of input and result are no part."""
    base = os.path.commonpath([part.path for part in parts])
    return dict(
        format=_FORMAT,
        name=request.name,
        version=request.version,
        input=type(request.reader).__name__,
        parts=[dataclasses.asdict(part) | {"path": os.path.relpath(part.path, base)} for part in parts],
        columns=request.reader.columns.names,
        splitting=dataclasses.asdict(request.splitting),
        encoding=dataclasses.asdict(request.encoding),
    )


def _start(request: Request, scan: parts_lib.Scan, parts: list[Part], plan: dict, pool: dict) -> None:
    """Makes the folder of an unfinished build ready; one of other input or options starts over."""
    work, text = request.work, json.dumps(plan, sort_keys=True)
    file = work / "plan.json"
    if work.exists():
        same = file.exists() and file.read_text() == text
        looked = [index for index in range(len(parts)) if scan.done(index).exists()]
        if same and looked:
            now = _check(request, parts, pool)
            same = all(scan.result(index)[3]["digest"] == now[index] for index in looked)
        if not same:
            log.info("%s: an unfinished build of other input or options is started over", work)
            _remove(work)
    (work / "dataset").mkdir(parents=True, exist_ok=True)
    parts_lib.put(file, text.encode())


def _decide(request: Request, scan: parts_lib.Scan, count: int) -> tuple[parts_lib.Contents, np.ndarray, tuple]:
    """Splits and classes of the whole input; writes the split of each item.

    Returns:
      Also the hashes of all names, and the digests of all parts.
    """
    results = [scan.result(index) for index in range(count)]
    found = [result[3] for result in results]
    _check_columns(request, list(dict.fromkeys(column for f in found for column in f["columns"])))
    names = list(dict.fromkeys([*request.splitting.names, *(s for f in found for s in f["splits"])]))
    for name in names:
        if not re.fullmatch(r"[A-Za-z][\w]*", name):
            raise UserError(
                f"--columns: '{name}' is no name for a split; use letters, digits and _, or --columns=split:"
            )
    own = [np.array([*(names.index(s) for s in f["splits"]), -1])[result[2]] for f, result in zip(found, results)]
    keys = np.concatenate([result[0] for result in results])
    families = np.concatenate([result[1] for result in results], axis=1)
    assigned = splitting_lib.assign(request.splitting, keys, families, np.concatenate(own), names)
    ends = np.cumsum([len(result[0]) for result in results])
    for index, piece in enumerate(np.split(assigned, ends[:-1])):
        with (scan.done(index).parent / f"assign-{index:05}.npy").open("wb") as file:
            np.save(file, piece)
    labels = {label for f in found for label in f["labels"]}.difference(request.reader.class_names)
    contents = parts_lib.Contents(
        classes=(*request.reader.class_names, *sorted(labels, key=_natural)),
        hashtags=any(f["hashtags"] for f in found),
        captions=any(f["captions"] for f in found),
        splits=tuple(names),
    )
    return contents, keys, tuple(f["digest"] for f in found)


def _check_columns(request: Request, there: list[str]) -> None:
    """Refuses options that name a column which no item has."""
    columns = request.reader.columns.names
    wanted = [("--split_by", name) for name in request.splitting.by if name != splitting_lib.LOOKS]
    asked = (m for m, names in columns.items() if m != "image" and names and names != COLUMNS[m])
    wanted += [("--columns", name) for meaning in asked for name in columns[meaning]]
    for option, name in wanted:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            have = ", ".join(there[:_COLUMNS_SHOWN]) + (" …" if len(there) > _COLUMNS_SHOWN else "")
            raise UserError(f"{option}: the input has no column '{name}'; its columns: {have or 'none'}{hint}")


def _assemble(request: Request, write: parts_lib.Write, plan: dict, others: list[dict]) -> dict:
    """Names the shards as TFDS does, writes its metadata and the report, and moves the dataset to its place."""
    dataset = request.work / "dataset"
    pieces = [json.loads(write.done(index).read_text()) for index in range(len(write.digests))]
    left_out = [entry for piece in pieces for entry in piece["left_out"]] + others
    reasons = collections.Counter(entry["reason"] for entry in left_out)
    infos, totals = _name_shards(request, write, pieces)
    if not infos:
        shown = ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common())
        first = "; the first: {input}: {detail}".format(**left_out[0]) if left_out else ""
        _remove(request.work)
        raise UserError(f"--from: {request.source} holds no usable image ({shown or 'nothing found'}{first})")
    report = dict(
        made_from=_digests(plan) | {"content": _content(write.digests)},
        name=request.name,
        version=request.version,
        found=len(left_out) + sum(total["images"] for total in totals.values()),
        written={split: total["images"] for split, total in totals.items()},
        left_out=dict(sorted(reasons.items())),
        splits=request.splitting.describe(),
        classes=list(write.contents.classes),
        statistics={split: _statistics(total) for split, total in totals.items()},
    )
    lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in left_out)
    parts_lib.put(dataset / LEFT_OUT, lines.encode())
    parts_lib.put(dataset / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    tfds.folder_dataset.write_metadata(
        data_dir=dataset,
        features=_features(write.contents),
        split_infos=infos,
        version=request.version,
        check_data=False,  # it would import TensorFlow
        description=_description(request, report),
    )
    dataset.rename(request.folder)
    return report


def _name_shards(request: Request, write: parts_lib.Write, pieces: list[dict]) -> tuple[list, dict]:
    """Gives the pieces the names of TFDS's shards; returns TFDS's description and the counts of each split."""
    dataset, infos, totals, shards = request.work / "dataset", [], {}, set()
    for split in write.contents.splits:
        filled = [i for i, piece in enumerate(pieces) if piece["splits"][split].get("images")]
        if not filled:
            continue
        template = tfds.core.ShardedFileTemplate(
            dataset_name=request.name, data_dir=dataset, split=split, filetype_suffix="array_record"
        )
        for shard, index in enumerate(filled):
            target = template.sharded_filepath(shard_index=shard, num_shards=len(filled))
            if write.piece(index, split).exists():  # else renamed before a kill
                write.piece(index, split).rename(target)
            shards.add(target.name)
        totals[split] = sum((collections.Counter(pieces[i]["splits"][split]) for i in filled), collections.Counter())
        lengths = [pieces[i]["splits"][split]["images"] for i in filled]
        size = totals[split]["bytes"]
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template))
    for path in dataset.iterdir():
        if path.name not in shards:  # metadata that a killed build has written in part
            path.unlink()
    return infos, totals


def _features(contents: parts_lib.Contents) -> dict:
    features = {"image": tfds.features.Image(), "id": tfds.features.Text()}
    if contents.hashtags:
        features["hashtags"] = tfds.features.Sequence(tfds.features.Text())
    if contents.captions:
        features["caption"] = tfds.features.Text()
    if contents.classes:
        features["label"] = tfds.features.ClassLabel(names=list(contents.classes))
    return features


def _description(request: Request, report: dict) -> str:
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in report["left_out"].items())
    encoding = request.encoding
    kinds = {"keep": "as they were", "restarts": "as they were but for restart markers"}
    kept = kinds.get(encoding.codec, encoding.codec)
    if encoding.codec == "jpeg":
        kept += f" of quality {encoding.quality}"
    side = f", no side above {encoding.max_side} pixels" if encoding.max_side else ""
    return (
        f"{sum(report['written'].values()):,} images of {report['found']:,} found; left out: {reasons or 'none'} (see "
        f"{LEFT_OUT}). {report['splits']} Images {kept}{side}. Hashtags as spelled. Written by mae_pp_jax's data build."
    )


def _statistics(total: collections.Counter) -> dict:
    images = total["images"]
    return dict(
        bytes=total["bytes"],
        mean_pixels=round(total["pixels"] / images, 1),
        with_hashtags=total["tagged"],
        hashtags=total["hashtags"],
        with_caption=total["captioned"],
        with_label=total["labelled"],
    )


def _others(request: Request, keys: np.ndarray) -> list[dict]:
    """The files of the input that are no items, and why; those of datasets that are built within it are none of it."""
    named = set(keys.tolist())
    root, built = os.path.expanduser(request.source), os.path.abspath(os.path.expanduser(request.data_dir)) + "/"
    found = [(name, reason) for name, reason in request.reader.others() if stable_hash(name) not in named]
    found = [(name, reason) for name, reason in found if not os.path.abspath(f"{root}/{name}").startswith(built)]
    return [parts_lib.left_out_entry(name, reason) for name, reason in found]


def _natural(label: str) -> tuple:
    """Sorts 2 before 10, in the digits of any script; names of equal numbers (1, 01, １) by their characters."""

    def part(piece: str) -> tuple:
        digits = "".join(str(int(digit)) for digit in piece).lstrip("0") if piece.isdecimal() else ""
        return (0, len(digits), digits) if piece.isdecimal() else (1, 0, piece)

    return [part(piece) for piece in re.split(r"(\d+)", label)], label


@contextlib.contextmanager
def _lock(request: Request):
    """One build of a dataset at a time, on storage that has locks."""
    if "://" in str(request.work):
        yield
        return
    request.work.parent.mkdir(parents=True, exist_ok=True)
    path = request.work.parent / f".{request.version}.lock"
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"--name: another process is building {request.folder}; wait for it") from error
        try:
            yield
        finally:
            path.unlink()


@contextlib.contextmanager
def _as_user_error(work: epath.Path):
    """Turns a lack of space or permission into one line."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or work}: {error.strerror or error}"
        raise UserError(f"--data_dir: cannot write {what}; free space or choose another") from error


def _remove(work: epath.Path) -> None:
    if "://" in str(work):
        if work.exists():
            work.rmtree()
    else:
        shutil.rmtree(work, ignore_errors=True)
