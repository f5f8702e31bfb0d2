"""Whether there are spans at all, what a wrong variable says, and what a collector may do without harm."""

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pipeline.adapters.tracing import OtelTracer, open_tracer, program_tracer
from pipeline.core.trace_context import is_traceparent
from pipeline.errors import SettingsError
from tests.models.folders import PROJECT
from tests.traces.collector import Collector
from tests.traces.recorded import OUTSIDE, TRACE, UNSAMPLED, Recorded, ids_of, links_of, parent_of, told

DEAD = "http://127.0.0.1:9"
_LOGGERS = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of this machine's user, and the SDK's loggers as they were."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    before = {name: (list(logging.getLogger(name).filters), logging.getLogger(name).level) for name in _LOGGERS}
    yield
    for name, (filters, level) in before.items():
        logging.getLogger(name).filters = filters
        logging.getLogger(name).setLevel(level)


def opened(monkeypatch: pytest.MonkeyPatch, **variables: str) -> OtelTracer | None:
    """What the environment asks for."""
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    return open_tracer("service")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": ""},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": DEAD},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": DEAD, "OTEL_SDK_DISABLED": "TRUE"},
        {"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "nonsense"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_nobody_asks_for_spans(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Without an exporter or an address, or where they are switched off, there is no tracer."""
    assert opened(monkeypatch, **variables) is None


def test_nothing_of_opentelemetry_is_imported_without_need() -> None:
    """A client loads no part of OpenTelemetry until somebody wants spans (redis-py does, in a worker)."""
    code = (
        "import sys, pipeline.client.client, pipeline.client.http_client\n"
        "from pipeline.adapters.tracing import client_tracer\n"
        "assert client_tracer() is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("OTEL_TRACES_EXPORTER", "jaeger", "otlp, console"),
        ("OTEL_TRACES_EXPORTER", "otlp,none", "otlp, console"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "http://127.0.0.1:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://collector", "http://127.0.0.1:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "http/protobuf"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "parentbased_traceidratio"),
    ],
)
def test_variable_that_cannot_be_meant_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: str
) -> None:
    """One line names the variable, its value and what was expected."""
    with pytest.raises(SettingsError) as refused:
        opened(monkeypatch, **{"OTEL_EXPORTER_OTLP_ENDPOINT": DEAD, name: text})
    assert f"setting {name} is {text!r}" in str(refused.value)
    assert expected in str(refused.value)


@pytest.mark.parametrize("text", ["2", "-0.1", "half", "nan"])
def test_share_of_a_sampler_is_checked(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A share outside of 0 to 1 is refused, and not taken for all of them."""
    variables = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": text}
    with pytest.raises(SettingsError, match="OTEL_TRACES_SAMPLER_ARG"):
        opened(monkeypatch, OTEL_TRACES_EXPORTER="otlp", **variables)


def test_variable_of_the_sdk_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the SDK reads, and refuses, is a wrong setting as well: here a queue smaller than a batch."""
    with pytest.raises(SettingsError, match="OTEL_BSP"):
        opened(monkeypatch, OTEL_TRACES_EXPORTER="otlp", OTEL_BSP_MAX_QUEUE_SIZE="10")


def test_password_of_an_address_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused address is shown without what only its owner may know."""
    with pytest.raises(SettingsError) as refused:
        opened(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT="grpc://me:secret@collector:4317")
    assert "secret" not in str(refused.value)


def test_missing_package_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that is asked for and not installed: the line says what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"OTEL_TRACES_EXPORTER is 'otlp'.*inference-pipeline\[traces\]"):
        opened(monkeypatch, OTEL_TRACES_EXPORTER="otlp")


@pytest.mark.parametrize("command", ["worker", "gateway", "webhooks"])
def test_process_with_a_wrong_exporter_ends(command: str) -> None:
    """The process does not start without the spans it was told to make: one line, exit code 1."""
    variables = {
        "OTEL_TRACES_EXPORTER": "zipkin", "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:9",
        "PIPELINE_TRITON__URLS": "127.0.0.1:9", "PIPELINE_GATEWAY__PORT": "0",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", command], cwd=PROJECT, env=os.environ | variables, capture_output=True,
        text=True, check=False, timeout=15,
    )  # fmt: skip
    assert done.returncode == 1
    assert "setting OTEL_TRACES_EXPORTER is 'zipkin'" in done.stderr
    assert "Traceback" not in done.stderr


def test_console_prints_spans() -> None:
    """`console` writes each span to standard output, for a look without a collector."""
    code = (
        "import asyncio\nfrom pipeline.adapters.tracing import open_tracer\n"
        "tracer = open_tracer('s')\ntracer.begin('work', 'client', 1.0, {}).end(2.0, {})\nasyncio.run(tracer.close())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=os.environ | {"OTEL_TRACES_EXPORTER": "console"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert '"name": "work"' in done.stdout


@pytest.mark.parametrize(
    ("variables", "service"),
    [({}, "service"), ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
     ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs,team=x"}, "theirs")],
)  # fmt: skip
async def test_spans_reach_the_collector(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], service: str
) -> None:
    """An address alone switches spans on; the end exports what waits, under the service's name."""
    with Collector() as collector:
        tracer = opened(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **variables)
        assert tracer is not None
        span = tracer.begin("work", "consumer", 1_000.25, {"a": 1}, parent=OUTSIDE, links=[UNSAMPLED])
        span.end(1_000.5, {"b": "x"}, error="EXPIRED", message="too late \ud800")
        await tracer.close()
        (found,) = collector.spans
    assert (found.service, found.name, found.kind, found.is_error) == (service, "work", "CONSUMER", True)
    assert (found.trace_id.encode(), found.parent_id) == (TRACE, "00f067aa0ba902b7")
    assert found.attributes == {"a": 1, "b": "x", "error.type": "EXPIRED"}
    assert (found.started_ns, found.ended_ns) == (1_000_250_000_000, 1_000_500_000_000)
    assert found.links == ("00f067aa0ba902b7",)


@pytest.mark.parametrize("status", [None, 500, 503, 400])
async def test_bad_collector_costs_spans_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int | None
) -> None:
    """Silent, failing or refusing: nobody waits for it, 10,000 spans find a bounded queue, the end tells it once."""
    caplog.set_level(logging.WARNING)
    variables = {"OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "32"}
    with Collector(status) as collector:
        tracer = opened(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **variables)
        assert tracer is not None
        for _ in range(10_000):
            tracer.begin("work", "client", time.time(), {}).end(time.time(), {})
        await tracer.close()
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("pipeline.adapters.tracing")]
    assert "otlp: 10000 of 10000 spans were not exported" in lines
    assert len([line for line in lines if "spans are not exported" in line]) <= 1
    assert [record.name for record in caplog.records if record.name.startswith("opentelemetry")] == []


