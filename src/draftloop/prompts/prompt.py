"""Turn a prompt into tokens, or into the reason why it cannot be used. Knows no model and no file.

A chat template is a program that came with the model, and a prompt is anybody's text. The first is rendered within
bounds (`template_sandbox`), the second stays text whatever it spells (`control_tokens`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from ..config import Speculative
from ..store.json_values import without_surrogates
from .chat_template import ChatTemplate, TooLong, plain_tokenizer
from .control_tokens import Markers, NotReadable, control_tokens, read_as_text
from .template_sandbox import TemplateFailed

_PANIC = "pyo3_runtime"  # of what tokenizers raises where a regular expression gives up, which is no Exception
_DEFAULTS = Speculative()


@dataclass(frozen=True)
class Place:
    """Where a prompt stands.

    Attributes:
        kind: what is counted: `line`, `item` or `answer` of a file, or `prompt` of a command.
        number: of it, from 1; of an answer its id.
        file: the file, empty for a prompt that came from none.
    """

    kind: str
    number: int | str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.file}, {self.kind} {self.number}" if self.file else f"{self.kind} {self.number}"


@dataclass(frozen=True)
class Prompt:
    """What a user asked: plain text, or chat messages.

    Attributes:
        text: of a chat, of all its messages.
        messages: each with `role` and `content` as text, and whatever else a chat template may want.
        tools: that the assistant may call.
        where: its place in a file; not part of what it is.
    """

    text: str
    messages: tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    where: Place | None = field(default=None, compare=False)

    def at(self, where: Place) -> Prompt:
        """The same, from there."""
        return replace(self, where=where)


@dataclass(frozen=True)
class Unusable:
    """Why a prompt was skipped: `reason` is one of a few words to count by, `detail` names the case."""

    reason: str
    detail: str


@dataclass(frozen=True)
class SkippedPrompt:
    """A prompt that cannot be used, or something in the place of one.

    Attributes:
        where: its place.
        why: the reason.
        start: the beginning of its text; None where there is no text.
    """

    where: Place
    why: Unusable
    start: str | None = None

    def __str__(self) -> str:
        start = "" if self.start is None else f" ({self.start!r})"
        return f"{self.where}{start}: {self.why.reason}, {self.why.detail}"


@dataclass(frozen=True)
class Reading:
    """How a prompt becomes tokens.

    Attributes:
        parse_special: control tokens that it spells are read as these, not as text.
        template_seconds: of CPU time that the chat template may take for it.
        template_args: what the template is given beside the messages.
    """

    parse_special: bool = _DEFAULTS.parse_special
    template_seconds: int = _DEFAULTS.template_seconds
    template_args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, speculative: Speculative) -> Reading:
        """As configured."""
        return cls(speculative.parse_special, speculative.template_seconds, speculative.chat_template_args)


def encode_prompt(
    prompt: Prompt,
    tokenizer: Any,
    *,
    chat_template: bool,
    max_length: int,
    reading: Reading | None = None,
    bound: str = "data.max_prompt_length",
) -> list[int] | Unusable:
    """The tokens of a prompt, through the chat template where there is one and it is wanted.

    Args:
        prompt: text or messages.
        tokenizer: as mlx-lm wraps it.
        chat_template: apply the tokenizer's template; messages need one.
        max_length: most tokens; a longer prompt is skipped, not cut. A text of more characters than so many of the
            vocabulary's longest token is not even tokenized, and a template may not write more than that.
        reading: what the prompt may do; by default what the configuration says by default.
        bound: what `max_length` follows from, for whoever reads that a prompt is too long.
    """
    if not prompt.text.strip():
        return Unusable("empty", "no text")
    limit = max_length * _longest_token(tokenizer)
    if len(prompt.text) > limit:
        return _too_many_characters(len(prompt.text), max_length)
    templated = chat_template and tokenizer.has_chat_template
    if prompt.messages is not None and not templated:
        return Unusable("no chat template", "chat messages need a tokenizer with a chat template, switched on")
    try:
        if templated:
            how = reading or Reading()
            template = ChatTemplate(
                tokenizer, limit, how.template_seconds, how.template_args, with_tools=prompt.tools is not None
            )
            messages = prompt.messages or ({"role": "user", "content": prompt.text},)
            chat = without_surrogates({"messages": messages, "tools": prompt.tools})
            encoded = template.tokens(chat["messages"], chat["tools"], parse_special=how.parse_special)
        else:
            encoded = _plain(without_surrogates(prompt.text), tokenizer, reading or Reading())
    except TooLong:
        return _too_many_characters(limit + 1, max_length)
    except TemplateFailed as error:
        return Unusable("chat template", f"the tokenizer's chat template refuses it: {error}")
    except NotReadable as error:
        return Unusable("control token", f"it may spell one, and {error}; speculative.parse_special reads it as one")
    except BaseException as error:
        if type(error).__module__ != _PANIC:
            raise
        return Unusable("tokenizer", f"the tokenizer fails on it: {str(error)[:200]}")
    if len(encoded) > max_length:
        expected = f"at most {max_length:,} expected ({bound})"
        return Unusable("too long", f"{len(encoded):,} tokens, {expected}")
    return encoded or Unusable("empty", "no tokens")


def _too_many_characters(count: int, max_length: int) -> Unusable:
    return Unusable("too long", f"{count:,} characters, more than {max_length:,} tokens can hold")


def _plain(text: str, tokenizer: Any, reading: Reading) -> list[int]:
    """As mlx-lm does it, special tokens around it; where control tokens are parsed, unless the text begins with one."""
    if reading.parse_special:
        special = tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token)
        return [int(token) for token in tokenizer.encode(text, add_special_tokens=special)]
    inner = plain_tokenizer(tokenizer)
    tokens = control_tokens(inner, "")
    markers = Markers.not_in(text)
    unmarked = markers.unmark(markers.mark(text, tokens, tokens.control))
    read = read_as_text(inner, unmarked, tokens, markers.stand_in)
    if read is None:
        return [int(token) for token in tokenizer.encode(text, add_special_tokens=True)]
    before, after = _around(tokenizer)
    return [*before, *read, *after]


@lru_cache(maxsize=2)
def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that stand before and after a text."""
    bare, whole = (tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return list(map(int, whole[:start])), list(map(int, whole[start + len(bare) :]))
    raise NotReadable("the tokenizer's special tokens cannot be told from a text")


@lru_cache(maxsize=2)
def _longest_token(tokenizer: Any) -> int:
    return max(map(len, tokenizer.get_vocab()), default=1)
