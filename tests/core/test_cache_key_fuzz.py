"""The cache key under fuzzing: 100,000 pairs in every run, and proof that the fuzzer finds what could be wrong."""

from collections.abc import Callable, Sequence

import pytest
from blake3 import blake3

from pipeline.core.cache_key import (
    CacheScope,
    Outputs,
    cache_key,
    content_digest,
    encode_outputs,
    partition_key,
    request_digest,
)
from pipeline.core.catalog import ServedVersion
from schemas.request import BINARY_HEADER, UndecodableRecordError, decode_request
from schemas.tensor import Tensor, split_bytes_elements
from tests.core.reference_key import keys_of_vector
from tests.fuzz.change import CHANGES
from tests.fuzz.kept_keys import KeptKeys, meetings_in
from tests.fuzz.pairs import SPELT_TWICE, Keys, KeysOf, case_of, product_keys, run_cases
from tests.fuzz.processes import Outcome, Plan
from tests.fuzz.report import render
from tests.fuzz.spelling import TRAITS, raw_of
from tests.fuzz.values import EXPONENTS, SIZES, Parameters

SEED = 1
CASES = 50_000
# Enough for the rarest of the mistakes, ten times over.
CASES_TO_FIND = 5_000

Broken = Callable[[Sequence[Tensor]], list[Tensor]]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_keys_of_many_pairs_keep_promise() -> None:
    """In 100,000 pairs equal meanings have one key and others two; so do all 150,000 requests among each other.

    Every kind of change and every trait of a spelling is among them.
    """
    kept = KeptKeys()
    tally = run_cases(SEED, range(CASES), kept=kept)
    assert not tally.failures, "\n".join(map(str, tally.failures))
    assert tally.pairs == 2 * CASES
    assert len(kept) == 3 * CASES
    assert list(meetings_in([kept.rows()])) == []
    assert set(tally.changed) == set(CHANGES)
    assert min(tally.changed.values()) > 10
    assert all(any(bits >> place & 1 for bits in tally.spelt) for place in range(len(TRAITS)))


def test_spellings_say_what_is_meant() -> None:
    """A spelling, decoded, is the meaning it was made of: names, datatypes, shapes, bytes, parameters."""
    for number in range(1000):
        for side in case_of(SEED, number).sides:
            request = decode_request(side.record.value, side.record.headers)
            found = {one.to_tensor() for one in request.inputs}
            assert found == {
                Tensor(one.name, one.datatype, one.shape, raw_of(one)) for one in side.stated.meaning.inputs
            }
            for name, value in side.stated.meaning.parameters.items():
                assert repr(request.parameters[name]) == repr(value)


def test_reference_agrees_with_product() -> None:
    """The implementation that was written from docs/cache-key.md gives every key that the product gives."""
    for number in range(1000):
        for side in case_of(SEED, number).sides:
            meaning, record = side.stated.meaning, side.record
            if record.empty_tenant:
                continue
            lengths = [length for name, length in record.headers if name.lower() == BINARY_HEADER]
            found = keys_of_vector({
                "value_hex": record.value.hex(),
                "json_bytes": lengths[0].decode() if lengths else "",
                "version": meaning.version,
                "fingerprint": meaning.fingerprint,
                "model_outputs": [name for name, _ in meaning.outputs],
            })  # fmt: skip
            request = decode_request(record.value, record.headers)
            content = bytes.fromhex(found["content"])
            assert side.keys == Keys(bytes.fromhex(found["cache_key"]), found["partition_key"])
            assert request_digest(request, content) == found["request_digest"]


def test_case_is_made_again_from_its_number() -> None:
    """A case has the same records and keys whenever it is made; another number or seed gives others."""
    assert case_of(SEED, 77) == case_of(SEED, 77)
    records = {case_of(seed, number).sides[0].record.value for seed in (1, 2) for number in (77, 78)}
    assert len(records) == 4


def of_tensors(broken: Broken) -> KeysOf:
    """The product's keys of inputs that something was done to."""

    def keys_of(
        version: ServedVersion, tenant: str | None, tensors: Sequence[Tensor], parameters: Parameters, outputs: Outputs
    ) -> Keys:
        return product_keys(version, tenant, broken(tensors), parameters, outputs)

    return keys_of


