"""The Kafka headers of each kind of record, as models: they describe, nothing parses with them.

Source: CloudEvents 1.0, Kafka protocol binding, binary mode; W3C Trace Context.
"""

from pydantic import BaseModel, Field

from schemas.request import ID_PATTERN

_DECIMAL = "^[0-9]+$"
_TRACEPARENT = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
_RETRY_OF = "The id, or the place in the log, of the dead letter that this sends again."
_LENGTH = "Inference-Header-Content-Length"


class RequestHeaders(BaseModel):
    """CloudEvents in binary mode. A request without any header is as good as one with them."""

    ce_specversion: str = Field(default="1.0", pattern="^1\\.0$")
    ce_id: str | None = Field(
        default=None, pattern=ID_PATTERN, description="Counts only where the body is no JSON object."
    )
    ce_source: str | None = None
    ce_type: str | None = Field(default=None, pattern="^inference\\.request\\.v1$")
    ce_time: str | None = Field(default=None, json_schema_extra={"format": "date-time"})
    ce_subject: str | None = Field(default=None, description="The model.")
    content_type: str | None = Field(default=None, alias="content-type")
    traceparent: str | None = Field(default=None, pattern=_TRACEPARENT, description="W3C Trace Context.")
    retry_of: str | None = Field(default=None, alias="retry-of", description=_RETRY_OF)


class BinaryRequestHeaders(RequestHeaders):
    """Of a request whose value is JSON followed by raw tensor bytes; the first of them alone marks the form."""

    json_length: str = Field(
        alias=_LENGTH, pattern=_DECIMAL, description="The JSON's length in bytes; in any case of letters."
    )


class ResultHeaders(BaseModel):
    """CloudEvents in binary mode, and which record this answers."""

    ce_specversion: str = Field(pattern="^1\\.0$")
    ce_id: str = Field(pattern=ID_PATTERN, description="The request's id.")
    ce_source: str = Field(pattern="^/inference/")
    ce_type: str = Field(pattern="^inference\\.result\\.v1$")
    ce_time: str = Field(json_schema_extra={"format": "date-time"})
    ce_subject: str = Field(description="The model.")
    content_type: str = Field(alias="content-type")
    request_offset: str = Field(alias="request-offset", pattern=_DECIMAL, description="The request's offset.")
    request_timestamp: str = Field(
        alias="request-timestamp", pattern=_DECIMAL, description="The request's append time, epoch milliseconds."
    )
    request_digest: str = Field(
        alias="request-digest", pattern="^([0-9a-f]{32})?$", description="What a repeated id is compared by."
    )
    worker_group: str = Field(alias="worker-group", description="The consumer group that answered.")
    tenant: str | None = Field(default=None, description="Whose request it was; ids of tenants never meet.")
    traceparent: str | None = Field(default=None, pattern=_TRACEPARENT, description="W3C Trace Context.")


class BinaryResultHeaders(ResultHeaders):
    """Of a result with raw tensor bytes behind its JSON."""

    json_length: str = Field(alias=_LENGTH, pattern=_DECIMAL, description="The JSON's length in bytes.")


class EventHeaders(BaseModel):
    """Of a record with event lines."""

    generation: str = Field(pattern=_DECIMAL, description="The consumer group's generation of the worker that wrote.")
    incarnation: str | None = Field(
        default=None,
        pattern=_DECIMAL,
        description="How many processes held the partition before, in the same generation; absent means 0.",
    )
    redelivered: str | None = Field(
        default=None, pattern="^1$", description="The same lines may be in the log, or in ClickHouse, already."
    )
    retry_of: str | None = Field(default=None, alias="retry-of", description=_RETRY_OF)


class DeadLetterHeaders(BaseModel):
    """Besides the original record's own headers: why it is here and where it was."""

    reason: str = Field(
        description="A stable word.",
        examples=["NOT_JSON", "TOMBSTONE", "BAD_BINARY_LENGTH", "DUPLICATE_ID", "CRASHED_WORKER", "INVALID_EVENT",
                  "POISON_ROW", "WEBHOOK_FAILED", "WEBHOOK_GONE", "WEBHOOK_REFUSED"],
    )  # fmt: skip
    error: str = Field(description="A sentence for people.")
    source_topic: str = Field(alias="source-topic")
    source_partition: str = Field(alias="source-partition", pattern=_DECIMAL)
    source_offset: str = Field(alias="source-offset", pattern=_DECIMAL)


class ControlReplyHeaders(BaseModel):
    """Of a reply to a command: whoever only obeys commands need not read it."""

    in_reply_to: str = Field(alias="in-reply-to", pattern=ID_PATTERN, description="The command's id.")


# The sentence is for people; a record's headers count against Kafka's limits as its value does.
DEAD_LETTER_ERROR_BYTES_MAX = 2048


def dead_letter_headers(reason: str, error: str, topic: str, partition: int, offset: int) -> list[tuple[str, bytes]]:
    """`DeadLetterHeaders` as they are written, behind the original record's own.

    Args:
        reason: a stable word.
        error: a sentence; what is over `DEAD_LETTER_ERROR_BYTES_MAX` is cut.
        topic: where the record was.
        partition: likewise.
        offset: likewise.
    """
    return [
        ("reason", reason.encode()),
        ("error", error.encode("utf-8", "replace")[:DEAD_LETTER_ERROR_BYTES_MAX]),
        ("source-topic", topic.encode()),
        ("source-partition", b"%d" % partition),
        ("source-offset", b"%d" % offset),
    ]
