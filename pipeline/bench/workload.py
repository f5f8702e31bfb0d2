"""What the benchmarks ask: tensors, request records as the client library makes them, and the model `digits`."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
from uuid_utils import uuid7

from pipeline.client.records import RequestRecord, build_record
from schemas.registry import ModelRecord, ModelSignature, ModelVersion, TensorSpec

MODEL = "digits"
# A UUID's text in the place of an id: records are built once per tensor and get their ids later.
NO_ID = "00000000-0000-7000-8000-000000000000"


def images(count: int, seed: int | None = None) -> list[npt.NDArray[np.float32]]:
    """Distinct inputs of `digits`: 64 FP32 values between 0 and 16, 256 bytes raw, about 750 as JSON.

    Args:
        count: how many.
        seed: the same ones again; None for ones nobody has seen.
    """
    rng = np.random.default_rng(int.from_bytes(os.urandom(8)) if seed is None else seed)
    return [rng.uniform(0.0, 16.0, (1, 64)).astype(np.float32) for _ in range(count)]


class RequestRecords:
    """Request records that repeat a number of tensors in turn, each record with an id of its own.

    Args:
        distinct: how many tensors.
        seed: of the tensors.
    """

    def __init__(self, distinct: int, seed: int | None = None) -> None:
        now = datetime.now(UTC).timestamp()
        self._templates = [
            build_record(NO_ID, MODEL, {"image": image}, now=now, model_version=None)
            for image in images(distinct, seed)
        ]

    def take(self, count: int) -> Iterator[RequestRecord]:
        """The next records, as the client library would have built each of them."""
        for number in range(count):
            yield with_fresh_id(self._templates[number % len(self._templates)])


def with_fresh_id(template: RequestRecord) -> RequestRecord:
    """A record that was built with `NO_ID`, with an id of its own in its place."""
    request_id = str(uuid7())
    placeholder, new = NO_ID.encode(), request_id.encode()
    headers = [(name, new if value == placeholder else value) for name, value in template.headers]
    return RequestRecord(request_id, template.key, template.value.replace(placeholder, new, 1), headers)


def digits_record() -> ModelRecord:
    """`digits` as its registration announces it, for benchmarks without servers."""
    signature = ModelSignature(
        inputs=(TensorSpec(name="image", datatype="FP32", dims=(64,)),),
        outputs=(
            TensorSpec(name="label", datatype="INT64", dims=(1,)),
            TensorSpec(name="probabilities", datatype="FP32", dims=(10,)),
        ),
        max_batch_size=64,
    )
    return model_record(MODEL, signature)


def model_record(model_name: str, signature: ModelSignature) -> ModelRecord:
    """A model with one version, effective since long ago."""
    version = ModelVersion(fingerprint="0" * 64, state="ready", signature=signature)
    return ModelRecord(
        model_name=model_name,
        versions={"1": version},
        default_version="1",
        effective_at=datetime(2020, 1, 1, tzinfo=UTC),
    )
