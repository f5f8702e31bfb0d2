"""Headers that both protocols read or write alike: trace context, and how an answer met the cache."""

from collections.abc import Mapping

from pipeline.core.trace_context import is_traceparent

# RFC 9211, by what the worker says of its cache: a hit, or why it went to the model; `collapsed`: with another's.
_CACHE_STATUS = {
    "hit": "pipeline; hit",
    "miss": "pipeline; fwd=miss",
    "coalesced": "pipeline; fwd=miss; collapsed",
    "refresh": "pipeline; fwd=request",
    "bypass": "pipeline; fwd=bypass",
}
_STORED = frozenset({"miss", "refresh"})


def traceparent_of(headers: Mapping[str, str]) -> bytes | None:
    """The trace context that a request brings, where it is one."""
    given = headers.get("traceparent", "").encode("utf-8", "replace")
    return given if is_traceparent(given) else None


def cache_headers(status: str, age_ms: int | None, *, may_store: bool) -> dict[str, str]:
    """`Cache-Status` (RFC 9211), and `Age` of a hit; nothing for a status that is none of the worker's.

    Args:
        status: the result's `cache_status`.
        age_ms: of a hit, milliseconds; None where it is not told.
        may_store: False where the answer was not stored: it failed, or the request forbade it.
    """
    words = _CACHE_STATUS.get(status)
    if words is None:
        return {}
    stored = "; stored" if may_store and status in _STORED else ""
    age = {} if status != "hit" or age_ms is None else {"Age": str(max(age_ms, 0) // 1000)}
    return {"Cache-Status": f"{words}{stored}", **age}
