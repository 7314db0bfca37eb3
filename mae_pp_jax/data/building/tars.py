"""WebDataset tars: members with one key are one example (github.com/webdataset: the format's rules).

The key ends at the first dot of the last part of a name. `0001.left.png` and `0001.right.png` are thus fields `left.png`
and `right.png` of example 0001, and of two pictures the one without a further dot is taken, or else the first.
"""

import dataclasses
import json
import os
from collections.abc import Iterator

from mae_pp_jax.core import storage
from mae_pp_jax.data.building import tar_contents
from mae_pp_jax.data.building.items import DAMAGED, NO_IMAGE, Broken, Columns, Item, Part
from mae_pp_jax.data.building.tar_contents import IMAGE

_MEANINGS = {"txt": "caption", "cls": "label", "tags": "hashtags"}


@dataclasses.dataclass(frozen=True)
class TarReader:
    """Tars, plain or compressed. Of the members with one key the image, `.json` (an object of columns or a list of
    hashtags), `.txt` (caption), `.cls` (class) and `.tags` are read, wherever they stand; nothing is unpacked to disk.

    Attributes:
      beside: (name, reason) of the other files of the folder of tars.
    """

    paths: tuple[str, ...]
    columns: Columns
    class_names: tuple[str, ...] = ()
    beside: tuple[tuple[str, str], ...] = ()

    def parts(self) -> list[Part]:
        return [Part(path, size=storage.size(path)) for path in self.paths]

    def items(self, part: Part) -> Iterator[Item]:
        name = os.path.relpath(part.path, os.path.commonpath([os.path.dirname(path) for path in self.paths]))
        contents = tar_contents.look(part.path)
        waiting: dict[str, dict] = {}  # key → what has been read of an example
        last, fault = None, ""
        try:
            with tar_contents.Archive(part.path) as archive:
                for place, member in enumerate(archive.members()):
                    for left in contents.unused.get(place, ()):
                        yield Item(f"{name}/{left.name}", Broken(left.reason, left.detail))
                    if place not in contents.uses:
                        continue
                    last, meaning = contents.uses[place]
                    example = contents.examples[last]
                    waiting.setdefault(last, dict(example.texts))
                    if meaning and meaning not in waiting[last]:
                        waiting[last][meaning] = archive.content(member, contents.linked.get(place), meaning)
                    if place == example.done:
                        yield self._item(name, last, waiting.pop(last))
        except Exception as error:  # of any kind: tarfile and zlib raise many, and damage never ends the build
            fault = f"{' '.join(str(error).split()) or type(error).__name__}; what follows in this tar is lost"
            if last in waiting and IMAGE not in waiting[last]:
                del waiting[last]  # the picture that is cut off
        for key, found in waiting.items():
            yield self._item(name, key, found)
        if fault:
            yield Item(f"{name}, after {last}", Broken(DAMAGED, fault))

    def others(self) -> Iterator[tuple[str, str]]:
        """(name, reason) of the other files in the folder of tars."""
        return iter(self.beside)

    def _item(self, tar: str, key: str, found: dict) -> Item:
        """The item of an example from what has been read of it."""
        try:
            row: dict = {}
            for meaning, content in found.items():
                if meaning == "json":
                    value = json.loads(content)
                    row |= value if isinstance(value, dict) else {"hashtags": value}
                elif meaning != IMAGE and (columns := self.columns.names[_MEANINGS.get(meaning, meaning)]):
                    row.setdefault(columns[0], content.decode("utf-8", "replace").strip())
            read = found.get(IMAGE, Broken(NO_IMAGE, "no image among its members"))
            return self.columns.item(f"{tar}/{key}", read, row)
        except json.JSONDecodeError as error:
            fault = f"its .json is no JSON: {error}"
        except Exception as error:  # of any kind: an example that cannot be read never ends the build
            fault = f"{type(error).__name__}: {error}"
        return Item(f"{tar}/{key}", Broken(DAMAGED, fault))
