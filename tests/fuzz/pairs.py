"""Pairs of requests through the product's own path: two spellings of one meaning, and two meanings.

A case is three records, from the seed and its number alone: a meaning spelt twice, and a change of it spelt once. That
is a pair of one key and a pair of two. 32 cases in a row ask one model, as it was announced once.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.core.cache_key import Outputs, cache_key, content_digest, encode_outputs, partition_key
from pipeline.core.catalog import ServedVersion, served_version
from pipeline.core.parameters import sort_parameters
from pipeline.core.validation import check_inputs, requested_outputs
from schemas.errors import WireError
from schemas.registry import ModelSignature, TensorSpec
from schemas.request import UndecodableRecordError, decode_request
from schemas.tensor import Tensor
from tests.fuzz.dice import Dice
from tests.fuzz.kept_keys import KeptKeys
from tests.fuzz.meaning import Layout, Meaning, Stated, digest_of, draw_layout, draw_meaning, stated
from tests.fuzz.mutation import mutate
from tests.fuzz.spelling import Record, spell
from tests.fuzz.values import Parameters

BLOCK_CASES = 32
PAIRS_PER_CASE = 2
RECORDS_PER_CASE = 3
SPELT_TWICE = "spelt twice"
FAILURES_MAX = 5


class Keys(NamedTuple):
    """What is compared: the cache key and the record key."""

    cache: bytes
    partition: str


# The version that answers, the tenant, the inputs in the record's order, the keyed parameters, the outputs to compute.
KeysOf = Callable[[ServedVersion, str | None, Sequence[Tensor], Parameters, Outputs], Keys]


def product_keys(
    version: ServedVersion, tenant: str | None, tensors: Sequence[Tensor], parameters: Parameters, outputs: Outputs
) -> Keys:
    """The keys as the engine and the producers make them."""
    content = content_digest(tensors, parameters)
    encoded = version.all_outputs_encoded if outputs is version.all_outputs else encode_outputs(outputs)
    key = cache_key(version.scope_of(tenant), content, encoded)
    return Keys(key, partition_key(tenant, version.model_name, content))


class Side(NamedTuple):
    """One request of a pair: what it means, how it is written, which keys it got; none where it was refused."""

    stated: Stated
    record: Record
    keys: Keys | None
    refusal: str = ""

    def __str__(self) -> str:
        keys = f"{self.keys.cache.hex()} in partition {self.keys.partition}" if self.keys else self.refusal
        lines = [f"  meaning  {self.stated.meaning}", f"  record   {self.record.value!r}"]
        return "\n".join([*lines, f"  headers  {self.record.headers}", f"  keys     {keys}"])


class Case(NamedTuple):
    """A meaning spelt twice, and a change of it spelt once."""

    number: int
    kind: str
    sides: tuple[Side, Side, Side]


class Failure(NamedTuple):
    """A pair that broke the promise."""

    case: int
    kind: str
    what: str
    sides: tuple[Side, ...]
    repeat: str

    def __str__(self) -> str:
        head = f"case {self.case} ({self.kind}): {self.what}"
        return "\n".join([head, *map(str, self.sides), f"  repeat   {self.repeat}"])


@dataclass(slots=True)
class Tally:
    """What a run of pairs came to.

    Attributes:
        spelt: pairs of one meaning, by the bits of the traits that only one of the two has.
        changed: pairs of two meanings, by the kind of the change.
    """

    spelt: Counter[int] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    @property
    def pairs(self) -> int:
        """How many pairs were compared."""
        return self.spelt.total() + self.changed.total()

    def add(self, other: "Tally") -> None:
        """Takes what another run came to."""
        self.spelt.update(other.spelt)
        self.changed.update(other.changed)
        self.failures += other.failures


class Block:
    """The cases of one model: its versions are made once, and what the product remembers of them is used again."""

    def __init__(self, seed: int, number: int, keys_of: KeysOf) -> None:
        self._seed = seed
        self._keys_of = keys_of
        # Two sequences of seeds that never meet: even for cases, odd for blocks.
        self._layout = draw_layout(Dice(seed << 48 | number << 1 | 1))
        self._dice = Dice(0)
        self._versions: dict[tuple[object, ...], ServedVersion] = {}

    def make(self, number: int) -> Case:
        """The case of this number: its three records, and the keys that they got."""
        dice, layout = self._dice, self._layout
        dice.seed(self._seed << 48 | number << 1)
        one = stated(draw_meaning(layout, dice))
        kind, other = mutate(one, layout, dice)
        version = self._version_for(one.meaning)
        sides = (self._ask(version, one), self._ask(version, one), self._ask(self._version_for(other.meaning), other))
        return Case(number, kind, sides)

    def _ask(self, version: ServedVersion, one: Stated) -> Side:
        """A spelling's keys, made on the engine's way: decode, check against the version, digest."""
        record = spell(one.meaning, self._layout, self._dice)
        keys: Keys | None = None
        refusal = ""
        try:
            request = decode_request(record.value, record.headers)
            tenant = "" if record.empty_tenant else request.tenant
            keyed = sort_parameters(request.parameters).keyed
            tensors = check_inputs(version, request)
            keys = self._keys_of(version, tenant, tensors, keyed, requested_outputs(version, request))
        except UndecodableRecordError as error:
            refusal = f"refused: {error.message}"
        except WireError as error:
            refusal = f"refused: {error}"
        return Side(one, record, keys, refusal)

    def _version_for(self, meaning: Meaning) -> ServedVersion:
        """The version that a request asks, with inputs of any size."""
        inputs = tuple([(one.name, one.datatype, len(one.shape)) for one in meaning.inputs])
        place = (meaning.model, meaning.version, meaning.fingerprint, inputs)
        version = self._versions.get(place)
        if version is None:
            version = _announced(meaning, self._layout)
            self._versions[place] = version
        return version


def _announced(meaning: Meaning, layout: Layout) -> ServedVersion:
    signature = ModelSignature(
        inputs=tuple(
            TensorSpec(name=one.name, datatype=one.datatype, dims=(-1,) * len(one.shape)) for one in meaning.inputs
        ),
        outputs=tuple(TensorSpec(name=name, datatype="FP32", dims=(-1,)) for name in layout.outputs),
    )
    return served_version(meaning.model, meaning.version, meaning.fingerprint, signature)


def _wrong(first: Side, second: Side) -> str:
    """What is wrong with a pair; empty where nothing is."""
    if first.keys is None or second.keys is None:
        return "a request that is valid was refused"
    alike = first.stated.identity == second.stated.identity
    if (first.keys.cache == second.keys.cache) is not alike:
        return "one meaning has two keys" if alike else "two meanings have one key"
    alike = first.stated.content == second.stated.content
    if (first.keys.partition == second.keys.partition) is not alike:
        return "one content has two partition keys" if alike else "two contents have one partition key"
    return ""


def judge(case: Case, seed: int, tally: Tally) -> None:
    """Counts a case's pairs, and notes what is wrong with them."""
    first, second, third = case.sides
    tally.spelt[first.record.traits ^ second.record.traits] += 1
    tally.changed[case.kind] += 1
    for kind, pair in ((SPELT_TWICE, (first, second)), (case.kind, (second, third))):
        if what := _wrong(*pair):
            tally.failures.append(Failure(case.number, kind, what, pair, repeat_command(seed, case.number)))


