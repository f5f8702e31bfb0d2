"""What the protocol tells of models: announced ones as Triton would, statistics of a fleet as of one server."""

import asyncio
import socket
from typing import Any

import pytest

from pipeline.adapters.triton_metadata import TritonMetadata, as_json
from pipeline.config import KafkaSettings, Settings
from pipeline.errors import InferenceServerError, ModelNotReady, ServerUnavailable
from pipeline.gateway.http.problem import Problem
from pipeline.gateway.protocol.models import Fleet, make_fleet, summed
from pipeline.gateway.protocol.request import ModelAddress
from schemas.errors import ErrorCode, WireError
from tests.gateway.protocol_gateway import announced, model_record

DIGITS = ModelAddress("digits", None)


class ScriptedServer:
    """A server that says what it is told to; an error is raised, None never answers."""

    def __init__(self, name: str, says: Any) -> None:
        self.name = name
        self.says = says
        self.asked: list[tuple[str, str]] = []
        self.is_closed = False

    async def config(self, model_name: str, version: str, timeout_s: float) -> dict[str, Any]:
        """What it says."""
        found: dict[str, Any] = await self._answer(model_name, version)
        return found

    async def platform(self, model_name: str, version: str, timeout_s: float) -> str:
        """What it says."""
        found: str = await self._answer(model_name, version)
        return found

    async def statistics(self, model_name: str, version: str, timeout_s: float) -> list[dict[str, Any]]:
        """What it says."""
        found: list[dict[str, Any]] = await self._answer(model_name, version)
        return found

    async def close(self) -> None:
        """Noted."""
        self.is_closed = True

    async def _answer(self, model_name: str, version: str) -> Any:
        self.asked.append((model_name, version))
        if isinstance(self.says, InferenceServerError):
            raise self.says
        if self.says is None:
            await asyncio.Event().wait()
        return self.says


def away(name: str) -> ServerUnavailable:
    """The error of a server that does not answer."""
    return ServerUnavailable(name, "failed to connect")


def entry(count: int = 1, last: int = 1, version: str = "1", **members: Any) -> dict[str, Any]:
    """A version's statistics on one server."""
    duration = {"count": count, "ns": count * 1000}
    return {
        "name": "digits",
        "version": version,
        "last_inference": last,
        "inference_count": count,
        "execution_count": count,
        "inference_stats": {"success": duration, "queue": duration},
        "batch_stats": [{"batch_size": 1, "compute_infer": duration}],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": count}],
        "response_stats": {},
    } | members


async def test_metadata_has_the_batch_axis() -> None:
    """Shapes come with the batch axis in front, and the versions that are served, in the order of numbers."""
    found = await Fleet(announced(model_record()), [ScriptedServer("t", "onnxruntime_onnx")]).metadata(DIGITS)
    assert found == {
        "name": "digits",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}],
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1, 1]}],
    }


async def test_metadata_of_a_version_names_it_alone() -> None:
    """Asked for one version, only that one is told."""
    found = await Fleet(announced(model_record()), [ScriptedServer("t", "x")]).metadata(ModelAddress("digits", "1"))
    assert found["versions"] == ["1"]


async def test_model_without_batch_axis_has_its_own_shape() -> None:
    """Where a model has no batch axis, none is put in front."""
    record = model_record()
    version = record.versions["2"]
    assert version.signature is not None
    alone = version.model_copy(update={"signature": version.signature.model_copy(update={"max_batch_size": 0})})
    fleet = Fleet(announced(model_record(versions={"2": alone})), [ScriptedServer("t", "x")])
    assert (await fleet.metadata(DIGITS))["inputs"][0]["shape"] == [64]


async def test_metadata_needs_no_server() -> None:
    """Without a server that answers the platform is empty, all else is told, and the next one is asked again."""
    server = ScriptedServer("t", away("t"))
    fleet = Fleet(announced(model_record()), [server])
    assert (await fleet.metadata(DIGITS))["platform"] == ""
    server.says = "python"
    assert (await fleet.metadata(DIGITS))["platform"] == "python"


async def test_platform_is_asked_once_per_content() -> None:
    """A version's platform does not change while its content stays."""
    server = ScriptedServer("t", "python")
    models = announced(model_record())
    fleet = Fleet(models, [server])
    for _ in range(3):
        await fleet.metadata(DIGITS)
    assert server.asked == [("digits", "2")]
    versions = model_record().versions
    models.apply(model_record(versions=versions | {"2": versions["2"].model_copy(update={"fingerprint": "new"})}))
    await fleet.metadata(DIGITS)
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (ModelAddress("none", None), ErrorCode.MODEL_NOT_FOUND),
        (ModelAddress("digits", "3"), ErrorCode.VERSION_NOT_FOUND),
        (ModelAddress("digits", "10"), ErrorCode.VERSION_NOT_FOUND),
        (ModelAddress("digits", "99"), ErrorCode.VERSION_NOT_FOUND),
    ],
)
async def test_what_is_not_served_is_not_asked_for(model: ModelAddress, code: ErrorCode) -> None:
    """A model or version that is not served is an error of its own, and no server is asked."""
    server = ScriptedServer("t", {})
    fleet = Fleet(announced(model_record()), [server])
    for ask in (fleet.metadata, fleet.config, fleet.statistics):
        with pytest.raises(WireError) as caught:
            await ask(model)
        assert caught.value.code is code
    assert server.asked == []


async def test_removed_model_is_not_served() -> None:
    """A model whose announcement is deleted is gone from metadata and index."""
    models = announced(model_record(), model_record("other"))
    models.discard("digits")
    with pytest.raises(WireError):
        await Fleet(models).metadata(DIGITS)
    assert {found["name"] for found in models.repository_index(ready_only=False)} == {"other"}


