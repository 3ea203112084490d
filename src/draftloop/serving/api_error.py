"""What a client is told when its request cannot be served, as OpenAI's error object. Knows nothing of HTTP's bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ErrorType = Literal[
    "invalid_request_error", "not_found_error", "authentication_error", "rate_limit_error", "server_error"
]


@dataclass(eq=False)
class ApiError(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP, 400 to 599.
        message: what was found, what was expected, what to do.
        type: OpenAI's kind of error.
        param: the field that is wrong; None where it is none in particular.
        code: a word for programs.
        headers: more headers of the answer, such as Retry-After.
    """

    status: int
    message: str
    type: ErrorType = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def to_json(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