def repeat_command(seed: int, case: int) -> str:
    """The command that makes this case again, alone."""
    return f"python -m tests.fuzz.keys --seed {seed} --first {case * PAIRS_PER_CASE} --pairs {PAIRS_PER_CASE}"


def run_cases(seed: int, cases: range, keys_of: KeysOf = product_keys, *, kept: KeptKeys | None = None) -> Tally:
    """Compares the pairs of these cases, until five failed.

    Args:
        seed: of the run.
        cases: the first and the one after the last.
        keys_of: makes the keys; the product's if nothing else is said.
        kept: keeps every key beside what it stands for, three for each case.
    """
    tally = Tally()
    for start in range(cases.start - cases.start % BLOCK_CASES, cases.stop, BLOCK_CASES):
        block = Block(seed, start // BLOCK_CASES, keys_of)
        for number in range(max(start, cases.start), min(start + BLOCK_CASES, cases.stop)):
            case = block.make(number)
            judge(case, seed, tally)
            if len(tally.failures) >= FAILURES_MAX:
                return tally
            if kept is not None:
                for side in case.sides:
                    kept.note(side.keys.cache if side.keys else b"", digest_of(side.stated.identity))
    return tally


def case_of(seed: int, number: int, keys_of: KeysOf = product_keys) -> Case:
    """One case, made again."""
    return Block(seed, number // BLOCK_CASES, keys_of).make(number)
