"""A meaning written as a record, in one of the many ways that a producer might."""

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.fuzz.dice import Dice
from tests.fuzz.meaning import Input, Layout, Meaning
from tests.fuzz.numbers import NUMBER_STYLES, TEXT_STYLES, element_text, text_json, value_text
from tests.fuzz.values import Parameters

# What a spelling may have or not. Two spellings of a pair are told apart by it in the report.
TRAITS = (
    "tensors in binary", "tensors in binary and JSON", "nested data", "numbers in other forms", "strings with escapes",
    "white space", "members in another order", "members without a value", "outputs named", "version named",
    "members that are not keyed", "parameters of transport", "headers that say nothing", "more than 200 brackets",
)  # fmt: skip
(_BINARY, _MIXED, _NESTED, _NUMBERS, _ESCAPED, _SPACED, _SHUFFLED, _EMPTY, _OUTPUTS, _VERSION, _UNKEYED, _TRANSPORT,
 _HEADERS, _BRACKETS) = (1 << place for place in range(len(TRAITS)))  # fmt: skip
_BY_TENSOR = _BINARY | _MIXED
# The other traits are in one of four records.
_IN_EVERY_OTHER = _NESTED | _NUMBERS | _SHUFFLED | _OUTPUTS | _VERSION

_SPACES = ("", "", " ", "\n", "\t", "  \r\n ")
_LENGTH_HEADERS = (
    "Inference-Header-Content-Length", "inference-header-content-length", "INFERENCE-Header-content-LENGTH",
)  # fmt: skip
_SOME_HEADERS = (
    ("content-type", b"text/plain"), ("ce_id", b"a"), ("ce_type", b"inference.request.v1"), ("traceparent", b"00"),
    ("inference-header-content-lengths", b"1"), ("Inference_Header_Content_Length", b"x"),
)  # fmt: skip
_UNKEYED_MEMBERS = (
    ("id", '"r-1"'), ("id", '"0198f:x.Y_z"'), ("stream", "true"), ("stream", "false"), ("enable_cache", "false"),
    ("enable_cache", "true"), ("cache_control", '"no-cache"'), ("cache_control", '"max-age=60"'), ("timeout_ms", "0"),
    ("timeout_ms", "604800000"), ("requested_at", '"2026-11-22T22:00:00.123456Z"'), ("source_ip", '"203.0.113.7"'),
    ("source_ip", '"2001:db8::1"'), ("reply_to", '{"partition":3}'), ("callback", '{"url":"https://example.com/a"}'),
    ("reply_to", '{"topic":"inference.replies","partition":0}'),
)  # fmt: skip
# A record with more than 200 brackets is read by a second parser, `schemas/request.py`; in a string they count as well.
_BRACKETED = ("cache_control", f'"{"[{" * 101}"')
_NULL_MEMBERS = ("id", "cache_control", "timeout_ms", "requested_at", "source_ip", "reply_to", "callback")
_TRANSPORT_PARAMETERS = (
    ("binary_data_output", "true"), ("binary_data", "false"), ("binary_", '"x"'), ("priority", "3"), ("timeout", "0"),
)  # fmt: skip
_OUTPUT_TRANSPORT = (("binary_data", "true"), ("binary_data", "false"), ("binary_data_size", "1"))


class Record(NamedTuple):
    """A record as a producer might send it.

    Attributes:
        value: its bytes.
        headers: its headers.
        traits: which of `TRAITS` it has, one bit each.
        empty_tenant: the tenant is "". A record cannot say that; the key tells it from none all the same.
    """

    value: bytes
    headers: list[tuple[str, bytes]]
    traits: int
    empty_tenant: bool


def spell(meaning: Meaning, layout: Layout, dice: Dice) -> Record:
    """One way to write a meaning.

    Args:
        meaning: what to write.
        layout: of the model that is asked; its outputs need not be named.
        dice: decides how.
    """
    return _Spelling(dice).record(meaning, layout)


