"""`data hashtags`: the raw hashtags of a dataset become a vocabulary of classes."""

import argparse
import logging
import shlex

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError

log = logging.getLogger(__name__)

HELP = "make classes of a dataset's raw hashtags"
DESCRIPTION = """\
Makes a vocabulary for weakly supervised pretraining: one class for all spellings (#Ice_Cream, icecream), for singular
and plural, and for synonyms, which are WordNet's synsets (brown bear = Ursus arctos). What is no noun of WordNet, a
stop tag, too rare or beyond the size is dropped. Writes FILE.json, and beside it a report, FILE.md with FILE.png.

Training takes it by --config.data.vocabulary=FILE.json; it needs no WordNet then, and finds the same classes.

WordNet is read from Debian's package wordnet-base, or from --wordnet=PATH; --wordnet=none does without: then every tag
is a class of its own, but for spelling and plurals."""
EXAMPLE = "python -m mae_pp_jax data hashtags --name=photos --to=photos_tags.json --min_count=20"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `data hashtags`."""
    add = parser.add_argument
    add("--name", required=True, help="dataset with hashtags, as `data build` makes it")
    add("--data_dir", default="", metavar="DIR", help="where TFDS keeps its datasets (default: its own)")
    add("--split", default="train", help="split whose hashtags are counted (default: train)")
    add("--to", required=True, metavar="FILE.json", help="the vocabulary; its report goes beside it")
    add("--wordnet", default="", metavar="PATH", help="folder with index.noun (default: /usr/share/wordnet); or none")
    add("--unknown", default="drop", choices=("drop", "keep"), help="tags that are no noun of WordNet (default: drop)")
    add("--min_count", type=int, default=5, metavar="N", help="images that a class needs (default: 5)")
    add("--size", type=int, default=28_000, metavar="N", help="the most classes, the commonest first (default: 28000)")
    add("--stop", default="", metavar="TAG,…|FILE", help="more tags to drop: a list, or a file with one per line")
    add("--no_stop", action="store_true", help="without the built-in stop tags (love, instagood …)")


def run(args: argparse.Namespace) -> None:
    """Carries out `data hashtags`.

    Raises:
      UserError: no such dataset, one without hashtags, wrong options, or no class is left.
    """
    import tqdm

    from mae_pp_jax.commands import next_command
    from mae_pp_jax.core import console
    from mae_pp_jax.data import source, tag_report, vocabulary, wordnet

    for option in ("min_count", "size"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option}: must be at least 1, got {getattr(args, option)}")
    path = storage.path(args.to, "--to").expanduser()
    if path.suffix != ".json" or not storage.is_dir(path.parent):
        raise UserError(f"--to: {args.to} must be a file NAME.json in a folder that is there")
    storage.check_writable(path, "--to")
    nouns = _nouns(args, wordnet)
    stop = (() if args.no_stop else vocabulary.STOP_TAGS) + _stop_tags(args.stop)
    rules = vocabulary.Rules(tuple(stop), args.min_count, args.size, args.unknown)
    records = source.open_source(source.DataConfig(name=args.name, data_dir=args.data_dir), args.split)
    bar = dict(desc="counting", unit=" images", unit_scale=True, disable=not console.on_terminal())
    counts = vocabulary.count(tqdm.tqdm(source.texts(records), total=len(records), dynamic_ncols=True, **bar))
    dataset = dict(name=args.name, split=args.split, records=len(records), fingerprint=records.fingerprint)
    made, dropped = vocabulary.build(counts, rules, nouns, dataset)
    report = tag_report.measure(counts, made, dropped)
    made.save(path)
    tag_report.write(report, made, path)
    print(tag_report.summary(report))
    print(f"wrote {path}, {path.with_suffix('.md')}, {path.with_suffix('.png')}")
    side, machine = next_command.usual_side(records), next_command.Machine.here()
    chosen = next_command.training(args.name, str(path), side=side, records=len(records), machine=machine)
    where = f" --config.data.data_dir={shlex.quote(args.data_dir)}" if args.data_dir else ""
    print(f"next: python -m mae_pp_jax train {chosen} --workdir=runs/wsp{where}")


def _nouns(args: argparse.Namespace, wordnet):
    """WordNet's nouns; None without, which is said."""
    folder = None if args.wordnet == "none" else wordnet.find(args.wordnet)
    if folder is None:
        why = (
            "--wordnet=none"
            if args.wordnet
            else "no WordNet found (Debian: apt install wordnet-base; or --wordnet=PATH)"
        )
        log.info("%s: synonyms are not merged and every tag may be a class", why)
        return None
    log.info("WordNet: %s", folder)
    return wordnet.load(folder)


def _stop_tags(text: str) -> tuple[str, ...]:
    path = storage.Path(text).expanduser()
    if text and storage.is_file(path):
        return tuple(line.strip() for line in storage.read_text(path).splitlines() if line.strip())
    if "/" in text:
        raise UserError(f"--stop: no file {text}; give a file with one tag per line, or tags separated by commas")
    return tuple(filter(None, (tag.strip() for tag in text.split(","))))
