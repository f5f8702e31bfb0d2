"""Servers that answer as a function of what they serve and what they are asked, so that any mix-up shows."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from blake3 import blake3

from pipeline.errors import InvalidTensor, ModelFailed, ModelNotReady, ServerUnavailable
from pipeline.ports import InferenceCall
from schemas.errors import WireError
from schemas.tensor import Tensor, check_raw
from tests.simulation.virtual_time import the_clock

# A row that begins with one of these fails every call it is in.
FAILING_ROW = 66_600
REFUSED_ROW = 66_601


class Loaded(Protocol):
    """What a server has loaded as one version of a model."""

    def answer(self, instance: str, call: InferenceCall) -> tuple[Tensor, ...]:
        """All outputs of a call, or one of the errors of the port."""


@dataclass(frozen=True)
class FakeVersion:
    """What a server has loaded as one version.

    Attributes:
        content: stands for the weights: other content, other answers.
        batched: whether the first axis is the batch axis.
        rows_answered: gives the outputs another number of rows than were asked, in batches only.
        row_depends_on_batch: answers differ by the size of the batch, as with some kernels.
    """

    content: str
    batched: bool = True
    rows_answered: Callable[[int], int] | None = None
    row_depends_on_batch: bool = False

    def answer(self, instance: str, call: InferenceCall) -> tuple[Tensor, ...]:
        """See `right_outputs`; rows that begin with a number made for it fail."""
        for tensor in call.inputs:
            firsts = [int.from_bytes(row[-4:], "little") for row in rows_of([tensor], batched=self.batched)]
            if tensor.datatype == "INT32" and FAILING_ROW in firsts:
                raise ModelFailed(instance, "bad row")
            if tensor.datatype == "INT32" and REFUSED_ROW in firsts:
                raise InvalidTensor(instance, "refused row")
        rows = call.inputs[0].shape[0] if self.batched else 1
        salt = rows if self.row_depends_on_batch else 0
        outputs = right_outputs(self.content, call.inputs, call.parameters or {}, batched=self.batched, salt=salt)
        if self.rows_answered is not None and rows > 1:
            return tuple(_with_rows(tensor, self.rows_answered(rows)) for tensor in outputs)
        return outputs


@dataclass(frozen=True)
class EchoVersion:
    """The model of `tests/models/echo`: each input comes back, parameters and input `fail` fail it."""

    def answer(self, instance: str, call: InferenceCall) -> tuple[Tensor, ...]:
        """Every input but `fail`, as `<input>_echo`."""
        for tensor in call.inputs:
            try:
                check_raw(tensor.name, tensor.datatype, tensor.shape, tensor.raw)
            except WireError as error:
                raise InvalidTensor(instance, error.message) from None
        if reason := (call.parameters or {}).get("fail"):
            raise ModelFailed(instance, str(reason))
        if any(tensor.name == "fail" and any(tensor.raw) for tensor in call.inputs):
            raise InvalidTensor(instance, "input 'fail' has a true row")
        return tuple(
            Tensor(f"{tensor.name}_echo", tensor.datatype, tensor.shape, tensor.raw)
            for tensor in call.inputs
            if tensor.name != "fail"
        )


def rows_of(tensors: Iterable[Tensor], *, batched: bool) -> list[bytes]:
    """The bytes of each row of all inputs, by name; one row for a model without a batch axis."""
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    rows = ordered[0].shape[0] if batched else 1
    parts: list[bytes] = []
    for row in range(rows):
        digest = b""
        for tensor in ordered:
            width = len(tensor.raw) // rows
            shape = tensor.shape[1:] if batched else tensor.shape
            head = f"{tensor.name}|{tensor.datatype}|{shape}|".encode()
            digest += head + tensor.raw[row * width : (row + 1) * width]
        parts.append(digest)
    return parts


def right_outputs(
    content: str, tensors: Sequence[Tensor], parameters: Mapping[str, object], *, batched: bool = True, salt: int = 0
) -> tuple[Tensor, ...]:
    """The outputs `y` (INT64 [rows, 2]) and `text` (BYTES [rows, 1]) that these inputs have."""
    asked = repr(sorted((name, type(value).__name__, repr(value)) for name, value in parameters.items()))
    numbers, texts = b"", b""
    rows = rows_of(tensors, batched=batched)
    for row in rows:
        digest = blake3(f"{content}|{asked}|{salt}|".encode() + row).digest(17)
        numbers += digest[:16]
        text = digest.hex()[: digest[16] % 20].encode()
        texts += len(text).to_bytes(4, "little") + text
    first: tuple[int, ...] = (len(rows),) if batched else ()
    return Tensor("y", "INT64", (*first, 2), numbers), Tensor("text", "BYTES", (*first, 1), texts)


@dataclass
class Heard:
    """One call as a server heard it."""

    call: InferenceCall
    timeout_s: float
    at: float
    ended_at: float | None = None

    @property
    def rows(self) -> int:
        """How many rows came in it."""
        return self.call.inputs[0].shape[0]


@dataclass
class FakeInferenceServer:
    """An `InferenceServer` that does as it is told.

    Attributes:
        serves: (model, version) -> what is loaded.
        latency_s: how long a call takes, by itself or by the call.
        down: refuses connections at once.
        hangs: never answers: a call ends when its timeout does.
        slots: how many calls run at a time, the others wait there; None: all of them.
        script: errors for the next calls; None lets one through.
        heard: every call, in order.
        cancelled: calls that the caller gave up.
    """

    name: str
    serves: dict[tuple[str, str], Loaded]
    latency_s: float | Callable[[InferenceCall], float] = 0.01
    down: bool = False
    hangs: bool = False
    slots: int | None = None
    script: deque[Exception | None] = field(default_factory=deque)
    heard: list[Heard] = field(default_factory=list)
    running: int = 0
    running_max: int = 0
    cancelled: int = 0
    _free: asyncio.Semaphore | None = None

    async def infer(self, call: InferenceCall, timeout_s: float) -> tuple[Tensor, ...]:
        """See `pipeline.ports.InferenceServer.infer`."""
        heard = Heard(call, timeout_s, the_clock().monotonic())
        self.heard.append(heard)
        self.running += 1
        self.running_max = max(self.running, self.running_max)
        try:
            return await self._answer(call, timeout_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            heard.ended_at = the_clock().monotonic()

    async def _answer(self, call: InferenceCall, timeout_s: float) -> tuple[Tensor, ...]:
        if self.down:
            raise ServerUnavailable(self.name, "connection refused")
        scripted = self.script.popleft() if self.script else None
        takes_s = self.latency_s if isinstance(self.latency_s, (int, float)) else self.latency_s(call)
        takes_s += float((call.parameters or {}).get("delay_ms", 0)) / 1000
        if self.slots is not None:
            await self._run_in_slot(takes_s, timeout_s)
        elif self.hangs or takes_s > timeout_s:
            await asyncio.sleep(timeout_s)
            raise ServerUnavailable(self.name, "deadline exceeded")
        else:
            await asyncio.sleep(takes_s)
        if scripted is not None:
            raise scripted
        if self.down:
            raise ServerUnavailable(self.name, "connection lost")
        loaded = self.serves.get((call.model_name, call.model_version))
        if loaded is None:
            raise ModelNotReady(self.name, f"{call.model_name} version {call.model_version} is not loaded")
        outputs = loaded.answer(self.name, call)
        if call.outputs:
            by_name = {tensor.name: tensor for tensor in outputs}
            outputs = tuple(by_name[name] for name, _ in call.outputs)
        return outputs

    async def _run_in_slot(self, takes_s: float, timeout_s: float) -> None:
        """Waits for a slot; what has one runs to its end, whether anybody still listens or not."""
        if self._free is None:
            self._free = asyncio.Semaphore(self.slots or 1)
        try:
            async with asyncio.timeout(timeout_s):
                await self._free.acquire()
                running = asyncio.get_running_loop().create_task(asyncio.sleep(takes_s))
                running.add_done_callback(lambda _: self._free.release() if self._free else None)
                await asyncio.shield(running)
        except TimeoutError:
            raise ServerUnavailable(self.name, "deadline exceeded") from None


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    raw = b"\0" * (rows * 16) if tensor.datatype == "INT64" else b"\0\0\0\0" * rows
    return Tensor(tensor.name, tensor.datatype, (rows, *tensor.shape[1:]), raw)
