"""Prompts: read from flags and files, turned into token ids, and why one cannot be used. Knows no model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from .errors import PromptError

_SURROGATE = re.compile("[\ud800-\udfff]")


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


def encode(prompt: Prompt, tokenizer: Any, *, chat_template: bool, max_length: int) -> list[int] | Unusable:
    """Token ids of a prompt, through the chat template where there is one and it is wanted.

    Args:
        prompt: text or messages.
        tokenizer: as mlx-lm wraps it.
        chat_template: apply the tokenizer's template; messages need one.
        max_length: most tokens; a longer prompt is skipped, not cut. A text of more characters than so many of the
            vocabulary's longest token is not even tokenized.
    """
    if not prompt.text.strip():
        return Unusable("empty", "no text")
    limit = max_length * _longest_token(tokenizer)
    if len(prompt.text) > limit:
        return Unusable("too long", f"{len(prompt.text):,} characters, more than {max_length:,} tokens can hold")
    templated = chat_template and tokenizer.has_chat_template
    if prompt.messages is not None and not templated:
        return Unusable("no chat template", "chat messages need a tokenizer with a chat template, switched on")
    try:
        ids = _templated(prompt, tokenizer) if templated else _plain(_valid(prompt.text), tokenizer)
    except TemplateError as error:  # a template may refuse: roles that do not alternate, a system message
        return Unusable("chat template", f"the tokenizer's chat template refuses it: {' '.join(str(error).split())}")
    if len(ids) > max_length:
        return Unusable("too long", f"{len(ids):,} tokens, at most {max_length:,} expected (data.max_prompt_length)")
    return ids or Unusable("empty", "no tokens")


def _templated(prompt: Prompt, tokenizer: Any) -> list[int]:
    messages = prompt.messages or ({"role": "user", "content": prompt.text},)
    clean = [{key: _valid(value) for key, value in message.items()} for message in messages]
    return [int(i) for i in tokenizer.apply_chat_template(clean, add_generation_prompt=True)]


def _plain(text: str, tokenizer: Any) -> list[int]:
    """As mlx-lm does it: special tokens unless the text already begins with the first of them."""
    special = tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token)
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=special)]


def _valid(text: str) -> str:
    """Text that can be written as UTF-8: tokenizers refuse lone surrogates, so each becomes U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


@lru_cache(maxsize=2)
def _longest_token(tokenizer: Any) -> int:
    return max(map(len, tokenizer.get_vocab()), default=1)
