"""Tokens become pieces of text: stop strings end it, and no character is cut. Knows no request and no chat.

Tokens come in runs, as many as a round emits, and are read one at a time: what comes out in all does not depend on the
runs. Of several stop strings the first to be complete ends the text; of those that are complete at once, the longest.
Text that may be the beginning of one is held back until that is known. A token goes out with the first of its
characters. A token that has none before the stop string is trimmed with it.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

_INCOMPLETE = "\ufffd"  # what detokenizers show of a character of which bytes are missing


class Detokenizer(Protocol):
    """What mlx-lm's streaming detokenizers have, as far as it is used."""

    @property
    def text(self) -> str:
        """All so far."""

    @property
    def last_segment(self) -> str:
        """What has come since this was last read."""

    def reset(self) -> None:
        """Forget all."""

    def add_token(self, token: int) -> None:
        """Read a token."""

    def finalize(self) -> None:
        """Give what is held, in whatever state it is."""


@dataclass(frozen=True)
class TextPiece:
    """The next piece of an output.

    Attributes:
        text: of it.
        start: how many tokens of the output came before.
        tokens: the ones that go with the text.
        offsets: where the text of each begins, in characters from the start of the output.
    """

    text: str
    start: int
    tokens: tuple[int, ...]
    offsets: tuple[int, ...]


class TextStream:
    """The text of one output.

    Args:
        detokenizer: of this output alone.
        stops: stop strings, none of them empty.
        before: the last tokens of the prompt that the text continues, such as eight. Detokenizers leave out the space
            with which a text begins, and a continuation does not begin one. None for the answer in a chat.

    Attributes:
        stopped: whether a stop string occurred; nothing comes after it.
        read: tokens so far, the one that completed a stop string included, and none behind it.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        self._detokenizer, self._stops = detokenizer, tuple(stops)
        detokenizer.reset()
        for token in before:
            detokenizer.add_token(token)
        self._prompt = self._spelled() if before else 0  # characters of the prompt that the detokenizer has
        self._skipped = self._prompt - len(detokenizer.last_segment)  # of them, those that it still holds
        self._seen = 0  # characters that came from the detokenizer
        self._offset = 0  # of the next token
        self._held = ""  # text that came and did not go out
        self._waiting: deque[tuple[int, int]] = deque()  # tokens that did not go out, and their offsets
        self._characters_out = self._tokens_out = 0
        self.stopped = False
        self.read = 0

    def push(self, tokens: Sequence[int]) -> TextPiece:
        """What the next tokens of the output add; end-of-text is none of them."""
        for token in tokens:
            if self.stopped:
                break
            self.read += 1
            self._waiting.append((token, self._offset))
            self._detokenizer.add_token(token)
            if self._read():
                self._offset = self._seen
            else:  # it holds all of the token: a part of a character, or a space
                self._offset = max(self._seen, self._spelled() - self._prompt)
        count = len(self._held) if self.stopped else len(self._held) - held_back(self._held, self._stops)
        return self._let_out(count)

    def finish(self) -> TextPiece:
        """What was held back, after the last token of the output."""
        if not self.stopped:
            self._detokenizer.finalize()
            self._read()
        return self._let_out(len(self._held), everything=not self.stopped)

    def _read(self) -> bool:
        """Whether the detokenizer has more text, which is cut at a stop string."""
        segment = self._detokenizer.last_segment
        if not segment:
            return False
        segment, self._skipped = segment[self._skipped :], 0
        self._seen += len(segment)
        self._held += segment
        found = first_of(self._stops, self._held)
        if found is not None:
            self._held = self._held[: found[0]]
            self.stopped = True
        return True

    def _spelled(self) -> int:
        """How many whole characters the detokenizer's tokens are, those that it holds included."""
        ended = copy.copy(self._detokenizer)  # as mlx-lm's tokenizers hand them out
        ended.finalize()
        return max(len(self._detokenizer.text), len(ended.text.rstrip(_INCOMPLETE)))

    def _let_out(self, count: int, *, everything: bool = False) -> TextPiece:
        """A piece of so many characters of the held ones; `everything` takes the tokens without a character too."""
        text, self._held = self._held[:count], self._held[count:]
        self._characters_out += count
        tokens, offsets = [], []
        while self._waiting and (everything or self._waiting[0][1] < self._characters_out):
            token, offset = self._waiting.popleft()
            tokens.append(token)
            offsets.append(offset)
        start, self._tokens_out = self._tokens_out, self._tokens_out + len(tokens)
        return TextPiece(text, start, tuple(tokens), tuple(offsets))


def first_of(strings: Collection[str], text: str) -> tuple[int, int] | None:
    """Where the string that is complete first begins and ends; of those that end together, the longest."""
    ends = [(start + len(string), start) for string in strings if (start := text.find(string)) >= 0]
    if not ends:
        return None
    end, start = min(ends)
    return start, end


def held_back(text: str, strings: Collection[str]) -> int:
    """How many characters at the end of a text may be the beginning of one of the strings, none of which is in it."""
    return max(
        (n for string in strings for n in range(1, min(len(string), len(text) + 1)) if text.endswith(string[:n])),
        default=0,
    )
