"""One pass against a real Triton and a real Kafka."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.adapters.models_topic import ModelsFollower, read_models
from pipeline.errors import TopicError
from pipeline.watcher.fleet.check import CheckLimits
from pipeline.watcher.fleet.triton_control import ModelControlOff, TritonControl
from pipeline.watcher.report import RegistrationReport
from pipeline.watcher.repository_pass import register_models
from pipeline.watcher.serving.folder import ServingFolder
from schemas.registry import ModelRecord
from tests.watcher.adding_models import ADDS, FAILS, adding_model, write_sample
from tests.watcher.folders import onnx_bytes, onnx_model, python_model, tree

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

STREAMS = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for word in (b"to", b"geth", b"er"):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([word], dtype=object))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
Register = Callable[..., Awaitable[RegistrationReport]]


@pytest.fixture
async def topic(bootstrap_servers: str) -> AsyncIterator[str]:
    """A models topic of the test's own, with three partitions."""
    name = f"models-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 3, 1, topic_configs={"cleanup.policy": "compact"})])
        yield name
        await admin.delete_topics([name])
    finally:
        await admin.close()


@pytest.fixture
async def model_name(triton_urls: tuple[str, ...], serving_dir: Path) -> AsyncIterator[str]:
    """A name no other test uses; what is served under it is gone afterwards."""
    name = f"m{uuid.uuid4().hex[:8]}"
    yield name
    ServingFolder(serving_dir).withdraw(name)
    for url in triton_urls:
        async with TritonControl(url) as server:
            await server.unload(name, 30)


@pytest.fixture
def register(
    tmp_path: Path, triton_urls: tuple[str, ...], serving_dir: Path, bootstrap_servers: str, topic: str
) -> Register:
    """One pass over `tmp_path / "repository"`."""

    async def run(**changes: Any) -> RegistrationReport:
        options: dict[str, Any] = {
            "repository": tmp_path / "repository",
            "serving_dir": serving_dir,
            "triton_urls": triton_urls,
            "kafka_options": {"bootstrap_servers": bootstrap_servers},
            "topic": topic,
            "limits": CheckLimits(load_timeout_s=60, call_timeout_s=10),
        }
        return await register_models(**{**options, **changes})

    return run


def states(report: RegistrationReport) -> dict[str, str]:
    return {version.version: version.state for version in report.versions}


async def test_good_versions_are_served_and_announced(
    tmp_path: Path,
    model_name: str,
    register: Register,
    topic: str,
    bootstrap_servers: str,
    triton_urls: tuple[str, ...],
) -> None:
    """A pass ends with every version ready on every server and one record; the next pass changes nothing."""
    adding_model(tmp_path / "repository", model_name, {"1": 10, "2": 20})
    before = tree(tmp_path / "repository")
    report = await register()
    assert report.ok, report
    assert states(report) == {"1": "announced", "2": "announced"}
    record = report.records[model_name]
    assert (record.default_version, set(record.versions)) == ("2", {"1", "2"})
    for url in triton_urls:
        async with TritonControl(url) as server:
            assert [await server.is_ready(model_name, number, 5) for number in ("1", "2", "3")] == [True, True, False]
    again = await register()
    assert states(again) == {"1": "unchanged", "2": "unchanged"}
    assert await read_models({"bootstrap_servers": bootstrap_servers}, topic) == {model_name: record}
    assert tree(tmp_path / "repository") == before


@pytest.mark.parametrize("fault", ["load", "sample"])
async def test_bad_version_never_replaces_a_good_one(
    tmp_path: Path, model_name: str, register: Register, serving_dir: Path, triton_urls: tuple[str, ...], fault: str
) -> None:
    """A version that does not load, or answers wrongly, is not announced, not served, and the report says why."""
    folder = adding_model(tmp_path / "repository", model_name, {"1": 10})
    good = await register()
    (folder / "2").mkdir()
    (folder / "2" / "model.py").write_text(FAILS if fault == "load" else ADDS.format(5), encoding="utf-8")
    write_sample(folder, "2", [0.0, 0.0])
    report = await register()
    assert states(report) == {"1": "unchanged", "2": "rejected"}
    reason = next(version.reason for version in report.versions if version.version == "2")
    assert ("no weights" if fault == "load" else "differs by 7") in reason
    record = report.records[model_name]
    assert (record.default_version, record.versions["1"]) == ("1", good.records[model_name].versions["1"])
    assert (record.versions["2"].state, record.versions["2"].reason) == ("rejected", reason)
    assert not (serving_dir / model_name / "2").exists()
    async with TritonControl(triton_urls[0]) as server:
        assert await server.is_ready(model_name, "1", 5)
        assert not await server.is_ready(model_name, "2", 5)


