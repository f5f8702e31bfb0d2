"""What a gateway says of itself: a page for people, health for load balancers, counts, and the documents."""

import html
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.responses import JSONResponse, Response

from pipeline.gateway.routes.deps import GatewayDeps
from schemas.documents import rendered

_DOCUMENTS = {
    "/openapi.json": "every route (OpenAPI)",
    "/asyncapi.json": "every topic (AsyncAPI)",
    "/metrics": "Prometheus metrics",
    "/status": "this page as JSON",
}
# Nothing on the page comes from elsewhere, and nothing on it runs.
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "cache-control": "no-store",
}
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem;color:#222}"
    "td,th{text-align:left;padding:.15rem 1.5rem .15rem 0;vertical-align:top}.no{color:#b00020}.yes{color:#1b7a3d}"
)


def make_status_router(deps: GatewayDeps, registry: CollectorRegistry) -> APIRouter:
    """`/`, `/health/…`, `/status`, `/metrics`, `/asyncapi.json`."""
    router = APIRouter(include_in_schema=False)

    async def page() -> Response:
        document = page_of(not_ready(deps), state_of(deps))
        return Response(document, headers=_PAGE_HEADERS, media_type="text/html")

    async def live() -> Response:
        return JSONResponse({"live": True})

    async def ready() -> Response:
        reasons = not_ready(deps)
        return JSONResponse({"ready": not reasons, "reasons": reasons}, status_code=503 if reasons else 200)

    async def status() -> Response:
        return JSONResponse({"ready": not not_ready(deps), **state_of(deps)})

    async def metrics() -> Response:
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def asyncapi() -> Response:
        return Response(_asyncapi(), media_type="application/json")

    routes = {
        "/": page,
        "/health/live": live,
        "/health/ready": ready,
        "/status": status,
        "/metrics": metrics,
        "/asyncapi.json": asyncapi,
    }
    for path, answer in routes.items():
        router.add_api_route(path, answer, methods=["GET", "HEAD"])
    return router


def not_ready(deps: GatewayDeps) -> dict[str, str]:
    """Why no request should be sent here, by name; empty: one may be."""
    if deps.limits.stopping.is_set():
        return {"gateway": "it is being stopped"}
    return deps.inferences.not_ready()


def state_of(deps: GatewayDeps) -> dict[str, Any]:
    """What `/status` says."""
    limits = deps.limits
    return {
        "pid": os.getpid(),
        "in_flight": limits.in_flight,
        "waiting": limits.waiting,
        "held_bytes": limits.held_bytes,
        "inferences": deps.inferences.state(),
    }


def page_of(reasons: Mapping[str, str], state: Mapping[str, Any]) -> str:
    """The page."""
    told = "".join(f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in reasons.items())
    ready = f'<p class="no">Not ready:</p><ul>{told}</ul>' if reasons else '<p class="yes">Ready.</p>'
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in _flat(state)
    )
    links = "".join(f'<li><a href="{path}">{path}</a>: {what}</li>' for path, what in _DOCUMENTS.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Inference gateway</title>'
        f"<style>{_STYLE}</style></head><body><h1>Inference gateway</h1>{ready}"
        "<p>POST a request record to <code>/v1/inferences</code>, GET its result from "
        "<code>/v1/inferences/{id}</code>; the Open Inference Protocol is below <code>/v2</code>.</p>"
        f"<table>{rows}</table><h2>Documents</h2><ul>{links}</ul></body></html>"
    )


def _flat(state: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in state.items():
        if isinstance(value, Mapping):
            rows += [(f"{name} {inner}", deeper) for inner, deeper in _flat(value)]
        else:
            rows.append((name.replace("_", " "), value))
    return rows


@cache
def _asyncapi() -> str:
    return rendered()["asyncapi.json"]
