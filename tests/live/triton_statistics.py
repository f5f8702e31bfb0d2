"""Triton's own count of what it ran: the independent witness of what a cache saves."""

from collections.abc import Sequence
from typing import NamedTuple

import aiohttp


class ModelRuns(NamedTuple):
    """What all instances ran of a model since their start.

    Attributes:
        inferences: rows.
        executions: calls of the model, each for one batch.
    """

    inferences: int
    executions: int


class TritonStatistics:
    """Reads the statistics extension of the Open Inference Protocol.

    Args:
        urls: HTTP base addresses.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls

    async def runs(self, model_name: str) -> ModelRuns:
        """What has run until now."""
        inferences = executions = 0
        async with aiohttp.ClientSession() as session:
            for url in self._urls:
                async with session.get(f"{url}/v2/models/{model_name}/stats") as response:
                    for version in (await response.json())["model_stats"]:
                        inferences += version["inference_count"]
                        executions += version["execution_count"]
        return ModelRuns(inferences, executions)
