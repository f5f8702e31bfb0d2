"""Which input of a model its pictures are for: as the gateway says over HTTP, or as the models topic has it."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from pipeline.cli.pictures import ModelInput
from pipeline.errors import PipelineError
from schemas.registry import ModelSignature

# A gateway that has just started has not read the models topic yet.
_ASK_S = 20.0


class ModelMetadataError(PipelineError):
    """The model is not there, or which input is meant is not clear."""


async def model_input(
    model: str, version: str | None, name: str | None, url: str | None, api_key: str | None
) -> ModelInput:
    """The input that pictures are for.

    Args:
        model: its name.
        version: None for the one served by default.
        name: of the input; None where there is but one.
        url: of the gateway; None: the models topic is read.
        api_key: for the gateway.

    Raises:
        ModelMetadataError: there is no such model or input, or several and none was named.
        PipelineError: nobody can be asked.
        WireError: the version is not served.
    """
    inputs = await (_over_kafka(model, version) if url is None else _over_http(model, version, url, api_key))
    known = ", ".join(str(one) for one in inputs)
    if name is None:
        if len(inputs) != 1:
            raise ModelMetadataError(f"the model {model} has {len(inputs)} inputs ({known}): --input says which")
        return inputs[0]
    for one in inputs:
        if one.name == name:
            return one
    raise ModelMetadataError(f"--input is {name!r}: the model {model} has {known}")


async def _over_http(model: str, version: str | None, url: str, api_key: str | None) -> Sequence[ModelInput]:
    import aiohttp

    from pipeline.client.errors import GatewayRefused
    from pipeline.client.gateway_routes import GatewayRoutes

    place = f"{url.rstrip('/')}/v2/models/{quote(model, safe='')}"
    if version is not None:
        place += f"/versions/{quote(version, safe='')}"
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        routes = GatewayRoutes(session, url, random.Random(), _ASK_S)
        ends_at = asyncio.get_running_loop().time() + _ASK_S
        reply = await routes.exchange("GET", place, request_id=f"for the metadata of {model}", ends_at=ends_at)
    try:
        document = json.loads(reply.body)
        if reply.status == 200:
            return [_input_of(member) for member in document["inputs"]]
        message = str(document["error"])
    except (ValueError, KeyError, TypeError):
        message = f"{place} is no metadata of the Open Inference Protocol"
    if reply.status == 404:
        raise ModelMetadataError(message)
    raise GatewayRefused(reply.status, "", message)


def _input_of(member: dict[str, Any]) -> ModelInput:
    return ModelInput(str(member["name"]), str(member["datatype"]), tuple(int(size) for size in member["shape"]))


async def _over_kafka(model: str, version: str | None) -> Sequence[ModelInput]:
    from pipeline.adapters.kafka import client_options
    from pipeline.adapters.models_topic import read_models
    from pipeline.cli.context import effective_settings
    from pipeline.core.catalog import ModelCatalog

    settings = effective_settings()
    records = await read_models(client_options(settings.kafka), settings.topic("models"))
    served = ModelCatalog(records.values()).resolve(model, version, time.time())
    return _inputs_of(served.signature)


def _inputs_of(signature: ModelSignature) -> list[ModelInput]:
    batch = (-1,) if signature.max_batch_size > 0 else ()
    return [ModelInput(spec.name, spec.datatype, (*batch, *spec.dims)) for spec in signature.inputs]
