"""Parameters: which reach the model, which steer the server, which a client may not set."""

from typing import Any

import pytest
from hypothesis import given

from pipeline.core.parameters import (
    SortedParameters,
    check_input_parameters,
    kept_output_parameters,
    sort_parameters,
)
from schemas.errors import ErrorCode, WireError
from schemas.request import InputTensor, RequestedOutput
from tests.schemas.records import FAST, PARAMETERS


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, SortedParameters({}, {}, False)),
        ({"beam": 4, "text": "1"}, SortedParameters({"beam": 4, "text": "1"}, {}, False)),
        ({"binary_data_output": True, "binary_x": 1}, SortedParameters({}, {}, False)),
        ({"priority": 1, "timeout": 5}, SortedParameters({}, {"priority": 1, "timeout": 5}, False)),
        ({"sequence_id": 7}, SortedParameters({}, {"sequence_id": 7}, True)),
        ({"sequence_start": True, "a": 0}, SortedParameters({"a": 0}, {"sequence_start": True}, True)),
        ({"Priority": 1, "header": "x"}, SortedParameters({"Priority": 1, "header": "x"}, {}, False)),
        ({"my_triton_x": 1, "x_binary_": 2}, SortedParameters({"my_triton_x": 1, "x_binary_": 2}, {}, False)),
    ],
)
def test_parameters_sort_by_what_they_do(parameters: dict[str, Any], expected: SortedParameters) -> None:
    """Transport's are dropped, the server's go their own way, all others are keyed and reach the model."""
    assert sort_parameters(parameters) == expected


@pytest.mark.parametrize("name", ["shared_memory_region", "shared_memory_", "triton_enable_empty_final_response",
                                  "headers"])  # fmt: skip
def test_forbidden_parameters_are_refused_by_name(name: str) -> None:
    """Shared memory, forwarded headers and Triton's own switches are not a client's to set."""
    with pytest.raises(WireError) as caught:
        sort_parameters({"beam": 1, name: "x"})
    assert (caught.value.code, caught.value.message) == (
        ErrorCode.INVALID_REQUEST,
        f"parameters.{name}: not allowed from a client, got 'x'",
    )


@pytest.mark.parametrize("name", ["priority", "timeout"])
@pytest.mark.parametrize("value", ["high", 1.0, True, -1])
def test_server_arguments_need_whole_numbers(name: str, value: Any) -> None:
    """What becomes an argument of Triton's own is checked where it can still be named."""
    with pytest.raises(WireError) as caught:
        sort_parameters({name: value})
    assert caught.value.message == f"parameters.{name}: needs an integer of 0 or more, got {value!r}"


def _has_a_rule(name: str) -> bool:
    return name in {"headers", "priority", "timeout"} or name.startswith(("shared_memory_", "triton_"))


@FAST
@given(PARAMETERS.filter(lambda parameters: not any(map(_has_a_rule, parameters))))
def test_no_parameter_is_lost_or_changed(parameters: dict[str, Any]) -> None:
    """What is not transport's is found again with its value and its type."""
    found = sort_parameters(parameters)
    kept = {name: value for name, value in parameters.items() if not name.startswith("binary_")}
    both = {**found.keyed, **found.server}
    assert {name: (type(value), value) for name, value in both.items()} == {
        name: (type(value), value) for name, value in kept.items()
    }


def test_input_parameters_are_transport_only() -> None:
    """An input may say how many bytes it has behind the JSON, and nothing else."""
    tensor = {"name": "x", "datatype": "INT8", "shape": [0], "data": []}
    check_input_parameters(InputTensor.model_validate({**tensor, "parameters": {"binary_data_size": 1}}))
    with pytest.raises(WireError) as caught:
        check_input_parameters(InputTensor.model_validate({**tensor, "parameters": {"shared_memory_region": "r"}}))
    assert (caught.value.code, caught.value.message) == (
        ErrorCode.INVALID_REQUEST,
        "inputs: parameter 'shared_memory_region' of 'x' is not supported",
    )


def test_output_parameters_lose_transport() -> None:
    """An output's parameters reach the server without those of transport; shared memory is refused."""
    output = RequestedOutput(name="y", parameters={"binary_data": True, "classification": 3})
    assert kept_output_parameters(output) == {"classification": 3}
    with pytest.raises(WireError) as caught:
        kept_output_parameters(RequestedOutput(name="y", parameters={"shared_memory_region": "r"}))
    assert (caught.value.code, caught.value.message) == (
        ErrorCode.INVALID_REQUEST,
        "outputs: parameter 'shared_memory_region' of 'y' is not allowed",
    )
