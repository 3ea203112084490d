"""Why a request gets no answer: one exception, and the object that OpenAI's clients read. Knows no HTTP framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_SERVER = 500  # from here on it is no mistake of the client


class ApiError(Exception):
    """What a client is told in the place of an answer. The message may quote the request: it belongs into no log.

    Attributes:
        status: of HTTP.
        message: what was found and what was expected.
        param: the field of the request, such as `messages[0].content`; None where it is none.
        code: a word for programs, such as `model_not_found`.
        headers: of the response, beside the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's kind of error, which follows from the status."""
        return "server_error" if self.status >= _SERVER else _TYPES.get(self.status, "invalid_request_error")

    def to_json(self) -> dict[str, Any]:
        """The body of the response."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
