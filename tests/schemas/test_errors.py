"""The error codes: their status and what they become in a result."""

from schemas.errors import ErrorCode, InferenceFailure, WireError


def test_error_codes_have_contract_statuses() -> None:
    """The list of codes and their HTTP status is the contract's, no more and no less."""
    assert {code.value: code.http_status for code in ErrorCode} == {
        "INVALID_REQUEST": 400, "INVALID_INPUT": 400, "MODEL_NOT_FOUND": 404, "VERSION_NOT_FOUND": 404,
        "PAYLOAD_TOO_LARGE": 413, "OVERLOADED": 429, "MODEL_ERROR": 500, "INTERNAL": 500,
        "INFERENCE_UNAVAILABLE": 503, "CACHE_MISS": 504, "EXPIRED": 504,
    }  # fmt: skip


def test_wrong_requests_are_never_retryable() -> None:
    """A request that is wrong by itself stays wrong; load and outages pass."""
    assert not any(code.retryable for code in ErrorCode if code.http_status < 429)
    assert ErrorCode.OVERLOADED.retryable
    assert ErrorCode.INFERENCE_UNAVAILABLE.retryable


def test_wire_error_becomes_result_error() -> None:
    """A refusal has all that the error member of a result needs."""
    error = WireError(ErrorCode.OVERLOADED, "too much")
    assert error.failure == InferenceFailure(code=ErrorCode.OVERLOADED, message="too much", retryable=True)
    assert str(error) == "too much"
