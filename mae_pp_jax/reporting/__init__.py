"""The report of a pipeline: what each initialisation is worth for each task, drawn from the folders of its runs.

`gather` reads the folders, `charts` draws, `page` lays out, `write` puts `report.html` and `report.json` in the folder.
"""

from mae_pp_jax.reporting.write import write

__all__ = ["write"]
