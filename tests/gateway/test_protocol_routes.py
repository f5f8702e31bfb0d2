"""The routes below /v2, as curl and load balancers meet them: statuses, headers, `{"error": …}` for all that fails."""

import asyncio
import gzip
import json
import zlib
from typing import Any

import httpx
import pytest

from pipeline.client.errors import KafkaUnavailable
from pipeline.config import GatewaySettings
from pipeline.core.answer import Answer, failed
from pipeline.gateway.delivery.inferences import IdReused, ResultGone
from pipeline.gateway.http.limits import Limits
from pipeline.gateway.protocol.models import Fleet
from schemas.decoded import DecodedRequest
from schemas.errors import ErrorCode, WireError
from tests.gateway.protocol_gateway import ScriptedInferences, announced, make_app, model_record
from tests.gateway.test_protocol_models import ScriptedServer, away, entry

URL = "/v2/models/digits/infer"
LENGTH = "Inference-Header-Content-Length"
INPUTS = [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]}]


def gateway(inferences: ScriptedInferences, fleet: Fleet | None = None, **settings: Any) -> httpx.AsyncClient:
    """A client of a gateway with these parts."""
    transport = httpx.ASGITransport(make_app(inferences, fleet, **settings))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"Accept-Encoding": "identity"})


async def post(inferences: ScriptedInferences, url: str = URL, **request: Any) -> httpx.Response:
    """One inference; JSON inputs unless the request says otherwise."""
    if "content" not in request and "json" not in request:
        request["json"] = {"inputs": INPUTS}
    async with gateway(inferences) as client:
        return await client.post(url, **request)


def error_of(answer: httpx.Response) -> str:
    """The sentence of an error, which is all there is in it."""
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert list(document) == ["error"]
    sentence: str = document["error"]
    return sentence


async def test_inference_answers_in_json() -> None:
    """JSON in, JSON out: outputs, id, model, version, and what the cache did."""
    inferences = ScriptedInferences()
    answer = await post(inferences, json={"id": "r-1", "inputs": INPUTS, "parameters": {"a": 1}})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-status"] == "pipeline; fwd=miss; stored"
    body = answer.json()
    assert (body["id"], body["model_name"], body["model_version"]) == ("r-1", "digits", "2")
    assert body["outputs"] == INPUTS
    assert body["parameters"]["cache_status"] == "miss"
    record = json.loads(inferences.records[0].value)
    assert record["model_name"] == "digits"
    assert record["parameters"] == {"a": 1}
    assert "model_version" not in record


async def test_version_of_the_address_is_asked() -> None:
    """The version in the address is the record's."""
    inferences = ScriptedInferences()
    assert (await post(inferences, "/v2/models/digits/versions/01/infer")).json()["model_version"] == "1"


async def test_version_in_a_query_is_not_read() -> None:
    """What is asked is in the address alone."""
    inferences = ScriptedInferences()
    assert (await post(inferences, f"{URL}?model_version=1&model_name=other")).json()["model_version"] == "2"


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", None])
async def test_content_type_does_not_matter(content_type: str | None) -> None:
    """As with Triton: curl's own content type, or none, is as good as the right one."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = await post(ScriptedInferences(), content=json.dumps({"inputs": INPUTS}).encode(), headers=headers)
    assert answer.status_code == 200


async def test_binary_in_and_out() -> None:
    """Raw tensors in, raw tensors out where they are asked for, the JSON's length in the header of both."""
    raw = bytes(range(8))
    asked = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(asked).encode()
    answer = await post(ScriptedInferences(), content=head + raw, headers={LENGTH: str(len(head))})
    length = int(answer.headers[LENGTH])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.content[length:] == raw
    assert json.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}


