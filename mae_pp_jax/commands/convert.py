"""`convert`: public weights in and out."""

import argparse
import logging

import jax

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.data import class_names
from mae_pp_jax.interop import released, tables
from mae_pp_jax.interop.tensors import FLOATS
from mae_pp_jax.models import positions
from mae_pp_jax.stages import registry

log = logging.getLogger(__name__)

DESCRIPTION = """Reads public weights into the folder of a run, which any stage starts from (config.init_from.run) and
evaluate and embed read; or writes a run's weights for another code base. Says what became of every tensor.

examples, in:
  python -m mae_pp_jax convert --from=mae_in1k:vit_b16 --to=runs/mae_b16      a released model (--list shows all)
  python -m mae_pp_jax convert --from=model.safetensors --to=runs/imported    a file; its format is recognised
  python -m mae_pp_jax convert --from=vit.pth --to=runs/vit --heads=6         a width that is not a usual one
  python -m mae_pp_jax convert --from=last.ckpt --to=runs/vit --item=model    the weights, not their running average
  python -m mae_pp_jax convert --from=maws:vit_h14 --to=runs/h14_518 --image_size=518
  python -m mae_pp_jax convert --from=maws_clip:vit_b16_xlmr_b --to=runs/xlmr --tower=text
examples, out:
  python -m mae_pp_jax convert --from=runs/mae --to=mae.pth --to-format=mae
  python -m mae_pp_jax convert --from=runs/finetune --to=vit.safetensors --to-format=timm
  python -m mae_pp_jax convert --from=runs/mae --to=vit_mae --to-format=huggingface
example, LoRA of stage low_shot into plain weights (of its draw 0, a run of stage classify):
  python -m mae_pp_jax convert --from=runs/lora_5shot --merge=0 --to=runs/merged

With a decoder a file becomes a run of stage mae, with a head of stage classify, else of stage encoder; a text encoder
(BERT, RoBERTa, XLM-R) becomes a run of stage text_encoder. PyTorch files are
read without PyTorch and without running anything in them. Positions are resized as the file's original code does."""


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "convert",
        help="read public weights, or write them",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="list released models with sources and licences, and leave")
    parser.add_argument("--from", dest="source", metavar="FILE|URL|NAME|DIR", help="weights, or a run to write out")
    parser.add_argument("--to", metavar="DIR|FILE", help="new run folder, or new file to write")
    parser.add_argument("--format", default="auto", help=f"of the weights: auto (default), {', '.join(tables.NAMES)}")
    parser.add_argument("--to-format", "--to_format", help=f"write a run as {', '.join(tables.WRITTEN)}")
    parser.add_argument(
        "--item",
        default="auto",
        metavar="ema|model|KEY",
        help="of several sets of weights in a file: their running average (default), as trained, or by its key",
    )
    parser.add_argument("--heads", type=int, default=0, metavar="N", help="attention heads, where the file cannot say")
    parser.add_argument("--decoder_heads", type=int, default=0, metavar="N", help="the same for the decoder")
    parser.add_argument("--image_size", type=int, default=0, metavar="PIXELS", help="resize positions to this input")
    parser.add_argument("--resize", choices=tuple(positions.METHODS), help="whose resizing (default: the format's own)")
    parser.add_argument(
        "--tower", default="auto", choices=("auto", *tables.TOWERS), help="of a file with both (default: image)"
    )
    parser.add_argument("--encoder_only", action="store_true", help="leave head and decoder behind")
    parser.add_argument(
        "--merge",
        type=int,
        nargs="?",
        const=0,
        metavar="SPLIT",
        help="write a run's encoder with the LoRA of one of its draws (default: 0) merged in, and its head, as a new run",
    )
    parser.add_argument("--step", default="last", help="checkpoint of a run to write out or merge (default: last)")
    parser.add_argument("--dtype", default="auto", choices=("auto", *FLOATS), help="of the numbers written out")
    parser.set_defaults(run=run)


def run(args) -> None:
    if args.list:
        print(released.table())
        return
    if not args.source or not args.to:
        raise UserError("convert: give --from and --to; see python -m mae_pp_jax convert --help")
    if args.merge is not None:
        if args.to_format:
            raise UserError("--merge: makes a run; write that out with --to-format in a second command")
        merge_run(args.source, args.to, args.merge, step=args.step)
        return
    if args.to_format:
        export_run(args.source, args.to, args.to_format, step=args.step, dtype=args.dtype)
        return
    import_file(
        args.source,
        args.to,
        format=args.format,
        item=args.item,
        heads=args.heads,
        decoder_heads=args.decoder_heads,
        image_size=args.image_size,
        resize=args.resize,
        encoder_only=args.encoder_only,
        tower=args.tower,
    )