def without_names(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Inputs in the order of their names, and no more of these."""
    return [one._replace(name=str(place)) for place, one in enumerate(sorted(tensors))]


def without_lengths(tensors: Sequence[Tensor]) -> list[Tensor]:
    """BYTES joined without the lengths of their elements."""
    return [
        one._replace(raw=b"".join(split_bytes_elements(one.name, one.raw))) if one.datatype == "BYTES" else one
        for one in tensors
    ]


def with_elements(turn: Callable[[bytes, int], bytes]) -> KeysOf:
    """The product's keys where each floating-point element is turned, given its bytes and its exponent's bits."""

    def turned(one: Tensor) -> Tensor:
        if one.datatype not in EXPONENTS:
            return one
        size = SIZES[one.datatype]
        parts = [turn(one.raw[at : at + size], EXPONENTS[one.datatype]) for at in range(0, len(one.raw), size)]
        return one._replace(raw=b"".join(parts))

    return of_tensors(lambda tensors: [turned(one) for one in tensors])


def zero_without_sign(element: bytes, _: int) -> bytes:
    """-0.0 made 0.0."""
    return bytes(len(element)) if not any(element[:-1]) and element[-1] == 0x80 else element


def denormal_as_zero(element: bytes, exponent: int) -> bytes:
    """A denormal made 0.0."""
    return element if int.from_bytes(element, "little") & exponent else element[:-1] + bytes([element[-1] & 0x80])


def nan_without_payload(element: bytes, exponent: int) -> bytes:
    """Every NaN made the same."""
    bits = int.from_bytes(element, "little")
    is_nan = bits & exponent == exponent and bits & ((exponent & -exponent) - 1)
    return (exponent | (exponent & -exponent) >> 1).to_bytes(len(element), "little") if is_nan else element


def types_merged(
    version: ServedVersion, tenant: str | None, tensors: Sequence[Tensor], parameters: Parameters, outputs: Outputs
) -> Keys:
    """1, 1.0 and true are one parameter."""
    merged = {name: value if isinstance(value, str) else float(value) for name, value in parameters.items()}
    return product_keys(version, tenant, tensors, merged, outputs)


def values_as_text(
    version: ServedVersion, tenant: str | None, tensors: Sequence[Tensor], parameters: Parameters, outputs: Outputs
) -> Keys:
    """1 and "1" are one parameter."""
    return product_keys(version, tenant, tensors, {name: str(value) for name, value in parameters.items()}, outputs)


def outputs_sorted(
    version: ServedVersion, tenant: str | None, tensors: Sequence[Tensor], parameters: Parameters, outputs: Outputs
) -> Keys:
    """The order of outputs is left out."""
    return product_keys(version, tenant, tensors, parameters, sorted(outputs, key=lambda output: output[0]))


def outputs_without_parameters(
    version: ServedVersion, tenant: str | None, tensors: Sequence[Tensor], parameters: Parameters, outputs: Outputs
) -> Keys:
    """Parameters of outputs are left out."""
    return product_keys(version, tenant, tensors, parameters, [(name, {}) for name, _ in outputs])


def in_scope(scope_of: Callable[[ServedVersion, str | None], CacheScope]) -> KeysOf:
    """The product's keys with another scope."""

    def keys_of(
        version: ServedVersion, tenant: str | None, tensors: Sequence[Tensor], parameters: Parameters, outputs: Outputs
    ) -> Keys:
        content = content_digest(tensors, parameters)
        key = cache_key(scope_of(version, tenant), content, encode_outputs(outputs))
        return Keys(key, partition_key(tenant, version.model_name, content))

    return keys_of


def with_more(told: Callable[[Sequence[Tensor], Parameters], list[str]]) -> KeysOf:
    """The product's keys, and something in them that should not be there."""

    def keys_of(
        version: ServedVersion, tenant: str | None, tensors: Sequence[Tensor], parameters: Parameters, outputs: Outputs
    ) -> Keys:
        keys = product_keys(version, tenant, tensors, parameters, outputs)
        return keys._replace(cache=blake3(keys.cache + repr(told(tensors, parameters)).encode()).digest())

    return keys_of


def partition_by_version(
    version: ServedVersion, tenant: str | None, tensors: Sequence[Tensor], parameters: Parameters, outputs: Outputs
) -> Keys:
    """The record key knows the version."""
    keys = product_keys(version, tenant, tensors, parameters, outputs)
    return keys._replace(partition=keys.partition + version.version)


def partition_without_tenant(
    version: ServedVersion, _: str | None, tensors: Sequence[Tensor], parameters: Parameters, outputs: Outputs
) -> Keys:
    """The record key does not know the tenant."""
    keys = product_keys(version, _, tensors, parameters, outputs)
    return keys._replace(partition=partition_key(None, version.model_name, content_digest(tensors, parameters)))


# A mistake, and what the fuzzer says of it.
ONE_KEY, TWO_KEYS = "two meanings have one key", "one meaning has two keys"
MISTAKES: dict[str, tuple[KeysOf, str]] = {
    "shape left out": (of_tensors(lambda tensors: [one._replace(shape=()) for one in tensors]), ONE_KEY),
    "datatype left out": (of_tensors(lambda tensors: [one._replace(datatype="") for one in tensors]), ONE_KEY),
    "names of inputs left out": (of_tensors(without_names), ONE_KEY),
    "inputs by the first alone": (of_tensors(lambda tensors: sorted(tensors)[:1]), ONE_KEY),
    "BYTES joined without lengths": (of_tensors(without_lengths), ONE_KEY),
    "-0.0 as 0.0": (with_elements(zero_without_sign), ONE_KEY),
    "denormals as zero": (with_elements(denormal_as_zero), ONE_KEY),
    "NaNs without payload": (with_elements(nan_without_payload), ONE_KEY),
    "1, 1.0 and true are one": (types_merged, ONE_KEY),
    '1 and "1" are one': (values_as_text, ONE_KEY),
    "outputs sorted": (outputs_sorted, ONE_KEY),
    "outputs without parameters": (outputs_without_parameters, ONE_KEY),
    "no border of tenant and model": (
        in_scope(lambda one, tenant: CacheScope("", (tenant or "") + one.model_name, one.version, one.fingerprint)),
        ONE_KEY,
    ),
    "no tenant is the empty one": (
        in_scope(lambda one, tenant: CacheScope(tenant or "", one.model_name, one.version, one.fingerprint)),
        ONE_KEY,
    ),
    "no border of version and fingerprint": (
        in_scope(lambda one, tenant: CacheScope(tenant, one.model_name, "", one.version + one.fingerprint)),
        ONE_KEY,
    ),
    "fingerprint left out": (
        in_scope(lambda one, tenant: CacheScope(tenant, one.model_name, one.version, "")),
        ONE_KEY,
    ),
    "inputs not sorted": (with_more(lambda tensors, _: [one.name for one in tensors]), TWO_KEYS),
    "parameters not sorted": (with_more(lambda _, parameters: [*parameters]), TWO_KEYS),
    "version in the record key": (partition_by_version, "one content has two partition keys"),
    "tenant not in the record key": (partition_without_tenant, "two contents have one partition key"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_fuzzer_finds_mistake_in_key(mistake: str) -> None:
    """A key with this mistake fails within some thousand pairs, and the failure says what to run again."""
    keys_of, expected = MISTAKES[mistake]
    tally = run_cases(SEED, range(CASES_TO_FIND), keys_of)
    assert {failure.what for failure in tally.failures} == {expected}
    failure = tally.failures[0]
    assert (failure.kind == SPELT_TWICE) is (expected == TWO_KEYS)
    assert f"--seed {SEED} --first {2 * failure.case} --pairs 2" in str(failure)
    again = run_cases(SEED, range(failure.case, failure.case + 1), keys_of)
    assert [str(one) for one in again.failures] == [str(failure)]


def test_refused_request_is_a_failure() -> None:
    """A record that the product refuses is not passed over: every meaning here is a valid request."""

    def refusing(_: Sequence[Tensor]) -> list[Tensor]:
        raise UndecodableRecordError("NOT_JSON", "the record is not JSON")

    tally = run_cases(SEED, range(32), of_tensors(refusing))
    assert {failure.what for failure in tally.failures} == {"a request that is valid was refused"}
    assert "refused: the record is not JSON" in str(tally.failures[0])


def test_meetings_anywhere_in_a_run_are_found() -> None:
    """Two meanings with one key are found though they are in no pair, and so is one meaning with two keys."""
    first, second = KeptKeys(), KeptKeys()
    for key, meaning in ((b"a", 1), (b"b", 2), (b"a", 1)):
        first.note(key.ljust(32), meaning)
    for key, meaning in ((b"c", 3), (b"b", 4), (b"d", 1)):
        second.note(key.ljust(32), meaning)
    found = {tuple(one) for one in meetings_in([first.rows(), second.rows()])}
    assert found == {(1, 4, ONE_KEY), (2, 5, TWO_KEYS)}


def test_short_keys_meet_in_a_run() -> None:
    """Keys of 16 bits hold in most pairs; among all keys of the run they are found to meet."""

    def short(
        version: ServedVersion, tenant: str | None, tensors: Sequence[Tensor], parameters: Parameters, outputs: Outputs
    ) -> Keys:
        keys = product_keys(version, tenant, tensors, parameters, outputs)
        return keys._replace(cache=keys.cache[:2])

    kept = KeptKeys()
    tally = run_cases(SEED, range(1000), short, kept=kept)
    assert not tally.failures
    assert next(meetings_in([kept.rows()])).what == ONE_KEY


def test_report_says_what_was_run() -> None:
    """The report has the counts, the command and the verdict; a failure stands in it in full."""
    plan = Plan(seed=SEED, cases=range(200), processes=1, keys_max=1000)
    whole = Outcome(run_cases(SEED, plan.cases), keys_kept=600, seconds=2.0)
    text = render(plan, whole, machine="a machine", command="a command", date="today")
    assert "| pairs | 400: 200 of one meaning, 200 of two |" in text
    assert "**everything held**" in text
    assert "incomplete" in render(plan._replace(cases=range(201)), whole, machine="", command="", date="")
    broken = Outcome(run_cases(SEED, plan.cases, MISTAKES["shape left out"][0]), seconds=1.0)
    text = render(plan, broken, machine="a machine", command="a command", date="today")
    assert "**BROKEN**" in text
    assert str(broken.tally.failures[0]) in text
