"""The page of the most confident mistakes that a classifier makes on an evaluation set."""

import heapq
import itertools
import logging

import jax
import numpy as np

from mae_pp_jax.commands import measuring
from mae_pp_jax.core import hosts, partition, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.reporting import mistakes as page
from mae_pp_jax.stages.shared.answers import Ranking
from mae_pp_jax.stages.shared.images import ImageStage

log = logging.getLogger(__name__)

SHOWN = 64  # mistakes on a page
_ANSWERS = 3  # of each


def mistakes(
    workdir: str, out: storage.PathLike, name: str | None = None, overrides: dict[str, str] | None = None
) -> dict:
    """Writes the page of what a run's newest checkpoint gets wrong on one of its evaluation sets.

    Padding and images that cannot be read do not count. Where a run has several draws (low_shot), the answer is that of
    the mean of their probabilities.

    Args:
      workdir: folder of a run, a released name or a file of weights; see `runs.locate`.
      out: the file, .html.
      name: of the evaluation set; None: the first one whose images have one right class.
      overrides: dotted key → text, in place of the run's own config.

    Returns:
      `set`, its name; numbers of images: `wrong`, `measured`, `shown`.

    Raises:
      UserError: no run there, or one without classes; no such set; a file that cannot be written.
    """
    target = storage.path(out, "--mistakes")
    if target.suffix != ".html":
        raise UserError(f"--mistakes: {out} must end in .html")
    if hosts.count() > 1:
        raise UserError("--mistakes: needs a command of one process; start it on one host")
    storage.check_writable(target, "--mistakes")
    _, run = measuring.opened(workdir, overrides)
    stage = run.stage
    if "label" not in getattr(stage, "targets", dict)():
        raise UserError(
            f"--mistakes: a run of stage '{stage.config.stage}' knows no classes; train one that does from it (classify, "
            "linear or low_shot, with --config.init_from.run)"
        )
    stage.recall(run.meta)
    answers = stage.answers(stage.names, _ANSWERS)
    name = _set_of(stage, name)
    worst, wrong, measured = _found(run, answers, name)
    shown = [_shown(stage, answers, name, *entry) for entry in worst]
    title = f"Mistakes of {workdir} on {name}"
    storage.make_folder(target.parent)
    storage.write_whole(target, page.render(title, shown, wrong, measured), "--mistakes")
    return dict(set=name, wrong=wrong, measured=measured, shown=len(shown))


def _set_of(stage: ImageStage, name: str | None) -> str:
    """The evaluation set that is asked for, or the first one that fits."""
    known = list(stage.eval_passes())
    if name is not None and name not in known:
        raise UserError(f"--evaluators: {name} is not one of this run's: {', '.join(known)}")
    for one in [name] if name else known:
        if "answers" not in stage.eval_source(one).fields:
            return one
    if name:
        raise UserError(
            f"--evaluators: images of {name} may have several right classes; name a set where they have one"
        )
    raise UserError(
        f"--evaluators: no set has one right class per image ({', '.join(known)}); add one by --config.evals"
    )


def _found(run, answers: Ranking, name: str) -> tuple[list[tuple], int, int]:
    """(entries of the most confident mistakes, the worst first; number of all of them; number of measured images).

    An entry is picture, record, label, probabilities and numbers of the answers. No more than those shown are kept.
    """
    compute, order = jax.jit(answers.compute), itertools.count()
    worst: list[tuple] = []  # heap of (confidence, -position, entry): of equal ones the earlier is worse
    wrong = measured = 0
    params = run.parameters()
    with jax.set_mesh(run.mesh):
        for batch in run.stage.eval_batches(name):
            shares, outputs = jax.tree.map(np.asarray, compute(params, partition.to_global(batch, run.mesh)))
            measured += int(batch["mask"].sum())
            ranks = np.isfinite(shares[:, 0])  # as in `evaluation.classify.accuracy`
            missed = (batch["mask"] > 0) & ~(ranks & (outputs[:, 0] == batch["label"]))
            wrong += int(missed.sum())
            for i in np.flatnonzero(missed):
                confidence = float(shares[i, 0]) if ranks[i] else -1.0
                rank = (confidence, -next(order))
                if len(worst) == SHOWN and rank < worst[0][:2]:
                    continue
                entry = (
                    batch["image"][i].copy(),
                    int(batch["record"][i]),
                    int(batch["label"][i]),
                    shares[i],
                    outputs[i],
                )
                (heapq.heappushpop if len(worst) == SHOWN else heapq.heappush)(worst, (*rank, entry))
    return [entry for _, _, entry in sorted(worst, key=lambda item: item[:2], reverse=True)], wrong, measured


def _shown(stage, answers: Ranking, name: str, picture, record: int, label: int, shares, outputs) -> page.Mistake:
    told = answers.tell((shares, outputs))
    return page.Mistake(picture, stage.eval_source(name).describe(record), answers.names[label], told)
