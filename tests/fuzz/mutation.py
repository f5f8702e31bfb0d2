"""A meaning changed so that the answer may be another one, and the key must be."""

import tests.fuzz.parameter_changes
import tests.fuzz.tensor_changes  # noqa: F401 - both add to the list of changes
from tests.fuzz.change import CHANGES, change
from tests.fuzz.dice import Dice
from tests.fuzz.meaning import Layout, Meaning, Stated, stated
from tests.fuzz.values import MODELS, TENANTS, VERSIONS


@change
def other_tenant(meaning: Meaning, _: Layout, dice: Dice) -> Meaning:
    return meaning._replace(tenant=dice.pick(TENANTS))


@change
def border_of_tenant_and_model(meaning: Meaning, _: Layout, __: Dice) -> Meaning | None:
    if len(meaning.tenant or "") > 1 and len(meaning.model) < 256:
        assert meaning.tenant is not None
        return meaning._replace(tenant=meaning.tenant[:-1], model=meaning.tenant[-1] + meaning.model)
    if len(meaning.model) > 1 and len(meaning.tenant or "") < 128:
        return meaning._replace(tenant=(meaning.tenant or "") + meaning.model[0], model=meaning.model[1:])
    return None


@change
def other_model(meaning: Meaning, _: Layout, dice: Dice) -> Meaning:
    return meaning._replace(model=dice.pick(MODELS))


@change
def other_version(meaning: Meaning, _: Layout, dice: Dice) -> Meaning:
    return meaning._replace(version=dice.pick(VERSIONS))


@change
def border_of_model_and_version(meaning: Meaning, _: Layout, __: Dice) -> Meaning | None:
    if len(meaning.model) > 255:
        return None
    return meaning._replace(model=meaning.model + meaning.version[0], version=meaning.version[1:])


@change
def border_of_version_and_fingerprint(meaning: Meaning, _: Layout, __: Dice) -> Meaning:
    return meaning._replace(version=meaning.version + meaning.fingerprint[0], fingerprint=meaning.fingerprint[1:])


@change
def other_fingerprint(meaning: Meaning, _: Layout, dice: Dice) -> Meaning:
    at = dice.below(len(meaning.fingerprint))
    digit = dice.pick("0123456789abcdef")
    return meaning._replace(fingerprint=meaning.fingerprint[:at] + digit + meaning.fingerprint[at + 1 :])


_KINDS = tuple(CHANGES)


def mutate(one: Stated, layout: Layout, dice: Dice) -> tuple[str, Stated]:
    """A meaning that differs, and the kind of the difference.

    Args:
        one: what is changed.
        layout: of its model.
        dice: decides what, and how.
    """
    while True:
        kind = dice.pick(_KINDS)
        changed = CHANGES[kind](one.meaning, layout, dice)
        if changed is not None:
            other = stated(changed)
            if other.identity != one.identity:
                return kind, other
