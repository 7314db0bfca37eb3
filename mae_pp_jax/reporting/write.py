"""Writes the report of a pipeline into its folder."""

import dataclasses
import os

from mae_pp_jax.core import storage
from mae_pp_jax.reporting import gather, page


def write(workdir: str | os.PathLike) -> tuple[storage.Path, storage.Path]:
    """Writes `report.html` and `report.json` from what a pipeline's runs left; trains and changes nothing.

    `report.json` is a list of {init, task, metric, mean, std, seeds, splits}, one entry for each pair with a finished
    run: mean and std as fractions, std null when there is one value only; seeds: runs of different seeds; splits: draws
    of the labelled images over all runs, null where a task draws none. Missing runs are named in `report.html`.

    Args:
      workdir: folder of a pipeline, finished or not.

    Returns:
      Paths of the two files.

    Raises:
      UserError: the folder is not a pipeline's, or cannot be written to.
    """
    pipeline = gather.read(workdir)
    storage.check_writable(pipeline.folder, "--workdir", folder=True)
    scores = [dataclasses.asdict(score) for score in gather.scores(pipeline.runs)]
    html, table = pipeline.folder / "report.html", pipeline.folder / "report.json"
    storage.write_whole(html, page.render(pipeline))
    storage.write_json(table, scores)
    return html, table
