"""An unmodified `tritonclient.http` against the gateway's process, with a real Kafka, worker and Tritons behind it.

Whatever it asks a Triton directly, it asks the gateway the same way, and is told the same.
"""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from pipeline.adapters.triton_metadata import TritonMetadata
from pipeline.errors import ModelNotReady, ServerUnavailable
from tests.gateway.test_protocol_tritonclient import NUMBERS, an_input, array_of, bits_of, http, utils
from tests.live.processes import ProcessGroup, _free_port, environment
from tests.live.stack import LiveStack
from tests.live.topics import prepare_topics
from tests.live.waiting import run_in_thread, until
from tests.models.folders import DIGITS, PROJECT, read_sample

pytestmark = [pytest.mark.live, pytest.mark.timeout(90)]

_READY_S = 40.0


class Served(NamedTuple):
    """Where the gateway and the first Triton answer, host:port each."""

    gateway: str
    triton: str


@pytest.fixture(scope="module")
def served(stack: LiveStack) -> Iterator[Served]:
    """A gateway and a worker of this module's own, ready."""
    port = _free_port()
    settings = stack.make_settings(gateway={"port": port})
    run_in_thread(prepare_topics(settings, stack.models.values()))
    group = ProcessGroup()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with (settings.data_dir / "gateway.log").open("wb") as log:
        process = subprocess.Popen(
            (sys.executable, "-m", "pipeline", "gateway"),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=PROJECT, env=environment(settings),
        )  # fmt: skip
    try:
        group.start_blocking("worker", settings)
        try:
            run_in_thread(_ready(port))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{(settings.data_dir / 'gateway.log').read_text()[-6000:]}") from None
        yield Served(f"127.0.0.1:{port}", stack.triton_http_urls[0].removeprefix("http://"))
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(20)
        group.stop()
    assert code == 0


