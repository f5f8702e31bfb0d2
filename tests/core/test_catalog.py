"""The catalog: whether a stored answer's version is still what the fleet serves."""

import pytest

from pipeline.core.cache_key import CacheScope
from pipeline.core.catalog import ModelCatalog
from schemas.registry import ModelRecord, ModelVersion, VersionState
from tests.simulation.system import MODEL, model_record

SCOPE = CacheScope("acme", MODEL, "1", "one")


def record(state: VersionState, fingerprint: str = "one") -> ModelRecord:
    """A record of the model in which its version 1 is in some state."""
    served = model_record({"1": fingerprint, "2": "two"}, "2")
    version = ModelVersion(fingerprint=fingerprint, state=state, signature=served.versions["1"].signature)
    return served.model_copy(update={"versions": {**served.versions, "1": version}})


@pytest.mark.parametrize(
    ("state", "serves"), [("ready", True), ("draining", True), ("unloaded", False), ("rejected", False)]
)
def test_scope_is_served_while_its_version_is(state: VersionState, serves: bool) -> None:
    """A version that may be asked is served, whoever's answers they are; one that may not is not."""
    catalog = ModelCatalog([record(state)])
    assert catalog.serves(SCOPE) is serves
    assert catalog.serves(CacheScope(None, MODEL, "1", "one")) is serves
    assert catalog.serves(CacheScope("acme", MODEL, "2", "two"))


def test_other_content_under_the_same_number_is_not_served() -> None:
    """The fingerprint counts: answers of earlier content are nobody's any more."""
    catalog = ModelCatalog([record("ready", "other")])
    assert not catalog.serves(SCOPE)
    assert catalog.serves(CacheScope("acme", MODEL, "1", "other"))


def test_unknown_models_and_versions_are_not_served() -> None:
    """A model that was deleted, a version that is not in the record, and what never was."""
    catalog = ModelCatalog([model_record({"2": "two"}, "2")])
    assert not catalog.serves(SCOPE)
    assert not catalog.serves(CacheScope("acme", "never", "1", "one"))
    catalog.apply(record("ready"))
    assert catalog.serves(SCOPE)
    catalog.discard(MODEL)
    assert not catalog.serves(SCOPE)