def test_index_says_why_a_version_is_not_served() -> None:
    """Every version is listed, by name and number; what is not served comes with the reason."""
    models = announced(model_record("digits"), model_record("another"))
    assert [(found["name"], found["version"]) for found in models.repository_index(ready_only=True)] == [
        ("another", "1"), ("another", "2"), ("digits", "1"), ("digits", "2"),
    ]  # fmt: skip
    assert [found for found in models.repository_index(ready_only=False) if found["name"] == "digits"] == [
        {"name": "digits", "version": "1", "state": "READY", "reason": ""},
        {"name": "digits", "version": "2", "state": "READY", "reason": ""},
        {"name": "digits", "version": "3", "state": "UNAVAILABLE", "reason": "its sample's answer differs"},
        {"name": "digits", "version": "10", "state": "UNAVAILABLE", "reason": "unloaded"},
    ]


async def test_config_is_of_whoever_answers() -> None:
    """One server that answers is enough, be another down and a third stopped; the default version is asked for."""
    good = ScriptedServer("b", {"name": "digits"})
    fleet = Fleet(announced(model_record()), [ScriptedServer("a", away("a")), good, ScriptedServer("c", None)])
    assert await fleet.config(DIGITS) == {"name": "digits"}
    assert good.asked == [("digits", "2")]


async def test_no_server_that_answers_is_told() -> None:
    """503 names every server and what it said; a fleet of none, the setting."""
    servers = [ScriptedServer("a", away("a")), ScriptedServer("b", ModelNotReady("b", "unknown model"))]
    for ask in (Fleet(announced(model_record()), servers).config, Fleet(announced(model_record()), servers).statistics):
        with pytest.raises(Problem, match=r"a: failed to connect; b: unknown model") as caught:
            await ask(DIGITS)
        assert caught.value.status == 503
    with pytest.raises(Problem, match="PIPELINE_TRITON__URLS"):
        await Fleet(announced(model_record())).config(DIGITS)


def test_statistics_add_up() -> None:
    """Counts and durations are sums, also by batch size; the last inference is the latest; memory is each one's."""
    more = entry(
        10, 7, batch_stats=[{"batch_size": 4, "compute_infer": {"count": 2, "ns": 5}}, *entry(10)["batch_stats"]]
    )
    (found,) = summed([entry(1, 9), more])
    assert found["last_inference"] == 9
    assert (found["inference_count"], found["execution_count"]) == (11, 11)
    assert found["inference_stats"]["success"] == {"count": 11, "ns": 11_000}
    assert found["batch_stats"] == [
        {"batch_size": 1, "compute_infer": {"count": 11, "ns": 11_000}},
        {"batch_size": 4, "compute_infer": {"count": 2, "ns": 5}},
    ]
    assert found["memory_usage"] == [
        {"type": "CPU", "id": 0, "byte_size": 1},
        {"type": "CPU", "id": 0, "byte_size": 10},
    ]


def test_statistics_of_one_server_are_its_own() -> None:
    """One server's entries pass as they are; versions stand in the order of numbers."""
    entries = [entry(version="10"), entry(version="9")]
    assert summed(entries) == [entries[1], entries[0]]


async def test_server_without_an_answer_is_named() -> None:
    """The sums of those that answer are told, and who is missing in them."""
    fleet = Fleet(announced(model_record()), [ScriptedServer("a", [entry(3)]), ScriptedServer("b", away("b"))])
    assert await fleet.statistics(None) == {
        "model_stats": [entry(3)],
        "unanswered": [{"instance": "b", "reason": "failed to connect"}],
    }


async def test_statistics_of_whole_fleets_name_nobody() -> None:
    """Where all answer, the answer has Triton's members alone; without a version all of a model's are asked for."""
    server = ScriptedServer("a", [entry()])
    assert await Fleet(announced(model_record()), [server]).statistics(DIGITS) == {"model_stats": [entry()]}
    assert server.asked == [("digits", "")]


async def test_unread_topic_says_nothing_is_missing() -> None:
    """Before the models topic is read, no model is said not to exist: 503, not 404."""
    settings = Settings(kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    with pytest.raises(Problem, match="not been read") as caught:
        await make_fleet(settings).metadata(DIGITS)
    assert caught.value.status == 503


async def test_fleet_ends_its_connections() -> None:
    """Leaving the fleet closes every server's connection."""
    server = ScriptedServer("a", {})
    async with Fleet(announced(), [server]):
        assert not server.is_closed
    assert server.is_closed


async def test_server_that_says_nothing_is_given_up() -> None:
    """One that takes the connection and never answers is unavailable when its time is over."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        metadata = TritonMetadata("t", f"127.0.0.1:{silent.getsockname()[1]}")
        for ask in (metadata.config, metadata.platform, metadata.statistics):
            with pytest.raises(ServerUnavailable):
                await ask("digits", "1", 0.1)
        await metadata.close()


def test_protobuf_becomes_tritons_json() -> None:
    """64-bit integers are numbers, enums names, empty values there, unset messages and choices not."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    text = 'name: "a" max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [ -1, 9007199254740993 ] }'
    text += ' version_policy { specific { versions: 2 } } parameters { key: "k" value { string_value: "v" } }'
    found = as_json(text_format.Parse(text, model_config_pb2.ModelConfig()))
    assert found["input"][0]["dims"] == [-1, 9007199254740993]
    assert found["input"][0]["data_type"] == "TYPE_FP32"
    assert found["version_policy"] == {"specific": {"versions": [2]}}
    assert found["parameters"] == {"k": {"string_value": "v"}}
    assert (found["output"], found["platform"], found["cc_model_filenames"]) == ([], "", {})
    assert "optimization" not in found
    assert "dynamic_batching" not in found