async def test_dead_collector_is_told_once_and_its_return(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line when spans are not taken any more, with the reason, and one when they are again, with how many went."""
    caplog.set_level(logging.WARNING)
    with Collector(500) as collector:
        tracer = opened(
            monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="20",
        )  # fmt: skip
        assert tracer is not None
        for count in (1, 2, 3):
            tracer.begin("lost", "client", time.time(), {}).end(time.time(), {})
            await asyncio.to_thread(collector_has, collector, count)
        collector.status = 200
        tracer.begin("kept", "client", time.time(), {}).end(time.time(), {})
        await asyncio.to_thread(collector.wait, lambda spans: [one.name for one in spans] == ["kept"])
        await tracer.close()
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("pipeline.adapters.tracing")]
    assert len(lines) == 3
    assert "spans are not exported: Failed to export spans batch code: 500" in lines[0]
    assert lines[1:] == [
        "otlp: spans are exported again; 3 or more were lost",
        "otlp: 3 of 4 spans were not exported",
    ]


async def test_each_of_two_tracers_knows_its_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two in one process, as two clients have them: both tell why their spans are not taken."""
    caplog.set_level(logging.WARNING)
    with Collector(500) as collector:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "20"}
        for count, tracer in enumerate([opened(monkeypatch, **variables), opened(monkeypatch, **variables)], 1):
            assert tracer is not None
            tracer.begin("lost", "client", time.time(), {}).end(time.time(), {})
            await asyncio.to_thread(collector_has, collector, count)
            await tracer.close()
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("pipeline.adapters.tracing")]
    assert [line for line in lines if "Failed to export spans batch code: 500" in line] == [lines[0], lines[2]]


def collector_has(collector: Collector, posts: int) -> None:
    """Returns when so many batches came."""
    limit = time.monotonic() + 10
    while collector.posts < posts:
        assert time.monotonic() < limit, "no batch came"
        time.sleep(0.01)


def test_parent_decides_whether_a_child_is_recorded() -> None:
    """The flag of a trace that was begun elsewhere is respected; its id goes on in either case."""
    recorded = Recorded()
    for parent in (OUTSIDE, UNSAMPLED):
        span = recorded.tracer.begin("work", "client", 1.0, {}, parent=parent)
        assert span.traceparent[:36] == parent[:36]
        assert span.traceparent != parent
        assert span.is_recorded is (parent == OUTSIDE)
        assert span.traceparent.endswith(b"1") is (parent == OUTSIDE)
        span.rename("renamed")
        span.link(OUTSIDE)
        span.end(2.0, {"x": True})
    (found,) = recorded.spans
    assert (found.name, parent_of(found), links_of(found)) == ("renamed", ids_of(OUTSIDE), [ids_of(OUTSIDE)])
    assert told(found) == {"x": True}


def test_program_has_a_tracer_once_it_sets_one() -> None:
    """A program's own provider is found once it is set, and no other."""
    code = (
        "from pipeline.adapters.tracing import program_tracer\n"
        "assert program_tracer() is None\n"
        "from opentelemetry import trace\n"
        "assert program_tracer() is None\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "assert program_tracer().begin('a', 'client', 1.0, {}).is_recorded\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
    assert program_tracer() is None


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (OUTSIDE, True),
        (UNSAMPLED, True),
        (b"cc" + OUTSIDE[2:], True),
        (b"ff" + OUTSIDE[2:], False),
        (OUTSIDE.upper(), False),
        (b"00-" + b"0" * 32 + OUTSIDE[35:], False),
        (OUTSIDE[:36] + b"0" * 16 + b"-01", False),
        (OUTSIDE + b"-", False),
        (OUTSIDE + b"\n", False),
        (OUTSIDE[:-1], False),
        (b"", False),
    ],
)
def test_traceparent_is_read_as_w3c_has_it(text: bytes, valid: bool) -> None:
    """Version, ids and flags in lower-case hex, no id of zeros, not version 255; anything else is none."""
    assert is_traceparent(text) is valid
