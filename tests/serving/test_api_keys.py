"""API keys: whose file is read, which is refused, and that nobody is shown one."""

from __future__ import annotations

import hmac
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rights import of_an_ordinary_user

from draftloop.config import Serve
from draftloop.errors import ServeError
from draftloop.serving.api_error import ApiError
from draftloop.serving.api_keys import Client, Keys, keys_of, read_keys

ANN, BOB, BARE = "ann-0123456789abcdef", "bob/0123456789+abcdef==", "bare~0123456789.abcdef"
Write = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    def write(text: str | bytes, mode: int = 0o600) -> Path:
        path = tmp_path / "keys.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return path

    return write


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"Authorization", f"Bearer {key}".encode())]


def test_each_line_is_a_key_with_or_without_a_name(written: Write) -> None:
    keys = read_keys(written(f"\ufeff# of the team\r\n\n  ann: {ANN}\r\nbob@desk:{BOB}\n{BARE}\n"))
    assert keys.client(bearer(ANN)) == Client(1, "ann")
    assert keys.client(bearer(BOB)) == Client(2, "bob@desk")
    assert keys.client(bearer(BARE)) == Client(3, None)
    assert keys.names == {"ann", "bob@desk"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o610, 0o601])
def test_a_file_that_others_can_use_is_refused(written: Write, mode: int) -> None:
    path = written(ANN, mode)
    with pytest.raises(ServeError, match=rf"mode {mode:o} lets other users .* `chmod 600 {path}`"):
        read_keys(path)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_its_owner_alone_is_read(written: Write, mode: int) -> None:
    assert read_keys(written(ANN, mode)).client(bearer(ANN)).number == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 API keys; expected 1 to 1000"),
        ("# none yet\n", "0 API keys"),
        ("x: short\n", "line 1: a key of 5 characters; expected 16 to 512; python3 -c"),
        ("x" * 513, "line 1: a key of 513 characters"),
        (f"# a\nan n: {ANN}\n", "line 2: the name before the colon has another form; expected 1 to 64 letters"),
        (f": {ANN}\n", "line 1: the name before the colon has another form"),
        (f"{ANN} # of Ann\n", "line 1: a key with other characters than"),
        (f"{ANN}é\n", "line 1: a key with other characters than"),
        (f"{ANN}\nann: {ANN}\n", "line 2: the key of line 1 again; keep one of them"),
        (f"ann: {ANN}\n\nann: {BOB}\n", "line 3: the name of line 1 again; keep one of them"),
        (b"\xff\xfe" + ANN.encode(), "not UTF-8"),
        ("#" * (1 << 20) + "\n\n", "more than 1 MB"),
        ("".join(f"{ANN}{n}\n" for n in range(1001)), "1001 API keys; expected 1 to 1000"),
    ],
)
def test_a_line_that_is_no_key_is_named_and_not_repeated(written: Write, text: str | bytes, message: str) -> None:
    with pytest.raises(ServeError) as caught:
        read_keys(written(text))
    assert message in str(caught.value)
    assert "0123456789" not in str(caught.value)
    assert "xxxxxxxx" not in str(caught.value)


def test_what_is_no_readable_file_is_refused(tmp_path: Path, written: Write) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, message in [
        (tmp_path / "missing", "cannot be read: No such file"),
        (tmp_path / "pipe", "no regular file"),
        (Path(os.devnull), "no regular file"),
    ]:
        with pytest.raises(ServeError, match=message):
            read_keys(path)
    with pytest.raises(ServeError):
        read_keys(tmp_path)
    with of_an_ordinary_user(), pytest.raises(ServeError, match="cannot be read: Permission denied"):
        read_keys(written(ANN, 0o000))


def test_keys_are_shown_nowhere() -> None:
    keys = Keys([("ann", ANN), (None, BOB)])
    shown = f"{keys!r} {keys} {vars(keys)} {pickle.dumps(keys)!r}"
    assert repr(keys) == "Keys(2)"
    assert ANN not in shown
    assert BOB not in shown


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer(""),
        bearer(ANN[:-1]),
        bearer(f"{ANN}x"),
        bearer(ANN.upper()),
        [(b"authorization", ANN.encode())],
        [(b"authorization", b"Basic " + ANN.encode())],
        bearer(ANN) * 2,
    ],
)
def test_anything_but_a_known_key_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ApiError) as caught:
        Keys([("ann", ANN)]).client(headers)
    error = caught.value
    assert (error.status, error.type, error.code) == (401, "authentication_error", "invalid_api_key")
    assert error.headers == {"WWW-Authenticate": "Bearer"}
    assert ANN[:-1] not in str(error.to_json())


def test_the_scheme_may_be_written_in_any_way() -> None:
    assert Keys([("ann", ANN)]).client([(b"AUTHORIZATION", f" bEARER  {ANN} ".encode())]).name == "ann"


@pytest.mark.parametrize("given_key", [ANN, BOB, BARE, "unknown-0123456789"])
def test_every_key_is_compared_whichever_matches(given_key: str) -> None:
    keys = Keys([("ann", ANN), ("bob", BOB), (None, BARE)])
    with patch.object(hmac, "compare_digest", wraps=hmac.compare_digest) as compared:
        try:
            keys.client(bearer(given_key))
        except ApiError:
            assert given_key.startswith("unknown")
    assert compared.call_count == 3
    assert {len(value) for call in compared.call_args_list for value in call.args} == {32}


@given(value=st.binary(max_size=60))
def test_no_bytes_of_the_header_are_more_than_a_refusal(value: bytes) -> None:
    for sent in (value, b"Bearer " + value):
        with pytest.raises(ApiError):
            Keys([("ann", ANN)]).client([(b"authorization", sent)])


def test_a_server_for_others_does_not_start_without_keys(written: Write) -> None:
    assert keys_of(Serve()) is None
    with pytest.raises(ServeError, match=r"--host 0\.0\.0\.0"):
        keys_of(Serve(host="0.0.0.0"))
    file = str(written(ANN))
    for host in ("0.0.0.0", "127.0.0.1"):
        keys = keys_of(Serve(host=host, api_key_file=file))
        assert keys is not None
        assert keys.client(bearer(ANN)) == Client(1)
