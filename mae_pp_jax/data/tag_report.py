"""The report on a vocabulary: what it covers, what was merged and dropped, and the curve from head to tail."""

import io

import numpy as np

from mae_pp_jax.core import storage
from mae_pp_jax.data.vocabulary import Counts, Vocabulary

_SHOWN = 20  # lines of a list


def measure(counts: Counts, vocabulary: Vocabulary, dropped: dict) -> dict:
    """Figures of a vocabulary on the images that it was counted on.

    Args:
      counts: the tags of the images.
      vocabulary: made from them.
      dropped: reason → Counter of glued tags, as `vocabulary.build` gives it.

    Returns:
      JSON values: `images`, `covered` (images with a class), `tags` and `tags_kept` (uses of tags), `distinct`,
      `classes`, `per_image` (number of classes → images), `merged` (classes with several used spellings or synonyms),
      `dropped` (reason → distinct tags, uses, commonest).
    """
    per_image: dict[int, int] = {}
    uses = kept = 0
    for tags, images in counts.sets.items():
        found = len(vocabulary.ids(tags))
        per_image[found] = per_image.get(found, 0) + images
        uses += len(tags) * images
        kept += sum(vocabulary.id(tag) is not None for tag in tags) * images
    used = [(c.name, c.count, [m for m, n in c.members.items() if n]) for c in vocabulary.classes]
    merged = sorted((entry for entry in used if len(entry[2]) > 1), key=lambda e: (-len(e[2]), -e[1], e[0]))
    return dict(
        images=counts.images,
        covered=counts.images - per_image.get(0, 0),
        tags=uses,
        tags_kept=kept,
        distinct=len(counts.tags()),
        raw=counts.raw,
        classes=len(vocabulary.classes),
        per_image=dict(sorted(per_image.items())),
        merged=len(merged),
        longest_merges=merged[:_SHOWN],
        dropped={
            reason: dict(
                distinct=len(tags),
                uses=sum(tags.values()),
                commonest=sorted(tags.items(), key=lambda t: (-t[1], t[0]))[:_SHOWN],
            )
            for reason, tags in dropped.items()
        },
        counts=[c.count for c in vocabulary.classes],
    )


def summary(report: dict) -> str:
    """A few lines for a terminal."""
    images, classes = report["images"], sum(n * count for n, count in report["per_image"].items())
    dropped = ", ".join(f"{reason} {d['distinct']:,}" for reason, d in report["dropped"].items() if d["distinct"])
    return (
        f"{report['classes']:,} classes from {report['raw']:,} different hashtags ({report['distinct']:,} but for "
        f"spelling); {report['merged']:,} classes merge several\n"
        f"{report['covered']:,} of {images:,} images ({report['covered'] / max(images, 1):.1%}) have a class, "
        f"{classes / max(images, 1):.2f} per image; of {report['tags']:,} uses of hashtags {report['tags_kept']:,} are "
        "kept\n"
        f"dropped: {dropped or 'nothing'}"
    )


def write(report: dict, vocabulary: Vocabulary, path: storage.Path) -> None:
    """Writes the report beside the vocabulary: `.md` and its picture `.png`."""
    picture = path.with_suffix(".png")
    head = [f"| {c.name} | {c.synset or ''} | {c.count:,} |" for c in vocabulary.classes[:_SHOWN]]
    tail = [f"| {c.name} | {c.synset or ''} | {c.count:,} |" for c in vocabulary.classes[_SHOWN:][-_SHOWN:]]
    merges = [f"| {name} | {count:,} | {', '.join(members)} |" for name, count, members in report["longest_merges"]]
    lines = [f"# Hashtags of {vocabulary.dataset.get('name', '')}", "", summary(report), "", f"![]({picture.name})", ""]
    lines += ["## Commonest and rarest classes", "", "| class | synset | images |", "|---|---|---|", *head, *tail, ""]
    lines += ["## Longest merges", "", "| class | images | hashtags |", "|---|---|---|", *merges, ""]
    lines += ["## Dropped", "", "| why | hashtags | uses | commonest |", "|---|---|---|---|"]
    for reason, tags in report["dropped"].items():
        common = ", ".join(f"{tag} {n:,}" for tag, n in tags["commonest"])
        lines.append(f"| {reason} | {tags['distinct']:,} | {tags['uses']:,} | {common} |")
    lines += ["", "## Classes per image", "", "| classes | images |", "|---|---|"]
    lines += [f"| {n} | {images:,} |" for n, images in report["per_image"].items()]
    lines += ["", "## Rules", "", *(f"- {name}: {_short(value)}" for name, value in vocabulary.rules.items())]
    storage.write_whole(path.with_suffix(".md"), "\n".join(lines) + "\n", "--to")
    storage.write_whole(picture, _picture(report), "--to")


def _short(value) -> str:
    if isinstance(value, (list, dict)):
        words = [f"{k} → {v}" for k, v in value.items()] if isinstance(value, dict) else [str(v) for v in value]
        return f"{len(words)}: {', '.join(words[:_SHOWN])}{' …' if len(words) > _SHOWN else ''}"
    return str(value)


def _picture(report: dict) -> bytes:
    """Images of each class from head to tail (both logarithmic), and classes per image, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    curve, bars = figure.subplots(1, 2)
    curve.loglog(np.arange(1, report["classes"] + 1), report["counts"], marker=".", markersize=3, linewidth=1)
    curve.set(xlabel="class, by falling count", ylabel="images", title="Head and tail")
    curve.grid(alpha=0.3)
    bars.bar(list(report["per_image"]), list(report["per_image"].values()))
    bars.set(xlabel="classes", ylabel="images", title="Classes per image")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
