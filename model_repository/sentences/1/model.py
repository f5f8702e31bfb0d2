"""The `sentences` model for Triton's python backend: text BYTES [batch, 1] -> embedding FP32 [batch, 384]."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from text_embedder import TextEmbedder  # Triton puts the version folder on the import path


class TritonPythonModel:
    """One instance of one version. Triton runs it in a process of its own and never calls it concurrently."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the version; called once, before any request.

        Raises:
            TritonModelException: a built file is missing; the load fails with this text.
        """
        # Without this the tokenizer starts a thread for each core, for texts that take microseconds.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # Triton calls the model's own folder its repository.
        version_folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"]).get("parameters", {})
        for name in parameters["built_files"]["string_value"].split(","):
            if not (version_folder / name).is_file():
                message = f"{version_folder / name} is missing: run build.py {version_folder}"
                raise pb_utils.TritonModelException(message)
        threads = int(parameters["intra_op_thread_count"]["string_value"])
        self._embedder = TextEmbedder(version_folder, threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers the requests that Triton batched, in one go.

        Args:
            requests: at most 32 rows together.

        Returns:
            A response for each request, in order. A text that is no UTF-8 fails its own request with INVALID_ARG.
        """
        responses: list[Any] = [None] * len(requests)
        texts: list[str] = []
        rows: dict[int, slice] = {}
        for number, request in enumerate(requests):
            column = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
            try:
                decoded = [element.decode("utf-8") for element in column.reshape(-1)]
            except UnicodeDecodeError as error:
                responses[number] = refusal(error)
                continue
            rows[number] = slice(len(texts), len(texts) + len(decoded))
            texts += decoded
        embeddings = self._embedder.embed(texts)
        for number, own in rows.items():
            responses[number] = answer(embeddings[own])
        return responses


def answer(embeddings: npt.NDArray[np.float32]) -> Any:
    """Returns the response with the embeddings FP32 [rows, 384] of one request."""
    return pb_utils.InferenceResponse([pb_utils.Tensor("embedding", embeddings)])


def refusal(error: UnicodeDecodeError) -> Any:
    """Returns the response to a request with a text that is no UTF-8."""
    message = f"input 'text' is not UTF-8: {error.reason} at byte {error.start}"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
