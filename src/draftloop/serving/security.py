"""From where a request may come: addresses served without keys, Host, Origin, CORS. Knows nothing of keys and bodies.

A web page can send requests to a server on its visitor's own machine. The header Origin says that a page asks. After
DNS rebinding the page takes the server for its own, GET comes without Origin, and Host has the page's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from ..config import Serve
from ..errors import ServeError
from .api_error import ApiError

Headers = Iterable[tuple[bytes, bytes]]
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104 (the addresses that are refused without keys)
_with_port = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]+)(:\d{0,5})?").fullmatch


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a text is, with or without brackets; None for a name. IPv4 within IPv6 is IPv4."""
    try:
        address = ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def host_name(host: str) -> str:
    """The one spelling of a name or address: small letters, no brackets, no dot at the end."""
    return str(address_of(host) or host.lower().removesuffix("."))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`.

    A name other than `localhost` is not trusted to lead here, nor is an address in a short form such as `127.1`.
    """
    address = address_of(host)
    return address.is_loopback if address is not None else host.lower() == "localhost"


def check_bind(host: str, has_keys: bool) -> None:
    """Raise ServeError where others could reach the server without an API key."""
    if not has_keys and not is_loopback(host):
        raise ServeError(
            f"--host {host} can be reached from other machines, and no API keys are set; expected a loopback address "
            "(127.0.0.1, ::1, localhost), or --api-key-file FILE with one key a line"
        )


@dataclass(frozen=True)
class Door:
    """Which requests may come in.

    Attributes:
        hosts: names and addresses by which clients may call the server, as `host_name` writes them.
        any_address: so may every address. A server that listens on all of a machine's cannot know which those are, and
            only a name can be rebound.
        origins: web pages that may send requests.
    """

    hosts: frozenset[str]
    any_address: bool
    origins: frozenset[str]

    @classmethod
    def of(cls, serve: Serve) -> Door:
        """The door of a server that listens on `serve.host`."""
        own = host_name(serve.host)
        everywhere = own in _EVERYWHERE
        local = LOOPBACK if everywhere or is_loopback(own) else frozenset()
        hosts = local | {own} | {host_name(host) for host in serve.allowed_hosts}
        return cls(hosts, everywhere, frozenset(serve.allowed_origins))

    def admit(self, headers: Headers) -> str | None:
        """The origin of a request that may come in, None for one that no web page sent.

        Any port will do: a forwarded port (ssh -L, docker -p) is another one, and rebinding cannot be told by it.

        Raises:
            ApiError: 403, for a host that is not the server's or an origin that is not listed.
        """
        pairs = list(headers)
        if not self._knows(header_values(pairs, b"host")):
            raise ApiError(
                403,
                "the header Host is missing or is not a name of this server; use its address, or add the name to "
                "serve.allowed_hosts",
                code="host_not_allowed",
            )
        origins = header_values(pairs, b"origin")
        if not origins:
            return None
        if len(origins) > 1 or origins[0].lower() not in self.origins:
            raise ApiError(
                403,
                "web pages of this origin may not use this server; add the origin to serve.allowed_origins",
                code="origin_not_allowed",
            )
        return origins[0]

    def _knows(self, hosts: list[str]) -> bool:
        parts = _with_port(hosts[0]) if len(hosts) == 1 else None
        if parts is None:
            return False
        return host_name(parts[1]) in self.hosts or (self.any_address and address_of(parts[1]) is not None)


def cors_headers(origin: str) -> dict[str, str]:
    """What lets the pages of a listed origin read an answer."""
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "Retry-After", "Vary": "Origin"}


def is_preflight(method: str, headers: Headers) -> bool:
    """Whether a browser asks if a page's request would be allowed; that question has no key."""
    return method == "OPTIONS" and bool(header_values(headers, b"access-control-request-method"))


PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, *",  # the star leaves Authorization out
    "Access-Control-Max-Age": "600",
}


def header_values(headers: Headers, name: bytes) -> list[str]:
    """All values of a header, whose name is given in small letters; Latin-1 reads every byte."""
    return [value.decode("latin-1").strip() for known, value in headers if known.lower() == name]
