"""From where a request may come; no bytes of a header are more than a refusal."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from draftloop.config import Serve
from draftloop.errors import ServeError
from draftloop.serving.api_error import ApiError
from draftloop.serving.security import Door, check_bind, cors_headers, is_loopback, is_preflight


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", "LocalHost", "::ffff:127.0.0.1", "0:0::1"]
)
def test_loopback_is_served_without_keys(host: str) -> None:
    assert is_loopback(host)
    check_bind(host, has_keys=False)


@pytest.mark.parametrize(
    "host",
    [
        *("0.0.0.0", "::", "::ffff:0.0.0.0", "192.168.1.5", "8.8.8.8", "fe80::1"),
        *("", "*", "my-mac.local", "localhost.evil.com", "127.0.0.1.nip.io", "localhost "),
        *("127.1", "2130706433", "0x7f000001", "١٢٧.0.0.1"),
    ],
)
def test_any_other_address_needs_keys(host: str) -> None:
    with pytest.raises(ServeError, match=r"can be reached from other machines.*--api-key-file FILE"):
        check_bind(host, has_keys=False)
    check_bind(host, has_keys=True)


def admitted(serve: Serve, host: bytes, *origins: bytes) -> str | None:
    return Door.of(serve).admit([(b"Host", host), *((b"origin", origin) for origin in origins)])


LAN = Serve(host="192.168.1.5")
EVERYWHERE = Serve(host="0.0.0.0")
NAMED = Serve(allowed_hosts=("my-mac.local", "[2001:db8::1]"))


@pytest.mark.parametrize(
    ("serve", "host"),
    [
        (Serve(), b"localhost:8080"),
        (Serve(), b"LOCALHOST"),
        (Serve(), b"localhost."),
        (Serve(), b"127.0.0.1:9000"),  # a forwarded port
        (Serve(), b"[::1]:8080"),
        (Serve(), b"[0:0::1]"),
        (Serve(host="127.8.9.10"), b"127.8.9.10:8080"),
        (NAMED, b"My-Mac.local:8080"),
        (NAMED, b"[2001:db8:0::1]"),
        (NAMED, b"localhost"),
        (LAN, b"192.168.1.5:8080"),
        (EVERYWHERE, b"192.168.1.5:8080"),
        (EVERYWHERE, b"localhost:8080"),
        (Serve(host="::"), b"[fe80::1]:8080"),
    ],
)
def test_a_client_may_call_the_server_by_its_names(serve: Serve, host: bytes) -> None:
    assert admitted(serve, host) is None


@pytest.mark.parametrize(
    ("serve", "host"),
    [
        (Serve(), b"evil.example:8080"),
        (Serve(), b"localhost.evil.example"),
        (Serve(), b"127.0.0.1.evil.example"),
        (Serve(), b"192.168.1.5"),
        (Serve(), b""),
        (Serve(), b"localhost:80:80"),
        (Serve(), b"evil.example@localhost"),
        (Serve(), b"localhost, evil.example"),
        (LAN, b"localhost"),
        (EVERYWHERE, b"evil.example"),
        (EVERYWHERE, b"0"),
    ],
)
def test_a_rebound_name_is_refused(serve: Serve, host: bytes) -> None:
    with pytest.raises(ApiError, match=r"add the name to serve\.allowed_hosts") as caught:
        admitted(serve, host)
    assert (caught.value.status, caught.value.code) == (403, "host_not_allowed")


@pytest.mark.parametrize("headers", [[], [(b"host", b"localhost"), (b"HOST", b"localhost")]], ids=["none", "two"])
def test_a_request_has_one_host(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ApiError, match="Host"):
        Door.of(Serve()).admit(headers)


def test_a_listed_origin_may_come_in_and_no_other() -> None:
    serve = Serve(allowed_origins=("https://chat.example.org", "app://obsidian.md"))
    assert admitted(serve, b"localhost", b"https://Chat.example.org") == "https://Chat.example.org"
    assert admitted(serve, b"localhost", b"app://obsidian.md") == "app://obsidian.md"
    for origins in ([b"null"], [b"http://chat.example.org"], [b""], [b"app://obsidian.md"] * 2):
        with pytest.raises(ApiError, match=r"add the origin to serve\.allowed_origins"):
            admitted(serve, b"localhost", *origins)


def test_without_a_list_every_web_page_is_refused() -> None:
    with pytest.raises(ApiError) as caught:
        admitted(Serve(), b"localhost:8080", b"http://localhost:8080")
    assert (caught.value.status, caught.value.code) == (403, "origin_not_allowed")


def test_only_the_origin_that_asked_is_told_that_it_may_read() -> None:
    assert cors_headers("https://a.org")["Access-Control-Allow-Origin"] == "https://a.org"
    assert is_preflight("OPTIONS", [(b"Access-Control-Request-Method", b"POST")])
    assert not is_preflight("POST", [(b"Access-Control-Request-Method", b"POST")])
    assert not is_preflight("OPTIONS", [])


names = st.sampled_from([b"host", b"Host", b"origin", b"authorization", b"content-length"]) | st.binary(max_size=10)
hosts = st.sampled_from([b"localhost", b"[::1%", b"[", b"]", b"[]:", b"1.2.3.4:", b"[::1]]"]) | st.binary(max_size=40)


@given(headers=st.lists(st.tuples(names, hosts), max_size=6), host=st.sampled_from(["127.0.0.1", "::", "192.168.1.5"]))
@example(headers=[(b"host", b"[fe80::1%\xff]")], host="::")
def test_no_bytes_of_a_header_are_more_than_a_refusal(headers: list[tuple[bytes, bytes]], host: str) -> None:
    with suppress(ApiError):
        assert Door.of(Serve(host=host, allowed_origins=("https://a.org",))).admit(headers) in (None, "https://a.org")


@given(text=st.text(max_size=30))
def test_no_text_for_an_address_is_loopback_by_accident(text: str) -> None:
    assert not is_loopback(f"{text}.example.org")
    is_loopback(text)
