"""What a delivery campaign asks, from a seed: requests over every route, and what `digits` must answer to each."""

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from tests.models.folders import DIGITS

VERSION = "2"
TENANTS = ("", "acme")
# A tenth of 10,000: most answers come from the caches, and with each worker killed some are computed again.
DISTINCT = 1000


class Route(StrEnum):
    """How a request goes in, and how its result comes out."""

    POLLED = "polled"
    LONG_POLLED = "long-polled"
    EVENTS = "events"
    PREFERRED = "preferred"
    CALLBACK = "callback"
    TWICE = "twice"
    V2 = "v2"
    V2_ASYNC = "v2-async"
    KAFKA = "kafka"
    KAFKA_REPLY = "kafka-reply"


WEIGHTS = {
    Route.POLLED: 12,
    Route.LONG_POLLED: 14,
    Route.EVENTS: 14,
    Route.PREFERRED: 14,
    Route.CALLBACK: 12,
    Route.TWICE: 8,
    Route.V2: 12,
    Route.V2_ASYNC: 6,
    Route.KAFKA: 4,
    Route.KAFKA_REPLY: 4,
}
_OVER_V2 = {Route.V2, Route.V2_ASYNC}
_OVER_KAFKA = {Route.KAFKA, Route.KAFKA_REPLY}


@dataclass(frozen=True, slots=True)
class Planned:
    """One request before it is sent.

    Attributes:
        number: its place in the plan.
        tenant: whose it is; empty: nobody's.
        image: which of the distinct images.
        key: its Idempotency-Key, else the body has the id.
        request_id: of the body; both tenants use the same ids.
        gateway: which one is asked first, 0 or 1.
    """

    number: int
    route: Route
    tenant: str
    image: int
    key: str | None
    request_id: str | None
    gateway: int

    @property
    def is_v2(self) -> bool:
        """Whether it speaks the Open Inference Protocol."""
        return self.route in _OVER_V2

    @property
    def is_kafka(self) -> bool:
        """Whether it is put on the requests topic by its client."""
        return self.route in _OVER_KAFKA


def make_plan(seed: int, count: int) -> list[Planned]:
    """So many requests; the same for the same seed."""
    rng = random.Random(seed)
    routes = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)
    return [_planned(rng, number, route) for number, route in enumerate(routes)]


def _planned(rng: random.Random, number: int, route: Route) -> Planned:
    pair, tenant = divmod(number, len(TENANTS))
    # /v2 and Kafka know no such key: the id in the body does its work there.
    is_keyed = route is Route.TWICE or (route not in _OVER_V2 | _OVER_KAFKA and rng.random() < 0.5)
    name = f"campaign-{pair}"
    return Planned(
        number, route, TENANTS[tenant], rng.randrange(DISTINCT), name if is_keyed else None,
        None if is_keyed else name, rng.randrange(2),
    )  # fmt: skip


class Reference:
    """The images, and what the model says of each: onnxruntime on its file, without anything of the pipeline.

    Args:
        seed: of the images.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        # Whole numbers look the same in JSON and in FP32.
        self.images: npt.NDArray[np.float32] = rng.integers(0, 17, (DISTINCT, 64)).astype(np.float32)
        session = onnxruntime.InferenceSession(DIGITS / VERSION / "model.onnx", providers=["CPUExecutionProvider"])
        labels, probabilities = session.run(["label", "probabilities"], {"image": self.images})
        self._labels: npt.NDArray[np.int64] = labels
        self._probabilities: npt.NDArray[np.float32] = probabilities

    def inputs(self, image: int) -> list[dict[str, Any]]:
        """The tensors of a request."""
        return [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": self.images[image].tolist()}]

    def mistakes(self, image: int, outputs: list[dict[str, Any]]) -> str | None:
        """What is wrong with these outputs; None where nothing is."""
        data = {output["name"]: np.ravel(output["data"]) for output in outputs}
        if data.keys() != {"label", "probabilities"}:
            return f"outputs {sorted(data)}"
        if data["label"].tolist() != self._labels[image].ravel().tolist():
            return f"label {data['label']}, expected {self._labels[image]}"
        if not np.allclose(data["probabilities"], self._probabilities[image].ravel(), rtol=0, atol=1e-5):
            return f"probabilities {data['probabilities']}, expected {self._probabilities[image]}"
        return None
