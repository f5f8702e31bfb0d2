"""What a server may answer, and what it must not: outputs that fit, or ModelFailed with a reason."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from pipeline.adapters.triton import TritonServer
from pipeline.core import infer_messages
from pipeline.core.infer_messages import Place, decode_answer, encode_request, fixed_output_sizes
from pipeline.errors import ModelFailed, ModelNotReady
from pipeline.ports import InferenceCall
from schemas.tensor import Tensor
from tests.schemas.records import ALL_DATATYPES, ELEMENT_SIZES, FAST

Answer = Any
_ASKED: list[tuple[str, dict[str, Any]]] = [("y", {}), ("text", {})]
_TEXT = b"\2\0\0\0ab\0\0\0\0"


@pytest.fixture(autouse=True, scope="module", params=[0, 64 << 10], ids=["as large ones", "as small ones"])
def _read(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to read an answer give the same: by hand, as for large ones, and by protobuf."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer_messages, "SMALL_BYTES_MAX", request.param)
        yield


def an_answer(**changes: Any) -> Answer:
    """A right answer: `y` INT64 [2, 1] and `text` BYTES [2, 1] of version 7."""
    members: dict[str, Any] = {
        "model_name": "m",
        "model_version": "7",
        "outputs": [("y", "INT64", [2, 1]), ("text", "BYTES", [2, 1])],
        "raws": [b"\1" * 16, _TEXT],
        **changes,
    }
    answer = service_pb2.ModelInferResponse(
        model_name=members["model_name"],
        model_version=members["model_version"],
        raw_output_contents=members["raws"],
    )
    for name, datatype, shape in members["outputs"]:
        answer.outputs.add(name=name, datatype=datatype, shape=shape)
    return answer


def decoded(body: bytes) -> tuple[Tensor, ...]:
    return decode_answer("triton-0", "7", _ASKED, body)


Y, TEXT = ("y", "INT64", [2, 1]), ("text", "BYTES", [2, 1])
BAD: dict[str, tuple[Answer, str]] = {
    "no version": (an_answer(model_version=""), "names no version"),
    "too few bytes": (an_answer(raws=[b"\1" * 15, _TEXT]), "15 bytes.*needs 16"),
    "too many bytes": (an_answer(raws=[b"\1" * 17, _TEXT]), "17 bytes.*needs 16"),
    "no bytes": (an_answer(raws=[b"", _TEXT]), "0 bytes.*needs 16"),
    "element past the end": (an_answer(raws=[b"\1" * 16, b"\3\0\0\0ab"]), "claims 3 bytes"),
    "element cut": (an_answer(raws=[b"\1" * 16, b"\3\0"]), "ends inside"),
    "too few elements": (an_answer(raws=[b"\1" * 16, b"\0\0\0\0"]), "1 elements.*needs 2"),
    "missing output": (an_answer(outputs=[Y], raws=[b"\1" * 16]), "'text' is missing"),
    "other name": (an_answer(outputs=[Y, ("txt", "BYTES", [2, 1])]), "'text' is missing"),
    "nothing": (an_answer(outputs=[], raws=[]), "'y' is missing"),
    "same output twice": (an_answer(outputs=[Y, Y, TEXT], raws=[b"\1" * 16, b"\2" * 16, _TEXT]), "'y' is twice"),
    "more contents": (an_answer(raws=[b"\1" * 16, _TEXT, b"x"]), "3 raw outputs for 2 declared"),
    "fewer contents": (an_answer(raws=[b"\1" * 16]), "1 raw outputs for 2 declared"),
    "free dimension": (an_answer(outputs=[("y", "INT64", [-1, 1]), TEXT]), r"shape \[-1, 1\]"),
    "two free dimensions": (an_answer(outputs=[("y", "INT64", [-2, -1]), TEXT]), r"shape \[-2, -1\]"),
    "absurd product": (an_answer(outputs=[("y", "INT64", [2**62] * 20), TEXT]), "16 bytes"),
    "many dimensions": (an_answer(outputs=[("y", "INT64", [1] * 33), TEXT]), r"shape \[1, 1,"),
    "long name": (an_answer(outputs=[Y, TEXT, ("n" * 100_000, "INT8", [1])], raws=[b"\1" * 16, _TEXT, b""]), "'nnn"),
    "absurd product, BYTES": (an_answer(outputs=[Y, ("text", "BYTES", [2**62] * 20)]), "2 elements"),
    "unknown datatype": (an_answer(outputs=[("y", "INT128", [1, 1]), TEXT]), "datatype 'INT128'"),
    "no datatype": (an_answer(outputs=[("y", "", [2, 1]), TEXT]), "datatype ''"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_answer_is_the_models_failure(kind: str) -> None:
    """Whatever is wrong with an answer, the reason says it and names the instance, in a line that can be read."""
    answer, reason = BAD[kind]
    with pytest.raises(ModelFailed, match=reason) as raised:
        decoded(answer.SerializeToString())
    assert raised.value.instance == "triton-0"
    assert len(raised.value.reason) < 600


def test_answer_of_another_version_is_not_of_this_one() -> None:
    """It says nothing of the version that was asked: another instance may have that."""
    with pytest.raises(ModelNotReady, match="version '8' answered for '7'"):
        decoded(an_answer(model_version="8").SerializeToString())


def test_right_answer_is_taken() -> None:
    """The answer that the bad ones are made of is a good one, and its outputs come in the order asked."""
    body = an_answer().SerializeToString()
    expected = (Tensor("y", "INT64", (2, 1), b"\1" * 16), Tensor("text", "BYTES", (2, 1), _TEXT))
    assert decoded(body) == expected
    assert decode_answer("triton-0", "7", [("text", {}), ("y", {})], body) == expected[::-1]
    assert decode_answer("triton-0", "7", [], body) == expected
    assert decode_answer("triton-0", "7", [("text", {})], body) == expected[1:]


@given(st.binary(max_size=64))
@FAST
def test_any_bytes_are_an_answer_or_a_failure(body: bytes) -> None:
    """Bytes that are no answer at all raise ModelFailed and nothing else."""
    with pytest.raises(ModelFailed):
        decoded(body)


@given(st.data())
@FAST
def test_damaged_answer_is_outputs_that_fit_or_a_failure(data: st.DataObject) -> None:
    """Cut, changed or longer anywhere: outputs whose bytes fit their shape, or ModelFailed, or another version."""
    body = bytearray(an_answer().SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(body) - 1, 0)))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        outputs = decoded(bytes(body))
    except (ModelFailed, ModelNotReady):
        return
    assert [tensor.name for tensor in outputs] == ["y", "text"]
    for tensor in outputs:
        if (size := ELEMENT_SIZES.get(tensor.datatype)) is not None:
            assert len(tensor.raw) == size * math.prod(tensor.shape)


_SHAPES = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def tensors(draw: st.DrawFn, name: str) -> Tensor:
    datatype, shape = draw(st.sampled_from(ALL_DATATYPES)), tuple(draw(_SHAPES))
    count = math.prod(shape)
    if datatype == "BYTES":
        elements = draw(st.lists(st.binary(max_size=200), min_size=count, max_size=count))
        raw = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    else:
        size = count * ELEMENT_SIZES[datatype]
        raw = draw(st.binary(min_size=size, max_size=size))
    return Tensor(name, datatype, shape, raw)


NAMES = st.lists(st.text("abcß", min_size=1, max_size=5), min_size=1, max_size=4, unique=True)


@given(st.data(), NAMES)
@FAST
def test_outputs_are_read_as_protobuf_reads_them(data: st.DataObject, names: list[str]) -> None:
    """Taken apart by hand, an answer says what protobuf says; members that nobody knows yet change nothing."""
    expected = tuple(data.draw(tensors(name)) for name in names)
    answer = service_pb2.ModelInferResponse(model_version="7", id=data.draw(st.text(max_size=3)))
    for tensor in expected:
        answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    answer.parameters["p"].int64_param = data.draw(st.integers(0, 300))
    contents = service_pb2.ModelInferResponse(raw_output_contents=[tensor.raw for tensor in expected])
    head, tail = answer.SerializeToString(), contents.SerializeToString()
    # A number, a fixed 32 bits, a text in fields of later versions; the fields of one message come in any order.
    later = data.draw(st.sampled_from([b"", b"\x48\x07", b"\x4d\1\2\3\4", b"\x52\1x", b"\xa2\x06\1x"]))
    for body in (head + tail + later, tail + head + later, later + tail + head):
        assert decode_answer("triton-0", "7", [], body) == expected


def test_unknown_member_hides_no_output() -> None:
    """What a later version's member contains is never read as an output, though it looks like one."""
    hidden = b"\xa2\x06\x08" + b"12345" + b"\x32\x01z"
    body = an_answer().SerializeToString()
    assert decoded(hidden + body) == decoded(body)


