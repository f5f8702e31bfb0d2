"""An unmodified `tritonclient.http`, blocking and asyncio, against the gateway's own server."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import pytest

from pipeline.gateway.protocol.models import Fleet
from schemas.errors import ErrorCode, WireError
from schemas.request import decode_request
from tests.gateway.protocol_gateway import ScriptedInferences, announced, make_app, model_record, serving
from tests.gateway.test_protocol_models import ScriptedServer, entry

http = pytest.importorskip("tritonclient.http", reason="the extra tritonclient[http] is not installed")
aio = pytest.importorskip("tritonclient.http.aio", reason="the extra tritonclient[http] is not installed")
utils = pytest.importorskip("tritonclient.utils")
ml_dtypes = pytest.importorskip("ml_dtypes", reason="older clients have BF16 without it, and not as numpy's")

_TEXTS = np.array([[b"", b"\xff\x00", "é".encode()], [b"a" * 70_000, b"{}", b"\n"]], dtype=np.object_)
NUMBERS = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BF16": ml_dtypes.bfloat16,
}  # fmt: skip


@pytest.fixture(scope="module")
def inferences() -> ScriptedInferences:
    """What is behind the gateway."""
    return ScriptedInferences()


@pytest.fixture(scope="module")
def server() -> ScriptedServer:
    """The fleet."""
    return ScriptedServer("triton-0", [entry()])


@pytest.fixture(scope="module")
def address(inferences: ScriptedInferences, server: ScriptedServer) -> Iterator[str]:
    """A gateway that serves."""
    with serving(make_app(inferences, Fleet(announced(model_record("echo")), [server]))) as found:
        yield found


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    """The blocking client."""
    with http.InferenceServerClient(address) as found:
        yield found


def array_of(datatype: str) -> Any:
    """Random bits of a datatype, infinities and NaN among them where it has some."""
    if datatype == "BYTES":
        return _TEXTS
    kind = np.dtype(NUMBERS[datatype])
    raw = Random(datatype).randbytes(48 * kind.itemsize)
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    return np.frombuffer(raw, kind).reshape(2, 24)


def an_input(name: str, array: Any, *, binary: bool = True) -> Any:
    """An input of the client's."""
    found = http.InferInput(name, list(array.shape), utils.np_to_triton_dtype(array.dtype))
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def bits_of(array: Any) -> Any:
    """What an array is, to the bit."""
    return array.tolist() if array.dtype == np.object_ else (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("datatype", [*NUMBERS, "BYTES"])
def test_every_datatype_goes_and_comes_in_binary(client: Any, datatype: str) -> None:
    """What the client sends by default, raw tensors both ways, comes back to the bit."""
    array = array_of(datatype)
    result = client.infer("echo", [an_input("x", array)])
    assert bits_of(result.as_numpy("x")) == bits_of(array)
    assert "binary_data_size" in result.get_output("x")["parameters"]


@pytest.mark.parametrize("datatype", [*(name for name in NUMBERS if name not in {"FP16", "BF16"}), "BYTES"])
def test_every_datatype_goes_and_comes_in_json(client: Any, datatype: str) -> None:
    """As JSON both ways, nothing is lost of what JSON can carry."""
    array = np.array([["", "é\n"]], dtype=np.object_) if datatype == "BYTES" else array_of(datatype)
    if datatype in {"FP32", "FP64"}:
        array = np.where(np.isfinite(array), array, 0).astype(array.dtype)
    result = client.infer("echo", [an_input("x", array, binary=False)], outputs=[http.InferRequestedOutput("x", False)])
    assert "data" in result.get_output("x")
    assert np.array_equal(result.as_numpy("x"), array)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_what_json_cannot_carry_comes_in_binary(client: Any, datatype: str) -> None:
    """An output that was asked for as JSON, and has no JSON form, comes as bytes, which the client reads as well."""
    array = array_of(datatype)
    result = client.infer("echo", [an_input("x", array)], outputs=[http.InferRequestedOutput("x", False)])
    assert bits_of(result.as_numpy("x")) == bits_of(array)


def test_forms_mix_in_one_request(client: Any) -> None:
    """Some inputs raw and some JSON, some outputs raw and some JSON, in an order of their own."""
    arrays = {name: array_of(name) for name in ("INT64", "UINT8", "FP64", "BYTES")}
    arrays["FP64"] = np.arange(6.0).reshape(2, 3)
    inputs = [an_input(name, array, binary=name not in {"INT64", "FP64"}) for name, array in arrays.items()]
    outputs = [http.InferRequestedOutput(name, binary_data=name != "FP64") for name in reversed(arrays)]
    result = client.infer("echo", inputs, outputs=outputs)
    for name, array in arrays.items():
        assert bits_of(result.as_numpy(name)) == bits_of(array)
    assert "data" in result.get_output("FP64")


def test_outputs_asked_for_are_all_that_come(client: Any) -> None:
    """Of two outputs the one that is asked for comes."""
    inputs = [an_input("x", array_of("FP32")), an_input("y", array_of("INT8"))]
    result = client.infer("echo", inputs, outputs=[http.InferRequestedOutput("y")])
    assert result.as_numpy("x") is None
    assert bits_of(result.as_numpy("y")) == bits_of(array_of("INT8"))


def test_empty_tensors_go_and_come(client: Any) -> None:
    """A tensor without elements is one."""
    result = client.infer("echo", [an_input("x", np.empty((0, 3), np.float32))])
    assert result.as_numpy("x").shape == (0, 3)


@pytest.mark.parametrize("answer", [None, "gzip", "deflate"])
@pytest.mark.parametrize("question", [None, "gzip", "deflate"])
def test_compression_goes_both_ways(client: Any, question: str | None, answer: str | None) -> None:
    """The client's two algorithms, either way, alone or together, of small and of large tensors."""
    for array in (array_of("FP32"), np.arange(50_000, dtype=np.int64).reshape(1, -1)):
        result = client.infer(
            "echo",
            [an_input("x", array)],
            request_compression_algorithm=question,
            response_compression_algorithm=answer,
        )
        assert bits_of(result.as_numpy("x")) == bits_of(array)


def test_id_version_and_parameters_arrive(client: Any, inferences: ScriptedInferences) -> None:
    """The client's own arguments are the record's members, and its id comes back."""
    result = client.infer(
        "echo",
        [an_input("x", array_of("FP32"))],
        model_version="1",
        request_id="my-request.1",
        priority=3,
        timeout=5_000_000,
        parameters={"a": 1, "b": "é", "c": True, "d": 0.5},
        headers={"Cache-Control": "no-cache"},
    )
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("my-request.1", "echo", "1")
    record = inferences.records[-1]
    request = decode_request(record.value, record.headers)
    assert request.id == "my-request.1"
    assert request.parameters == {
        "priority": 3, "timeout": 5_000_000, "binary_data_output": True, "a": 1, "b": "é", "c": True, "d": 0.5,
    }  # fmt: skip
    assert (request.model_version, request.cache_control) == ("1", "no-cache")


def test_cache_parameters_are_in_the_answer(client: Any) -> None:
    """What the cache did is a parameter of the answer, as the client reads it."""
    parameters = client.infer("echo", [an_input("x", array_of("FP32"))]).get_response()["parameters"]
    assert parameters["cache_status"] == "miss"


def test_async_infer_answers(client: Any) -> None:
    """The blocking client's own concurrency works."""
    calls = [client.async_infer("echo", [an_input("x", array_of("FP32"))]) for _ in range(4)]
    for call in calls:
        assert bits_of(call.get_result().as_numpy("x")) == bits_of(array_of("FP32"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sequence_id": 7, "sequence_start": True}, "sequence"),
        ({"outputs": [http.InferRequestedOutput("x", class_count=2)]}, "classification"),
        ({"request_id": "with space"}, "id"),
        ({"model_name": "a/b"}, ""),
        ({"model_name": ".."}, ""),
        ({"model_version": "one"}, "version"),
    ],
)
def test_what_is_not_served_is_the_clients_error(client: Any, changes: dict[str, Any], words: str) -> None:
    """The client raises its own exception, with the gateway's sentence and status in it."""
    arguments = {"model_name": "echo", "inputs": [an_input("x", array_of("FP32"))]} | changes
    with pytest.raises(utils.InferenceServerException) as caught:
        client.infer(**arguments)
    assert caught.value.status() in {"400", "404"}
    assert words in caught.value.message()


def test_shared_memory_is_the_clients_error(client: Any) -> None:
    """Shared memory is refused where it is registered, and where a request names it."""
    found = http.InferInput("x", [1], "FP32")
    found.set_shared_memory("region", 4)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: client.infer("echo", [found]),
        lambda: client.register_system_shared_memory("region", "/key", 4),
        lambda: client.get_cuda_shared_memory_status(),
    )
    for call in calls:
        with pytest.raises(utils.InferenceServerException, match="shared"):
            call()


