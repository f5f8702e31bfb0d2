"""The error codes of the wire, in one list."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class ErrorCode(StrEnum):
    """Why an inference was not answered. The names are stable: programs branch on them."""

    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_INPUT = "INVALID_INPUT"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    VERSION_NOT_FOUND = "VERSION_NOT_FOUND"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    OVERLOADED = "OVERLOADED"
    MODEL_ERROR = "MODEL_ERROR"
    INTERNAL = "INTERNAL"
    INFERENCE_UNAVAILABLE = "INFERENCE_UNAVAILABLE"
    CACHE_MISS = "CACHE_MISS"
    EXPIRED = "EXPIRED"

    @property
    def http_status(self) -> int:
        """The status this code has on the Open Inference Protocol's HTTP routes."""
        return _HTTP_STATUS[self]

    @property
    def retryable(self) -> bool:
        """Whether the very same request can succeed later."""
        return self in _RETRYABLE


_HTTP_STATUS = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.INVALID_INPUT: 400,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.VERSION_NOT_FOUND: 404,
    ErrorCode.PAYLOAD_TOO_LARGE: 413,
    ErrorCode.OVERLOADED: 429,
    ErrorCode.MODEL_ERROR: 500,
    ErrorCode.INTERNAL: 500,
    ErrorCode.INFERENCE_UNAVAILABLE: 503,
    ErrorCode.CACHE_MISS: 504,
    ErrorCode.EXPIRED: 504,
}
_RETRYABLE = frozenset({ErrorCode.OVERLOADED, ErrorCode.INTERNAL, ErrorCode.INFERENCE_UNAVAILABLE, ErrorCode.EXPIRED})


class InferenceFailure(BaseModel):
    """The `error` member of a result that did not succeed."""

    model_config = ConfigDict(frozen=True)

    code: ErrorCode
    message: str = Field(description="A sentence for people: it names the field, the value and what was expected.")
    retryable: bool = Field(description="Whether the very same request can succeed later.")


class WireError(Exception):
    """A record or request that cannot be served as it stands.

    Args:
        code: the stable code the answer carries.
        message: one sentence naming the field, the value and what was expected.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def failure(self) -> InferenceFailure:
        """The `error` member this becomes in a result."""
        return InferenceFailure(code=self.code, message=self.message, retryable=self.code.retryable)
