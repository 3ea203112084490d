"""A request may choose the draft's version where the server's owner lets it, and nothing outside the registry."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from shop import Shop, flip_a_bit

from draftloop.config import Config
from draftloop.data_directory import DataDirectory
from draftloop.serving.admin import put_into_use
from draftloop.serving.api_error import ApiError


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    found = Shop(DataDirectory(tmp_path), Config())
    for _ in range(2):
        found.add_version(0.0)
    return found


def ask(shop: Shop, version: object) -> dict[str, object]:
    return put_into_use(shop.data, shop.config, orjson.dumps({"version": version}))


def test_versions_are_put_into_use_and_taken_back_and_it_is_written_down(shop: Shop) -> None:
    assert ask(shop, "v0001") == {"champion": "v0001", "previous": None}
    assert ask(shop, "v0002") == {"champion": "v0002", "previous": "v0001"}
    assert ask(shop, "previous") == {"champion": "v0001", "previous": "v0002"}
    assert ask(shop, "none") == {"champion": None, "previous": "v0001"}
    verdict = shop.data.verdicts.of("v0002")
    assert verdict is not None
    assert verdict.reasons == ("by a request",)


@pytest.mark.parametrize("version", ["champion", "latest", "../v0001", "/etc/passwd", "v1", "", None, 1, ["v0001"]])
def test_no_request_names_anything_else(shop: Shop, version: object) -> None:
    with pytest.raises(ApiError, match="expected") as error:
        ask(shop, version)
    assert (error.value.status, error.value.param) == (400, "version")
    assert shop.data.registry.pointer().sequence == 0


def test_what_was_found_is_said_as_json_has_it(shop: Shop) -> None:
    with pytest.raises(ApiError, match="found null; expected"):
        ask(shop, None)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null"])
def test_a_body_that_is_none_is_refused(shop: Shop, body: bytes) -> None:
    with pytest.raises(ApiError) as error:
        put_into_use(shop.data, shop.config, body)
    assert error.value.status == 400


def test_a_version_that_is_not_there_or_not_whole_is_not_found_and_no_path_is_told(shop: Shop) -> None:
    flip_a_bit(shop, "v0002")
    for version in ("v0009", "v0002"):
        with pytest.raises(ApiError, match=f"no {version} that is whole") as error:
            ask(shop, version)
        assert error.value.status == 404
        assert str(shop.data.root) not in error.value.message
    with pytest.raises(ApiError, match="no previous draft that is whole"):
        ask(shop, "previous")


def test_a_registry_that_cannot_be_used_now_is_no_mistake_of_the_client(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    (shop.data.registry.root / "pointer.json").write_text("{")
    with pytest.raises(ApiError, match="could not be put into use") as error:
        ask(shop, "v0001")
    assert error.value.status == 503
    assert str(shop.data.root) not in error.value.message
    assert "pointer.json is damaged" in caplog.text