@pytest.mark.parametrize(("encoding", "inflate"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
@pytest.mark.parametrize("elements", [2, 40_000])
async def test_bodies_are_compressed_both_ways(encoding: str, inflate: Any, elements: int) -> None:
    """Compressed requests are read, answers compressed as asked, small and large; caches are told that it varies."""
    inputs = [{"name": "x", "datatype": "FP64", "shape": [elements], "data": [0.25] * elements}]
    body = json.dumps({"inputs": inputs}).encode()
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    inferences = ScriptedInferences()
    async with (
        gateway(inferences) as client,
        client.stream(
            "POST", URL, content=packed, headers={"Content-Encoding": encoding, "Accept-Encoding": encoding}
        ) as answer,
    ):
        content = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == encoding
    assert answer.headers["vary"] == "Accept-Encoding"
    assert int(answer.headers["content-length"]) == len(content)
    assert json.loads(inflate(content))["outputs"] == inputs


async def test_answer_is_not_compressed_unasked() -> None:
    """Without an Accept-Encoding that takes it, bytes come as they are."""
    answer = await post(ScriptedInferences())
    assert "content-encoding" not in answer.headers


async def test_headers_reach_the_record() -> None:
    """Cache-Control, Inference-Enable-Cache and Inference-Timeout-Ms are the record's members, the peer its source."""
    inferences = ScriptedInferences()
    headers = {"Cache-Control": "no-store", "Inference-Enable-Cache": "false", "Inference-Timeout-Ms": "2500"}
    answer = await post(inferences, headers={**headers, "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"})
    record = json.loads(inferences.records[0].value)
    assert (record["cache_control"], record["enable_cache"], record["timeout_ms"]) == ("no-store", False, 2500)
    assert record["source_ip"] == "127.0.0.1"
    assert dict(inferences.records[0].headers)["traceparent"].startswith(b"00-aaa")
    assert inferences.waits == [2.5]
    assert answer.headers["cache-status"] == "pipeline; fwd=miss"


async def test_wait_is_the_gateways_limit_by_default() -> None:
    """Without a timeout of its own a request is waited for as long as the setting says."""
    inferences = ScriptedInferences()
    async with gateway(inferences, wait_max_s=7.5) as client:
        await client.post(URL, json={"inputs": INPUTS})
    assert inferences.waits == [7.5]


async def test_unanswered_request_tells_where_its_result_will_be() -> None:
    """Past its time a request is 504, with its id and the place of its result."""
    inferences = ScriptedInferences()
    inferences.is_silent = True
    answer = await post(inferences, headers={"Inference-Timeout-Ms": "5"})
    assert answer.status_code == 504
    sentence = error_of(answer)
    assert "fresh-0" in sentence
    assert "/v1/inferences/fresh-0" in sentence


async def test_stopping_gateway_tells_where_the_result_will_be() -> None:
    """Who waits when the gateway begins to stop is told at once that the request was accepted, and where it is."""
    inferences = ScriptedInferences()
    limits = Limits(GatewaySettings())
    inferences.is_silent, inferences.while_silent = True, limits.stop
    transport = httpx.ASGITransport(make_app(inferences, limits=limits))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.post(URL, json={"inputs": INPUTS})
    assert answer.status_code == 503
    assert "/v1/inferences/fresh-0" in error_of(answer)


async def test_respond_async_gives_a_receipt() -> None:
    """`Prefer: respond-async` is the 202 of /v1: nobody waits."""
    inferences = ScriptedInferences()
    answer = await post(inferences, headers={"Prefer": "foo, Respond-Async; bar"})
    assert answer.status_code == 202
    assert answer.headers["location"] == "/v1/inferences/fresh-0"
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.json()["status"] == "accepted"
    assert answer.json()["links"]["self"] == "/v1/inferences/fresh-0"
    assert inferences.waits == []


@pytest.mark.parametrize("code", list(ErrorCode))
async def test_failed_result_has_its_codes_status(code: ErrorCode) -> None:
    """Whatever the worker says went wrong has the status of its code and the worker's sentence."""

    def respond(_: DecodedRequest) -> Answer:
        return failed(WireError(code, "the worker's sentence"), "miss")

    answer = await post(ScriptedInferences(respond))
    assert answer.status_code == code.http_status
    assert error_of(answer) == "the worker's sentence"
    assert answer.headers["cache-status"] == "pipeline; fwd=miss"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (IdReused("request r-1 is another one"), 422),
        (ResultGone("its bytes have expired"), 410),
        (KafkaUnavailable("Kafka does not answer"), 503),
        (WireError(ErrorCode.PAYLOAD_TOO_LARGE, "too large"), 413),
    ],
)
async def test_what_delivery_raises_is_told(error: Exception, status: int) -> None:
    """What keeps a request from being taken in is the protocol's error."""
    inferences = ScriptedInferences()
    inferences.raises = error
    answer = await post(inferences)
    assert answer.status_code == status
    assert str(error) in error_of(answer)


