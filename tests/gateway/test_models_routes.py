"""/v1/models: what OpenAI's clients read of it, what stands there besides, and which names are none."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from pipeline.config import KafkaSettings, Settings, TritonSettings
from pipeline.gateway.app import create_app
from pipeline.gateway.protocol.models import AnnouncedModels, Fleet, make_fleet
from tests.gateway.fake_inferences import FakeInferences
from tests.gateway.protocol_gateway import announced, model_record

SETTINGS = Settings(triton=TritonSettings(urls=("a:8001", "b:8001")))
DIGITS = {
    "id": "digits",
    "object": "model",
    "created": 1767225600,
    "owned_by": "inference-pipeline",
    "versions": ["1", "2"],
    "states": {"1": "draining", "2": "ready", "3": "rejected", "10": "unloaded"},
    "default_version": "2",
    "instances": ["triton-0", "triton-1"],
}


@asynccontextmanager
async def asking(models: AnnouncedModels | None = None, fleet: Fleet | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that knows these models."""
    known = fleet or Fleet(models or announced(model_record()))
    app = create_app(FakeInferences(), SETTINGS, fleet=known)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        yield http


async def test_list_is_openais_and_has_more() -> None:
    """A list of models by name, each with its versions, all their states, its default version and the instances."""
    async with asking(announced(model_record("sentences"), model_record())) as http:
        answer = await http.get("/v1/models")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"object": "list", "data": [DIGITS, DIGITS | {"id": "sentences"}]}


async def test_one_model_is_its_entry_of_the_list() -> None:
    """By its name; no models at all are an empty list."""
    async with asking() as http:
        assert (await http.get("/v1/models/digits")).json() == DIGITS
    async with asking(AnnouncedModels()) as http:
        assert (await http.get("/v1/models")).json() == {"object": "list", "data": []}


async def test_model_that_is_not_served_is_told_as_it_is() -> None:
    """Nothing to ask, no default, no instances, and why: the states of its versions."""
    record = model_record(default_version=None)
    rejected = record.model_copy(update={"versions": {"3": record.versions["3"]}})
    async with asking(announced(rejected)) as http:
        entry = (await http.get("/v1/models/digits")).json()
    assert (entry["versions"], entry["states"], entry["default_version"], entry["instances"]) == (
        [], {"3": "rejected"}, None, [],
    )  # fmt: skip


async def test_default_version_is_the_one_that_answers_now() -> None:
    """Until a promotion takes effect the version before it answers, and is named."""
    coming = datetime.now(UTC) + timedelta(hours=1)
    async with asking(announced(model_record(previous_version="1", effective_at=coming))) as http:
        assert (await http.get("/v1/models/digits")).json()["default_version"] == "1"


@pytest.mark.parametrize(
    "path",
    [
        "nothing", "Digits", "digits%20", "digits%00", "d%2Figits", "digits%2F..", "%2e%2e", "..%2Fdigits", "-digits",
        "digits%0A", "d%C3%AFgits", "a" * 300, "%F0%9F%98%80", "digits%3Fx", "%ff", "..%2Fmodels/digits",
    ],
)  # fmt: skip
async def test_other_names_are_problems(path: str) -> None:
    """What no model is called, and what none can be called, is 404 in the words of /v1."""
    async with asking() as http:
        answer = await http.get(httpx.URL("http://gateway", raw_path=f"/v1/models/{path}".encode()))
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["code"] in {"MODEL_NOT_FOUND", "NOT_FOUND"}
    assert len(answer.content) < 1000


@pytest.mark.parametrize("path", ["/v1/models/", "/v1//models", "/v1/models/digits/", "/v1/models/digits/x"])
async def test_other_addresses_are_nothing(path: str) -> None:
    """A slash more is another address."""
    async with asking() as http:
        assert (await http.get(path)).json()["code"] == "NOT_FOUND"
        refused = await http.post("/v1/models")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, OPTIONS")


@pytest.mark.parametrize("path", ["/v1/models%2Fdigits", "/v1%2Fmodels/digits", "/v1%2fmodels/digits"])
async def test_slash_that_was_escaped_is_none(path: str) -> None:
    """The server decodes an address before it is routed; one that hid a slash finds nothing."""
    async with asking() as http:
        answer = await http.get(httpx.URL("http://gateway", raw_path=path.encode()))
    assert (answer.status_code, answer.json()["code"]) == (404, "MODEL_NOT_FOUND")


async def test_unread_topic_is_told_and_not_an_empty_list() -> None:
    """Before the models topic was read to its end nobody can say what there is: 503, and when to come again."""
    async with asking(fleet=make_fleet(Settings(kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1")))) as http:
        for path in ("/v1/models", "/v1/models/digits"):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "INFERENCE_UNAVAILABLE")
            assert answer.headers["retry-after"] == "1"


async def test_document_describes_the_entries() -> None:
    """OpenAPI has both routes, with every member that an entry has."""
    async with asking() as http:
        paths: dict[str, Any] = (await http.get("/openapi.json")).json()["paths"]
    one, many = (
        paths[path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        for path in ("/v1/models/{model_name}", "/v1/models")
    )
    assert one["properties"].keys() == DIGITS.keys()
    assert set(one["required"]) == DIGITS.keys()
    assert many["properties"]["data"]["items"] == one
    assert "404" in paths["/v1/models/{model_name}"]["get"]["responses"]
