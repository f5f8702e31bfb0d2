"""Changes of parameters, the request's and its outputs', and of the outputs that are asked for."""

from collections.abc import Callable

from tests.fuzz.change import CHANGES, Change, change
from tests.fuzz.dice import Dice
from tests.fuzz.meaning import Layout, Meaning, draw_value
from tests.fuzz.values import PARAMETER_NAMES, Parameters, Value


def _one_more(parameters: Parameters, dice: Dice) -> Parameters | None:
    name = dice.pick(PARAMETER_NAMES)
    return None if name in parameters else {**parameters, name: draw_value(dice)}


def _one_less(parameters: Parameters, dice: Dice) -> Parameters | None:
    if not parameters:
        return None
    name = dice.pick([*parameters])
    return {other: value for other, value in parameters.items() if other != name}


def _other_type(value: Value) -> dict[str, Value]:
    """The value in all types that can be taken for it."""
    number = 1.0 if value == "true" else 0.0 if value in {"", "false"} else value
    if isinstance(number, str):
        try:
            number = float(number)
        except ValueError:
            return {"text": f"{value} "}
    whole = int(number) if number == int(number) and abs(number) < 2**63 else 0
    return {"integer": whole, "number": float(number), "boolean": bool(number), "text": str(value)}


def _retyped(parameters: Parameters, dice: Dice) -> Parameters | None:
    if not parameters:
        return None
    name = dice.pick([*parameters])
    return {**parameters, name: dice.pick([*_other_type(parameters[name]).values()])}


def _revalued(parameters: Parameters, dice: Dice) -> Parameters | None:
    return {**parameters, dice.pick([*parameters]): draw_value(dice)} if parameters else None


def _renamed(parameters: Parameters, dice: Dice) -> Parameters | None:
    less, name = _one_less(parameters, dice), dice.pick(PARAMETER_NAMES)
    if less is None or name in parameters:
        return None
    moved = next(value for other, value in parameters.items() if other not in less)
    return {**less, name: moved}


def _values_swapped(parameters: Parameters, dice: Dice) -> Parameters | None:
    if len(parameters) < 2:
        return None
    first, second = dice.sample([*parameters], 2)
    return {**parameters, first: parameters[second], second: parameters[first]}


def _border_moved(parameters: Parameters, dice: Dice) -> Parameters | None:
    """One character of a text goes over to its parameter's name: {"a": "bc"} to {"ab": "c"}."""
    texts = [(name, value) for name, value in parameters.items() if isinstance(value, str) and value]
    if not texts:
        return None
    name, value = dice.pick(texts)
    if name + value[0] in parameters:
        return None
    return {**{other: kept for other, kept in parameters.items() if other != name}, name + value[0]: value[1:]}


PARAMETER_CHANGES: dict[str, Callable[[Parameters, Dice], Parameters | None]] = {
    "one more": _one_more,
    "one less": _one_less,
    "renamed": _renamed,
    "value": _revalued,
    "type": _retyped,
    "values swapped": _values_swapped,
    "border of name and value": _border_moved,
}


def _of_request(turn: Callable[[Parameters, Dice], Parameters | None]) -> Change:
    def changed(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
        parameters = turn(meaning.parameters, dice)
        return None if parameters is None else meaning._replace(parameters=parameters)

    return changed


def _of_output(turn: Callable[[Parameters, Dice], Parameters | None]) -> Change:
    def changed(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
        at = dice.below(len(meaning.outputs))
        name, kept = meaning.outputs[at]
        other = turn(kept, dice)
        return None if other is None else _with_output(meaning, at, name, other)

    return changed


def _with_output(meaning: Meaning, at: int, name: str, kept: Parameters) -> Meaning:
    return meaning._replace(outputs=(*meaning.outputs[:at], (name, kept), *meaning.outputs[at + 1 :]))


for _name, _turn in PARAMETER_CHANGES.items():
    CHANGES[f"parameter: {_name}"] = _of_request(_turn)
    CHANGES[f"output's parameter: {_name}"] = _of_output(_turn)


@change
def parameter_moved_to_an_output(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    less = _one_less(meaning.parameters, dice)
    if less is None:
        return None
    at = dice.below(len(meaning.outputs))
    name, kept = meaning.outputs[at]
    moved = {other: value for other, value in meaning.parameters.items() if other not in less}
    return _with_output(meaning, at, name, {**kept, **moved})._replace(parameters=less)


@change
def outputs_in_another_order(meaning: Meaning, _: Layout, dice: Dice) -> Meaning:
    return meaning._replace(outputs=tuple(dice.shuffled(meaning.outputs)))


@change
def one_output_less(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    if len(meaning.outputs) < 2:
        return None
    at = dice.below(len(meaning.outputs))
    return meaning._replace(outputs=meaning.outputs[:at] + meaning.outputs[at + 1 :])


@change
def other_output(meaning: Meaning, layout: Layout, dice: Dice) -> Meaning | None:
    asked = {name for name, _ in meaning.outputs}
    left = [name for name in layout.outputs if name not in asked]
    if not left:
        return None
    if dice.chance(0.5):
        return meaning._replace(outputs=(*meaning.outputs, (dice.pick(left), {})))
    at = dice.below(len(meaning.outputs))
    return _with_output(meaning, at, dice.pick(left), meaning.outputs[at][1])


@change
def parameters_of_outputs_swapped(meaning: Meaning, _: Layout, dice: Dice) -> Meaning | None:
    if len(meaning.outputs) < 2:
        return None
    first, second = dice.below(len(meaning.outputs)), dice.below(len(meaning.outputs))
    (name, kept), (other, others) = meaning.outputs[first], meaning.outputs[second]
    return _with_output(_with_output(meaning, first, name, others), second, other, kept)
