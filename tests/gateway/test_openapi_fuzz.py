"""What the OpenAPI document promises, tried with what it allows and with what it does not (schemathesis)."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway.fake_inferences import a_result
from tests.gateway.raw_http import served

PROMISES: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


async def _serve(ready: "list[str]", is_ready: threading.Event, end: threading.Event) -> None:
    async with served(echoes=True, wait_max_s=0.01, heartbeat_s=0.01) as gateway:
        for name in ("r-1", "0", "a"):
            gateway.inferences.answer(name, a_result(name, cache_status="hit", cache_age_ms=1))
        ready.append(f"http://127.0.0.1:{gateway.port}")
        is_ready.set()
        await asyncio.to_thread(end.wait)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A gateway that serves beside this thread."""
    ready: list[str] = []
    is_ready, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(ready, is_ready, end)))
    thread.start()
    try:
        assert is_ready.wait(10)
        yield ready[0]
    finally:
        end.set()
        thread.join()


ROUTES = [
    ("POST", "/v1/inferences"),
    ("GET", "/v1/inferences/{request_id}"),
    ("GET", "/v1/inferences/{request_id}/events"),
    ("GET", "/v1/models/{model_name}"),
]


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        *((*route, kind) for route in ROUTES for kind in ("positive", "negative")),
        # There is nothing in it that could be wrong.
        ("GET", "/v1/models", "positive"),
    ],
)
def test_answers_are_those_of_the_document(url: str, method: str, path: str, kind: str) -> None:
    """Whatever is sent, allowed or not: a status, headers and a body that the document has, and no 5xx."""
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    cases = document[path][method].as_strategy(generation_mode=schemathesis.GenerationMode(kind))

    # Seeds are fixed: a run of the tests is not the place for surprises, and these take seconds.
    @settings(max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def ask(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(checks=PROMISES)

    ask()
