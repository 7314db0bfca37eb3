"""What happens to records that cannot be read: each is logged once, and too many of them stop the run."""

import logging
import math
import re
import threading
from collections.abc import Callable

from mae_pp_jax.core.errors import RunStopped
from mae_pp_jax.data import decoder_warnings

log = logging.getLogger(__name__)

_TOLD = 100  # records named in the log; where storage is damaged, more would add nothing


class Unreadable(Exception):
    """A record is damaged. The message says what is wrong with it."""


class Faults:
    """Collects the unreadable records that the readers of this process meet; safe to use from many threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self._kinds: set[str] = set()  # of decoders' warnings
        self._seen: dict[str, str] = {}  # where the record comes from → what is wrong with it

    def add(self, place: str, reason: str, instead: str) -> None:
        """Notes a record, and names it in the log when it is met for the first time.

        Args:
          place: where the record comes from.
          reason: what is wrong with it.
          instead: what happens in its place.
        """
        with self._lock:
            if place in self._seen or len(self._seen) >= _TOLD:
                return
            self._seen[place] = reason
            more = "; further ones are counted, not named" if len(self._seen) == _TOLD else ""
        log.warning("data: %s cannot be read (%s); %s%s", place, reason, instead, more)

    def warn(self, place: Callable[[], str]) -> None:
        """Names a record of which a decoder has just warned, on this thread, if it is the first with such a warning.

        Args:
          place: gives where the record comes from.
        """
        for text in decoder_warnings.take():
            kind = re.sub(r"\d+", "#", text)
            with self._lock:
                new = kind not in self._kinds
                self._kinds.add(kind)
            if new:
                said = text.removeprefix("libpng warning: ")
                log.warning("data: %s: its decoder says '%s'; used as it is, the next such ones untold", place(), said)

    def check(self, unreadable: int, records: int, share: float) -> None:
        """Stops the run if clearly more than `share` of `records` were unreadable.

        Chance alone gives a few more at times, above all among few records: three standard deviations are allowed.

        Raises:
          RunStopped: there are more; names some.
        """
        if unreadable > share * records + 3 * math.sqrt(share * records):
            named = ", ".join(f"{place} ({reason})" for place, reason in list(self._seen.items())[:3])
            raise RunStopped(
                f"{unreadable:,} of {records:,} records so far could not be read, more than data.max_unreadable={share}"
                + (f": {named} and others" if named else "")
                + "; the log names them; repair or remove them, or raise data.max_unreadable"
            )
