"""The producer: every kind of request there is, at a pace and in bursts; what Kafka acknowledges is accounted."""

import hashlib
import json
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Any

import numpy as np
from confluent_kafka import KafkaError, Message, Producer
from numpy.typing import NDArray

from tests.faults.account import Account, Asked, Expected, Kind, Place
from tests.faults.images import Images

# Hits: so many images are asked for again and again.
_POPULAR = 300
# A broker that is away stops the load here, not in the memory of the producer.
_UNACKNOWLEDGED_MAX = 2_000
_UNACKNOWLEDGED_BURST_MAX = 20_000
# Longer than any outage of the schedule: a record given up would only make the account uncertain.
_DELIVERY_TIMEOUT_MS = 300_000
_LATEST_VERSION = "2"
# Shares of the kinds, in percent. The rest are plain requests.
_SHARES = {"popular": 45, "first-version": 5, "invalid": 3, "undecodable": 1, "repeated": 3, "conflicting": 1}
# How many sent requests with an id may be sent again.
_REMEMBERED = 200


@dataclass(frozen=True, slots=True)
class Record:
    """A record to send."""

    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    expected: Expected


class RequestSource:
    """Makes requests from a seed.

    Args:
        images: contents and their labels.
        seed: of everything else.
    """

    def __init__(self, images: Images, seed: int) -> None:
        self._images = images
        self._random = random.Random(seed)
        self._popular = [images.take() for _ in range(_POPULAR)]
        self._sent: deque[tuple[Record, NDArray[np.float32]]] = deque(maxlen=_REMEMBERED)
        self._makers: dict[str, Callable[[], Record]] = {
            "popular": lambda: self._plain(self._random.choice(self._popular)),
            "first-version": lambda: self._plain(self._images.take(), "1"),
            "invalid": self._invalid,
            "undecodable": self._undecodable,
            "repeated": self._repeated,
            "conflicting": self._conflicting,
        }

    def take(self) -> Record:
        """The next request."""
        number = self._random.uniform(0, 100)
        for name, share in _SHARES.items():
            number -= share
            if number < 0:
                return self._makers[name]()
        return self._plain(self._images.take())

    def _plain(self, content: tuple[NDArray[np.float32], dict[str, int]], version: str | None = None) -> Record:
        image, labels = content
        named, keyed = self._random.random() < 0.8, self._random.random() < 0.8
        answering = version or _LATEST_VERSION
        expected = Expected(
            Kind.ANSWERED,
            uuid7(self._random) if named else None,
            key_of(image) if keyed else None,
            answering,
            labels[answering],
        )
        record = self._encode(expected, image, version, binary=self._random.random() < 0.4)
        # Only what has a key is sure to meet its repetition in one partition.
        if named and keyed and version is None:
            self._sent.append((record, image))
        return record

    def _encode(self, expected: Expected, image: NDArray[np.float32], version: str | None, *, binary: bool) -> Record:
        tensor: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": [1, len(image)]}
        body: dict[str, Any] = {"model_name": "digits", "inputs": [tensor]}
        if expected.request_id is not None:
            body["id"] = expected.request_id
        if version is not None:
            body["model_version"] = version
        if not binary:
            tensor["data"] = [int(pixel) for pixel in image]
            return Record(json.dumps(body).encode(), (), expected)
        raw = image.astype("<f4").tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
        head = json.dumps(body).encode()
        return Record(head + raw, (("Inference-Header-Content-Length", b"%d" % len(head)),), expected)

    def _invalid(self) -> Record:
        image, _ = self._images.take()
        key, named = key_of(image), uuid7(self._random)
        broken: tuple[str, dict[str, Any]] = self._random.choice((
            ("MODEL_NOT_FOUND", {"model_name": "no_such_model"}),
            ("VERSION_NOT_FOUND", {"model_version": "77"}),
            ("INVALID_INPUT", {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}),
            ("INVALID_REQUEST", {"inputs": "none"}),
        ))  # fmt: skip
        error, members = broken
        plain = json.loads(self._encode(Expected(Kind.INVALID, named, key), image, None, binary=False).value)
        return Record(json.dumps(plain | members).encode(), (), Expected(Kind.INVALID, named, key, error=error))

    def _undecodable(self) -> Record:
        value = self._random.choice((b"not json", b'{"id": "cut', b"[1, 2]", b"\x00\xff\xfe"))
        return Record(value, (), Expected(Kind.UNDECODABLE, None, uuid7(self._random).encode()))

    def _repeated(self) -> Record:
        if not self._sent:
            return self._plain(self._images.take())
        first, _ = self._random.choice(self._sent)
        seen = first.expected
        return Record(first.value, first.headers, Expected(Kind.REPEATED, seen.request_id, seen.key))

    def _conflicting(self) -> Record:
        if not self._sent:
            return self._plain(self._images.take())
        first, image = self._random.choice(self._sent)
        other = image.copy()
        other[0] = (other[0] + 1) % 17
        seen = first.expected
        return self._encode(Expected(Kind.CONFLICTING, seen.request_id, seen.key), other, None, binary=False)


