"""Prompts: read from flags and files, turned into token ids, and why one cannot be used. Knows no model.

A chat template is a program that came with the model, and a prompt is anybody's text. The first is rendered within
bounds (`templates`), the second stays text whatever it spells (`control_tokens`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .config import Speculative
from .control_tokens import ControlTokens, Markers, NotReadable, control_tokens, read_as_text
from .errors import PromptError
from .templates import TemplateFailed, render

_SURROGATE = re.compile("[\ud800-\udfff]")
_PANIC = "pyo3_runtime"  # of what tokenizers raises where a regular expression gives up, which is no Exception
_DEFAULTS = Speculative()


@dataclass(frozen=True)
class Prompt:
    """What a user asked: plain text, or chat messages, each with `role` and `content`."""

    text: str
    messages: tuple[dict[str, str], ...] | None = None


@dataclass(frozen=True)
class Unusable:
    """Why a prompt was skipped: `reason` is one of a few words to count by, `detail` names the case."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Reading:
    """What a prompt may do.

    Attributes:
        parse_special: what it spells of control tokens is read as these, not as text.
        template_seconds: of CPU time that the chat template may take for it.
    """

    parse_special: bool = _DEFAULTS.parse_special
    template_seconds: int = _DEFAULTS.template_seconds

    @classmethod
    def of(cls, speculative: Speculative) -> Reading:
        """As configured."""
        return cls(speculative.parse_special, speculative.template_seconds)


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a .txt file, one a line, or of a .jsonl file with `prompt` or chat `messages` in each object.

    Raises:
        PromptError: not readable, another ending, no prompts, or a line that is none, by its number.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise PromptError(f"{path}: expected .txt (a prompt a line) or .jsonl, found {path.suffix or 'no ending'}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror}") from None
    numbered = enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    if not lines:
        raise PromptError(f"{path}: holds no prompts")
    if path.suffix == ".txt":
        return [Prompt(line.decode("utf-8", "replace").strip("\r")) for _, line in lines]
    return [_from_json(line, f"{path}, line {number}") for number, line in lines]


def _from_json(line: bytes, where: str) -> Prompt:
    try:
        found = json.loads(line.decode("utf-8", "replace"))  # orjson has no lone surrogates, JavaScript writes them
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: not a JSON object: {error}") from None
    if isinstance(found, dict) and isinstance(found.get("prompt"), str):
        return Prompt(found["prompt"])
    if isinstance(found, dict) and isinstance(found.get("messages"), list) and found["messages"]:
        return _from_messages(found["messages"], where)
    raise PromptError(f'{where}: expected an object with "prompt" (text) or "messages" (a list)')


def _from_messages(messages: Sequence[Any], where: str) -> Prompt:
    for message in messages:
        if not (isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))):
            raise PromptError(f'{where}: every message needs "role" and "content" as text, found {str(message)[:60]}')
    kept = tuple({"role": message["role"], "content": message["content"]} for message in messages)
    return Prompt("\n".join(message["content"] for message in kept), kept)


def encode(
    prompt: Prompt, tokenizer: Any, *, chat_template: bool, max_length: int, reading: Reading | None = None
) -> list[int] | Unusable:
    """Token ids of a prompt, through the chat template where there is one and it is wanted.

    Args:
        prompt: text or messages.
        tokenizer: as mlx-lm wraps it.
        chat_template: apply the tokenizer's template; messages need one.
        max_length: most tokens; a longer prompt is skipped, not cut. A text of more characters than so many of the
            vocabulary's longest token is not even tokenized, nor is a template let write it.
        reading: what the prompt may do; by default what the configuration says by default.
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
            ids = _templated(prompt, _Chat(tokenizer, reading or Reading(), limit))
        else:
            ids = _plain(_valid(prompt.text), tokenizer, reading or Reading())
    except _TooLong:
        return _too_many_characters(limit + 1, max_length)
    except TemplateFailed as error:
        return Unusable("chat template", f"the tokenizer's chat template refuses it: {error}")
    except NotReadable as error:
        return Unusable("control token", f"it may spell one, and {error}; speculative.parse_special reads it as one")
    except BaseException as error:
        if type(error).__module__ != _PANIC:
            raise
        return Unusable("tokenizer", f"the tokenizer fails on it: {str(error)[:200]}")
    if len(ids) > max_length:
        return Unusable("too long", f"{len(ids):,} tokens, at most {max_length:,} expected (data.max_prompt_length)")
    return ids or Unusable("empty", "no tokens")


class _TooLong(Exception):
    """A template writes more characters than so many tokens can hold."""


def _too_many_characters(count: int, max_length: int) -> Unusable:
    return Unusable("too long", f"{count:,} characters, more than {max_length:,} tokens can hold")


Messages = list[dict[str, str]]


class _Chat:
    """A tokenizer's chat template, and what becomes of its text."""

    def __init__(self, tokenizer: Any, reading: Reading, limit: int) -> None:
        self.reading = reading
        self.tokenizer = _inner(tokenizer)
        self.template = None if _renders_itself(tokenizer) else _only_template(self.tokenizer.chat_template)
        self._wrapper, self._limit = tokenizer, limit

    @property
    def tokens(self) -> ControlTokens:
        """The control tokens of its messages."""
        return control_tokens(self.tokenizer, self.template or "")

    def text(self, messages: Messages, marks: int = 0) -> str:
        """The messages as the model is to read them; so many characters of them are marks, and do not count."""
        if self.template is None:
            text = _by_code(self._wrapper, messages, tokenize=False)
            text = None if len(text) > self._limit + marks else text
        else:
            limit = self._limit + marks
            text = render(self.template, self._variables(messages), limit=limit, seconds=self.reading.template_seconds)
        if text is None:
            raise _TooLong
        if _SURROGATE.search(text):
            raise TemplateFailed("it writes text that is not UTF-8")
        return str(text)

    def ids(self, messages: Messages, text: str) -> list[int]:
        """As transformers makes them of the text."""
        if self.template is None:
            return [int(i) for i in _by_code(self._wrapper, messages)]
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _variables(self, messages: Messages) -> dict[str, Any]:
        """What transformers and mlx-lm give to a template."""
        thinking = {getattr(self._wrapper, "_thinking_kwarg", "enable_thinking"): self._wrapper.has_thinking}
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        return {**self.tokenizer.special_tokens_map, **thinking, **given}