@pytest.mark.parametrize(
    ("request_of", "words"),
    [
        ({"json": {"inputs": INPUTS, "tenant": "acme"}}, "'tenant'"),
        ({"json": {"inputs": INPUTS, "callback": {"url": "https://x"}}}, "'callback'"),
        ({"json": {"inputs": INPUTS, "parameters": {"sequence_id": 7}}}, "sequence_id"),
        ({"json": {"inputs": INPUTS, "parameters": {"triton_x": 7}}}, "triton_x"),
        ({"json": {"inputs": INPUTS, "id": "a b"}}, "id"),
        ({"json": {"inputs": []}}, "inputs"),
        ({"json": {}}, "inputs"),
        ({"content": b"no JSON"}, "JSON"),
        ({"content": b""}, "no body"),
        ({"content": b"{}", "headers": {LENGTH: "9"}}, LENGTH),
        ({"json": {"inputs": INPUTS}, "headers": {"Inference-Enable-Cache": "x"}}, "Inference-Enable-Cache"),
        ({"json": {"inputs": INPUTS}, "headers": {"Cache-Control": "max-age=x"}}, "max-age"),
        ({"json": {"inputs": [INPUTS[0] | {"data": [1.0]}]}}, "elements"),
        ({"json": {"inputs": [INPUTS[0] | {"datatype": "FP16"}]}}, "FP16"),
        ({"json": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1],
                               "parameters": {"shared_memory_region": "r"}}]}}, "shared_memory_region"),
    ],
)  # fmt: skip
async def test_invalid_request_is_refused_at_once(request_of: dict[str, Any], words: str) -> None:
    """What no model could answer is 400 and names the member; nothing reaches Kafka."""
    inferences = ScriptedInferences()
    answer = await post(inferences, **request_of)
    assert answer.status_code == 400
    assert words in error_of(answer)
    assert inferences.records == []


@pytest.mark.parametrize(
    "path",
    ["a%2Fb", "..%2f..", "%2e%2e", "a%00b", "a%0d%0ab", "%EF%BD%84igits", "d%D1%96gits", "a" * 10_000, "a%5Cb", "-x",
     "digits%2Fversions%2F2", "a%20b", "%ff"],
)  # fmt: skip
async def test_names_no_model_has_reach_nobody(path: str) -> None:
    """Slashes, dots, control characters, look-alikes and endless names are 404, and nobody is asked."""
    inferences, server = ScriptedInferences(), ScriptedServer("t", {})
    async with gateway(inferences, Fleet(announced(model_record()), [server])) as client:
        for tail in ("/infer", "", "/config", "/stats", "/ready"):
            url = httpx.URL("http://gateway/").copy_with(raw_path=f"/v2/models/{path}{tail}".encode())
            answer = await client.request("POST" if tail == "/infer" else "GET", url, json={"inputs": INPUTS})
            assert answer.status_code == 404
            assert error_of(answer)
    assert inferences.submissions == []
    assert server.asked == []


@pytest.mark.parametrize("version", ["x", "-1", "1.5", "1" * 19, "%D9%A1"])
async def test_versions_that_are_no_numbers_are_unknown(version: str) -> None:
    """A version in words, or in other digits than ASCII's, is 404."""
    answer = await post(ScriptedInferences(), f"/v2/models/digits/versions/{version}/infer")
    assert answer.status_code == 404
    assert "version" in error_of(answer)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/", 404),
        ("POST", "/v2/models", 404),
        ("GET", "/v2/models/digits/", 404),
        ("GET", URL, 405),
        ("DELETE", "/v2/models/digits", 405),
        ("GET", "/v2/repository/index", 405),
        ("POST", "/v2/repository/models/digits/load", 400),
        ("POST", "/v2/repository/models/digits/unload", 400),
        ("GET", "/v2/systemsharedmemory/status", 400),
        ("POST", "/v2/systemsharedmemory/region/a/register", 400),
        ("POST", "/v2/systemsharedmemory/unregister", 400),
        ("GET", "/v2/cudasharedmemory/region/a/status", 400),
        ("POST", "/v2/trace/setting", 400),
        ("GET", "/v2/models/digits/trace/setting", 400),
        ("POST", "/v2/logging", 400),
        ("POST", "/v2/models/digits/generate", 400),
        ("POST", "/v2/models/digits/versions/1/generate_stream", 400),
    ],
)
async def test_what_is_not_served_is_refused_in_words(method: str, path: str, status: int) -> None:
    """Unknown paths, wrong methods and what Triton's management does are errors of the protocol, never a success."""
    async with gateway(ScriptedInferences()) as client:
        answer = await client.request(method, path)
    assert answer.status_code == status
    assert error_of(answer)


