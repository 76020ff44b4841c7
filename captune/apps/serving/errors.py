"""What an endpoint refuses, as OpenAI's clients expect to be told."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException

__all__ = ["APIError", "error_body", "refusal", "scores_error"]

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class APIError(HTTPException):
    """A request that is refused.

    Args:
        status: of the HTTP answer.
        message: one sentence: what was given, what was expected.
        code: for programs, such as "model_not_found".
        param: which part of the request is meant.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(status, message)
        self.status = status
        self.body = error_body(status, message, code=code, param=param)


def scores_error(reason: str) -> APIError:
    """The answer where the model's scores are not numbers; it is the model's fault and not the request's.

    Args:
        reason: `captune.decoding.options.NON_FINITE_SCORES`.
    """
    return APIError(500, f"{reason[0].upper()}{reason[1:]}.", code="scores_not_finite")


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The JSON object of a refusal."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(status: int, sentence: str) -> tuple[str, bytes]:
    """Content type and body of a request that is refused before it is read; see `captune.apps.http.Guard`."""
    return "application/json", json.dumps(error_body(status, sentence)).encode()
