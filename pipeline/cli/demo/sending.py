"""Sending the demo's requests through the public client, a bounded number at a time, with a bar for each model."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pipeline.cli.console import out
from pipeline.cli.demo.requests import DemoRequest
from pipeline.client.client import Client
from pipeline.config import Settings
from pipeline.errors import PipelineError
from schemas.result import InferenceResult

# Enough to let batches form, few enough that a repetition usually finds its first one answered: a hit, not company.
_IN_FLIGHT = 8
_ANSWER_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A request and its answer, or why there is none."""

    request: DemoRequest
    answer: InferenceResult | None
    problem: str = ""


async def send_all(settings: Settings, tenant: str, requests: Sequence[DemoRequest]) -> list[Answered]:
    """Sends every request and waits for its answer; the results are in the order of the requests.

    Raises:
        PipelineError: Kafka does not answer, or the topics do not exist.
    """
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[hits]} hits"),
    )
    room = asyncio.Semaphore(_IN_FLIGHT)
    async with Client.from_settings(settings, answer_timeout_s=_ANSWER_TIMEOUT_S) as client:
        with Progress(*columns, TimeElapsedColumn(), console=out()) as progress:
            bars = _Bars(progress, requests)

            async def ask(request: DemoRequest) -> Answered:
                async with room:
                    answered = await _ask(client, tenant, request)
                bars.advance(answered)
                return answered

            return await asyncio.gather(*(ask(request) for request in requests))


async def _ask(client: Client, tenant: str, request: DemoRequest) -> Answered:
    try:
        answer = await client.infer(request.model_name, request.inputs, tenant=tenant)
    except PipelineError as error:
        return Answered(request, None, str(error))
    return Answered(request, answer)


class _Bars:
    """A progress bar for each model."""

    def __init__(self, progress: Progress, requests: Sequence[DemoRequest]) -> None:
        self._progress = progress
        self._hits: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        for name in dict.fromkeys(request.model_name for request in requests):
            total = sum(request.model_name == name for request in requests)
            self._tasks[name] = progress.add_task(name, total=total, hits=0)

    def advance(self, answered: Answered) -> None:
        name = answered.request.model_name
        if answered.answer is not None and answered.answer.parameters.cache_status == "hit":
            self._hits[name] = self._hits.get(name, 0) + 1
        self._progress.update(self._tasks[name], advance=1, hits=self._hits.get(name, 0))
