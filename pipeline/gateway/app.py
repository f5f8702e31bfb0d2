"""The gateway as an ASGI app: the routers, what surrounds them, and how errors come out.

http/gate.py       places, limits of heads and answers, one line per failed request
routes/            /v1/inferences, /v1/models, /v2 (the Open Inference Protocol), the status page
delivery/          what the routes ask: a request into Kafka, and its result out again
http/problem.py    every error, ours and the framework's
"""

from collections.abc import Sequence
from functools import cache, partial
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from pipeline.config import Settings
from pipeline.errors import PipelineError, SettingsError
from pipeline.gateway.delivery.inferences import Inferences
from pipeline.gateway.http.bodies import make_read_body
from pipeline.gateway.http.connections import ConnectionLimits
from pipeline.gateway.http.credentials import Credentials
from pipeline.gateway.http.gate import Gate
from pipeline.gateway.http.identity import make_admit, make_identify, needs_keys
from pipeline.gateway.http.limits import Limits
from pipeline.gateway.http.metrics import GatewayMetrics
from pipeline.gateway.http.problem import HttpCode, Problem, not_found, problem_of, problem_response
from pipeline.gateway.http.server_spans import ServerSpans
from pipeline.gateway.protocol.models import Fleet, make_fleet
from pipeline.gateway.routes import openapi
from pipeline.gateway.routes.deps import GatewayDeps
from pipeline.gateway.routes.inferences import make_inferences_router
from pipeline.gateway.routes.models import make_models_router
from pipeline.gateway.routes.protocol import make_protocol_router
from pipeline.gateway.routes.status_page import make_status_router
from pipeline.ports import Tracer
from schemas.errors import WireError

_DESCRIPTION = (
    "Requests in over HTTP, results out. A 202 means that Kafka has the request on all in-sync replicas; a result is"
    " the very bytes of the results topic."
)


def create_app(
    inferences: Inferences,
    settings: Settings,
    *,
    registry: CollectorRegistry | None = None,
    limits: Limits | None = None,
    connections: ConnectionLimits | None = None,
    fleet: Fleet | None = None,
    credentials: Credentials | None = None,
    tracer: Tracer | None = None,
) -> FastAPI:
    """The gateway's app; its lifespan must be entered (`app.router.lifespan_context`), and `inferences` before it.

    Args:
        inferences: entered.
        settings: of this process.
        registry: where metrics are exported; default a registry of its own.
        limits: what is taken on; default those of the settings.
        connections: those of the server, for the metrics.
        fleet: who is asked for models' metadata; default the one that the settings name.
        credentials: the API keys, where the settings need them.
        tracer: makes spans of the requests; None: nobody follows any.

    Raises:
        SettingsError: API keys are needed, and none are given: nobody is served by accident.
    """
    if needs_keys(settings.gateway) != (credentials is not None):
        raise SettingsError("settings gateway.host and gateway.require_keys decide whether API keys are asked for")
    registry = registry or CollectorRegistry()
    limits = limits or Limits(settings.gateway)
    identify = make_identify(settings.gateway, credentials)
    metrics = GatewayMetrics(registry, limits, lambda: 0 if connections is None else connections.open, credentials)
    if connections is not None:
        connections.on_cut = metrics.note_cut
        connections.refusal = limits.refusal
    deps = GatewayDeps(
        inferences, settings, limits, make_read_body(settings, limits), identify, make_admit(identify, credentials)
    )
    # No pages of FastAPI's: they load their scripts from elsewhere. No redirects: a trailing slash is another address.
    app = FastAPI(
        title="Inference gateway",
        version=version("inference-pipeline"),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False},  # its own spans would stand beside ours
    )
    known = fleet or make_fleet(settings)
    routers = (
        make_inferences_router(deps), make_models_router(deps, known), make_protocol_router(deps, known),
        make_status_router(deps, registry),
    )  # fmt: skip
    for router in routers:
        app.include_router(router)
    _render_errors(app, [route for router in routers for route in router.routes])
    if tracer is not None:
        app.add_middleware(ServerSpans, tracer=tracer)
    app.add_middleware(
        Gate,
        limits=limits,
        metrics=metrics,
        identify=make_identify(settings.gateway),
        answer_s=settings.gateway.body_timeout_s,
        access_log=settings.gateway.access_log,
    )
    # Made when it is first asked for: a tenth of a second.
    app.openapi = cache(partial(openapi.document_of, app))  # type: ignore[method-assign]
    return app


def _render_errors(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    async def render(request: Request, error: Exception) -> Response:
        return problem_response(problem_of(error), request.scope)

    async def render_validation(request: Request, error: Exception) -> Response:
        return problem_response(_of_parameters(request, error), request.scope)

    async def render_status(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _of_route(routes, request, error)

    async def note_gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; nginx calls it so

    for kind in (PipelineError, WireError, Exception):
        app.add_exception_handler(kind, render)
    app.add_exception_handler(RequestValidationError, render_validation)
    app.add_exception_handler(HTTPException, render_status)
    app.add_exception_handler(ClientDisconnect, note_gone)


def _of_parameters(request: Request, error: Exception) -> Problem:
    assert isinstance(error, RequestValidationError)
    if any(place["loc"][0] == "path" for place in error.errors()):
        return not_found(str(request.path_params.get("request_id", "")))
    return problem_of(error)


def _of_route(routes: Sequence[BaseRoute], request: Request, error: HTTPException) -> Response:
    method, path = request.method, request.url.path
    if error.status_code == 404:
        return problem_response(
            Problem(404, HttpCode.NOT_FOUND, f"there is nothing at {path!r:.140}: / lists what there is"), request.scope
        )
    if error.status_code != 405:
        return problem_response(problem_of(error), request.scope)
    allow = ", ".join(sorted({"OPTIONS", *_methods_of(routes, request)}))
    if method == "OPTIONS":
        return Response(status_code=204, headers={"allow": allow})
    detail = f"{method!r:.20} is not allowed at {path!r:.140}: {allow}"
    return problem_response(Problem(405, HttpCode.METHOD_NOT_ALLOWED, detail, headers={"allow": allow}), request.scope)


def _methods_of(routes: Sequence[BaseRoute], request: Request) -> set[str]:
    """Every method that this path knows; the framework names those of its first route."""
    methods: set[str] = set()
    for route in routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return methods