@given(st.data(), NAMES)
@FAST
def test_request_is_what_protobuf_would_write(data: st.DataObject, names: list[str]) -> None:
    """A request put together by hand is read as the message it stands for, tensors in shared memory included."""
    given_tensors = [data.draw(tensors(name)) for name in names]
    placed = {index: Place("slot", 64 * index, len(tensor.raw))
              for index, tensor in enumerate(given_tensors) if data.draw(st.booleans())}  # fmt: skip
    body = encode_request(
        "m", "7", given_tensors, [("y", {"classification": 3}), ("z", {})], {"a": 1, "b": 0.5, "c": True, "d": "é"},
        input_places=placed, output_places={"z": Place("slot", 640, 99)},
    )  # fmt: skip
    request = service_pb2.ModelInferRequest.FromString(body)
    assert (request.model_name, request.model_version) == ("m", "7")
    assert [(one.name, one.datatype, tuple(one.shape)) for one in request.inputs] == [
        tensor[:3] for tensor in given_tensors
    ]
    assert list(request.raw_input_contents) == [
        tensor.raw for index, tensor in enumerate(given_tensors) if index not in placed
    ]
    for index, one in enumerate(request.inputs):
        assert place_in(one.parameters) == placed.get(index)
    assert [place_in(one.parameters) for one in request.outputs] == [None, Place("slot", 640, 99)]
    assert request.outputs[0].parameters["classification"].int64_param == 3
    assert {name: one.WhichOneof("parameter_choice") for name, one in request.parameters.items()} == {
        "a": "int64_param", "b": "double_param", "c": "bool_param", "d": "string_param",
    }  # fmt: skip


