"""API keys at every route: whose requests they are, who is turned away, and what needs no key."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import httpx
import pytest

from pipeline.adapters.redis_rate_limits import RateLimits
from pipeline.adapters.system import SystemClock
from pipeline.core.api_keys import make_key, record_of
from pipeline.errors import SettingsError
from pipeline.gateway.app import create_app
from pipeline.gateway.http.credentials import Credentials
from tests.gateway.fake_inferences import FakeInferences
from tests.gateway.front import BODY, settings_of

ACME, OTHER = make_key(bytes(range(40))), make_key(bytes(range(1, 41)))
V2_BODY = {"inputs": BODY["inputs"]}


@asynccontextmanager
async def guarded(rate: float | None = None) -> AsyncIterator[tuple[FakeInferences, httpx.AsyncClient]]:
    """A gateway that knows two keys, of the tenants acme and other."""
    credentials = Credentials(RateLimits(None, "x.", SystemClock(), random.Random(1)))
    now = datetime.now(UTC)
    for key, tenant in ((ACME, "acme"), (OTHER, "other")):
        credentials.take(record_of(key, tenant=tenant, label="", rate=rate, burst=2 if rate else None, now=now))
    inferences = FakeInferences(echoes=True)
    app = create_app(inferences, settings_of(require_keys=True), credentials=credentials)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        yield inferences, http


def bearing(key: object) -> dict[str, str]:
    """The header with a key."""
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/inferences", BODY),
        ("GET", "/v1/inferences/r-1", None),
        ("GET", "/v1/inferences/r-1/events", None),
        ("POST", "/v2/models/digits/infer", V2_BODY),
        ("GET", "/v2/models/digits", None),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/digits", None),
        ("GET", "/v2", None),
        ("POST", "/v2/repository/index", {}),
    ],
)
async def test_no_route_serves_without_a_key(method: str, path: str, body: object) -> None:
    """Without a key, and with one that nobody knows, the answer is 401 and nothing is asked of anybody."""
    async with guarded() as (inferences, http):
        for headers in ({}, bearing(make_key(bytes(40)))):
            answer = await http.request(method, path, json=body, headers=headers)
            assert answer.status_code == 401, answer.text
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert ("error" if path.startswith("/v2") else "code") in answer.json()
        assert (inferences.submissions, inferences.looks) == ([], [])


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics", "/v2/health/live", "/openapi.json"])
async def test_health_and_documents_need_no_key(path: str) -> None:
    """Probes and readers of documents have none."""
    async with guarded() as (_, http):
        assert (await http.get(path)).status_code == 200


async def test_tenant_is_the_keys_and_results_are_its_own() -> None:
    """A request is its key's tenant's, over both protocols; another tenant's key finds nothing under its id."""
    async with guarded() as (inferences, http):
        first = await http.post("/v1/inferences", json={**BODY, "id": "r-1"}, headers=bearing(ACME))
        second = await http.post("/v2/models/digits/infer", json={**V2_BODY, "id": "r-2"}, headers=bearing(OTHER))
        assert (first.status_code, second.status_code) == (202, 200)
        assert [submission.tenant for submission in inferences.submissions] == ["acme", "other"]
        assert (await http.get("/v1/inferences/r-1", headers=bearing(ACME))).status_code == 200
        assert (await http.get("/v1/inferences/r-1", headers=bearing(OTHER))).status_code == 404


async def test_rate_is_told_and_reading_is_free() -> None:
    """Past its burst a tenant's requests are 429 with Retry-After; results are read all the same, others go on."""
    async with guarded(rate=0.01) as (_, http):
        answers = [await http.post("/v1/inferences", json=BODY, headers=bearing(ACME)) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        assert 90 < int(answers[2].headers["retry-after"]) <= 100
        found = await http.get(answers[0].headers["location"], headers=bearing(ACME))
        assert found.status_code == 200
        refused = await http.post("/v2/models/digits/infer", json=V2_BODY, headers=bearing(ACME))
        assert refused.status_code == 429
        assert (await http.post("/v1/inferences", json=BODY, headers=bearing(OTHER))).status_code == 202


@pytest.mark.parametrize(("path", "body"), [("/v1/inferences", BODY), ("/v2/models/digits/infer", V2_BODY)])
async def test_answers_say_what_is_left_of_the_rate(path: str, body: object) -> None:
    """Every answer to what was handed in has the policy and what is left, a refusal too; reading has neither."""
    async with guarded(rate=0.01) as (_, http):
        answers = [await http.post(path, json=body, headers=bearing(ACME)) for _ in range(3)]
        assert [answer.headers["ratelimit-policy"] for answer in answers] == ['"tenant";q=2;w=200'] * 3
        assert [answer.headers["ratelimit"] for answer in answers] == [
            '"tenant";r=1;t=100', '"tenant";r=0;t=100', f'"tenant";r=0;t={answers[2].headers["retry-after"]}',
        ]  # fmt: skip
        assert "ratelimit" not in (await http.get("/v1/inferences/r-1", headers=bearing(ACME))).headers
    async with guarded() as (_, http):
        assert "ratelimit" not in (await http.post(path, json=body, headers=bearing(ACME))).headers


async def test_metrics_tell_who_used_its_rate_up() -> None:
    """Requests by tenant and outcome, who counted them, and whether all gateways count together."""
    async with guarded(rate=0.01) as (_, http):
        for _ in range(3):
            await http.post("/v1/inferences", json=BODY, headers=bearing(ACME))
        await http.post("/v1/inferences", json=BODY)
        text = (await http.get("/metrics")).text
    assert 'pipeline_gateway_tenant_requests_total{outcome="allowed",tenant="acme"} 2.0' in text
    assert 'pipeline_gateway_tenant_requests_total{outcome="refused",tenant="acme"} 1.0' in text
    assert 'pipeline_gateway_rate_decisions_total{counted_by="gateway"} 3.0' in text
    assert 'pipeline_gateway_rate_decisions_total{counted_by="redis"} 0.0' in text
    assert "pipeline_gateway_rates_shared 0.0" in text


def test_gateway_that_needs_keys_is_not_made_without() -> None:
    """Whoever forgets to hand the keys over gets an error, not an open gateway."""
    with pytest.raises(SettingsError, match="API keys"):
        create_app(FakeInferences(), settings_of(host="0.0.0.0"))
