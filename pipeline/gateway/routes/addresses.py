"""The model that an address names."""

from starlette.requests import Request

from pipeline.gateway.http.problem import Problem
from pipeline.gateway.protocol.request import ModelAddress, model_address
from schemas.errors import ErrorCode


def addressed_model(request: Request) -> ModelAddress:
    """The model of the address.

    Raises:
        Problem: 404, no model can be called that, so nobody is asked.
    """
    name, number = request.path_params["model_name"], request.path_params.get("model_version")
    # The server decodes %2F before it routes: a name with a slash in it would be another address.
    raw_path: bytes = request.scope.get("raw_path") or b""
    model = model_address(name, number)
    if model is None or b"%2f" in raw_path.lower():
        named = f"{name!r:.80}" if number is None else f"{name!r:.80} version {number!r:.40}"
        raise Problem(404, ErrorCode.MODEL_NOT_FOUND, f"there is no model {named}: none can be called that")
    return model
