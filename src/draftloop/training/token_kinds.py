"""What kind of text a token is, from its text and the character before it. Knows no model, no record and no mlx.

The first character that is no blank decides the kind:

  word start          a letter or "_" after a blank, after punctuation, or at the very beginning
  inside a word       a letter or "_" right after a letter, a digit or "_"
  number              a digit, wherever it stands
  punctuation         marks of prose, among them quotes and hyphens
  bracket or symbol   brackets, the marks of operators and code, and every other sign
  line break          a new line comes before anything visible; the indent after it belongs to it
  space or indent     blanks without a new line, and nothing else
  bytes of a character  a piece that is no whole UTF-8 text: a part of a character
  end of text         a token that ends a generation
  special             any other token that stands for no text of its own

A token's text is what a second one adds to the first: decoded alone, "▁a" and "a" look alike with tokenizers that drop
the blank at the beginning of a text. So every tokenizer that can decode will do.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from typing import Any, Literal

Kind = Literal[
    "word start",
    "inside a word",
    "number",
    "punctuation",
    "bracket or symbol",
    "line break",
    "space or indent",
    "bytes of a character",
    "end of text",
    "special",
]

_BROKEN = "\ufffd"  # what decoding puts in the place of bytes that are no character
_MOST_BYTES = 4  # of a character in UTF-8
_OF_CODE = frozenset("*/%&@#\\")  # Unicode calls them punctuation


class TokenKinds:
    """The kinds of the tokens of one tokenizer; each token is decoded once.

    Args:
        tokenizer: as mlx-lm wraps it, or any with `decode` and `all_special_ids`.
        stop_tokens: tokens that end a generation.
    """

    def __init__(self, tokenizer: Any, stop_tokens: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._stop = frozenset(stop_tokens)
        self._special = frozenset(tokenizer.all_special_ids)
        self._texts: dict[int, str] = {}

    def of(self, before: Sequence[int], output: Sequence[int]) -> list[Kind]:
        """The kind of each token of `output`, which goes on from `before`."""
        tokens, start = [*before, *output], len(before)
        return [self._kind(tokens, at) for at in range(start, len(tokens))]

    def text(self, token: int) -> str:
        """What a token adds to a text that it does not begin; U+FFFD where it is no whole text."""
        if token not in self._texts:
            alone, twice = self._decode([token]), self._decode([token, token])
            self._texts[token] = _BROKEN if _BROKEN in alone else twice[len(alone) :]
        return self._texts[token]

    def _kind(self, tokens: Sequence[int], at: int) -> Kind:
        token = tokens[at]
        if token in self._stop:
            return "end of text"
        if token in self._special:
            return "special"
        return kind_of(self.text(token), self._character_before(tokens, at))

    def _character_before(self, tokens: Sequence[int], at: int) -> str:
        """The last one, or nothing at the beginning; one that was spelled in bytes is put together."""
        if at == 0:
            return ""
        last = self.text(tokens[at - 1])
        return (self._decode(tokens[max(0, at - _MOST_BYTES) : at]) if last == _BROKEN else last)[-1:]

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def kind_of(text: str, before: str) -> Kind:
    """The kind of a token with this text.

    Args:
        text: of the token, with the blanks at its beginning; empty where it has none.
        before: the character before it; empty at the beginning.
    """
    if not text:
        return "special"
    if _BROKEN in text:
        return "bytes of a character"
    visible = text.lstrip()
    blanks = text[: len(text) - len(visible)]
    if "\n" in blanks or "\r" in blanks:
        return "line break"
    if not visible:
        return "space or indent"
    return _visible_kind(visible[0], blanks[-1:] or before)


def _visible_kind(first: str, before: str) -> Kind:
    category = unicodedata.category(first)
    if category[0] == "N":
        return "number"
    if _is_of_word(first):
        return "inside a word" if _is_of_word(before) else "word start"
    is_prose = category[0] == "P" and category not in ("Ps", "Pe") and first not in _OF_CODE
    return "punctuation" if is_prose else "bracket or symbol"


def _is_of_word(character: str) -> bool:
    """Letters, the marks that go on them, digits and "_"."""
    return character == "_" or (character != "" and unicodedata.category(character)[0] in "LMN")