def place_in(parameters: Any) -> Place | None:
    if "shared_memory_region" not in parameters:
        return None
    return Place(
        parameters["shared_memory_region"].string_param,
        parameters["shared_memory_offset"].int64_param,
        parameters["shared_memory_byte_size"].int64_param,
    )


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_lengths_of_every_size_are_written_and_read(size: int) -> None:
    """A length takes one to four bytes: each boundary is written as protobuf reads it, and read as it writes it."""
    tensor = Tensor("x", "UINT8", (size,), bytes(size))
    body = encode_request("m", "7", [tensor], [], None, input_places={}, output_places={})
    assert list(service_pb2.ModelInferRequest.FromString(body).raw_input_contents) == [tensor.raw]
    answer = an_answer(outputs=[("x", "UINT8", [size])], raws=[tensor.raw]).SerializeToString()
    assert decode_answer("triton-0", "7", [("x", {})], answer) == (tensor,)


def test_only_fixed_outputs_have_a_known_size() -> None:
    """A free dimension, elements of free length and types of a later Triton have none."""
    config = model_config_pb2.ModelConfig()
    for name, kind, dims in (
        ("fixed", "TYPE_FP32", [3, 4]), ("half", "TYPE_BF16", [5]), ("free", "TYPE_FP32", [-1, 4]),
        ("text", "TYPE_STRING", [2]), ("none", "TYPE_INVALID", [2]), ("single", "TYPE_INT64", []),
    ):  # fmt: skip
        config.output.add(name=name, data_type=model_config_pb2.DataType.Value(kind), dims=dims)
    config.output.add(name="later", data_type=99, dims=[2])
    assert fixed_output_sizes(config) == {"fixed": 48, "half": 10, "single": 8}


@pytest.mark.parametrize("kind", [*BAD, "no message", "nothing at all"])
async def test_bad_answer_of_a_server_never_raises_anything_else(kind: str) -> None:
    """Through a real connection too: ModelFailed of this instance."""
    body = {"no message": b"\xff\xff\xff", "nothing at all": b""}.get(kind)
    answer = BAD[kind][0].SerializeToString() if body is None else body
    with pytest.raises(ModelFailed) as raised:
        await asked_of(lambda request: answer)
    assert raised.value.instance == "triton-0"


async def test_server_is_asked_for_what_the_call_says() -> None:
    """The fake server that gives the bad answers is one that a good answer comes through from."""
    heard: list[bytes] = []

    def answer(request: bytes) -> bytes:
        heard.append(request)
        return bytes(an_answer().SerializeToString())

    assert [tensor.name for tensor in await asked_of(answer)] == ["y", "text"]
    assert service_pb2.ModelInferRequest.FromString(heard[0]).model_version == "7"


async def test_large_tensors_have_a_connection_of_their_own() -> None:
    """A small call never stands behind a large one in the same stream of bytes."""
    peers: list[str] = []

    def tell(request: bytes, peer: str) -> bytes:
        peers.append(peer)
        return bytes(an_answer().SerializeToString())

    async with a_server(tell) as server:
        for size in (8, 1 << 20, (1 << 20) + 1, 64, 9 << 20):
            await server.infer(InferenceCall("m", "7", [Tensor("x", "UINT8", (1, size), bytes(size))], _ASKED), 10.0)
    small, _, large, again, larger = peers
    assert peers[1] == small == again
    assert large == larger != small


async def asked_of(answer: Callable[[bytes], bytes]) -> tuple[Tensor, ...]:
    """One call to a gRPC server that answers every inference with these bytes."""
    async with a_server(lambda request, peer: answer(request)) as server:
        call = InferenceCall("m", "7", [Tensor("x", "UINT8", (1, 1), b"x")], _ASKED)
        return await asyncio.wait_for(server.infer(call, 10.0), 15.0)


@asynccontextmanager
async def a_server(answer: Callable[[bytes, str], bytes]) -> AsyncIterator[TritonServer]:
    """The client of a gRPC server that answers every inference so, by the request's bytes and who sent them."""

    async def infer(request: bytes, context: Any) -> bytes:
        return answer(request, context.peer())

    fake = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    fake.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    port = fake.add_insecure_port("127.0.0.1:0")
    await fake.start()
    server = TritonServer("triton-0", f"127.0.0.1:{port}")
    try:
        yield server
    finally:
        await server.close()
        await fake.stop(None)