async def _ready(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

        async def ready() -> bool:
            try:
                answers = [await client.get(path) for path in ("/v2/health/ready", "/v2/models/echo/ready")]
            except httpx.TransportError:
                return False
            return all(answer.status_code == 200 for answer in answers)

        await until(ready, _READY_S, "the gateway is ready and has read the models topic")


@pytest.fixture
def clients(served: Served) -> Iterator[tuple[Any, Any]]:
    """The same client of the gateway, and of a Triton."""
    with http.InferenceServerClient(served.gateway) as gateway, http.InferenceServerClient(served.triton) as triton:
        yield gateway, triton


def told(result: Any) -> dict[str, Any]:
    """What an answer says, without what only one of the two says of itself."""
    answer = result.get_response()
    names = sorted(output["name"] for output in answer["outputs"])
    return {
        "model": (answer["model_name"], answer["model_version"]),
        "outputs": {name: bits_of(result.as_numpy(name)) for name in names},
        "forms": {name: "data" in result.get_output(name) for name in names},
    }


def echo_of(client: Any, datatype: str, **arguments: Any) -> Any:
    """A tensor of this datatype, sent to the echo model."""
    name = datatype.lower()
    outputs = [http.InferRequestedOutput(f"{name}_echo")]
    return client.infer("echo", [an_input(name, array_of(datatype))], outputs=outputs, **arguments)


@pytest.mark.parametrize("datatype", [*NUMBERS, "BYTES"])
def test_every_datatype_is_as_from_triton(clients: tuple[Any, Any], datatype: str) -> None:
    """Raw tensors of every datatype come back through Kafka, worker and Triton to the bit, and again from the cache."""
    for encoding in (None, "gzip"):
        compression = {"request_compression_algorithm": encoding, "response_compression_algorithm": encoding}
        answers = [echo_of(client, datatype, **compression) for client in clients]
        assert told(answers[0]) == told(answers[1])
        assert bits_of(answers[0].as_numpy(f"{datatype.lower()}_echo")) == bits_of(array_of(datatype))
    assert answers[0].get_response()["parameters"]["cache_status"] == "hit"


def test_json_and_mixed_forms_are_as_from_triton(clients: tuple[Any, Any]) -> None:
    """JSON both ways, and forms mixed in one request, are what Triton itself answers."""
    texts = np.array([["a", "é"], ["", "{}"]], dtype=np.object_)
    numbers = np.arange(6, dtype=np.int32).reshape(2, 3)
    for binary in (False, True):
        outputs = [
            http.InferRequestedOutput("int32_echo", binary_data=binary),
            http.InferRequestedOutput("bytes_echo", binary_data=not binary),
        ]
        inputs = [an_input("bytes", texts, binary=binary), an_input("int32", numbers, binary=not binary)]
        answers = [told(client.infer("echo", inputs, outputs=outputs)) for client in clients]
        assert answers[0] == answers[1]


def test_digits_are_read(clients: tuple[Any, Any]) -> None:
    """The shipped model's sample has its label, by default and by a version's number."""
    sample = read_sample(DIGITS)
    given, wanted = sample["inputs"][0], sample["outputs"][0]
    image = np.array(given["data"], dtype=np.float32).reshape(given["shape"])
    for version in ("", sample["model_version"], "1"):
        answers = [client.infer("digits", [an_input("image", image)], version) for client in clients]
        assert told(answers[0]) == told(answers[1])
        assert answers[0].as_numpy(wanted["name"]).flatten().tolist() == wanted["data"]


@pytest.mark.parametrize("model", ["digits", "echo", "sentences"])
def test_metadata_and_config_are_as_from_triton(clients: tuple[Any, Any], model: str) -> None:
    """Names, versions, platform, datatypes, shapes and the whole configuration are what Triton's own HTTP says."""
    gateway, triton = clients
    assert gateway.get_model_config(model) == triton.get_model_config(model)
    for version in ("", triton.get_model_metadata(model)["versions"][-1]):
        assert gateway.get_model_metadata(model, version) == triton.get_model_metadata(model, version)


def test_statistics_are_the_fleets(clients: tuple[Any, Any], stack: LiveStack) -> None:
    """The counts are the sums of what each Triton says by its own HTTP."""
    echo_of(clients[0], "INT8", headers={"Inference-Enable-Cache": "false"})
    sums: dict[tuple[str, str], int] = {}
    members: set[str] = set()
    for url in stack.triton_http_urls:
        with http.InferenceServerClient(url.removeprefix("http://")) as one:
            for found in one.get_inference_statistics()["model_stats"]:
                key = (found["name"], found["version"])
                sums[key] = sums.get(key, 0) + found["inference_count"]
                members = set(found)
    answer = clients[0].get_inference_statistics()
    assert {(found["name"], found["version"]): found["inference_count"] for found in answer["model_stats"]} == sums
    assert {member for found in answer["model_stats"] for member in found} == members
    assert "unanswered" not in answer
    assert any(count for (name, _), count in sums.items() if name == "echo")
    echo = clients[0].get_inference_statistics("echo")["model_stats"]
    assert {found["name"] for found in echo} == {"echo"}


def test_repository_index_names_what_is_served(clients: tuple[Any, Any]) -> None:
    """Every model and version that a Triton has ready is READY in the gateway's index."""
    ready = [
        {
            (found["name"], found["version"])
            for found in client.get_model_repository_index()
            if found["state"] == "READY"
        }
        for client in clients
    ]
    assert ready[0] == ready[1] != set()


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"model_name": "nobody"}, "404"),
        ({"model_version": "99"}, "404"),
        ({"parameters": {"fail": "the model's own words"}}, "500"),
        ({"headers": {"Cache-Control": "only-if-cached"}}, "504"),
        ({"headers": {"Inference-Timeout-Ms": "0"}}, "504"),
        ({"outputs": [http.InferRequestedOutput("none")]}, "400"),
    ],
)
def test_errors_reach_the_client(clients: tuple[Any, Any], changes: dict[str, Any], status: str) -> None:
    """What fails in worker or model is the client's exception, with the status of its code."""
    arguments: dict[str, Any] = {"model_name": "echo", "inputs": [an_input("uint16", array_of("UINT16"))]} | changes
    with pytest.raises(utils.InferenceServerException) as caught:
        clients[0].infer(**arguments)
    assert caught.value.status() == status
    assert "fail" not in str(changes) or "the model's own words" in caught.value.message()


