"""Lines of the log about one request: they carry its id, its tenant, its model, its trace; one for each where asked."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

import httpx
import pytest

from pipeline.cli.log_format import JsonFormat
from pipeline.errors import ResultStoreError
from pipeline.gateway.delivery.current_request import current_request
from pipeline.gateway.protocol.models import Fleet
from tests.gateway.fake_inferences import FakeInferences
from tests.gateway.front import BODY, front
from tests.gateway.protocol_gateway import ScriptedInferences, announced, make_app, model_record
from tests.gateway.raw_http import get, served
from tests.gateway.test_keys_routes import ACME, bearing, guarded

TRACE = "0af7651916cd43dd8448eb211c80319c"


@contextmanager
def lines_of(logger: str) -> Iterator[list[dict[str, Any]]]:
    """What is written below a logger, as a gateway's process writes it with PIPELINE_LOG__FORMAT=json."""
    stream, found = StringIO(), logging.getLogger(logger)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormat(current_request))
    level = found.level
    found.addHandler(handler)
    found.setLevel(logging.INFO)
    lines: list[dict[str, Any]] = []
    try:
        yield lines
    finally:
        found.removeHandler(handler)
        found.setLevel(level)
        lines += [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_access_log_has_a_line_for_every_request() -> None:
    """Method, route, status and duration of each, good or bad, probes too; the address never, it may say anything."""
    with lines_of("pipeline.gateway.access") as lines:
        async with front(access_log=True) as gateway:
            await gateway.http.post("/v1/inferences", json={**BODY, "id": "r-1"}, headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})  # fmt: skip # noqa: E501
            await gateway.http.get("/v1/inferences/r-2")
            await gateway.http.get("/nothing%0Aforged")
            await gateway.http.get("/health/live")
    told = [(line["method"], line["route"], line["status"], line.get("request_id")) for line in lines]
    assert told == [
        ("POST", "/v1/inferences", 202, "r-1"),
        ("GET", "/v1/inferences/{request_id}", 404, "r-2"),
        ("GET", "none", 404, None),
        ("GET", "/health/live", 200, None),
    ]
    assert [line.get("trace_id") for line in lines] == [TRACE, None, None, None]
    assert all(line["duration_ms"] >= 0 and line["source_ip"] == "127.0.0.1" for line in lines)
    assert lines[0]["message"].startswith("127.0.0.1 POST /v1/inferences 202 ")


async def test_no_line_for_what_went_well_unless_asked_for() -> None:
    """By default only requests that failed are told."""
    with lines_of("pipeline.gateway") as lines:
        async with front() as gateway:
            await gateway.http.post("/v1/inferences", json=BODY)
            await gateway.http.get("/v1/inferences/r-2")
    (line,) = lines
    assert (line["request_id"], line["code"], line["route"]) == ("r-2", "NOT_FOUND", "/v1/inferences/{request_id}")


async def test_tenant_is_told_of_the_key() -> None:
    """Whose request failed stands beside it; a request without a key is nobody's."""
    with lines_of("pipeline.gateway") as lines:
        async with guarded() as (_, http):
            await http.get("/v1/inferences/r-2", headers=bearing(ACME))
            await http.get("/v1/inferences/r-2")
    assert [line.get("tenant") for line in lines] == ["acme", None]


async def test_model_of_the_address_is_told() -> None:
    """Below /v2 the model is in the address."""
    with lines_of("pipeline.gateway.access") as lines:
        app = make_app(ScriptedInferences(), Fleet(announced(model_record())), access_log=True)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            await http.get("/v2/models/digits/ready")
    assert [line["model"] for line in lines] == ["digits"]


async def test_line_on_the_way_carries_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """What any module writes while a request is worked on is that request's; the same of the next one is not."""
    log = logging.getLogger("pipeline.gateway.somewhere")

    async def telling(self: FakeInferences, tenant: str | None, request_id: str, wait_s: float) -> None:
        log.warning("the store is slow")
        raise ResultStoreError("away")

    monkeypatch.setattr(FakeInferences, "wait", telling)
    with lines_of("pipeline.gateway.somewhere") as lines:
        async with front() as gateway:
            for name in ("r-1", "r-2"):
                await gateway.http.get(f"/v1/inferences/{name}")
    assert [line["request_id"] for line in lines] == ["r-1", "r-2"]


async def test_servers_traceback_carries_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug's traceback, which the HTTP server writes, says which request met it."""

    async def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(FakeInferences, "wait", broken)
    with lines_of("uvicorn.error") as lines:
        async with served() as gateway:
            assert (await gateway.ask(get(b"/v1/inferences/r-9"))).status == 500
    (bug,) = lines
    assert bug["request_id"] == "r-9"
    assert "RuntimeError: a bug" in bug["exception"]


async def test_next_request_of_a_connection_has_its_own_names() -> None:
    """One that was sent before the first was answered is begun by the first one's task, and is not taken for it."""
    with lines_of("pipeline.gateway.access") as lines:
        async with served(access_log=True) as gateway, gateway.line() as line:
            line.send(get(b"/v1/inferences/r-9"), get(b"/health/live"))
            assert [(await line.answer()).status, (await line.answer()).status] == [404, 200]
    assert [(one["status"], one.get("request_id")) for one in lines] == [(404, "r-9"), (200, None)]
