"""Writes the report of a pipeline into its folder."""

import dataclasses
import json
import os
import pathlib

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.reporting import gather, page


def write(workdir: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path]:
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
    scores = [dataclasses.asdict(score) for score in gather.scores(pipeline.runs)]
    texts = {
        pipeline.folder / "report.html": page.render(pipeline),
        pipeline.folder / "report.json": json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    try:
        for path, text in texts.items():
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"--workdir: cannot write to {pipeline.folder}: {error.strerror}; make it writable") from error
    html, table = texts
    return html, table
