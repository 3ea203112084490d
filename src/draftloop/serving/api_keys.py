"""API keys: read from a file of their owner's, compared in constant time, shown to nobody. Knows no request's body.

`Keys` holds keyed hashes, never a key, so that no log, traceback or dump of it can have one.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..config import Serve
from ..errors import ServeError
from .api_error import ApiError
from .security import Headers, check_bind, header_values
from .sources import SOURCE_FORM, is_source

SHORTEST = 16
"""Least length of a key: whoever can reach the server may guess as often as it answers."""
LONGEST = 512
MOST = 1000
_MAX_FILE_BYTES = 1 << 20
_token = re.compile(r"[A-Za-z0-9._~+/-]+=*").fullmatch  # what may follow Bearer (RFC 6750)
_REMEDY = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"


@dataclass(frozen=True)
class Client:
    """Who asks.

    Attributes:
        number: of the API key, from 1; 0 where none is asked for. Nothing is shared between numbers.
        name: of the API key, for its prompts' source; None where it has none.
    """

    number: int = 0
    name: str | None = None


class Keys:
    """The API keys that a server takes.

    Args:
        named: each key with its name, or None; no key twice.
    """

    def __init__(self, named: Iterable[tuple[str | None, str]]) -> None:
        self._salt = secrets.token_bytes(32)
        pairs = list(named)
        self._names = [name for name, _ in pairs]
        self._hashes = [self._hash(key) for _, key in pairs]

    def __repr__(self) -> str:
        return f"Keys({len(self._hashes)})"

    @property
    def names(self) -> frozenset[str]:
        """The names that keys have."""
        return frozenset(name for name in self._names if name is not None)

    def client(self, headers: Headers) -> Client:
        """Who sends a request with these headers. Raises ApiError: 401, for no key or an unknown one."""
        number = self._number(_bearer(headers))
        if not number:
            raise ApiError(
                401,
                "no valid API key: expected a header `Authorization: Bearer KEY` with a key of serve.api_key_file",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return Client(number, self._names[number - 1])

    def _number(self, key: str) -> int:
        """The number of a key, from 1; 0 for an unknown one. The work is the same whichever it is."""
        given = self._hash(key)
        return sum(number * hmac.compare_digest(given, known) for number, known in enumerate(self._hashes, 1))

    def _hash(self, key: str) -> bytes:
        return hmac.digest(self._salt, key.encode(), "sha256")


def _bearer(headers: Headers) -> str:
    """The key of an Authorization header; empty where there is none, or more than one."""
    values = header_values(headers, b"authorization")
    scheme, _, key = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return key.strip() if scheme.lower() == "bearer" else ""


def read_keys(path: Path) -> Keys:
    """Read a file with one `name: key`, or one key, a line; empty lines and lines that begin with # do not count.

    Raises:
        ServeError: it cannot be read, others can read it too, or a line is no key; the message has no part of a key.
    """
    named: list[tuple[str | None, str]] = []
    lines: dict[tuple[str, str], int] = {}
    for number, line in enumerate(_read_private(path).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, key = _parsed(text, f"{path}, line {number}")
        for what in (("key", key), ("name", name)) if name else (("key", key),):
            if what in lines:
                raise ServeError(f"{path}, line {number}: the {what[0]} of line {lines[what]} again; keep one of them")
            lines[what] = number
        named.append((name, key))
    if not 0 < len(named) <= MOST:
        raise ServeError(f"{path}: {len(named)} API keys; expected 1 to {MOST}, one a line; {_REMEDY}")
    return Keys(named)


def keys_of(serve: Serve) -> Keys | None:
    """The API keys that a server asks for, None for none. Raises ServeError: it needs some, or they cannot be read."""
    keys = None if serve.api_key_file is None else read_keys(Path(serve.api_key_file))
    check_bind(serve.host, has_keys=keys is not None)
    return keys


def _parsed(text: str, where: str) -> tuple[str | None, str]:
    """The name and the key of a line."""
    before, colon, after = text.partition(":")
    name, key = (before.strip(), after.strip()) if colon else (None, text)
    if name is not None and not is_source(name):
        raise ServeError(f"{where}: the name before the colon has another form; expected {SOURCE_FORM}")
    if not SHORTEST <= len(key) <= LONGEST:
        raise ServeError(f"{where}: a key of {len(key)} characters; expected {SHORTEST} to {LONGEST}; {_REMEDY}")
    if not _token(key):
        raise ServeError(f"{where}: a key with other characters than letters, digits and ._~+/-=; {_REMEDY}")
    return name, key


def _read_private(path: Path) -> str:
    """A file that its owner alone can read. What is checked is what was opened: nobody can swap it in between."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait for its writer
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise ServeError(f"{path}: no regular file; expected a text file with one API key a line")
            if state.st_mode & 0o077:
                mode = stat.S_IMODE(state.st_mode)
                raise ServeError(f"{path}: mode {mode:03o} lets other users at the API keys; run `chmod 600 {path}`")
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ServeError(f"{path}: the API keys cannot be read: {error.strerror or error}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise ServeError(f"{path}: more than {_MAX_FILE_BYTES >> 20} MB; expected a text file with one API key a line")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ServeError(f"{path}: not UTF-8; expected a text file with one API key a line") from None
