"""The `echo` model of the tests: every input comes back, as output `<input>_echo`, bit for bit.

The request decides what happens besides:

* parameter `delay_ms` (number): it runs at least so long; a batch runs as long as its slowest request;
* parameter `fail` (true, or a text to answer with): this request fails with INTERNAL, the others of its batch do not;
* input `fail` BOOL [batch, 1]: a true row fails the whole request it arrives in with INVALID_ARG, as one bad row
  does in a batch that a client has joined.

How often it ran is in Triton's statistics of the model (ModelStatistics): `execution_count` counts calls of
`execute`, `inference_count` the rows in them. A request that fails here counts in both like any other; Triton's own
`inference_stats.fail` counts only what it refused before.
"""

import json
import time
from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of one version."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers the requests that Triton batched, each by itself."""
        parameters = [json.loads(request.parameters() or "{}") for request in requests]
        time.sleep(max(float(own.get("delay_ms", 0)) for own in parameters) / 1000)
        return [respond(request, own) for request, own in zip(requests, parameters, strict=True)]


def respond(request: Any, parameters: dict[str, Any]) -> Any:
    """Returns the request's inputs as outputs, or the failure it asks for."""
    reason = parameters.get("fail")
    if reason:
        message = "failed as parameter 'fail' asks" if reason is True else str(reason)
        return failure(message, pb_utils.TritonError.INTERNAL)
    outputs = []
    for tensor in request.inputs():
        if tensor.name() != "fail":
            # By DLPack and not by numpy, which has no BF16; strings are what DLPack lacks.
            outputs.append(copy_of(tensor))
        elif tensor.as_numpy().any():
            return failure("input 'fail' has a true row", pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(outputs)


def copy_of(tensor: Any) -> Any:
    """Returns the tensor under its output's name."""
    name = f"{tensor.name()}_echo"
    if tensor.name() == "bytes":
        return pb_utils.Tensor(name, tensor.as_numpy())
    return pb_utils.Tensor.from_dlpack(name, tensor.to_dlpack())


def failure(message: str, code: int) -> Any:
    """Returns a response that failed."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
