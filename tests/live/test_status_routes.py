"""What a worker tells over HTTP."""

import json

from prometheus_client.parser import text_string_to_metric_families

from tests.live.asking import Asking, echo_request
from tests.live.processes import ServiceProcess


async def test_health_routes_answer(worker: ServiceProcess) -> None:
    """A worker that serves is live and ready."""
    assert await worker.get("/health/live") == (200, '{"live": true}')
    status, body = await worker.get("/health/ready")
    assert (status, json.loads(body)) == (200, {"ready": True, "reasons": {}})


async def test_status_names_partitions_and_models(worker: ServiceProcess) -> None:
    """The status says which partitions the worker has and which models it can answer."""
    state = await worker.state()
    assert state["partitions"] == [0, 1, 2, 3]
    assert state["pid"] == worker.pid
    assert {"digits/1", "digits/2", "echo/1", "sentences/1"} <= set(state["models"])


async def test_metrics_count_results(asking: Asking, worker: ServiceProcess) -> None:
    """The metrics are in Prometheus' format, and count what was answered."""
    before = await results_succeeded(worker)
    await asking.ask(echo_request())
    await asking.ask(echo_request())
    assert await results_succeeded(worker) - before == 2


async def results_succeeded(worker: ServiceProcess) -> float:
    status, text = await worker.get("/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["pipeline_partitions_assigned"].samples[0].value == 4
    samples = families["pipeline_results"].samples if "pipeline_results" in families else []
    return sum(
        sample.value
        for sample in samples
        if sample.name == "pipeline_results_total" and sample.labels["status"] == "succeeded"
    )
