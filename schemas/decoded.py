"""A request as it is decoded: what a model and the struct derived from it have in common, for whoever reads one.

Names and types alone. What a request may be (limits, defaults, what is required) stands in the models of
`schemas/request.py`, and there only; mypy and `tests/schemas/test_structs.py` hold these members to them.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from schemas.tensor import Datatype, Tensor


class DecodedOutput(Protocol):
    """An output that is asked for: `RequestedOutput`, or its struct."""

    name: str
    parameters: dict[str, Any]


class DecodedInput(Protocol):
    """An input: `InputTensor`, or its struct."""

    name: str
    datatype: Datatype
    shape: list[int]
    data: Any
    parameters: dict[str, Any]

    def value(self) -> Any:
        """As `InputTensor.value`."""

    def to_tensor(self) -> Tensor:
        """As `InputTensor.to_tensor`."""


class DecodedReplyTo(Protocol):
    """Where a copy of the result goes: `ReplyTo`, or its struct."""

    topic: str | None
    partition: int


class DecodedCallback(Protocol):
    """Where the result is delivered: `Callback`, or its struct."""

    url: str


class DecodedRequest(Protocol):
    """A valid request: most often the struct derived from `InferenceRequest`, else that model itself."""

    id: str | None
    model_name: str
    model_version: str | None
    parameters: dict[str, Any]
    stream: bool
    enable_cache: bool
    cache_control: str | None
    tenant: str | None
    timeout_ms: int | None
    requested_at: datetime | None
    source_ip: str | None

    # Read, never set: the model's are models, the struct's are structs.
    @property
    def inputs(self) -> Sequence[DecodedInput]:
        """At least one."""

    @property
    def outputs(self) -> Sequence[DecodedOutput] | None:
        """None for all of the model's."""

    @property
    def reply_to(self) -> DecodedReplyTo | None:
        """None where no copy is asked for."""

    @property
    def callback(self) -> DecodedCallback | None:
        """None where nothing is to be delivered."""
