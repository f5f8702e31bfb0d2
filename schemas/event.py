"""The events topic: one JSON line per event, many lines per record.

A line has the columns of ClickHouse's table `events`; the line that ends a request has those of `requests` besides.
Times are UTC with microseconds and a Z; durations are microseconds.
"""

import base64
from typing import Any, Literal
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.result import Status

EventType = Literal[
    "request.received", "request.duplicate", "cache.hit", "cache.miss", "cache.bypass", "cache.coalesced",
    "inference.started", "inference.completed", "inference.failed", "result.published", "webhook.delivered",
    "webhook.failed", "model.discovered", "model.loaded", "model.promoted", "model.rejected", "model.unloaded",
    "instance.up", "instance.down", "instance.overloaded",
]  # fmt: skip

# One namespace for all event ids: UUIDv5(NAMESPACE_URL, "inference.events").
EVENT_NAMESPACE = uuid5(NAMESPACE_URL, "inference.events")


class Event(BaseModel):
    """The columns of `events`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    event_id: UUID = Field(description="UUIDv5 of topic, partition, offset and type: a repeated event has the same.")
    event_type: EventType
    occurred_at: AwareDatetime
    request_id: str = ""
    tenant: str = ""
    model_name: str = ""
    model_version: str = ""
    cache_status: str = ""
    instance: str = ""
    worker: str = ""
    source_ip: str = Field(default="::", description="IPv6; IPv4 mapped; :: for unknown.")
    duration_us: int = Field(default=0, ge=0)
    attributes: dict[str, Any] = Field(default_factory=dict)
    expires_at: AwareDatetime


class RequestEnd(Event):
    """The line that ends a request: the columns of `requests` besides.

    `requests_expires_at` is the `expires_at` of the row in `requests`; `outputs` is derived from the result.
    """

    status: Status
    error_code: str = ""
    cache_key: str = ""
    requested_at: AwareDatetime
    completed_at: AwareDatetime
    queue_us: int = Field(ge=0)
    inference_us: int = Field(default=0, ge=0)
    total_us: int = Field(ge=0)
    input_bytes: int = Field(ge=0)
    output_bytes: int = Field(ge=0)
    inputs: list[Any] = Field(default_factory=list, description="As sent; a binary tensor has `base64` for `data`.")
    parameters: dict[str, Any] = Field(default_factory=dict)
    result: str | None = Field(default=None, description="The exact record, where it is all JSON.")
    result_base64: str | None = Field(default=None, description="The exact record, where it has binary tensors.")
    requests_expires_at: AwareDatetime

    @property
    def result_record(self) -> bytes:
        """The exact bytes of the result record."""
        if self.result_base64 is not None:
            return base64.b64decode(self.result_base64, validate=True)
        return (self.result or "").encode()