class Load:
    """Sends at a pace from a thread of its own; `burst` adds as many at once.

    Args:
        bootstrap_servers: Kafka's.
        account: takes what is acknowledged.
        source: makes the requests.
        per_s: the pace.
    """

    def __init__(self, bootstrap_servers: str, account: Account, source: RequestSource, per_s: float) -> None:
        self._account = account
        self._source = source
        self._pause_s = 1 / per_s
        self._stopping = Event()
        self._lock = Lock()
        self._unacknowledged = 0
        self._burst = 0
        self._producer = Producer({
            "bootstrap.servers": bootstrap_servers,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 2,
            "partitioner": "murmur2_random",
            "message.timeout.ms": _DELIVERY_TIMEOUT_MS,
            "reconnect.backoff.max.ms": 500,
            # Lost connections are what these runs are made of; undelivered records are accounted one by one.
            "log_level": 0,
        })  # fmt: skip
        self._thread = Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def burst(self, count: int, timeout_s: float) -> None:
        """Sends so many more as fast as Kafka takes them; returns when it has them.

        Raises:
            TimeoutError: it has not within `timeout_s`.
        """
        with self._lock:
            self._burst += count
        limit = time.monotonic() + timeout_s
        while self._burst or self._unacknowledged > _UNACKNOWLEDGED_MAX:
            if time.monotonic() > limit:
                raise TimeoutError(f"a burst of {count} requests was not acknowledged within {timeout_s:g} s")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends after what was sent is acknowledged or given up."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            self._producer.poll(0)
            room = _UNACKNOWLEDGED_BURST_MAX if self._burst else _UNACKNOWLEDGED_MAX
            if self._unacknowledged >= room:
                self._producer.poll(0.05)
                due = time.monotonic()
                continue
            if self._burst:
                with self._lock:
                    self._burst -= 1
            else:
                # What was missed in a stall is made up for a second's worth: a pace, not a flood.
                due = max(due + self._pause_s, time.monotonic() - 1.0)
                # `poll` returns with the first acknowledgement.
                while (wait_s := due - time.monotonic()) > 0:
                    self._producer.poll(wait_s)
            self._send(self._source.take())
        self._producer.flush(_DELIVERY_TIMEOUT_MS / 1000 + 10)

    def _send(self, record: Record) -> None:
        expected = record.expected

        def delivered(error: KafkaError | None, message: Message) -> None:
            self._unacknowledged -= 1
            if error is not None:
                self._account.refused.append(f"{expected.request_id}: {error}")
                return
            place = Place(message.partition() or 0, message.offset() or 0)
            self._account.acknowledge(Asked(place, message.timestamp()[1], time.time(), expected))

        self._unacknowledged += 1
        self._producer.produce(
            self._account.requests_topic,
            record.value,
            expected.key,
            headers=list(record.headers),
            on_delivery=delivered,
        )


def key_of(image: NDArray[np.float32]) -> bytes:
    """A key by content, of a producer's own making: the same image always meets the same partition."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:32].encode()


def uuid7(source: random.Random) -> str:
    """A UUIDv7: milliseconds, then random bits."""
    number = int(time.time() * 1000) << 80 | source.getrandbits(80)
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    text = f"{number:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
