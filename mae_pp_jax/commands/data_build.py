"""`data build`: tagged images become a dataset that training reads."""

import argparse
import logging
import os
import shlex

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError

log = logging.getLogger(__name__)

HELP = "make a dataset of tagged images in folders, tars, Parquet files or records"
DESCRIPTION = """\
Builds a TFDS dataset (array_record shards) from
  a folder of images and a file with a row per image     --from=ROOT --sidecar=metadata.jsonl   (.jsonl, .csv, .tsv, .parquet)
  WebDataset tars                                       --from='/data/*.tar'                   (.tar, .tar.gz …)
  Parquet files, as of Hugging Face                     --from=ROOT, --from='/data/*.parquet'
  a dataset of TFDS, or files of tf.train.Example       --from=NAME, --from='/data/*.tfrecord*'
  folders of classes                                    --from=ROOT with ROOT/CLASS/*.jpg
and keeps hashtags as people spelled them; `data hashtags` makes classes of them. Hashtags may be lists or text with any
separators; those in captions (#dog) count too. NaN, null, and in CSV the cells nan, null and \\N are nothing.

Every file, row and tar member is written, or left out and listed with its reason in left_out.jsonl beside the dataset.
The same input gives the same bytes. A killed build goes on where it was, unless the content of the input has changed.

It runs on Apache Beam: here on all cores, or anywhere that Beam runs:
  --runner=DataflowRunner --beam_option=project=P --beam_option=region=R --beam_option=temp_location=gs://B/tmp"""
EXAMPLE = "python -m mae_pp_jax data build --name=photos --from=/photos --sidecar=tags.csv --columns=caption:title"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `data build`."""
    add = parser.add_argument
    add("--name", required=True, help="name of the new dataset: lower-case letters, digits and _")
    add(
        "--from",
        required=True,
        dest="source",
        metavar="INPUT",
        help="folder, tars, tables, records or dataset (see above)",
    )
    add(
        "--sidecar",
        default="",
        metavar="FILE",
        help="rows of the folder (default: its metadata.jsonl, .csv or .parquet)",
    )
    add(
        "--columns",
        default="",
        metavar="MEANING:COLUMN,…",
        help="names of columns where they differ from image: file, file_name …; hashtags: hashtags, tags; "
        "caption: caption, text; label: label, class; split: split. As caption:title,label:category",
    )
    add("--splits", default="", metavar="NAME:SHARE,…", help="default: the input's own, else train:0.9,test:0.1")
    add(
        "--split_by",
        default="",
        metavar="COLUMN,…",
        help="columns whose equal values stay in one split (title, series …), and `looks` for near-identical pictures",
    )
    add("--split_seed", type=int, default=0, metavar="N", help="seed of the random choice of the splits")
    add(
        "--encode",
        default="keep",
        metavar="KIND",
        help="keep (files as they are; default), restarts (JPEG files get restart markers, without loss, so that crops "
        "are decoded faster; needs jpegtran), jpeg:QUALITY or png",
    )
    add("--max_side", type=int, default=0, metavar="PIXELS", help="reduce longer sides to this (default: no limit)")
    add("--min_side", type=int, default=16, metavar="PIXELS", help="leave out images with a shorter side (default: 16)")
    add("--data_dir", default="", metavar="DIR", help="where TFDS keeps its datasets (default: its own)")
    add("--from_data_dir", default="", metavar="DIR", help="the same for a dataset of TFDS that is read")
    add("--version", default="1.0.0", help="of the new dataset (default: 1.0.0)")
    add("--workers", type=int, default=0, metavar="N", help="threads on this machine (default: one per core)")
    add("--runner", default="", metavar="BEAM_RUNNER", help="such as DataflowRunner, FlinkRunner (default: here)")
    add("--beam_option", action="append", default=[], metavar="KEY=VALUE", help="Beam's own option; may be repeated")


def run(args: argparse.Namespace) -> None:
    """Carries out `data build`.

    Raises:
      UserError: wrong options or input.
    """
    import tensorflow_datasets as tfds

    from mae_pp_jax.data.building import build, encoding, inputs, splitting

    if args.workers < 0:
        raise UserError(f"--workers: must be at least 1, got {args.workers}")
    data_dir = os.path.expanduser(args.data_dir or os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR)
    if "://" not in data_dir:
        storage.check_writable(data_dir, "--data_dir", folder=True)
    request = build.Request(
        name=args.name,
        version=args.version,
        data_dir=data_dir,
        source=args.source,
        reader=inputs.open_input(
            args.source, sidecar_file=args.sidecar, columns=args.columns, input_data_dir=args.from_data_dir
        ),
        splitting=splitting.Splitting.parse(args.splits, args.split_by, args.split_seed),
        encoding=encoding.Encoding.parse(args.encode, max_side=args.max_side, min_side=args.min_side),
    )
    report = build.build(request, runner=args.runner, options=args.beam_option, workers=args.workers)
    _show(report, request, f" --data_dir={shlex.quote(args.data_dir)}" if args.data_dir else "")


def _show(report: dict, request, where: str) -> None:
    from mae_pp_jax.data.building import build

    written = ", ".join(f"{split} {count:,}" for split, count in report["written"].items())
    print(f"{report['name']} {report['version']} is ready in {request.folder}: {written}")
    left = ", ".join(f"{reason} {count:,}" for reason, count in report["left_out"].items())
    total = sum(report["left_out"].values())
    listed = f" ({left}); listed in {request.folder / build.LEFT_OUT}" if total else ""
    print(f"{report['found']:,} found, {sum(report['written'].values()):,} written, {total:,} left out{listed}")
    print(report["splits"])
    total = {key: sum(part[key] for part in report["statistics"].values()) for key in ("with_hashtags", "hashtags")}
    if report["classes"]:
        print(f"{len(report['classes']):,} classes: {', '.join(report['classes'][:10])}")
    if total["with_hashtags"]:
        images = sum(report["written"].values())
        print(
            f"{total['hashtags'] / images:.2f} hashtags per image; {images - total['with_hashtags']:,} images have none"
        )
        print(
            f"next: python -m mae_pp_jax data hashtags --name={report['name']}{where} --to={report['name']}_tags.json"
        )
    else:
        print(f"next: python -m mae_pp_jax data info --name={report['name']}{where}")
