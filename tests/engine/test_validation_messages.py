"""What does not fit the model is refused before it costs a call, in words that say what to change."""

from typing import Any

import pytest

from schemas.registry import ModelRecord, ModelSignature, ModelVersion, TensorSpec
from tests.simulation.system import MODEL, code_of, make_system, model_record, request
from tests.simulation.virtual_time import simulated


def tensor(**changes: Any) -> dict[str, Any]:
    """The fake model's input, with members changed."""
    return {"name": "x", "datatype": "INT32", "shape": [1, 2], "data": [1, 2], **changes}


@pytest.mark.parametrize(
    ("members", "code", "words"),
    [
        ({"inputs": [tensor(name="z")]}, "INVALID_INPUT", ["'z'", "no input", "expected x"]),
        ({"inputs": [tensor(datatype="FP32")]}, "INVALID_INPUT", ["'x'", "FP32", "expects INT32"]),
        ({"inputs": [tensor(shape=[2])]}, "INVALID_INPUT", ["'x'", "[2]", "[1..8, any]"]),
        ({"inputs": [tensor(shape=[9, 1], data=[0] * 9)]}, "INVALID_INPUT", ["[9, 1]", "[1..8, any]"]),
        ({"inputs": [tensor(shape=[0, 2], data=[])]}, "INVALID_INPUT", ["[0, 2]", "[1..8, any]"]),
        ({"inputs": [tensor(shape=[1, 1, 2])]}, "INVALID_INPUT", ["[1, 1, 2]"]),
        ({"inputs": [tensor(data=[1])]}, "INVALID_INPUT", ["'x'", "1 elements", "[1, 2]", "2"]),
        ({"inputs": [tensor(data=[1, 2.5])]}, "INVALID_INPUT", ["'x'", "data[1]", "INT32"]),
        ({"inputs": [tensor(data=[1, 2**31])]}, "INVALID_INPUT", ["'x'", "data[1]", str(2**31), "INT32"]),
        ({"inputs": [tensor(data=[1, "2"])]}, "INVALID_INPUT", ["'x'", "a string", "integers"]),
        ({"inputs": [tensor(), tensor()]}, "INVALID_INPUT", ["'x'", "twice"]),
        ({"outputs": [{"name": "z"}]}, "INVALID_REQUEST", ["outputs", "'z'", "expected some of y, text"]),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "INVALID_REQUEST", ["outputs", "'y'", "twice"]),
        ({"inputs": [tensor(parameters={"k": 1})]}, "INVALID_REQUEST", ["'k'", "'x'"]),
        ({"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]}, "INVALID_REQUEST",
         ["shared_memory_region", "'y'"]),
        ({"parameters": {"shared_memory_region": "r"}}, "INVALID_REQUEST", ["parameters.shared_memory_region", "'r'"]),
        ({"parameters": {"headers": "h"}}, "INVALID_REQUEST", ["parameters.headers"]),
        ({"parameters": {"triton_enable_empty_final_response": True}}, "INVALID_REQUEST", ["parameters.triton_"]),
        ({"cache_control": "max-age=soon"}, "INVALID_REQUEST", ["cache_control", "max-age", "'soon'"]),
        ({"cache_control": "max-age=-1"}, "INVALID_REQUEST", ["cache_control", "'-1'"]),
        ({"model_name": "absent"}, "MODEL_NOT_FOUND", ["model_name", "'absent'", MODEL]),
        ({"model_version": "9"}, "VERSION_NOT_FOUND", ["model_version", "'9'", "served: 1"]),
    ],
)  # fmt: skip
@simulated
async def test_refusal_names_field_value_and_expectation(members: dict[str, Any], code: str, words: list[str]) -> None:
    """An invalid request costs no call; its message names the field, what it holds and what was expected."""
    system = make_system()
    answer = await system.ask(request(**members))
    assert code_of(answer) == code
    assert answer.failure is not None
    assert [word for word in words if word not in answer.failure.message] == [], answer.failure.message
    assert not answer.failure.retryable
    assert system.calls == 0
    assert system.engine.flights_running == 0


def _two_inputs() -> ModelRecord:
    inputs = (
        TensorSpec(name="a", datatype="INT32", dims=(2,)),
        TensorSpec(name="b", datatype="FP32", dims=(-1,), optional=True),
        TensorSpec(name="c", datatype="INT32", dims=(1,)),
    )
    signature = ModelSignature(inputs=inputs, outputs=(TensorSpec(name="y", datatype="INT64", dims=(2,)),))
    batched = signature.model_copy(update={"max_batch_size": 4})
    record = model_record({"1": "one"}, "1")
    return record.model_copy(
        update={"versions": {"1": ModelVersion(fingerprint="one", state="ready", signature=batched)}}
    )


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"a": [1, 2]}, ["'c'", "missing", "a, b, c"]),
        ({"a": [2, 2], "c": [1, 1]}, ["'c'", "1 rows", "2"]),
        ({"a": [1, 2], "b": [3, 1], "c": [1, 1]}, ["'b'", "3 rows"]),
        ({"a": [1, 3], "c": [1, 1]}, ["'a'", "[1, 3]", "[1..4, 2]"]),
    ],
)
@simulated
async def test_inputs_are_checked_together(shapes: dict[str, list[int]], words: list[str]) -> None:
    """Required inputs must be there, and all must have the same number of rows."""
    system = make_system()
    system.catalog.apply(_two_inputs())
    inputs = []
    for name, shape in shapes.items():
        datatype = "FP32" if name == "b" else "INT32"
        inputs.append({"name": name, "datatype": datatype, "shape": shape, "data": [0] * shape[0] * shape[1]})
    answer = await system.ask(request(inputs=inputs))
    assert code_of(answer) == "INVALID_INPUT"
    assert [word for word in words if word not in str(answer.failure)] == [], answer.failure


@simulated
async def test_remembered_layout_still_checks_data() -> None:
    """That a layout was accepted once says nothing about the data of the next request with it."""
    system = make_system()
    assert (await system.ask(request(inputs=[tensor()]))).status == "succeeded"
    assert code_of(await system.ask(request(inputs=[tensor(data=[1, 2.5])]))) == "INVALID_INPUT"
    assert code_of(await system.ask(request(inputs=[tensor(data=[1])]))) == "INVALID_INPUT"


@simulated
async def test_empty_tensor_is_an_answerable_request() -> None:
    """A dimension of zero is legal where the model takes any size."""
    system = make_system()
    answer = await system.ask(request(inputs=[tensor(shape=[1, 0], data=[])]))
    assert answer.status == "succeeded"
