"""The child process that renders chat templates, one request per line of stdin. Knows jinja2, not this package.

A template is a program that came with a model's files. The sandbox keeps it from everything but text; what it cannot
keep it from is to run for ever, or to fill the memory. So that is done in a process that may be lost: the operating
system ends it when a template took its CPU seconds, on Linux its memory is limited too, and its output is counted while
it is written. The environment has what Hugging Face's templates expect: the meaning is that of transformers.

Run as `python -I -S template_worker.py JINJA2_DIRECTORY MARKUPSAFE_DIRECTORY`, with these on the path and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

if __name__ == "__main__":
    sys.path += sys.argv[1:]

from jinja2 import nodes
from jinja2.environment import Template
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY_BYTES = 10**9
_LONGEST_REASON = 200


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training elsewhere; here its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """A block with a scope of its own, which is what the tag has in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class _Dict:
    """`dict`, without the class that its methods would lead to."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """jinja2's own, which takes no name that begins with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args  # `namespace(self=...)` is a namespace too
        values = dict(*given, **kwargs)
        for name in values:
            _check(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check(name)
        super().__setitem__(name, value)


def _check(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without jinja2's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - templates may name it
    return datetime.now().strftime(format)


@lru_cache(maxsize=8)
def compiled(source: str) -> Template:
    """A template, compiled.

    Raises:
        TemplateError: and whatever else compiling a program may.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment.from_string(source)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What a template makes of its variables.

    Args:
        request: `template`, `variables`, and `limit`, the most characters.

    Returns:
        `text`; or `longer`, true, where it would be longer than the limit; or `error`, in a line.
    """
    pieces, length = [], 0
    try:
        for piece in compiled(request["template"]).generate(request["variables"]):
            pieces.append(piece)
            length += len(piece)
            if length > request["limit"]:
                return {"longer": True}
        return {"text": "".join(pieces)}
    except Exception as error:  # noqa: BLE001 - a program may raise anything
        return {"error": _line(error)}


def _line(error: Exception) -> str:
    """An error in one line, of characters that do nothing to a terminal."""
    try:
        said = f"{error}"[: 4 * _LONGEST_REASON]
    except Exception:  # noqa: BLE001 - an error that cannot be said is named
        said = ""
    words = " ".join("".join(c if c.isprintable() else " " for c in said).split())
    name = "" if isinstance(error, TemplateError) and words else f"{type(error).__name__}: "
    return f"{name}{words}"[:_LONGEST_REASON].rstrip(": ")


def _allow_seconds(seconds: int) -> None:
    """From now on; the system then ends the process, in the middle of whatever it does."""
    times = os.times()
    _limit(resource.RLIMIT_CPU, math.ceil(times.user + times.system) + seconds)


def _limit(what: int, most: int) -> None:
    """A limit of this process, within what it was given."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def serve() -> None:
    """Answer until stdin ends, which it does with the process that asks, however that one ends."""
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":  # elsewhere the process that asks looks how much this one holds
        _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _allow_seconds(request["seconds"])
        sys.stdout.write(json.dumps(answer(request)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
