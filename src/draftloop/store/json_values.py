"""Walks the texts in a JSON value, however deep, and says what JSON cannot keep. Imports nothing of the project."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

REPLACEMENT = "\ufffd"
SURROGATE = re.compile("[\ud800-\udfff]")  # a lone one: Python's text has no pairs
DEEPEST = 100  # lists and objects in one another; orjson refuses 255, and no chat has ten
_INTEGERS = range(-(2**63), 2**64)  # orjson's


def changed(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text in it changed, keys too; tuples become lists, as JSON has them."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): changed(one, change) for key, one in value.items()}
    return [changed(one, change) for one in value] if isinstance(value, list | tuple) else value


def texts(value: Any) -> Iterator[str]:
    """Every text in it, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts(one)


def without_surrogates(value: Any) -> Any:
    """The value with U+FFFD in the place of each lone surrogate, which neither UTF-8 nor JSON has."""
    return changed(value, lambda text: SURROGATE.sub(REPLACEMENT, text))


def is_deep(value: Any, depth: int = 0) -> bool:
    """Whether it has lists and objects in one another more than `DEEPEST` times."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return depth > DEEPEST or any(is_deep(one, depth + 1) for one in inner)


def why_not_kept(value: Any, depth: int = 0) -> str | None:
    """Why JSON, as it is written here, cannot keep a parsed value, in a few words; None where it can."""
    if depth > DEEPEST:
        return f"it is nested more than {DEEPEST} deep"
    if isinstance(value, float) and not math.isfinite(value):
        return f"it has a number that JSON has not ({value})"
    if isinstance(value, int) and value not in _INTEGERS:
        return "it has a whole number of more than 64 bits"
    if isinstance(value, str) and "\0" in value:
        return "it has a NUL character"
    inner: list[Any] = list(value) if isinstance(value, list | tuple) else []
    if isinstance(value, dict):
        inner = [*value.keys(), *value.values()]
    return next((why for why in (why_not_kept(one, depth + 1) for one in inner) if why), None)
