"""POST /v1/draftloop/adapter puts a version into use, or the one before; with serve.admin alone."""

from __future__ import annotations

import logging
import re
from typing import Any

import orjson

from ..config import Config
from ..data_directory import DataDirectory
from ..errors import AdapterError, DraftloopError
from ..retraining.by_hand import promote_by_hand, rollback_by_hand
from .api_error import ApiError

PATH = "/v1/draftloop/adapter"
_log = logging.getLogger(__name__)
_VERSION = re.compile(r"v[0-9]{4,9}").fullmatch
_EXPECTED = 'expected {"version": "v0001"}, "none" for the bare draft, or "previous" to roll back'


def put_into_use(data: DataDirectory, config: Config, body: bytes) -> dict[str, Any]:
    """Move the pointer as the body says; requests that begin a moment later have that draft.

    Raises:
        ApiError: 400 for the body, 404 for a version that is not there or not whole, 503 where the disk refuses or
            somebody else keeps the registry.
    """
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is no JSON: {error}") from None
    version = given.get("version") if isinstance(given, dict) else None
    if not isinstance(version, str) or not (_VERSION(version) or version in ("none", "previous")):
        found = orjson.dumps(version).decode()[:40]
        raise ApiError(400, f"found {found}; {_EXPECTED}", param="version")
    try:
        if version == "previous":
            pointer = rollback_by_hand(data, config, "by a request")
        else:
            pointer = promote_by_hand(data, config, None if version == "none" else version, "by a request")
    except AdapterError:  # its message has paths of this machine
        which = "previous draft" if version == "previous" else version
        message = f"there is no {which} that is whole; `draftloop adapters list` on the server shows them"
        raise ApiError(404, message, param="version", code="version_not_found") from None
    except DraftloopError as error:
        _log.error("a request could not put %s into use: %s", version, error)
        raise ApiError(503, f"{version} could not be put into use; the server's log says why") from None
    return {"champion": pointer.champion, "previous": pointer.previous}
