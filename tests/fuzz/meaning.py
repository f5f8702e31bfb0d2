"""What a request means, in plain values: the oracle. Nothing of the product is used to say whether two are the same.

An element is its own bytes, so that 1 and 1.0 of FP32 are one value, 0.0 and -0.0 two, and BYTES keep their borders.
Two meanings are the same if their plain forms are written alike; that text has every type in it.
"""

from hashlib import blake2b
from typing import NamedTuple

from tests.fuzz.dice import Dice
from tests.fuzz.values import (
    DATATYPES,
    MODELS,
    NAMES,
    ODD,
    PARAMETER_NAMES,
    PLAIN,
    SHAPES,
    SIZES,
    TENANTS,
    VALUES,
    VERSIONS,
    Parameters,
    Value,
)

# One request in this many is large: longer than what the product digests in one piece (64 KiB).
_LARGE_ONE_IN = 16384
_LARGE_BYTES = 70_000


class Input(NamedTuple):
    """One input: its elements in row-major order, each as its little-endian bytes, of BYTES as they are."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: tuple[bytes, ...]


class Meaning(NamedTuple):
    """All that may change an answer.

    `outputs` are those that are computed, in that order, whether the record names them or not. Inputs and parameters
    are sets: their order here says nothing.
    """

    tenant: str | None
    model: str
    version: str
    fingerprint: str
    inputs: tuple[Input, ...]
    parameters: Parameters
    outputs: tuple[tuple[str, Parameters], ...]


class Layout(NamedTuple):
    """What the requests of a block have in common: the model that they ask.

    Attributes:
        inputs: name, datatype and rank of each.
        outputs: all that the model declares, in its order.
    """

    model: str
    version: str
    fingerprint: str
    inputs: tuple[tuple[str, str, int], ...]
    outputs: tuple[str, ...]


def _typed(parameters: Parameters) -> list[tuple[str, str, str]]:
    return sorted([(name, type(value).__name__, repr(value)) for name, value in parameters.items()])


class Stated(NamedTuple):
    """A meaning and its plain forms: two are the same if these are.

    Attributes:
        meaning: the request's.
        content: what a worker is chosen by: no version, no fingerprint, no outputs.
        identity: all of it.
    """

    meaning: Meaning
    content: str
    identity: str


def stated(meaning: Meaning) -> Stated:
    """A meaning, written out."""
    inputs = [tuple(one) for one in sorted(meaning.inputs)]
    content = repr((meaning.tenant, meaning.model, inputs, _typed(meaning.parameters) if meaning.parameters else ()))
    outputs = [(name, _typed(kept) if kept else ()) for name, kept in meaning.outputs]
    # Two tuples written one after the other are still two: the end of the first is not in doubt.
    return Stated(meaning, content, content + repr((meaning.version, meaning.fingerprint, outputs)))


def digest_of(identity: str) -> int:
    """64 bits of a meaning's text."""
    return int.from_bytes(blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def draw_layout(dice: Dice) -> Layout:
    """A model: one to three inputs of any kind, one to four outputs."""
    # One is likely and is not sorted, three are in six orders.
    inputs = [
        (name, dice.pick(DATATYPES), dice.below(len(SHAPES))) for name in _names(dice, dice.pick((1, 1, 1, 2, 2, 3)))
    ]
    if dice.chance(0.3):
        inputs = [(name, *inputs[0][1:]) for name, _, _ in inputs]
    outputs = _names(dice, dice.pick((1, 1, 2, 2, 3, 4)))
    return Layout(dice.pick(MODELS), dice.pick(VERSIONS), f"{dice.getrandbits(64):016x}", tuple(inputs), tuple(outputs))


def draw_meaning(layout: Layout, dice: Dice) -> Meaning:
    """A request to the layout's model."""
    inputs = tuple([draw_input(name, datatype, rank, dice) for name, datatype, rank in layout.inputs])
    if dice.below(_LARGE_ONE_IN) == 0:
        inputs = (_large(inputs[0], dice), *inputs[1:])
    return Meaning(
        tenant=dice.pick(TENANTS),
        model=layout.model,
        version=layout.version,
        fingerprint=layout.fingerprint,
        inputs=inputs,
        parameters=draw_parameters(dice),
        outputs=_draw_outputs(layout, dice),
    )


def draw_input(name: str, datatype: str, rank: int, dice: Dice) -> Input:
    """An input of 0 to 6 elements."""
    shape = dice.pick(SHAPES[rank])
    count = 1
    for size in shape:
        count *= size
    # One value that only the binary form carries decides for the whole tensor: most have none.
    elements = ODD[datatype] if dice.chance(0.1) else PLAIN[datatype]
    return Input(name, datatype, shape, tuple([draw_element(datatype, elements, dice) for _ in range(count)]))


def draw_element(datatype: str, likely: tuple[bytes, ...], dice: Dice) -> bytes:
    """One of the likely elements, or any bits; of BYTES, two of them in one."""
    if dice.chance(0.7):
        return dice.pick(likely)
    if datatype == "BYTES":
        return dice.pick(likely) + dice.pick(likely)
    if datatype == "BOOL":
        return dice.pick(PLAIN["BOOL"])
    return dice.getrandbits(8 * SIZES[datatype]).to_bytes(SIZES[datatype], "little")


def draw_parameters(dice: Dice) -> Parameters:
    """None in half of the requests, else up to three."""
    if dice.chance(0.5):
        return {}
    return {dice.pick(PARAMETER_NAMES): draw_value(dice) for _ in range(1 + dice.below(3))}


def draw_value(dice: Dice) -> Value:
    """A parameter's value."""
    return dice.pick(VALUES) if dice.chance(0.8) else dice.getrandbits(62)


def _draw_outputs(layout: Layout, dice: Dice) -> tuple[tuple[str, Parameters], ...]:
    names = list(layout.outputs)
    if dice.chance(0.4):
        dice.shuffle(names)
        names = names[: 1 + dice.below(len(names))]
    return tuple([(name, draw_parameters(dice) if dice.chance(0.1) else {}) for name in names])


def _names(dice: Dice, count: int) -> list[str]:
    return dice.sample(NAMES, count)


def _large(one: Input, dice: Dice) -> Input:
    """An input of the same name, datatype and rank with more bytes than are digested in one piece."""
    rank = len(one.shape)
    if one.datatype == "BYTES" or not rank:
        text = dice.pick(PLAIN["BYTES"])[:8] or b"x"
        filling = text * (_LARGE_BYTES // len(text)) if one.datatype == "BYTES" else one.elements[0]
        return one._replace(shape=(1,) * rank, elements=(filling,))
    count = _LARGE_BYTES // SIZES[one.datatype]
    few = tuple([draw_element(one.datatype, PLAIN[one.datatype], dice) for _ in range(16)])
    return one._replace(shape=(*(1,) * (rank - 1), count), elements=tuple(dice.choices(few, k=count)))
