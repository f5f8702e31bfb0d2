"""The app around the routes: errors of every kind, what it says of itself, its documents."""

import json
import logging
from typing import Any

import jsonschema
import pytest

from schemas.documents import rendered
from tests.gateway.fake_inferences import FakeInferences
from tests.gateway.front import BODY, front

KNOWN = ["/", "/status", "/metrics", "/health/live", "/health/ready", "/openapi.json", "/asyncapi.json"]


@pytest.mark.parametrize("path", KNOWN)
async def test_what_a_gateway_says_of_itself_has_a_head(path: str) -> None:
    """GET answers, HEAD says how long the answer is, both within a policy that lets no browser guess."""
    async with front() as gateway:
        got, head = await gateway.http.get(path), await gateway.http.head(path)
    assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
    if path != "/metrics":  # it counts the question itself
        assert got.headers["content-length"] == head.headers["content-length"]
    assert got.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/nothing", (404, "NOT_FOUND")),
        ("GET", "/v1/inferences/", (404, "NOT_FOUND")),
        ("GET", "//v1/inferences/r-1", (404, "NOT_FOUND")),
        ("GET", "/v1/inferences/r-1/", (404, "NOT_FOUND")),
        ("GET", "/v1/../status", (200, "")),
        ("GET", "/docs", (404, "NOT_FOUND")),
        ("GET", "/redoc", (404, "NOT_FOUND")),
        ("GET", "/v1/inferences", (405, "METHOD_NOT_ALLOWED")),
        ("DELETE", "/v1/inferences/r-1", (405, "METHOD_NOT_ALLOWED")),
        ("POST", "/health/live", (405, "METHOD_NOT_ALLOWED")),
        ("BREW", "/", (405, "METHOD_NOT_ALLOWED")),
    ],
)
async def test_errors_of_the_framework_are_problems(method: str, path: str, expected: tuple[int, str]) -> None:
    """What Starlette answers by itself has the same form as what we answer."""
    async with front() as gateway:
        if expected[0] == 200:
            assert (await gateway.http.request(method, path)).status_code == 200
        else:
            assert await gateway.problem(method, path) == expected


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/v1/inferences", "OPTIONS, POST"), ("/v1/inferences/r-1", "GET, HEAD, OPTIONS"), ("/", "GET, HEAD, OPTIONS")],
)
async def test_allowed_methods_are_named(path: str, allowed: str) -> None:
    """405 and OPTIONS name every method of the path, not those of its first route."""
    async with front() as gateway:
        refused, options = await gateway.http.patch(path), await gateway.http.options(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
    assert (options.status_code, options.headers["allow"]) == (204, allowed)


async def test_errors_below_v2_are_the_protocols() -> None:
    """The Open Inference Protocol knows `{"error": …}` alone, for what its routes do not see as well."""
    async with front() as gateway:
        for method, path, status in (("GET", "/v2/nothing", 404), ("DELETE", "/v2", 405)):
            response = await gateway.http.request(method, path)
            assert (response.status_code, list(response.json())) == (status, ["error"])
            assert response.headers["content-type"] == "application/json"


async def test_bug_is_told_without_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw is 500 INTERNAL; what it says stays in the log."""

    async def broken(*_: Any) -> None:
        raise RuntimeError("the password is sesame")

    monkeypatch.setattr(FakeInferences, "wait", broken)
    async with front() as gateway:
        response = await gateway.http.get("/v1/inferences/r-1")
        assert (response.status_code, response.json()["code"]) == (500, "INTERNAL")
        assert "sesame" not in response.text
        assert response.headers["content-type"] == "application/problem+json"
    assert gateway.limits.in_flight == 0


async def test_readiness_follows_the_inferences() -> None:
    """503 with the reason while Kafka is away; alive and on the page all the same."""
    async with front() as gateway:
        gateway.inferences.reasons = {"kafka": "does <not> answer"}
        ready = await gateway.http.get("/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"ready": False, "reasons": {"kafka": "does <not> answer"}})
        assert (await gateway.http.get("/health/live")).status_code == 200
        assert (await gateway.http.get("/status")).json()["ready"] is False
        page = await gateway.http.get("/")
    assert "does &lt;not&gt; answer" in page.text
    assert "<script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_metrics_count_by_route_not_by_address() -> None:
    """However many ids are asked for, and methods made up, the labels stay few."""
    async with front() as gateway:
        for name in ("a", "b", "c"):
            await gateway.http.get(f"/v1/inferences/{name}")
        await gateway.http.request("BREW", "/nothing")
        text = (await gateway.http.get("/metrics")).text
    counted = 'pipeline_gateway_requests_total{method="GET",route="/v1/inferences/{request_id}",status="404"} 3.0'
    assert counted in text
    assert 'pipeline_gateway_requests_total{method="other",route="none",status="404"} 1.0' in text
    assert "pipeline_gateway_in_flight 0.0" in text


async def test_failed_request_has_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """One line of JSON with the id, the code and the cause; none for what went well or only asks for health."""
    caplog.set_level(logging.INFO, logger="pipeline.gateway")
    async with front() as gateway:
        await gateway.http.post("/v1/inferences", json=BODY)
        await gateway.http.get("/v1/inferences/r-7")
        await gateway.http.get("/a%0Ab")
        gateway.inferences.reasons = {"kafka": "away"}
        await gateway.http.get("/health/ready")
    lines = [record.getMessage() for record in caplog.records if "request failed" in record.getMessage()]
    first, second = (json.loads(line.removeprefix("request failed ")) for line in lines)
    assert (first["id"], first["code"], first["status"], first["source_ip"]) == ("r-7", "NOT_FOUND", 404, "127.0.0.1")
    assert second["path"] == "/a%0Ab"
    assert not any("\n" in line for line in lines)


async def test_log_is_not_flooded(caplog: pytest.LogCaptureFixture) -> None:
    """A client that fails a hundred times a second has some lines, and how many were left out."""
    caplog.set_level(logging.INFO, logger="pipeline.gateway")
    async with front() as gateway:
        for _ in range(100):
            await gateway.http.get("/nothing")
    assert len([record for record in caplog.records if "request failed" in record.getMessage()]) < 100


async def test_openapi_describes_bodies_and_errors() -> None:
    """The document is valid, has the request's and the result's own schemas, and problems for errors."""
    async with front() as gateway:
        document = (await gateway.http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert {"InferenceRequest", "InferenceResult", "ProblemDetails", "ErrorCode"} <= schemas.keys()
    assert "HTTPValidationError" not in json.dumps(document)
    submit = document["paths"]["/v1/inferences"]["post"]
    assert submit["requestBody"]["content"].keys() == {"application/json", "application/octet-stream"}
    assert "application/problem+json" in submit["responses"]["422"]["content"]
    assert (
        document["paths"]["/v1/inferences/{request_id}"]["get"]["responses"]["200"]["content"]["application/json"][
            "schema"
        ]
    ) == {"$ref": "#/components/schemas/InferenceResult"}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_asyncapi_is_the_generated_document() -> None:
    """The topics' document is the one that the repository has."""
    async with front() as gateway:
        assert (await gateway.http.get("/asyncapi.json")).text == rendered()["asyncapi.json"]