async def test_server_tells_its_name_and_extensions() -> None:
    """GET /v2 names the server, its version and what of Triton's extensions it has."""
    async with gateway(ScriptedInferences()) as client:
        found = (await client.get("/v2")).json()
    assert found["name"] == "inference-pipeline"
    assert found["version"]
    assert "binary_tensor_data" in found["extensions"]


async def test_health_is_live_and_ready() -> None:
    """Live always; ready unless delivery says why not, and then the reason is told."""
    inferences = ScriptedInferences()
    async with gateway(inferences) as client:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready"):
            answer = await client.get(path)
            assert (answer.status_code, answer.content) == (200, b"")
        inferences.reasons = {"kafka": "does not answer"}
        assert (await client.get("/v2/health/live")).status_code == 200
        answer = await client.get("/v2/health/ready")
    assert answer.status_code == 503
    assert "kafka: does not answer" in error_of(answer)


@pytest.mark.parametrize("path", ["/v2/models/none/ready", "/v2/models/none", "/v2/models/digits/versions/3/config"])
async def test_model_that_is_not_served_is_unknown(path: str) -> None:
    """A model or version that is not served is 404 in all that is told of models."""
    async with gateway(ScriptedInferences()) as client:
        answer = await client.get(path)
    assert answer.status_code == 404
    assert "is not served" in error_of(answer)


async def test_metadata_config_and_statistics_are_told() -> None:
    """The three of a model, of a version, and the statistics of all, as the fleet has them."""
    server = ScriptedServer("t", [entry()])
    async with gateway(ScriptedInferences(), Fleet(announced(model_record()), [server])) as client:
        for path in ("/v2/models/stats", "/v2/models/digits/stats", "/v2/models/digits/versions/2/stats"):
            assert (await client.get(path)).json() == {"model_stats": [entry()]}
        server.says = {"name": "digits"}
        assert (await client.get("/v2/models/digits/config")).json() == {"name": "digits"}
        assert (await client.get("/v2/models/digits/versions/1/config")).json() == {"name": "digits"}
        server.says = "python"
        assert (await client.get("/v2/models/digits/versions/1")).json()["platform"] == "python"
        server.says = away("t")
        answer = await client.get("/v2/models/digits/config")
    assert answer.status_code == 503
    assert "t: failed to connect" in error_of(answer)


@pytest.mark.parametrize(
    ("body", "count"), [(b"", 4), (b"{}", 4), (b'{"ready":false}', 4), (b'{"ready":true}', 2), (b'{"other":1}', 4)]
)
async def test_index_is_of_ready_versions_where_asked(body: bytes, count: int) -> None:
    """The optional body asks for versions that are served alone."""
    async with gateway(ScriptedInferences()) as client:
        assert len((await client.post("/v2/repository/index", content=body)).json()) == count


@pytest.mark.parametrize("body", [b"x", b"[]", b'{"ready":1}', b" " * 5000])
async def test_index_bodies_that_are_none_are_refused(body: bytes) -> None:
    """A body that asks for nothing known is 400."""
    async with gateway(ScriptedInferences()) as client:
        answer = await client.post("/v2/repository/index", content=body)
    assert answer.status_code == 400
    assert error_of(answer)


@pytest.mark.parametrize("path", ["/v2/models/stats", "/v2/models/digits/config", "/v2/models/digits", URL])
async def test_stopped_servers_do_not_take_all_places(path: str) -> None:
    """Whoever waits for a Triton or an answer has no place of those that are kept for taking requests in."""
    silent = ScriptedServer("t", None)
    limits = Limits(GatewaySettings(max_in_flight=4))
    inferences = ScriptedInferences()
    inferences.is_silent = True
    app = make_app(inferences, Fleet(announced(model_record()), [silent]), limits, max_in_flight=4)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        asking = [asyncio.create_task(client.get("/v2/models/digits/config")) for _ in range(3)]
        async with asyncio.timeout(10):
            while len(silent.asked) < 3:  # noqa: ASYNC110 - one look per turn of the loop
                await asyncio.sleep(0)
        answer = await client.request("POST" if path == URL else "GET", path, json={"inputs": INPUTS})
        ready = await client.get("/v2")
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    assert answer.status_code == 429
    assert "wait" in error_of(answer)
    assert ready.status_code == 200
    assert inferences.records == []


async def test_body_without_room_is_refused() -> None:
    """Where there is no room for the body, nothing is sent to Kafka: 429."""
    inferences = ScriptedInferences()
    app = make_app(inferences, max_in_flight_bytes=64)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        answer = await client.post(URL, json={"inputs": INPUTS})
    assert answer.status_code == 429
    assert inferences.records == []
