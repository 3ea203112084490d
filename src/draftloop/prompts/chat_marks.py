"""Put marks into a chat before it is rendered: they show which rendered text came from the chat. Knows no file.

A template is a program: it may fold case, take words out, or put a control token together of pieces. What it compares,
such as a role or the type of a part, has to stay as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .control_tokens import ControlTokens, Markers, is_piece

_FOUND_BY = ("role", "type")  # the template compares what is under these
_REPLACE = re.compile(r"\breplace\(\s*(['\"])(.+?)\1")
_KNOWN = frozenset(  # never a piece of a token that is none of theirs: roles, and types of parts and tools
    {"system", "developer", "user", "assistant", "tool", "function", "ipython", "observation", "model", "text"}
)


@dataclass(frozen=True)
class Marking:
    """Marks put into every text, but into the words by which a template finds its way.

    Attributes:
        markers: the marks.
        tokens: the tokenizer's.
        composed: control tokens that the template puts together, which a word from a chat could be made into as well.
        replaced: what the template takes out of texts, so that what stood around it comes together.
    """

    markers: Markers
    tokens: ControlTokens
    composed: frozenset[str]
    replaced: tuple[str, ...]

    def all_of(self, value: Any, control: frozenset[str]) -> Any:
        """A value with marks around what its texts have of these control tokens."""

        def mark(text: str) -> str:
            return self.markers.mark(self._apart(text, control), self.tokens, control, self.composed)

        def name(text: str) -> str:
            plain = text in _KNOWN or not is_piece(text, self.composed | {text} & control)
            return text if text.isidentifier() and plain else mark(text)

        def walk(value: Any) -> Any:
            if isinstance(value, str):
                return mark(value)
            if isinstance(value, dict):
                return {
                    name(key): name(one) if key in _FOUND_BY and isinstance(one, str) else walk(one)
                    for key, one in value.items()
                }
            return [walk(one) for one in value] if isinstance(value, list) else value

        return walk(value)

    def _apart(self, text: str, control: frozenset[str]) -> str:
        """With marks around what the template takes out, where more control tokens are left without it."""
        rest = text
        for literal in self.replaced:
            rest = rest.replace(literal, "")
        if rest == text:
            return text
        left, whole = (sum(match[0] in control for match in self.tokens.spelled(one)) for one in (rest, text))
        if left > whole:
            for literal in self.replaced:
                text = text.replace(literal, f"{self.markers.before}{literal}{self.markers.after}")
        return text


@lru_cache(maxsize=4)
def replaced(template: str) -> tuple[str, ...]:
    """The texts that a template replaces, in its order."""
    return tuple(dict.fromkeys(literal for _, literal in _REPLACE.findall(template)))
