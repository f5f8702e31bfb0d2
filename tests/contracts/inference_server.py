"""What every inference server does: the port `pipeline.ports.InferenceServer`.

The model is the echo model of `tests/models/echo`: each input `x` comes back as `x_echo`; parameter `fail` fails the
request, input `fail` refuses it, parameter `delay_ms` makes it slow.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from pipeline.errors import InferenceServerError, InvalidTensor, ModelFailed, ModelNotReady, ServerUnavailable
from pipeline.ports import InferenceCall, InferenceServer
from schemas.tensor import DATATYPES, Tensor, element_size

FP32 = Tensor("fp32", "FP32", (2, 3), struct.pack("<6f", 1.5, -2.0, 3.25, 0.0, float("inf"), 1e-30))
TEXT = Tensor("bytes", "BYTES", (2, 1), b"\3\0\0\0a\xffb\0\0\0\0")
REFUSED = Tensor("fail", "BOOL", (2, 1), b"\0\1")

Scenario = Callable[[InferenceServer], Awaitable[None]]


def echo_call(*inputs: Tensor, outputs: tuple[str, ...] = (), **changes: Any) -> InferenceCall:
    """A call of the echo model."""
    members: dict[str, Any] = {"model_name": "echo", "model_version": "1", "parameters": {}, **changes}
    return InferenceCall(inputs=inputs, outputs=[(name, {}) for name in outputs], **members)


def echoed(tensor: Tensor) -> Tensor:
    """What comes back of an input."""
    return Tensor(f"{tensor.name}_echo", tensor.datatype, tensor.shape, tensor.raw)


def eight_rows(datatype: str, seed: int) -> Tensor:
    """Eight rows, together 300 KB of random bits; of BYTES, elements of 0 to 99 bytes."""
    random = Random(f"{datatype} {seed}")
    name = datatype.lower()
    if datatype == "BYTES":
        elements = [random.randbytes(random.randrange(100)) for _ in range(8 * 700)]
        raw = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
        return Tensor(name, datatype, (8, 700), raw)
    raw = random.randbytes(300_032)
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    return Tensor(name, datatype, (8, len(raw) // 8 // (element_size(datatype) or 1)), raw)


class InferenceServerContract:
    """Inherit, and run each test's coroutine on a server that serves echo version 1."""

    def run(self, test: Scenario, *, reachable: bool = True) -> None:
        """Runs a test against a server; one that nobody listens for where it is not `reachable`."""
        raise NotImplementedError

    def test_outputs_are_bit_for_bit(self) -> None:
        """Raw bytes go and come unchanged, infinities and bytes that are no text included."""

        async def test(server: InferenceServer) -> None:
            outputs = await server.infer(echo_call(FP32, TEXT), 10.0)
            assert {tensor.name: tensor for tensor in outputs} == {
                tensor.name: tensor for tensor in (echoed(FP32), echoed(TEXT))
            }

        self.run(test)

    @pytest.mark.parametrize("names", [("fp32_echo",), ("bytes_echo", "fp32_echo"), ("fp32_echo", "bytes_echo")])
    def test_outputs_come_in_the_order_asked(self, names: tuple[str, ...]) -> None:
        """Only what was asked for comes back, in that order."""

        async def test(server: InferenceServer) -> None:
            outputs = await server.infer(echo_call(FP32, TEXT, outputs=names), 10.0)
            assert [tensor.name for tensor in outputs] == list(names)

        self.run(test)

    @pytest.mark.parametrize(("model", "version"), [("echo", "99"), ("absent", "1")])
    def test_unserved_version_is_not_ready(self, model: str, version: str) -> None:
        """A model or version that is not served is never answered by another one."""

        async def test(server: InferenceServer) -> None:
            with pytest.raises(ModelNotReady):
                await server.infer(echo_call(FP32, model_name=model, model_version=version), 10.0)

        self.run(test)

    def test_models_own_failure_is_told(self) -> None:
        """What the model says when it fails reaches the caller."""

        async def test(server: InferenceServer) -> None:
            with pytest.raises(ModelFailed, match="out of ink") as raised:
                await server.infer(echo_call(FP32, parameters={"fail": "out of ink"}), 10.0)
            assert raised.value.instance == server.name

        self.run(test)

    def test_refused_row_refuses_its_call(self) -> None:
        """A row that the model refuses is an invalid tensor, not a failure of the model."""

        async def test(server: InferenceServer) -> None:
            with pytest.raises(InvalidTensor):
                await server.infer(echo_call(FP32, REFUSED), 10.0)

        self.run(test)

    def test_slow_answer_is_unavailable_in_time(self) -> None:
        """A call takes no longer than its timeout, and says that there was no answer."""

        async def test(server: InferenceServer) -> None:
            loop = asyncio.get_running_loop()
            started = loop.time()
            with pytest.raises(ServerUnavailable):
                await server.infer(echo_call(FP32, parameters={"delay_ms": 3000}), 0.2)
            assert 0.15 <= loop.time() - started < 2.0

        self.run(test)

    def test_unreachable_server_is_unavailable(self) -> None:
        """No connection is no answer: another instance may have one."""

        async def test(server: InferenceServer) -> None:
            with pytest.raises(ServerUnavailable):
                await server.infer(echo_call(FP32), 5.0)

        self.run(test, reachable=False)

    def test_calls_do_not_mix(self) -> None:
        """Calls at the same time get each their own answer."""

        async def test(server: InferenceServer) -> None:
            tensors = [Tensor("int64", "INT64", (1, 2), struct.pack("<2q", n, -n)) for n in range(32)]
            answers = await asyncio.gather(*(server.infer(echo_call(tensor), 15.0) for tensor in tensors))
            assert answers == [(echoed(tensor),) for tensor in tensors]

        self.run(test)

    def test_large_tensors_go_through(self) -> None:
        """Tensors above a megabyte, and above gRPC's usual limit of four, are tensors like others."""

        async def test(server: InferenceServer) -> None:
            large = Tensor("uint8", "UINT8", (1, 6 << 20), bytes(range(256)) * (6 << 12))
            assert await server.infer(echo_call(large), 15.0) == (echoed(large),)

        self.run(test)

    @pytest.mark.parametrize("datatype", DATATYPES)
    def test_large_batches_of_every_datatype_are_bit_exact(self, datatype: str) -> None:
        """Eight rows of random bits in every datatype come back the same, one call after the other and at once."""

        async def test(server: InferenceServer) -> None:
            batches = [eight_rows(datatype, number) for number in range(6)]
            for batch in batches[:3]:
                assert await server.infer(echo_call(batch), 15.0) == (echoed(batch),)
            answers = await asyncio.gather(*(server.infer(echo_call(batch), 15.0) for batch in batches))
            assert answers == [(echoed(batch),) for batch in batches]

        self.run(test)

    def test_cancelled_call_leaves_the_server_usable(self) -> None:
        """A call that is cancelled ends at once, and the next one is answered."""

        async def test(server: InferenceServer) -> None:
            task = asyncio.ensure_future(server.infer(echo_call(FP32, parameters={"delay_ms": 200}), 10.0))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await server.infer(echo_call(FP32), 10.0) == (echoed(FP32),)

        self.run(test)

    def test_every_error_is_of_the_tree(self) -> None:
        """Nothing of the transport's own errors comes through."""

        async def test(server: InferenceServer) -> None:
            wrong = Tensor("fp32", "FP32", (2, 3), b"\0" * 5)
            with pytest.raises(InferenceServerError):
                await server.infer(echo_call(wrong), 10.0)

        self.run(test)