async def test_bad_content_of_a_live_version_is_taken_back(
    tmp_path: Path, model_name: str, register: Register, serving_dir: Path
) -> None:
    """When the files of a served version become bad, the content that was served before is served again."""
    folder = adding_model(tmp_path / "repository", model_name, {"1": 10})
    good = await register()
    (folder / "1" / "model.py").write_text(FAILS, encoding="utf-8")
    report = await register()
    assert states(report) == {"1": "rejected"}
    version, served = report.records[model_name].versions["1"], good.records[model_name].versions["1"]
    assert version.rejected_fingerprint not in (None, served.fingerprint)
    assert version.model_copy(update={"rejected_fingerprint": None, "reason": None}) == served
    assert "+ 10" in (serving_dir / model_name / "1" / "model.py").read_text(encoding="utf-8")
    (folder / "1" / "model.py").write_text(ADDS.format(10), encoding="utf-8")
    assert states(await register()) == {"1": "unchanged"}


async def test_promotion_names_the_version_before(tmp_path: Path, model_name: str, register: Register) -> None:
    """A higher version becomes the default with two seconds' notice, the one before stays ready."""
    folder = adding_model(tmp_path / "repository", model_name, {"1": 10})
    first = (await register()).records[model_name]
    (folder / "2").mkdir()
    (folder / "2" / "model.py").write_text(ADDS.format(20), encoding="utf-8")
    second = (await register()).records[model_name]
    assert (second.default_version, second.previous_version) == ("2", "1")
    assert second.effective_at > first.effective_at
    assert {version.state for version in second.versions.values()} == {"ready"}


async def test_model_without_configuration_is_served(tmp_path: Path, model_name: str, register: Register) -> None:
    """An ONNX file alone is completed to a configuration that the server accepts."""
    onnx_model(tmp_path / "repository", model_name, content=onnx_bytes(factor=3.0))
    write_sample(tmp_path / "repository" / model_name, "1", [3.0, 6.0])
    report = await register()
    assert report.ok, report
    signature = report.records[model_name].versions["1"].signature
    assert signature is not None
    assert (signature.max_batch_size, signature.inputs[0].dims) == (64, (2,))


async def test_streamed_answer_is_checked_whole(tmp_path: Path, model_name: str, register: Register) -> None:
    """A decoupled model's sample is compared with the joined text of its responses."""
    folder = python_model(tmp_path / "repository", model_name)
    config = f"""name: "{model_name}" backend: "python" model_transaction_policy {{ decoupled: true }}
    input {{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }} output {{ name: "y" data_type: TYPE_STRING dims: [ 1 ] }}"""
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    (folder / "1" / "model.py").write_text(STREAMS, encoding="utf-8")
    sample: dict[str, Any] = {
        "model_name": model_name,
        "model_version": "1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}],
        "outputs": [{"name": "y", "datatype": "BYTES", "shape": [1], "data": ["together"]}],
    }
    (folder / "sample.json").write_text(json.dumps(sample), encoding="utf-8")
    report = await register()
    assert report.ok, report


async def test_silent_server_is_left_out(
    tmp_path: Path, model_name: str, register: Register, triton_urls: tuple[str, ...]
) -> None:
    """One server that does not answer keeps no version from the others; none that answers keeps all."""
    adding_model(tmp_path / "repository", model_name, {"1": 10})
    nobody = "127.0.0.1:1"
    alone = await register(triton_urls=(nobody,))
    assert states(alone) == {"1": "unreachable"}
    assert model_name not in alone.records
    report = await register(triton_urls=(*triton_urls, nobody))
    assert states(report) == {"1": "announced"}
    assert report.unreachable == (nobody,)


