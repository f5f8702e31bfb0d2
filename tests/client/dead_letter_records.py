"""Dead letters as their writers make them."""

from collections.abc import Sequence

from aiokafka import ConsumerRecord

from pipeline.client.dead_letters import DeadLetter

Headers = Sequence[tuple[str, bytes]]


def burial_headers(
    headers: Headers = (),
    *,
    reason: str = "NOT_JSON",
    topic: str = "inference.requests",
    error: str = "as the test says",
) -> list[tuple[str, bytes]]:
    """A record's headers and, behind them, those of whoever buried it; its place was partition 2, offset 17."""
    return [
        *headers,
        ("reason", reason.encode()),
        ("error", error.encode()),
        ("source-topic", topic.encode()),
        ("source-partition", b"2"),
        ("source-offset", b"17"),
    ]


def dead_letter_record(
    value: bytes | None, headers: Headers = (), *, key: bytes | None = b"k", **burial: str
) -> ConsumerRecord:
    """A record of the dead-letter topic."""
    own = tuple(burial_headers(headers, **burial))
    return ConsumerRecord("inference.dead-letter", 1, 5, 1_800_000_000_123, 0, key, value, None, -1, -1, own)


def letter(value: bytes | None, headers: Headers = (), *, key: bytes | None = b"k", **burial: str) -> DeadLetter:
    """Likewise, read."""
    return DeadLetter.of(dead_letter_record(value, headers, key=key, **burial))