def test_repeated_request_id_is_the_same_request(clients: tuple[Any, Any]) -> None:
    """An id sent again with the same tensors has the same answer; with others it is refused."""
    first = echo_of(clients[0], "INT8", request_id="live-1")
    again = echo_of(clients[0], "INT8", request_id="live-1")
    assert first.get_response() == again.get_response()
    with pytest.raises(utils.InferenceServerException) as caught:
        echo_of(clients[0], "UINT8", request_id="live-1")
    assert caught.value.status() == "422"


async def test_receipt_leads_to_the_result(served: Served) -> None:
    """`Prefer: respond-async` gives a receipt whose link has the record of the same answer."""
    request = {
        "inputs": [{"name": "int32", "datatype": "INT32", "shape": [1, 2], "data": [7, 8]}],
        "outputs": [{"name": "int32_echo"}],
    }
    async with httpx.AsyncClient(base_url=f"http://{served.gateway}") as client:
        receipt = await client.post("/v2/models/echo/infer", json=request, headers={"Prefer": "respond-async"})
        assert receipt.status_code == 202
        record = await client.get(receipt.headers["location"], params={"wait": 20})
        answer = await client.post("/v2/models/echo/infer", json=request)
    assert answer.json()["outputs"] == record.json()["outputs"]
    assert answer.headers["cache-status"] == "pipeline; hit"
    assert int(answer.headers["age"]) >= 0


async def test_curl_needs_no_headers(served: Served) -> None:
    """`curl -d` as it is, with its own Content-Type, is answered in JSON."""
    inputs = [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}]
    body = json.dumps({"inputs": inputs, "outputs": [{"name": "label"}]})
    command = ("curl", "-sS", "-d", body, f"http://{served.gateway}/v2/models/digits/infer")
    try:
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    except FileNotFoundError:
        pytest.skip("there is no curl on this machine")
    output, _ = await process.communicate()
    (label,) = json.loads(output)["outputs"]
    assert (label["name"], label["datatype"], label["shape"]) == ("label", "INT64", [1, 1])


async def test_server_that_is_not_there_is_told_in_time(stack: LiveStack) -> None:
    """Nobody at an address, and a version that nobody serves, are errors of their own."""
    nobody, somebody = TritonMetadata("a", "127.0.0.1:1"), TritonMetadata("b", stack.triton_urls[0])
    try:
        with pytest.raises(ServerUnavailable):
            await nobody.config("echo", "1", 0.5)
        with pytest.raises(ModelNotReady):
            await somebody.config("echo", "99", 5.0)
        with pytest.raises(ModelNotReady):
            await somebody.statistics("nobody", "", 5.0)
        with pytest.raises(ModelNotReady):
            await somebody.platform("nobody", "1", 5.0)
    finally:
        await nobody.close()
        await somebody.close()


def test_models_are_listed_as_they_are_announced(served: Served) -> None:
    """/v1/models has every model of the fleet, with the version that answers, and the Tritons by name."""
    listed = httpx.get(f"http://{served.gateway}/v1/models").json()
    models = {entry["id"]: entry for entry in listed["data"]}
    assert models.keys() == {"digits", "echo", "sentences"}
    for name, entry in models.items():
        assert httpx.get(f"http://{served.gateway}/v1/models/{name}").json() == entry
        metadata = httpx.get(f"http://{served.gateway}/v2/models/{name}").json()
        assert entry["versions"] == metadata["versions"]
        assert entry["default_version"] in entry["versions"]
        assert [entry["states"][number] for number in entry["versions"]] == ["ready"] * len(entry["versions"])
        assert entry["instances"] == ["triton-0", "triton-1"]
