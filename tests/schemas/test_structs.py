"""Structs derived from the pydantic models: what they take, the models take, with the same values."""

import json
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from schemas.decoded import DecodedCallback, DecodedInput, DecodedOutput, DecodedReplyTo, DecodedRequest
from schemas.errors import WireError
from schemas.request import (
    Callback,
    InferenceRequest,
    InputTensor,
    ReplyTo,
    RequestedOutput,
    _by_struct,
    decode_request,
)
from schemas.structs import derived
from tests.schemas.records import FAST, Record, body, hostile_records, members, minimal, requests

STRICT = ConfigDict(extra="forbid", strict=True)
STRUCT = derived(InferenceRequest)


def typed(value: Any) -> Any:
    """Returns a value told from equal ones of other types: 1 is not 1.0, 0.0 is not -0.0."""
    if isinstance(value, dict):
        return {name: typed(part) for name, part in value.items()}
    return [typed(part) for part in value] if isinstance(value, list) else (type(value), repr(value))


@settings(FAST, max_examples=400)
@given(hostile_records())
def test_structs_take_nothing_that_models_refuse(record: Record) -> None:
    """Of records broken anywhere, the struct takes only what the model takes, with the same values and types."""
    value, headers = record
    length = headers[0][1] if headers else b""
    text = value[: int(length)] if length.isdigit() and len(length) < 9 else value
    found = _by_struct(text)
    if found is None:
        return
    try:
        model = InferenceRequest.model_validate_json(text)
    except ValidationError as error:
        # The one thing that msgspec takes and pydantic's parser does not: `decode_request` counts brackets first.
        assert "recursion limit" in str(error)  # noqa: PT017 - the struct found no error
        return
    assert typed(members(found)) == typed(members(model))


@FAST
@given(requests())
def test_valid_requests_need_no_model(record: dict[str, Any]) -> None:
    """Whatever a producer may write is decoded by the struct: the slow way is for what is wrong."""
    assert _by_struct(body(record)) is not None


def test_struct_has_all_members_and_defaults() -> None:
    """Every member of the model is one of the struct's, with its default and the model's own methods."""
    assert set(STRUCT.struct.__struct_fields__) == set(InferenceRequest.model_fields)
    assert {name for name, _ in STRUCT.late} == {"requested_at", "source_ip"}
    request = decode_request(body(minimal()))
    kind: Any = type(request)
    assert kind is STRUCT.struct
    assert members(request) == InferenceRequest.model_validate(minimal()).model_dump()
    assert request.inputs[0].to_tensor() == InputTensor(**minimal()["inputs"][0]).to_tensor()


@pytest.mark.parametrize(
    ("read", "model"),
    [
        (DecodedRequest, InferenceRequest),
        (DecodedInput, InputTensor),
        (DecodedOutput, RequestedOutput),
        (DecodedReplyTo, ReplyTo),
        (DecodedCallback, Callback),
    ],
)
def test_annotations_have_what_models_and_structs_have(read: type, model: type[BaseModel]) -> None:
    """What the type of a decoded request promises is what both of its forms have, and all that they have."""
    promised = {name for name in vars(read) if not name.startswith("_")} | set(read.__annotations__)
    form = derived(model).struct
    assert {name for name in promised if name in form.__struct_fields__} == set(model.model_fields)
    assert all(
        callable(getattr(form, name)) and callable(getattr(model, name))
        for name in promised - set(form.__struct_fields__)
    )


@pytest.mark.parametrize("value", ["1\n", "1\r", "\n1"])
def test_patterns_end_where_the_text_ends(value: str) -> None:
    """A line feed behind a version is no version, though Python's `$` would let it pass."""
    assert _by_struct(body(minimal(model_version=value))) is None


def test_deep_nesting_is_left_to_the_model() -> None:
    """What only msgspec's parser could take apart never gets to whoever has to write it again."""
    value = body(minimal()).replace(b"[1.5]", b"[" * 500 + b"]" * 500)
    assert _by_struct(value) is not None
    with pytest.raises(WireError, match="nested over 200 levels"):
        decode_request(value)


class Lenient(BaseModel):
    """Takes unknown members."""

    name: str


class Checked(BaseModel):
    """Has a required member with a function of its own."""

    model_config = STRICT
    name: Annotated[str, AfterValidator(str.lower)]


class Outer(BaseModel):
    """Has a model inside that needs pydantic."""

    model_config = STRICT

    class Inner(BaseModel):
        """Has an optional member with a function of its own."""

        model_config = STRICT
        name: Annotated[str, AfterValidator(str.lower)] | None = None

    inner: Inner


class Limits(BaseModel):
    """Has a limit that msgspec knows not."""

    model_config = STRICT
    number: Annotated[float, Field(multiple_of=0.5)]


@pytest.mark.parametrize("model", [Lenient, Checked, Outer, Limits])
def test_models_that_structs_cannot_follow_are_refused(model: type[BaseModel]) -> None:
    """A model whose rules a struct would not keep has none: it fails when the module is imported, not at a request."""
    with pytest.raises(TypeError):
        derived(model)


def test_optional_member_with_a_function_is_checked_by_it() -> None:
    """A function of the model's own is called, and its refusal counts."""
    for text, taken in (("127.0.0.1", True), ("nonsense", False)):
        assert (_by_struct(json.dumps(minimal(source_ip=text)).encode()) is not None) is taken
