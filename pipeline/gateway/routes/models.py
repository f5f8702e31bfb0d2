"""/v1/models: what may be asked, in OpenAI's shape, for clients of OpenAI's; the rest of each entry is this pipeline's.

The models topic says it all, as it does for /v2: no Triton is asked, so that a list costs nothing and never fails
because of one.
"""

from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from pipeline.adapters.triton import instance_names
from pipeline.gateway.http.bodies import JSON
from pipeline.gateway.http.problem import Problem
from pipeline.gateway.protocol.models import AnnouncedModels, Fleet
from pipeline.gateway.protocol.request import ModelAddress
from pipeline.gateway.routes import openapi
from pipeline.gateway.routes.addresses import addressed_model
from pipeline.gateway.routes.deps import GatewayDeps
from schemas.errors import ErrorCode, WireError
from schemas.registry import ModelRecord

_PREFIX = "/v1/models"
_OWNER = "inference-pipeline"
_NO_STORE = {"cache-control": "no-store"}
_NAME = {"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}$"}
_NAMED = [{"name": "model_name", "in": "path", "required": True, "schema": _NAME}]


def make_models_router(deps: GatewayDeps, fleet: Fleet) -> APIRouter:
    """The routes of /v1/models.

    Args:
        deps: of the gateway.
        fleet: who knows the models; entered and left by the routes of /v2.
    """
    router = APIRouter(tags=["models"])
    instances = instance_names(deps.settings.triton.urls or ())

    @router.get(_PREFIX, responses=openapi.MODELS)
    async def list_models(request: Request) -> Response:
        """Every model there is word of, by name."""
        deps.identity(request)
        records = fleet.models.records()
        entries = [_entry(records[name], fleet.models, instances) for name in sorted(records)]
        return _json({"object": "list", "data": entries})

    @router.get(_PREFIX + "/{model_name}", responses=openapi.MODEL, openapi_extra={"parameters": _NAMED})
    async def model(request: Request) -> Response:
        """One model."""
        deps.identity(request)
        record = _record(request, fleet.models)
        return _json(_entry(record, fleet.models, instances))

    return router


def _entry(record: ModelRecord, models: AnnouncedModels, instances: list[str]) -> dict[str, Any]:
    versions = models.versions(record.model_name)
    states = sorted(record.versions.items(), key=lambda item: int(item[0]))
    return {
        "id": record.model_name,
        "object": "model",
        "created": int(record.effective_at.timestamp()),
        "owned_by": _OWNER,
        "versions": versions,
        "states": {number: version.state for number, version in states},
        "default_version": _default_version(record.model_name, models),
        "instances": instances if versions else [],
    }


def _default_version(name: str, models: AnnouncedModels) -> str | None:
    """Which version answers now where none is named: for a moment after a promotion still the one before."""
    try:
        return models.resolve(ModelAddress(name, None)).version
    except WireError:
        return None


def _record(request: Request, models: AnnouncedModels) -> ModelRecord:
    """The model of the address.

    Raises:
        Problem: 404, there is none, or none can be called that.
    """
    name = addressed_model(request).name
    records = models.records()
    if name not in records:
        known = ", ".join(sorted(records))[:400] or "none"
        raise Problem(404, ErrorCode.MODEL_NOT_FOUND, f"there is no model {name!r:.80} (there are: {known})")
    return records[name]


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), headers=_NO_STORE, media_type=JSON)
