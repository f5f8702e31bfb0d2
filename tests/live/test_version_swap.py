"""Default versions change under load: each answer is of the version it names, and none is of an earlier default."""

import asyncio
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import orjson
import pytest

from pipeline.core import version_life
from schemas.registry import ModelRecord
from schemas.result import decode_result
from tests.live.asking import Answered, Asking, Sent, fresh_id
from tests.live.load import place_of, places
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack
from tests.live.topics import prepare_topics
from tests.live.waiting import until

MODEL = "digits"
VERSIONS = ("1", "2")
PROMOTIONS = ("2", "1", "2")
# 16 images are 64 keys with 2 versions and a replaced one: at 300/s nearly all are hits.
IMAGES = 16
PER_S = 300
BURST = 6
# Equal rows differ in their last bits with the batch they are computed in, by 1e-6 at most; versions differ by more
# than 1e-2 in every image that is taken.
TOLERANCE = 1e-5
VERSIONS_APART = 1e-2
# A worker with an older view of the models topic waits before it resolves a version (design, section 4).
VIEW_S_MAX = 1.0
AFTER_EACH_S = 0.4

Outputs = tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Asked:
    """One request of the race.

    Attributes:
        image: its number.
        members: what the request has besides.
    """

    image: int
    members: Mapping[str, Any]


@dataclass(frozen=True)
class Replied:
    """One request and its answer.

    Attributes:
        appended_at: Unix seconds, whole milliseconds: the record's append time, rounded down.
        completed_at: Unix seconds of the worker's clock.
        outputs: name and elements.
    """

    asked: Asked
    answer: Answered
    appended_at: float
    completed_at: float
    outputs: Outputs

    @property
    def version(self) -> str | None:
        """The version that it names."""
        return self.answer.result.model_version

    @property
    def key(self) -> str | None:
        """The cache key that it names."""
        return self.answer.result.parameters.cache_key


@dataclass(frozen=True)
class Oracle:
    """What each version says to each image, as Triton itself tells it."""

    images: Sequence[Sequence[float]]
    labels: Mapping[str, Sequence[int]]
    probabilities: Mapping[str, Sequence[Sequence[float]]]

    def agrees(self, version: str, image: int, outputs: Outputs) -> bool:
        """Whether these are the outputs of this version for this image."""
        found = dict(outputs)
        expected = self.probabilities[version][image]
        return (
            found.keys() == {"label", "probabilities"}
            and found["label"] == (self.labels[version][image],)
            and len(found["probabilities"]) == len(expected)
            and all(abs(one - other) < TOLERANCE for one, other in zip(found["probabilities"], expected, strict=True))
        )


async def ask_triton(url: str, version: str, images: Sequence[Sequence[float]]) -> tuple[list[int], list[list[float]]]:
    """Labels and probabilities of a version, without the pipeline."""
    tensor = {"name": "image", "datatype": "FP32", "shape": [len(images), 64], "data": [list(one) for one in images]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v2/models/{MODEL}/versions/{version}/infer", json={"inputs": [tensor]}) as response,
    ):
        answer = await response.json()
    assert answer["model_version"] == version
    data = {output["name"]: output["data"] for output in answer["outputs"]}
    return data["label"], [data["probabilities"][start : start + 10] for start in range(0, 10 * len(images), 10)]


async def make_oracle(url: str) -> Oracle:
    """Images by which the versions can be told apart, and what the versions say to them."""
    rng = random.Random(20)
    images = [[float(rng.randint(0, 16)) for _ in range(64)] for _ in range(3 * IMAGES)]
    # One at a time, as most of the race's are: a batch has other last bits.
    said = {version: [await ask_triton(url, version, [image]) for image in images] for version in VERSIONS}
    probabilities = {version: [rows[0] for _, rows in said[version]] for version in VERSIONS}
    apart = [
        number
        for number, pair in enumerate(zip(*probabilities.values(), strict=True))
        if max(abs(one - other) for one, other in zip(*pair, strict=True)) > VERSIONS_APART
    ][:IMAGES]
    assert len(apart) == IMAGES, "the versions answer too much alike to be told apart"
    return Oracle(
        [images[number] for number in apart],
        {version: [said[version][number][0][0] for number in apart] for version in VERSIONS},
        {version: [probabilities[version][number] for number in apart] for version in VERSIONS},
    )


