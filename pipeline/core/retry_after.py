"""The header `Retry-After`, as gateways and receivers of callbacks send it."""

from datetime import UTC
from email.utils import parsedate_to_datetime


def retry_after_s(text: str, now: float) -> float | None:
    """Seconds that a `Retry-After` asks for, never negative; None for what is none (RFC 9110, section 10.2.3).

    Args:
        text: seconds or an HTTP date.
        now: Unix seconds.
    """
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:12])
    try:
        at = parsedate_to_datetime(text)
        # A date without a zone is GMT, as an HTTP date always is.
        seconds = (at.replace(tzinfo=UTC) if at.tzinfo is None else at).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(seconds - now, 0.0)
