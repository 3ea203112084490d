"""What clients are told: OpenAI's error object, whose type follows from the status."""

from __future__ import annotations

import pytest

from draftloop.serving import ApiError


def test_it_is_the_object_that_clients_read() -> None:
    error = ApiError(400, "stop: expected a text", param="stop", code="invalid_value")
    assert error.to_json() == {
        "error": {
            "message": "stop: expected a text",
            "type": "invalid_request_error",
            "param": "stop",
            "code": "invalid_value",
        }
    }
    assert str(error) == "stop: expected a text"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_type_follows_from_the_status(status: int, kind: str) -> None:
    assert ApiError(status, "no").type == kind


def test_headers_are_its_own() -> None:
    headers = {"Retry-After": "1"}
    error = ApiError(429, "the queue is full", headers=headers)
    headers.clear()
    assert error.headers == {"Retry-After": "1"}
    assert ApiError(400, "no").headers == {}