def choose(rng: random.Random) -> Asked:
    """A request: 7 of 10 leave everything to the pipeline."""
    pinned: list[Mapping[str, Any]] = [{"model_version": version} for version in VERSIONS]
    kinds: list[Mapping[str, Any]] = [{}, {"cache_control": "no-cache"}, {"enable_cache": False}, *pinned]
    return Asked(rng.randrange(IMAGES), rng.choices(kinds, (70, 8, 8, 7, 7))[0])


async def ask_until(asking: Asking, oracle: Oracle, ended: asyncio.Event) -> dict[Sent, Asked]:
    """Sends bursts, in which equal requests meet, until the race has ended; what Kafka has of them."""
    rng = random.Random(21)
    sent: dict[Sent, Asked] = {}

    async def send(asked: Asked) -> None:
        tensor = {"name": "image", "datatype": "FP32", "shape": [1, 64], "data": oracle.images[asked.image]}
        request = {"id": fresh_id(), "model_name": MODEL, "inputs": [tensor], **asked.members}
        # A random key: every worker meets every image.
        sent[await asking.send(orjson.dumps(request), key=uuid.uuid4().hex.encode())] = asked

    while not ended.is_set():
        await asyncio.gather(*(send(choose(rng)) for _ in range(BURST)))
        await asyncio.sleep(BURST / PER_S)
    return sent


async def replies(asking: Asking, sent: Mapping[Sent, Asked]) -> list[Replied]:
    """The answers to all that was sent, each of which has exactly one."""
    records = await asking.results.until(
        lambda records: sent.keys() <= places(records), 30, f"all {len(sent)} requests are answered"
    )
    counted = Counter(place_of(record) for record in records)
    assert {place: count for place, count in counted.items() if count != 1} == {}, "answered more than once"
    found = []
    for record in records:
        answer = Answered(record, decode_result(record.value, record.headers))
        assert answer.status == "succeeded", f"failed: {record.value!r}"
        found.append(
            Replied(
                sent[place_of(record)],
                answer,
                int(answer.header("request-timestamp") or 0) / 1e3,
                answer.result.completed_at.timestamp(),
                tuple((output.name, tuple(output.data)) for output in answer.result.outputs or ()),
            )
        )
    return found


def promoted(announced: ModelRecord, version: str) -> ModelRecord:
    """The record by which the watcher promotes a version now."""
    record = version_life.promoted(announced, version, datetime.now(UTC))
    assert record.default_version == version
    assert record.previous_version == announced.default_version
    return record


def with_content_replaced(announced: ModelRecord, version: str) -> ModelRecord:
    """The same record for other content under a version's number."""
    other = announced.versions[version].model_copy(update={"fingerprint": uuid.uuid4().hex * 2})
    return announced.model_copy(update={"versions": {**announced.versions, version: other}})


async def is_past(moment: datetime) -> None:
    """Returns a little after a moment, so that requests have met what counts since then."""

    async def passed() -> bool:
        return datetime.now(UTC) > moment + timedelta(seconds=AFTER_EACH_S)

    await until(passed, 10, f"{moment} has passed")


def check_outputs(found: Sequence[Replied], oracle: Oracle) -> None:
    """Every answer is what the version that it names says to its image; who names a version gets that one."""
    for one in found:
        assert one.version in VERSIONS
        assert oracle.agrees(one.version, one.asked.image, one.outputs), f"not version {one.version}'s answer: {one}"
        assert one.asked.members.get("model_version", one.version) == one.version, f"another version: {one}"


def check_defaults(found: Sequence[Replied], promotions: Sequence[tuple[float, str]]) -> None:
    """G6: a default answers only what was completed after its promotion and appended before the next one."""
    ends = [moment for moment, _ in promotions[1:]] + [float("inf")]
    for one in found:
        if "model_version" in one.asked.members:
            continue
        allowed = {
            version
            for (since, version), end in zip(promotions, ends, strict=True)
            if since <= max(one.completed_at, one.appended_at) and one.appended_at < end
        }
        assert one.version in allowed, f"not answered by the default, one of {allowed} ({promotions}): {one}"