def _templated(prompt: Prompt, chat: _Chat) -> list[int]:
    messages = [
        {key: _valid(value) for key, value in message.items()}
        for message in prompt.messages or ({"role": "user", "content": prompt.text},)
    ]
    if chat.reading.parse_special:
        return chat.ids(messages, chat.text(messages))
    tokens = chat.tokens
    markers = Markers.not_in("".join([chat.template or "", *(message["content"] for message in messages)]))
    marked = [
        message | {"content": markers.mark(message["content"], tokens, tokens.of_role(message["role"]))}
        for message in messages
    ]
    text = chat.text(messages)
    marks = sum(len(a["content"]) - len(b["content"]) for a, b in zip(marked, messages, strict=True))
    if not marks:
        return chat.ids(messages, text)
    found = markers.unmark(chat.text(marked, marks=_COPIES * marks))
    if found.text != text:
        raise NotReadable("the chat template makes something else of it there than of other text")
    ids = read_as_text(chat.tokenizer, found, tokens, markers.stand_in)
    return chat.ids(messages, text) if ids is None else ids


_COPIES = 8  # a template may write a message more than once


def _plain(text: str, tokenizer: Any, reading: Reading) -> list[int]:
    """As mlx-lm does it, special tokens around it; where control tokens are parsed, unless the text begins with one."""
    if reading.parse_special:
        special = tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token)
        return [int(i) for i in tokenizer.encode(text, add_special_tokens=special)]
    inner = _inner(tokenizer)
    tokens = control_tokens(inner, "")
    markers = Markers.not_in(text)
    found = markers.unmark(markers.mark(text, tokens, tokens.control))
    ids = read_as_text(inner, found, tokens, markers.stand_in)
    if ids is None:
        return [int(i) for i in tokenizer.encode(text, add_special_tokens=True)]
    before, after = _around(tokenizer)
    return [*before, *ids, *after]


@lru_cache(maxsize=2)
def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that stand before and after a text."""
    bare, whole = (tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return list(map(int, whole[:start])), list(map(int, whole[start + len(bare) :]))
    raise NotReadable("the tokenizer's special tokens cannot be told from a text")


def _inner(tokenizer: Any) -> Any:
    """The tokenizer of transformers in mlx-lm's wrapper."""
    return getattr(tokenizer, "_tokenizer", tokenizer)


def _renders_itself(tokenizer: Any) -> bool:
    """Whether messages become text by Python: mlx-lm's own for a model, or a tokenizer's class."""
    defines = next((kind for kind in type(_inner(tokenizer)).__mro__ if "apply_chat_template" in vars(kind)), None)
    by_class = defines is not None and defines.__module__ != "transformers.tokenization_utils_base"
    return by_class or getattr(tokenizer, "_chat_template", None) is not None


def _by_code(tokenizer: Any, messages: Messages, **how: bool) -> Any:
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **how)
    except Exception as error:  # as many kinds as there are formats
        raise TemplateFailed(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error


def _only_template(found: Any) -> str:
    """The template of a tokenizer that may have several."""
    template = found.get("default") if isinstance(found, dict) else found
    if isinstance(template, str):
        return template
    if isinstance(found, dict):
        raise TemplateFailed(f"there are several, and none is the default ({', '.join(sorted(map(str, found)))})")
    raise TemplateFailed(f"it is no text but {str(found)[:60]}")


def _valid(text: str) -> str:
    """Text that can be written as UTF-8: tokenizers refuse lone surrogates, so each becomes U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


@lru_cache(maxsize=2)
def _longest_token(tokenizer: Any) -> int:
    return max(map(len, tokenizer.get_vocab()), default=1)
