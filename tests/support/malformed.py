"""Requests that are wrong in every way that a seeded generator finds, as bytes. Knows no server and no answer.

Most are one mistake in a good request. Where a mistake may lift the limit of the answer's length, the prompt is so long
that the models have room for little more.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from clients import CHAT, COMPLETIONS, request
from malformed_parts import (
    BYTES,
    CHUNKS,
    CODINGS,
    HEADERS,
    KINDS,
    LENGTHS,
    NO_HTTP,
    NO_OBJECTS,
    ODD_HEADERS,
    PATHS,
    REQUEST_LINES,
    VALUES,
)

from draftloop.serving.request_bodies import ChatBody, TextBody

REFUSED = frozenset(range(400, 500))
ANY = REFUSED | {200}
_LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class Malformed:
    """A request.

    Attributes:
        what: is wrong with it.
        sent: its bytes.
        method: that they name, by which an answer is read.
        allowed: statuses of the answer.
        is_http: whether an answer has to come; else the connection may end without.
    """

    what: str
    sent: bytes
    method: str = "POST"
    allowed: frozenset[int] = ANY
    is_http: bool = True


class Generator:
    """Requests for a server.

    Args:
        seed: the same seed makes the same requests.
        room: tokens that the models hold, of which a character is one at most.
    """

    def __init__(self, seed: int, room: int) -> None:
        self._choose = random.Random(seed)
        self._long = "0123456789" * (room // 10 - 14)
        bodies = ((CHAT, ChatBody), (COMPLETIONS, TextBody))
        fields = [(path, name) for path, body in bodies for name in body.model_fields]
        self._choose.shuffle(fields)
        self._fields = cycle(fields)

    def requests(self, count: int) -> Iterator[Malformed]:
        """So many; every second one has a field of a wrong value, each field in its turn."""
        others: list[Callable[[], Malformed]] = [
            self._node,
            self._raw_json,
            self._other_bytes,
            self._door,
            self._framing,
            self._transfer,
            self._other_head,
        ]
        kinds = (kind for other in cycle(others) for kind in (self._field, other))
        return (kind() for kind in islice(kinds, count))

    # -- JSON of another form ------------------------------------------------------------------------------------------

    def _good(self, path: str, long: bool = False) -> dict[str, Any]:
        """A request with a member for every part of a request that can be wrong within."""
        fields: dict[str, Any] = {"max_tokens": 2, "temperature": 0, "stop": ["\n"], "metadata": {"source": "fuzz"}}
        fields |= {"stream": self._choose.random() < 0.3, "stream_options": {"include_usage": True}}
        text = self._long if long else "the target and the draft"
        if path == COMPLETIONS:
            return fields | {"prompt": text, "logprobs": 1}
        call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
        messages = [
            {"role": "system", "content": "short"},
            {"role": "user", "content": [{"type": "text", "text": text}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "seen", "tool_call_id": "c1"},
        ]
        parameters = {"type": "object", "properties": {"at": {"type": "string"}}}
        tools = [{"type": "function", "function": {"name": "look", "description": "at", "parameters": parameters}}]
        more = {"logprobs": True, "top_logprobs": 2, "tool_choice": "auto", "chat_template_kwargs": {"thinking": False}}
        return fields | more | {"messages": messages, "tools": tools}

    def _field(self) -> Malformed:
        """A value of another type, range or form."""
        path, name = next(self._fields)
        value = self._value()
        fields = self._good(path, long=name in _LIMITS) | {name: value}
        return Malformed(f"{path}: {name} is {value!r:.60}", request(path, _json(fields)))

    def _node(self) -> Malformed:
        """The same somewhere within, or nothing at all there."""
        path = self._choose.choice([CHAT, COMPLETIONS])
        fields = self._good(path)
        places = [place for place in _places(fields) if place[0] not in _LIMITS]
        place, value = self._choose.choice(places), self._value()
        inner: Any = fields
        for part in place[:-1]:
            inner = inner[part]
        if self._choose.random() < 0.2:
            del inner[place[-1]]
            return Malformed(f"{path}: no {place}", request(path, _json(fields)))
        inner[place[-1]] = value
        return Malformed(f"{path}: {place} is {value!r:.60}", request(path, _json(fields)))

    def _value(self) -> Any:
        value = copy.deepcopy(self._choose.choice(VALUES))
        for _ in range(self._choose.choice([0, 0, 0, 1, 2])):
            value = self._choose.choice([[value], [value, value], {"text": value}, {"type": value, "function": value}])
        return value

    def _raw_json(self) -> Malformed:
        """JSON that is none, or is no object."""
        body = self._choose.choice(NO_OBJECTS)
        path = self._choose.choice([CHAT, COMPLETIONS])
        return Malformed(f"{path}: the body is {body!r:.60}", request(path, body), allowed=frozenset({400}))

    def _other_bytes(self) -> Malformed:
        """A good body with a few bytes changed, put in or taken out."""
        path = self._choose.choice([CHAT, COMPLETIONS])
        whole = _json(self._good(path, long=True))
        start = whole.index(self._long.encode())
        if self._choose.random() < 0.5:
            body = self._damaged(whole[:start]) + whole[start:]
        else:
            stop = start + len(self._long)
            body = whole[:stop] + self._damaged(whole[stop:])
        return Malformed(f"{path}: other bytes in the body", request(path, body))

    def _damaged(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self._choose.choice([1, 1, 2, 8])):
            at = self._choose.randrange(len(changed) + 1)
            how = self._choose.randrange(4)
            if how == 0:
                changed[at : at + 1] = self._choose.randbytes(1)
            elif how == 1:
                changed[at:at] = self._choose.choice(BYTES)
            elif how == 2:
                del changed[at : at + self._choose.choice([1, 3, 9])]
            else:
                changed = changed[:at]
        return bytes(changed)

    # -- HTTP of another form ------------------------------------------------------------------------------------------

    def _door(self) -> Malformed:
        """Methods, paths, hosts, origins and kinds of content that are none of the server's."""
        body = _json(self._good(COMPLETIONS))
        choices: list[Malformed] = []
        for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "post"):
            sent = request(COMPLETIONS, body, method=method)
            choices.append(Malformed(f"method {method}", sent, method, frozenset({405})))
        for path in PATHS:
            choices.append(Malformed(f"path {path}", request(path, body), allowed=frozenset({404})))
        for path in ("/v1/models", "/health", "/metrics"):
            choices.append(Malformed(f"path {path}", request(path, body), allowed=frozenset({405})))
        for host in ("evil.example", "", "localhost.evil.example", "[::1", "127.0.0.1:80:80", "\xff"):
            sent = request(COMPLETIONS, body, host=host)
            choices.append(Malformed(f"host {host!r}", sent, allowed=frozenset({400, 403})))
        choices.append(Malformed("two hosts", request(COMPLETIONS, body, "Host: localhost"), allowed=REFUSED))
        for origin in ("http://evil.example", "null", ""):
            sent = request(COMPLETIONS, body, f"Origin: {origin}")
            choices.append(Malformed(f"origin {origin!r}", sent, allowed=frozenset({403})))
        for kind in KINDS:
            sent = request(COMPLETIONS, body).replace(b"application/json", kind.encode())
            choices.append(Malformed(f"content type {kind!r}", sent))
        for header in ODD_HEADERS:
            choices.append(Malformed(f"header {header!r}", request(COMPLETIONS, body, header)))
        for encoding in ("utf-16", "utf-32", "utf-8-sig"):
            sent = request(COMPLETIONS, body.decode().encode(encoding), f"Content-Encoding: {encoding}")
            choices.append(Malformed(f"encoding {encoding}", sent, allowed=frozenset({400})))
        return self._choose.choice(choices)

    def _framing(self) -> Malformed:
        """Request lines and headers that are none, or too much."""
        good = request(COMPLETIONS, _json(self._good(COMPLETIONS)))
        line, rest = good.split(b"\r\n", 1)
        lines = self._choose.choice(REQUEST_LINES)
        header = self._choose.choice(HEADERS)
        length = b"Content-Length: %d" % len(good.partition(b"\r\n\r\n")[2])
        choices = [
            Malformed(f"request line {lines!r:.60}", lines + b"\r\n" + rest, is_http=False),
            Malformed(f"header {header!r:.60}", line + b"\r\n" + header + b"\r\n" + rest, is_http=False),
            Malformed("no end of lines", good.replace(b"\r\n", b"\r"), is_http=False),
            Malformed("only line feeds", good.replace(b"\r\n", b"\n")),
            Malformed(
                "long headers",
                line + b"\r\nX: " + b"x" * self._choose.choice([33_000, 70_000, 1_000_000]) + b"\r\n" + rest,
                allowed=frozenset({431}),
            ),
            Malformed("many headers", line + b"\r\n" + b"X: 1\r\n" * 150 + rest, allowed=frozenset({431})),
            Malformed("a long path", good.replace(b" /", b" /" + b"x" * 40_000, 1), allowed=frozenset({431})),
            Malformed(f"length {self._choose.choice(LENGTHS)!r}", b"", is_http=False),
        ]
        found = self._choose.choice(choices)
        if not found.sent:
            wrong = self._choose.choice(LENGTHS)
            return Malformed(f"length {wrong!r:.60}", good.replace(length, wrong), is_http=False)
        return found

    def _transfer(self) -> Malformed:
        """Bodies in chunks that are none, and in transfer codings that nobody has."""
        body = _json(self._good(COMPLETIONS))
        line, _, _ = request(COMPLETIONS, b"").partition(b"Content-Length")
        coding = self._choose.choice(CODINGS)
        if self._choose.random() < 0.4:
            chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            sent = line + coding + b"\r\n\r\n" + chunks
            return Malformed(f"coding {coding!r:.60}", sent, allowed=ANY | {501}, is_http=False)
        size = self._choose.choice(CHUNKS)
        sent = line + b"Transfer-Encoding: chunked\r\n\r\n" + size + body + b"\r\n0\r\n\r\n"
        return Malformed(f"chunk {size!r:.60}", sent, is_http=False)

    def _other_head(self) -> Malformed:
        """A good head with a few bytes changed, put in or taken out, or no HTTP at all."""
        if self._choose.random() < 0.3:
            sent = self._choose.choice([*NO_HTTP, self._choose.randbytes(self._choose.randrange(1, 5000))])
            return Malformed(f"no HTTP: {sent!r:.60}", sent, is_http=False)
        head, _, body = request(COMPLETIONS, _json(self._good(COMPLETIONS))).partition(b"\r\n\r\n")
        sent = self._damaged(head) + b"\r\n\r\n" + body
        return Malformed(f"other bytes in the head: {sent!r:.60}", sent, is_http=False, allowed=ANY | {501})


def _json(fields: Any) -> bytes:
    return json.dumps(fields).encode()  # with NaN, Infinity and lone surrogates, as \ud800


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something lies within lists and objects."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in parts:
        yield (*before, key)
        yield from _places(inner, (*before, key))
