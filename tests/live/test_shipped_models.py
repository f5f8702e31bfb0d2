"""The models that come with the project, asked with the library for producers."""

from typing import Any

import numpy as np
import pytest

from pipeline.client import Client, outputs_as_numpy
from schemas.result import OutputTensor
from schemas.tensor import to_numpy
from tests.live.asking import Asking
from tests.models.folders import MODEL_REPOSITORY, read_sample


@pytest.mark.parametrize("model_name", ["digits", "sentences"])
async def test_sample_request_gets_its_expected_answer(asking: Asking, model_name: str) -> None:
    """The sample beside each model is answered as it says, through the whole pipeline."""
    sample = read_sample(MODEL_REPOSITORY / model_name)
    expected = {output["name"]: to_numpy(OutputTensor(**output).to_tensor()) for output in sample["outputs"]}
    request: dict[str, Any] = {
        name: sample[name] for name in ("model_name", "model_version", "inputs") if name in sample
    }
    answer = await asking.ask(request)
    assert answer.status == "succeeded", answer.message
    found = outputs_as_numpy(answer.result)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-3, atol=1e-4)


async def test_client_asks_and_meets_the_cache(asking: Asking) -> None:
    """`Client.infer` gets a model's answer; the same pixels again are a hit, another version is not."""
    pixels = np.random.default_rng(7).integers(0, 17, (3, 64)).astype(np.float32)
    async with Client.from_settings(asking.settings) as client:
        first = await client.infer("digits", {"image": pixels})
        again = await client.infer("digits", {"image": pixels})
        older = await client.infer("digits", {"image": pixels}, model_version=1)
    assert (first.model_version, older.model_version) == ("2", "1")
    statuses = [result.parameters.cache_status for result in (first, again, older)]
    assert statuses == ["miss", "hit", "miss"]
    assert first.output("label").shape == (3, 1)
    assert first.output("label").raw == again.output("label").raw
