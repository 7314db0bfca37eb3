"""The runs that made a run's weights: a graph, as a run may take its weights from several others.

It is a list of records, parents before children. A record names run, stage, step and weights, and in `parents` the
places of its own parents in the list. Runs of one parent each, made before there were several, left a plain chain.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Record = dict[str, Any]


def parents_of(lineage: Sequence[Record], parents: Mapping[str, int] | None) -> dict[str, int]:
    """Part → place in the list of the run that it came from; "" is the part of a run with one source.

    Args:
      lineage: of a run.
      parents: what the run noted itself; None for a plain chain.
    """
    if parents is None:
        return {"": len(lineage) - 1} if lineage else {}
    return dict(parents)


def join(sources: Mapping[str, Record]) -> tuple[list[Record], dict[str, int]]:
    """The lineage of a run that takes its weights from `sources`; a run that both of two come from stands once.

    Args:
      sources: part → record of the run that it comes from, with that run's own `lineage` and `parents`.

    Returns:
      (lineage, parents by part).
    """
    joined: list[Record] = []
    parents = {}
    for part, source in sources.items():
        places = []  # of the source's ancestors in `joined`
        for index, record in enumerate(source["lineage"]):
            own = record.get("parents", [index - 1] if index else [])
            places.append(_add(joined, {**record, "parents": [places[i] for i in own]}))
        direct = parents_of(source["lineage"], source["parents"])
        record = {name: value for name, value in source.items() if name not in ("lineage", "parents")}
        parents[part] = _add(joined, {**record, "parents": [places[i] for i in direct.values()]})
    return joined, parents


def _add(records: list[Record], record: Record) -> int:
    """The place of a record in the list, appended if it is new."""
    if record not in records:
        records.append(record)
    return records.index(record)
