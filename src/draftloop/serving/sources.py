"""Names of sources that come from outside: of what form, and how many. Knows nothing of requests.

Gate and drift work per source, so a client that invents names would spoil them, and grow what is kept without bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..config import SOURCE_NAME

SOURCE_FORM = "1 to 64 letters, digits and ._@/+-, the first a letter or a digit"
OTHER = "other"
_fits = re.compile(SOURCE_NAME).fullmatch


def is_source(name: str) -> bool:
    """Whether a name can be that of a source: SOURCE_FORM."""
    return _fits(name) is not None


class Sources:
    """The sources of a server: those that it knows, and new ones until there are `most`.

    Args:
        known: names of which it is sure, such as those of API keys; they count, and are never folded.
        most: names that may become known; all later ones are OTHER.
    """

    def __init__(self, known: Iterable[str], most: int) -> None:
        self._names = set(known)
        self._most = most

    def know(self, names: Iterable[str]) -> None:
        """More names of which it is sure, such as those of the log."""
        self._names |= set(names)

    def fold(self, name: str) -> str:
        """The name itself, or OTHER where there are too many."""
        if name not in self._names and len(self._names) >= self._most:
            return OTHER
        self._names.add(name)
        return name
