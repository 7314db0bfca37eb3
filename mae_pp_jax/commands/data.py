"""`data`: builds and prepares datasets, makes vocabularies of their hashtags, shows what is in them and what is trained."""

import argparse

import numpy as np

from mae_pp_jax.commands import data_build, data_hashtags, data_show
from mae_pp_jax.core import storage

_PREPARE = """\
Prepares a TFDS dataset for training: downloads and writes it as array_record, which can be read in any order.
A dataset that TFDS has already stored as tfrecord gets array_record shards beside them; nothing is removed.
Training does this by itself for datasets that are not there yet; do it once beforehand on a cluster."""
_INFO = """\
Shows what a training run would read: the number of records, the classes and how many records each has, the hashtags
and the commonest and rarest of them, the fingerprint that a checkpoint keeps, and a few records."""

_VERBS = (
    ("prepare", _PREPARE, "python -m mae_pp_jax data prepare --name=cifar10"),
    ("info", _INFO, "python -m mae_pp_jax data info --name=digits_hashtags --split=test"),
)
_MODULES = {"build": data_build, "hashtags": data_hashtags, "show": data_show}
_EXAMPLES = (*(module.EXAMPLE for module in _MODULES.values()), *(example for _, _, example in _VERBS))


def add_parser(subparsers) -> None:
    """Adds the verb `data` to the command line."""
    parser = subparsers.add_parser(
        "data",
        help="build or prepare a dataset, make classes of its hashtags, or show what is in it",
        description=__doc__,
        epilog="examples:\n" + "".join(f"  {example}\n" for example in _EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="data_verb", required=True, metavar="build|hashtags|show|prepare|info")
    for name, module in _MODULES.items():
        module.add_arguments(_add(verbs, name, module.HELP, module.DESCRIPTION, module.EXAMPLE))
    for name, text, example in _VERBS:
        verb = _add(verbs, name, " ".join(text.split(":")[0].split()), text, example)
        verb.add_argument("--name", required=True, help="TFDS name, such as cifar10, or a folder of images")
        verb.add_argument("--data_dir", default="", help="where TFDS keeps its datasets (default: its own)")
        if name == "info":
            verb.add_argument("--split", default="train", help="split to look at (default: train)")
    parser.set_defaults(run=run)


def _add(verbs, name: str, help_line: str, description: str, example: str) -> argparse.ArgumentParser:
    return verbs.add_parser(
        name,
        help=help_line,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(args: argparse.Namespace) -> None:
    """Carries out one of the verbs of `data`.

    Raises:
      UserError: no such dataset or split, or it cannot be prepared.
    """
    if args.data_verb in _MODULES:
        _MODULES[args.data_verb].run(args)
        return
    from mae_pp_jax.data import source, tfds_store  # not needed, and slow to import, for --help of other verbs

    if args.data_verb == "prepare":
        if storage.is_dir(storage.Path(args.name).expanduser()):
            print(f"{args.name} is a folder of images and needs no preparation")
            return
        if args.data_dir and "://" not in args.data_dir:
            storage.check_writable(storage.Path(args.data_dir).expanduser(), "--data_dir", folder=True)
        tfds_store.convert(args.name, args.data_dir)
        builder = tfds_store.prepared(args.name, args.data_dir)
        sizes = ", ".join(f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items())
        print(f"{builder.info.full_name} is ready in {builder.data_dir}: {sizes}")
    else:
        _print_info(source.open_source(source.DataConfig(name=args.name, data_dir=args.data_dir), args.split), args)


def _print_info(records, args: argparse.Namespace) -> None:
    print(f"{args.name}, split {args.split}: {len(records):,} records, fingerprint {records.fingerprint}")
    from mae_pp_jax.data import fields

    classes, hashtags = fields.names(records, "label"), fields.names(records, "hashtags")
    if classes:
        labels = fields.labels(records)
        _print_counts("classes", classes, np.bincount(labels[labels >= 0], minlength=len(classes)))
    if hashtags:
        tags = list(records.column("hashtags"))
        counts = np.bincount(np.concatenate(tags), minlength=len(hashtags))
        _print_counts("hashtags", hashtags, counts)
        print(f"  {counts.sum() / len(records):.2f} a record; {sum(not len(t) for t in tags):,} records have none")
    for i in range(min(3, len(records))):
        record = records[i]
        parts = [_size(record["image"])]
        if "label" in record:
            parts.append(f"label {classes[record['label']] if record['label'] >= 0 else 'unknown'}")
        if "hashtags" in record:
            tags = (hashtags[tag] for tag in record["hashtags"]) if hashtags else record["hashtags"]
            parts.append(" ".join(f"#{tag}" for tag in tags) or "no hashtags")
        if record.get("caption"):
            parts.append(f"caption {record['caption']!r}")
        print(f"{records.describe(i)}: {', '.join(parts)}")


def _size(image: bytes | np.ndarray) -> str:
    from mae_pp_jax.data import decode, images

    try:
        return "×".join(map(str, images.pixels(image).shape[:2])) + " pixels"
    except decode.Unreadable as fault:
        return f"unreadable ({fault})"


def _print_counts(title: str, names: tuple[str, ...], counts: np.ndarray, shown: int = 10) -> None:
    """Prints how often each name occurs, the commonest and the rarest if there are many."""
    order = np.argsort(-counts, kind="stable").tolist()
    line = [f"{names[i]} {counts[i]:,}" for i in order]
    if len(line) > 2 * shown:
        line = [*line[:shown], "…", *line[-shown:]]
    print(f"{len(names):,} {title}: {', '.join(line)}")