async def test_server_that_loads_by_itself_is_used_as_it_is(
    tmp_path: Path, model_name: str, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where loading is refused, a version that is ready there passes; one that is not does not."""
    adding_model(tmp_path / "repository", model_name, {"1": 10})

    async def refuse(server: TritonControl, *_: object) -> None:
        raise ModelControlOff(server.address, "explicit model load / unload is not allowed")

    with monkeypatch.context() as patch:
        patch.setattr(TritonControl, "load", refuse)
        assert states(await register()) == {"1": "rejected"}
    assert states(await register()) == {"1": "announced"}
    monkeypatch.setattr(TritonControl, "load", refuse)
    assert states(await register()) == {"1": "unchanged"}


async def test_follower_sees_the_newest_of_each_model(topic: str, bootstrap_servers: str) -> None:
    """It hands out the newest records once it has caught up, later ones as they come, and deletions."""
    options = {"bootstrap_servers": bootstrap_servers}
    seen: asyncio.Queue[tuple[str, str | None]] = asyncio.Queue()

    def record(model: str, version: str) -> bytes:
        content = ModelRecord(model_name=model, versions={}, default_version=version, effective_at=datetime.now(UTC))
        return content.model_dump_json().encode()

    async with AIOKafkaProducer(**options) as producer:
        for model, version in (("a", "1"), ("b", "1"), ("a", "2")):
            await producer.send_and_wait(topic, record(model, version), key=model.encode())
        await producer.send_and_wait(topic, b"no record", key=b"c")
        await producer.send_and_wait(topic, record("d", "1"), key=b"another key")
        follower = ModelsFollower(
            options,
            topic,
            lambda found: seen.put_nowait((found.model_name, found.default_version)),
            lambda name: seen.put_nowait((name, None)),
        )
        await follower.start()
        try:
            await follower.wait_caught_up()
            assert follower.caught_up
            assert {seen.get_nowait() for _ in range(seen.qsize())} == {("a", "2"), ("b", "1")}
            await producer.send_and_wait(topic, record("a", "3"), key=b"a")
            assert await asyncio.wait_for(seen.get(), 10) == ("a", "3")
            await producer.send_and_wait(topic, None, key=b"b")
            assert await asyncio.wait_for(seen.get(), 10) == ("b", None)
        finally:
            await follower.stop()
    assert (await read_models(options, topic))["a"].default_version == "3"


async def test_missing_topic_is_told(bootstrap_servers: str) -> None:
    """A topic that is not there is an error, and is not made."""
    with pytest.raises(TopicError, match="topics create"):
        await read_models({"bootstrap_servers": bootstrap_servers}, f"missing-{uuid.uuid4().hex}")


async def test_model_that_depends_on_its_neighbours_is_not_batched(
    tmp_path: Path, model_name: str, register: Register, serving_dir: Path, triton_urls: tuple[str, ...]
) -> None:
    """Neither this pipeline nor Triton joins its requests, until its owner insists; and it is asked only once."""
    extra = "version_policy { latest { num_versions: 2 } } dynamic_batching { }"
    folder = python_model(tmp_path / "repository", model_name, ("1", "2"), extra)
    (folder / "1" / "model.py").write_text(ADDS.format(1), encoding="utf-8")
    (folder / "2" / "model.py").write_text(ADDS.format("x.mean(axis=0)"), encoding="utf-8")
    report = await register()
    assert states(report) == {"1": "announced", "2": "announced"}
    assert [version.reason.startswith("not batched") for version in report.versions] == [False, True]
    assert not batches(report, model_name)
    config = serving_dir / model_name / "config.pbtxt"
    assert "dynamic_batching" not in config.read_text(encoding="utf-8")
    before = config.stat().st_mtime_ns
    again = await register()
    assert states(again) == {"1": "unchanged", "2": "unchanged"}
    assert "not batched" in again.versions[1].reason
    assert config.stat().st_mtime_ns == before
    (folder / "2" / "model.py").write_text(ADDS.format(2), encoding="utf-8")
    mended = await register()
    assert (states(mended)["2"], batches(mended, model_name)) == ("announced", True)
    assert "dynamic_batching" in config.read_text(encoding="utf-8")


async def test_owner_who_insists_is_batched(tmp_path: Path, model_name: str, register: Register) -> None:
    """`client_batching` `on` is the owner's word: what depends on its neighbours is batched all the same."""
    extra = 'parameters { key: "client_batching" value { string_value: "on" } }'
    folder = python_model(tmp_path / "repository", model_name, ("1",), extra)
    (folder / "1" / "model.py").write_text(ADDS.format("x.mean(axis=0)"), encoding="utf-8")
    report = await register()
    assert (states(report), batches(report, model_name)) == ({"1": "announced"}, True)


def batches(report: RegistrationReport, model_name: str) -> bool:
    signature = report.records[model_name].versions["1"].signature
    assert signature is not None
    return signature.client_batching