def check_keys(found: Sequence[Replied]) -> None:
    """A key stands for one version and one image; what is replayed was computed under the same key, bit for bit."""
    by_key: defaultdict[str, list[Replied]] = defaultdict(list)
    for one in found:
        bypassed = one.asked.members.get("enable_cache") is False
        assert (one.key is None, one.answer.cache_status == "bypass") == (bypassed, bypassed), f"cached: {one}"
        if one.key is not None:
            by_key[one.key].append(one)
    for key, some in by_key.items():
        assert len({(one.version, one.asked.image) for one in some}) == 1, f"{key} stands for several: {some}"
        computed = [one for one in some if one.answer.cache_status in ("miss", "refresh")]
        assert computed, f"{key} was never computed: {some}"
        outputs = {one.outputs for one in computed}
        first_at = min(one.completed_at for one in computed)
        for one in some:
            if one.answer.cache_status in ("hit", "coalesced"):
                assert one.outputs in outputs, f"nobody computed this: {one}"
            if one.answer.cache_status == "hit":
                assert one.completed_at >= first_at, f"a hit before the first answer of its key was computed: {one}"


def check_replaced(found: Sequence[Replied], replacing_at: float, replaced_at: float) -> None:
    """What was stored before the content of version 2 was replaced is not met by anyone who comes after it.

    Workers may read the new record before whoever publishes it knows that it is published.
    """
    of_two = [one for one in found if one.version == "2" and one.key is not None]
    before = {one.key for one in of_two if one.completed_at < replacing_at}
    after = [one for one in of_two if one.appended_at > replaced_at + VIEW_S_MAX]
    assert len(before) == IMAGES
    assert {one.key for one in after} & before == set(), "an entry of the content before was met"
    assert "hit" in {one.answer.cache_status for one in after}, "the new content is cached, too"
    # Version 1 was not touched: its entries live on.
    of_one = [one for one in found if one.version == "1" and one.key is not None]
    assert len({one.key for one in of_one}) == IMAGES


@pytest.mark.timeout(90)
@pytest.mark.parametrize("shared", [False, True], ids=["one worker", "second worker joins, shared cache"])
async def test_no_answer_is_of_another_version(stack: LiveStack, processes: ProcessGroup, shared: bool) -> None:
    """Promotions under load fail nothing and mix nothing, and replaced content is not answered from before."""
    settings = stack.make_settings(**({} if shared else {"redis": {"url": ""}}))
    oracle = await make_oracle(stack.triton_http_urls[0])
    record = stack.models[MODEL].model_copy(update={"default_version": "1", "previous_version": None})
    await prepare_topics(settings, [record])
    workers = [await processes.start("worker", settings)]
    promotions = [(0.0, "1")]
    ended = asyncio.Event()
    async with Asking(settings) as asking:
        race = asyncio.create_task(ask_until(asking, oracle, ended))
        try:
            await is_past(datetime.now(UTC))
            for number, version in enumerate(PROMOTIONS):
                record = promoted(record, version)
                await prepare_topics(settings, [record])
                promotions.append((record.effective_at.timestamp(), version))
                if shared and number == 1:
                    workers.append(processes.spawn("worker", settings))
                await is_past(record.effective_at)
            if shared:
                await asyncio.gather(*(worker.wait_partitions(lambda found: len(found) == 2) for worker in workers))
                await is_past(datetime.now(UTC))
            replacing_at = datetime.now(UTC)
            await prepare_topics(settings, [with_content_replaced(record, "2")])
            replaced_at = datetime.now(UTC)
            await is_past(replaced_at + timedelta(seconds=VIEW_S_MAX))
        finally:
            ended.set()
            sent = await race
        found = await replies(asking, sent)
    check_outputs(found, oracle)
    check_defaults(found, promotions)
    check_keys(found)
    check_replaced(found, replacing_at.timestamp(), replaced_at.timestamp())
    statuses = Counter(one.answer.cache_status for one in found)
    assert statuses["hit"] > len(found) / 2, f"hardly a race of hits: {statuses}"
    assert len({one.answer.result.parameters.worker for one in found}) == len(workers)