class _Spelling:
    """The manners of one record: chosen once, so that they meet in every combination."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._traits = dice.getrandbits(len(TRAITS)) & (dice.getrandbits(len(TRAITS)) | _IN_EVERY_OTHER) & ~_BY_TENSOR
        self._tail: list[bytes] = []
        self._comma, self._colon, self._edge = ",", ":", ""
        if self._has(_SPACED):
            before, after = dice.pick(_SPACES), dice.pick(_SPACES)
            self._comma, self._colon, self._edge = f"{before},{after}", f"{after}:{before}", dice.pick(_SPACES)
        self._shuffles = self._has(_SHUFFLED)
        self._escapes = self._has(_ESCAPED)
        # All tensors in JSON where that can be, all in binary, or each as it comes.
        form = dice.random()
        self._binary_share = 0.0 if form < 0.5 else 1.0 if form < 0.8 else 0.5

    def _has(self, trait: int) -> bool:
        return self._traits & trait != 0

    def record(self, meaning: Meaning, layout: Layout) -> Record:
        dice = self._dice
        members = [("model_name", self._text(meaning.model)), ("inputs", self._inputs(meaning.inputs))]
        if meaning.tenant:
            members.append(("tenant", self._text(meaning.tenant)))
        if meaning.parameters or self._has(_TRANSPORT | _EMPTY):
            members.append(("parameters", self._parameters(meaning.parameters, _TRANSPORT_PARAMETERS)))
        members += self._outputs(meaning, layout)
        if meaning.version.isdecimal() and len(meaning.version) <= 18 and self._has(_VERSION):
            members.append(("model_version", self._text(meaning.version)))
        if self._has(_UNKEYED):
            members += dict([dice.pick(_UNKEYED_MEMBERS) for _ in range(1 + dice.below(3))]).items()
        if self._has(_BRACKETS):
            members = [*(one for one in members if one[0] != "cache_control"), _BRACKETED]
        if self._has(_EMPTY):
            members += self._nothing({name for name, _ in members})
        value = (self._edge + self._object(members) + self._edge).encode()
        headers = [dice.pick(_SOME_HEADERS)] if self._has(_HEADERS) else []
        # The length says that the form is binary, also where no tensor is.
        if self._tail or dice.chance(0.05):
            headers.insert(dice.below(2), (dice.pick(_LENGTH_HEADERS), b"%d" % len(value)))
            value += b"".join(self._tail)
        return Record(value, headers, self._traits, empty_tenant=meaning.tenant == "")

    def _nothing(self, taken: set[str]) -> list[tuple[str, str]]:
        """A member without a value, which is as good as none."""
        name = self._dice.pick((*_NULL_MEMBERS, "tenant", "outputs", "model_version"))
        # `outputs` is not among the members only where all of them are asked for.
        return [] if name in taken else [(name, "null")]

    def _object(self, members: Sequence[tuple[str, str]]) -> str:
        if self._shuffles and len(members) > 1:
            members = self._dice.shuffled(members)
        style = self._dice.below(TEXT_STYLES) if self._escapes else 0
        colon = self._colon
        return f"{{{self._comma.join([text_json(name, style) + colon + text for name, text in members])}{self._edge}}}"

    def _list(self, parts: Sequence[str]) -> str:
        return f"[{self._edge}{self._comma.join(parts)}]"

    def _text(self, text: str) -> str:
        return text_json(text, self._dice.below(TEXT_STYLES) if self._escapes else 0)

    def _style(self) -> int:
        return self._dice.below(NUMBER_STYLES) if self._has(_NUMBERS) else 0

    def _parameters(self, parameters: Parameters, transport: Sequence[tuple[str, str]]) -> str:
        members = [(name, value_text(value, self._style())) for name, value in parameters.items()]
        if self._has(_TRANSPORT):
            members.append(self._dice.pick(transport))
        return self._object(members)

    def _outputs(self, meaning: Meaning, layout: Layout) -> list[tuple[str, str]]:
        """The member `outputs`; where all are asked for as they are, it may be absent or empty."""
        are_all = tuple(name for name, _ in meaning.outputs) == layout.outputs
        if not are_all or any(kept for _, kept in meaning.outputs):
            self._traits |= _OUTPUTS
        if not self._has(_OUTPUTS):
            return [("outputs", "[]")] if self._dice.chance(0.2) else []
        outputs = []
        for name, kept in meaning.outputs:
            members = [("name", self._text(name))]
            if kept or self._has(_TRANSPORT | _EMPTY):
                members.append(("parameters", self._parameters(kept, _OUTPUT_TRANSPORT)))
            outputs.append(self._object(members))
        return [("outputs", self._list(outputs))]

    def _inputs(self, inputs: Sequence[Input]) -> str:
        if self._shuffles and len(inputs) > 1:
            inputs = self._dice.shuffled(inputs)
        tensors = [self._tensor(one) for one in inputs]
        if self._tail:
            self._traits |= _BINARY if len(self._tail) == len(inputs) else _MIXED
        return self._list(tensors)

    def _tensor(self, one: Input) -> str:
        members = [
            ("name", self._text(one.name)),
            ("datatype", self._text(one.datatype)),
            ("shape", self._list([str(size) for size in one.shape])),
        ]
        texts = None if self._dice.random() < self._binary_share else self._elements(one)
        if texts is None:
            raw = raw_of(one)
            self._tail.append(raw)
            members.append(("parameters", self._object([("binary_data_size", str(len(raw)))])))
        else:
            members.append(("data", self._nested(texts, one.shape) if self._has(_NESTED) else self._list(texts)))
            if self._has(_EMPTY):
                members.append(("parameters", "{}"))
        return self._object(members)

    def _elements(self, one: Input) -> list[str] | None:
        """Each element as JSON; None where one of them needs the binary form, or all do by their datatype."""
        if one.datatype in {"FP16", "BF16"}:
            return None
        style: Callable[[], int] = self._style
        if one.datatype == "BYTES":
            style = (lambda: self._dice.below(TEXT_STYLES)) if self._escapes else (lambda: 0)
        texts = []
        for element in one.elements:
            text = element_text(one.datatype, element, style())
            if text is None:
                return None
            texts.append(text)
        return texts

    def _nested(self, texts: Sequence[str], shape: Sequence[int]) -> str:
        """Elements in lists nested as the shape says."""
        if len(shape) < 2:
            return self._list(texts)
        step = len(texts) // shape[0] if shape[0] else 0
        return self._list([self._nested(texts[row * step :][:step], shape[1:]) for row in range(shape[0])])


def raw_of(one: Input) -> bytes:
    """The tensor's bytes in the binary form."""
    if one.datatype == "BYTES":
        return b"".join([struct.pack("<I", len(element)) + element for element in one.elements])
    return b"".join(one.elements)