def test_management_is_the_clients_error(client: Any) -> None:
    """Loads, unloads, traces and logs are refused aloud: nobody believes that something was done."""
    calls: tuple[Callable[[], Any], ...] = (
        lambda: client.load_model("echo"),
        lambda: client.unload_model("echo"),
        lambda: client.update_trace_settings(settings={"trace_level": ["OFF"]}),
        lambda: client.get_trace_settings("echo"),
        lambda: client.update_log_settings({"log_verbose_level": 1}),
        lambda: client.get_log_settings(),
    )
    for call in calls:
        with pytest.raises(utils.InferenceServerException):
            call()


def test_failed_inference_is_the_clients_error(client: Any, inferences: ScriptedInferences) -> None:
    """What a model fails with reaches the client's exception."""
    before = inferences.respond

    def fail(_: object) -> Any:
        raise WireError(ErrorCode.MODEL_ERROR, "the model's own words")

    inferences.respond = fail
    try:
        with pytest.raises(utils.InferenceServerException, match="the model's own words") as caught:
            client.infer("echo", [an_input("x", array_of("FP32"))])
    finally:
        inferences.respond = before
    assert caught.value.status() == "500"


def test_health_and_metadata_are_read(client: Any, server: ScriptedServer) -> None:
    """All that the client asks of a server and its models, in the shapes that it reads."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo")
    assert client.is_model_ready("echo", "1")
    assert not client.is_model_ready("echo", "3")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata()["name"] == "inference-pipeline"
    assert {found["state"] for found in client.get_model_repository_index()} == {"READY", "UNAVAILABLE"}
    server.says = [entry()]
    assert client.get_inference_statistics()["model_stats"] == [entry()]
    assert client.get_inference_statistics("echo", "1")["model_stats"] == [entry()]
    server.says = {"name": "echo"}
    assert client.get_model_config("echo") == {"name": "echo"}
    server.says = "python"
    metadata = client.get_model_metadata("echo", "2")
    assert (metadata["platform"], metadata["inputs"][0]["shape"]) == ("python", [-1, 64])


async def test_asyncio_client_infers(address: str) -> None:
    """The asyncio client: binary, JSON, compressed both ways, and its errors."""
    async with aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        array = array_of("BF16")
        result = await client.infer("echo", [an_input("x", array)])
        assert bits_of(result.as_numpy("x")) == bits_of(array)
        numbers = np.arange(6, dtype=np.int32).reshape(2, 3)
        for question in ("gzip", "deflate", None):
            result = await client.infer(
                "echo",
                [an_input("x", numbers, binary=False)],
                outputs=[aio.InferRequestedOutput("x", False)],
                request_compression_algorithm=question,
                response_compression_algorithm=question,
            )
            assert np.array_equal(result.as_numpy("x"), numbers)
        assert (await client.get_model_metadata("echo"))["versions"] == ["1", "2"]
        with pytest.raises(utils.InferenceServerException, match="sequence"):
            await client.infer("echo", [an_input("x", numbers)], sequence_id="a")