def import_file(
    source: str,
    to: str,
    *,
    format: str = "auto",
    item: str = "auto",
    heads: int = 0,
    decoder_heads: int = 0,
    image_size: int = 0,
    resize: str | None = None,
    encoder_only: bool = False,
    tower: str = "auto",
) -> dict:
    """Turns public weights into the folder of a run.

    Args:
      source: a file, a folder of a Hugging Face model, a URL, or a name of `interop.released`.
      to: the folder, new.
      format: one of `interop.tables.NAMES`, or "auto".
      item: which of several sets of weights in the file; see `interop.state_dict.find`.
      heads: attention heads, 0 where the file says.
      decoder_heads: attention heads of the decoder, 0 where the file says.
      image_size: side in pixels to resize positions to, 0 to keep them.
      resize: whose way of resizing, None for the format's own.
      encoder_only: leave head and decoder behind.
      tower: "image" or "text", which is read of a file that holds both; "auto": the image tower.

    Returns:
      The content of `result.json`.

    Raises:
      UserError: anything is wrong with the source, its content or the folder; nothing was written.
    """
    from mae_pp_jax.interop import importing  # slow to import for the --help of other verbs

    target = storage.path(to, "--to")
    importing.check_target(target)
    path, origin = fetch(source)
    if storage.is_dir(path / "checkpoints"):
        raise UserError(f"--from: {path} is a run already; to write its weights out, add --to-format")
    sizes = dict(heads=heads, decoder_heads=decoder_heads, image_size=image_size)
    report, result = make_run(target, path, origin, format, item, resize, encoder_only, tower, **sizes)
    print(report)
    print(f"{target} is a run of stage {result['stage']} with {result['parameters']:,} parameters")
    return result


def make_run(
    target: storage.Path,
    path: storage.Path,
    origin: dict,
    format: str = "auto",
    item: str = "auto",
    resize: str | None = None,
    encoder_only: bool = False,
    tower: str = "auto",
    **sizes: int,
) -> tuple[str, dict]:
    """Writes the folder of a run with the weights of a local file; arguments else as `import_file`.

    Args:
      target: the folder.
      path: the file, or the folder of a model.
      origin: what to remember of where it came from.
      **sizes: arguments of `interop.layout.config`.

    Returns:
      (text on what became of every tensor, the content of `result.json`).
    """
    from mae_pp_jax.interop import files, importing, layout, matching

    file = files.open_weights(path, item)
    match = matching.match(path, file.tensors, format, wrapped=file.wrapped, encoder_only=encoder_only, tower=tower)
    mapping = layout.config(file, match, **sizes)
    config = registry.resolve(mapping, saved=True)  # evaluation data that an encoder alone has no use for is said too
    shapes = flatten(jax.eval_shape(registry.create(config).init, jax.random.key(0)))
    shapes = {name: tuple(leaf.shape) for name, leaf in shapes.items()}
    classes, named_by = layout.class_names(file, match), "config.json"
    if not classes and match.sizes.get("C") == 1000 and released.classifies_imagenet(origin.get("url", str(path))):
        classes, named_by = tuple(class_names.imagenet()), "its release, of ImageNet-1k"
    todo = importing.plan(file, match, shapes, resize or match.format.positions, classes, named_by)
    return todo.report(), importing.write_run(target, todo, config_lib.to_dict(config), origin)


def export_run(run: str, to: str, format: str, *, step: str = "last", dtype: str = "auto") -> None:
    """Writes the weights of a run as a file of another code base; see `interop.exporting`."""
    from mae_pp_jax.interop import exporting

    target = storage.path(to, "--to")
    exporting.check_target(target, format)
    export = exporting.plan(storage.path(run, "--from"), step, format, dtype)
    exporting.write(target, export)
    print(export.report())
    print(f"{target} holds the weights of {run}")


def merge_run(run: str, to: str, split: int = 0, *, step: str = "last") -> dict:
    """Writes one model of a low-shot run with LoRA as a run with plain weights; see `interop.merging.merge`."""
    from mae_pp_jax.interop import merging
    from mae_pp_jax.stages.shared import features

    source, target = storage.path(run, "--from"), storage.path(to, "--to")
    result = merging.merge(source, target, split, step, epsilon=features.EPSILON)
    print(f"{to} is a run of stage {result['stage']} with {result['parameters']:,} parameters")
    return result


def fetch(source: str) -> tuple[storage.Path, dict]:
    """The local path of a source, downloaded if need be, and what to remember of its origin."""
    from mae_pp_jax.interop import download

    release = released.find(source)
    if release is not None:
        log.info("%s: %s, licence %s", source, release.url, release.licence)
        path = download.fetch(release.url, sha256=release.sha256, md5_prefix=release.md5_prefix)
        return path, dict(name=source, url=release.url, licence=release.licence)
    if download.is_url(source):
        return download.fetch(source), dict(url=source, licence="not known; ask its publisher")
    return storage.path(source, "--from"), dict(licence="not known; ask its publisher")
