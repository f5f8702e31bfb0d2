"""Changes of inputs: their names, datatypes, shapes and bytes."""

from collections.abc import Callable

from tests.fuzz.change import change
from tests.fuzz.dice import Dice
from tests.fuzz.meaning import Input, Layout, Meaning, draw_element, draw_input
from tests.fuzz.spelling import raw_of
from tests.fuzz.values import DATATYPES, EXPONENTS, NAMES, PLAIN, RANK_MAX, SHAPES, SIZES

_LOOKED_AT_MAX = 16


def _with_input(meaning: Meaning, at: int, one: Input) -> Meaning:
    return meaning._replace(inputs=(*meaning.inputs[:at], one, *meaning.inputs[at + 1 :]))


@change
def input_renamed(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    at = dice.below(len(meaning.inputs))
    name = meaning.inputs[at].name
    other = dice.pick((dice.pick(NAMES), name + "\0", name + " ", name.swapcase(), name[:-1], name[1:]))
    if not other or other in {one.name for one in meaning.inputs}:
        return None
    return _with_input(meaning, at, meaning.inputs[at]._replace(name=other))


@change
def names_of_inputs_swapped(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    if len(meaning.inputs) < 2:
        return None
    first, second, *others = dice.shuffled(meaning.inputs)
    return meaning._replace(inputs=(first._replace(name=second.name), second._replace(name=first.name), *others))


@change
def one_input_less(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    if len(meaning.inputs) < 2:
        return None
    at = dice.below(len(meaning.inputs))
    return meaning._replace(inputs=meaning.inputs[:at] + meaning.inputs[at + 1 :])


@change
def one_input_more(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    name = dice.pick(NAMES)
    if name in {one.name for one in meaning.inputs}:
        return None
    one = draw_input(name, dice.pick(DATATYPES), dice.below(len(SHAPES)), dice)
    if dice.chance(0.3):
        one = one._replace(shape=(0,), elements=())  # not even a byte more
    return meaning._replace(inputs=(*meaning.inputs, one))


@change
def datatype_of_same_bytes(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    at = dice.below(len(meaning.inputs))
    one = meaning.inputs[at]
    if one.datatype == "BYTES":
        raw = raw_of(one)
        elements = tuple([raw[place : place + 1] for place in range(len(raw))])
        return _with_input(meaning, at, Input(one.name, "UINT8", (len(raw),), elements))
    same_size = [other for other, size in SIZES.items() if size == SIZES[one.datatype]]
    return _with_input(meaning, at, one._replace(datatype=dice.pick(same_size)))


@change
def shape_of_same_bytes(meaning: Meaning, _: Layout, dice: Dice) -> Meaning:
    at = dice.below(len(meaning.inputs))
    one = meaning.inputs[at]
    shape = one.shape
    shapes = [(*shape, 1), (1, *shape), (*shape, *(1,) * (RANK_MAX - len(shape))), shape[::-1], (len(one.elements),)]
    if 0 in shape:
        shapes += [(0,), tuple([size + (size > 0) for size in shape]), (0,) * (len(shape) + 1)]
    if 1 in shape:
        shapes.append(shape[: shape.index(1)] + shape[shape.index(1) + 1 :])
    return _with_input(meaning, at, one._replace(shape=dice.pick(shapes)))


def _with_element(meaning: Meaning, dice: Dice, turn: Callable[[str, bytes], bytes | None]) -> Meaning | None:
    """Another element in the place of one of those that can be turned."""
    at = dice.below(len(meaning.inputs))
    one = meaning.inputs[at]
    # From any element on, for a few: a denormal or a NaN is rare, and a large tensor long.
    start, count = dice.below(len(one.elements) or 1), len(one.elements)
    for place in range(start, start + min(count, _LOOKED_AT_MAX)):
        other = turn(one.datatype, one.elements[place % count])
        if other is not None:
            elements = list(one.elements)
            elements[place % count] = other
            return _with_input(meaning, at, one._replace(elements=tuple(elements)))
    return None


@change
def one_bit(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    def turn(_: str, element: bytes) -> bytes | None:
        if not element:
            return None
        flipped = int.from_bytes(element, "little") ^ 1 << dice.below(8 * len(element))
        return flipped.to_bytes(len(element), "little")

    return _with_element(meaning, dice, turn)


@change
def other_element(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    return _with_element(meaning, dice, lambda datatype, _: draw_element(datatype, PLAIN[datatype], dice))


@change
def sign_of_a_zero(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    def turn(datatype: str, element: bytes) -> bytes | None:
        if datatype not in EXPONENTS or any(element[:-1]) or element[-1] not in {0, 0x80}:
            return None
        return element[:-1] + bytes([element[-1] ^ 0x80])

    return _with_element(meaning, dice, turn)


@change
def payload_of_a_NaN(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    def turn(datatype: str, element: bytes) -> bytes | None:
        bits, exponent = int.from_bytes(element, "little"), EXPONENTS.get(datatype, 0)
        mantissa = (exponent & -exponent) - 1
        if not exponent or bits & exponent != exponent or not bits & mantissa:
            return None
        other = bits & ~mantissa | 1 + dice.below(mantissa)
        return other.to_bytes(len(element), "little")

    return _with_element(meaning, dice, turn)


@change
def denormal_as_zero(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    def turn(datatype: str, element: bytes) -> bytes | None:
        bits, exponent = int.from_bytes(element, "little"), EXPONENTS.get(datatype, 0)
        mantissa = (exponent & -exponent) - 1
        if not exponent or bits & exponent or not bits & mantissa:
            return None
        return (bits & ~mantissa).to_bytes(len(element), "little")

    return _with_element(meaning, dice, turn)


@change
def two_elements_swapped(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    at = dice.below(len(meaning.inputs))
    elements = list(meaning.inputs[at].elements)
    if len(elements) < 2:
        return None
    first, second = dice.below(len(elements)), dice.below(len(elements))
    elements[first], elements[second] = elements[second], elements[first]
    return _with_input(meaning, at, meaning.inputs[at]._replace(elements=tuple(elements)))


@change
def element_moved_to_another_input(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    if len(meaning.inputs) < 2:
        return None
    giver, taker, *others = dice.shuffled(meaning.inputs)
    if giver.datatype != taker.datatype or len(giver.shape) != 1 or len(taker.shape) != 1 or not giver.elements:
        return None
    given, taken = giver.elements[:-1], (giver.elements[-1], *taker.elements)
    less = giver._replace(shape=(len(given),), elements=given)
    return meaning._replace(inputs=(less, taker._replace(shape=(len(taken),), elements=taken), *others))


@change
def zero_byte_in_a_string(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    def turn(datatype: str, element: bytes) -> bytes | None:
        if datatype != "BYTES":
            return None
        if element.endswith(b"\0") and dice.chance(0.5):
            return element[:-1]
        return dice.pick((element + b"\0", b"\0" + element))

    return _with_element(meaning, dice, turn)


@change
def border_of_two_strings(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    at = dice.below(len(meaning.inputs))
    one = meaning.inputs[at]
    if one.datatype != "BYTES" or len(one.elements) < 2:
        return None
    place = dice.below(len(one.elements) - 1)
    joined = one.elements[place] + one.elements[place + 1]
    cut = dice.below(len(joined) + 1)
    elements = (*one.elements[:place], joined[:cut], joined[cut:], *one.elements[place + 2 :])
    return _with_input(meaning, at, one._replace(elements=elements))


@change
def string_in_two_parts(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    at = dice.below(len(meaning.inputs))
    one = meaning.inputs[at]
    if one.datatype != "BYTES" or len(one.shape) != 1 or not one.elements:
        return None
    *others, last = one.elements
    cut = dice.below(len(last) + 1)
    elements = (*others, last[:cut], last[cut:])
    return _with_input(meaning, at, one._replace(shape=(len(elements),), elements=elements))
