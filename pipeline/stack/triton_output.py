"""Reads what `tritonserver` writes and knows from it which model versions are loaded.

Pure: fed line by line, no I/O. Source: Triton 2.51's output, recorded in tests/stack/recorded/.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

_MODEL_ROW = re.compile(r"^\| (?P<model>[^|]*?) *\| (?P<version>[^|]*?) *\| (?P<status>.*?) *\|$")
_TABLE_HEAD = re.compile(r"^\| Model +\| Version +\| Status +\|$")
_LOADING = re.compile(r'"loading: (?P<model>.+):(?P<version>\d+)"$')
_LOADED = re.compile(r"\"successfully loaded '(?P<model>.+?)'(?: version (?P<version>\d+))?\"$")
_FAILED = re.compile(r"\"failed to load '(?P<model>.+?)' version (?P<version>\d+): (?P<why>.*)\"$")
_UNLOADED = re.compile(r"\"successfully unloaded '(?P<model>.+?)' version (?P<version>\d+)\"$")
_POLL_FAILED = re.compile(
    r"\"(?:failed to poll model|Poll failed for model directory) '(?P<model>.+?)': (?P<why>.*)\"$"
)
_STARTED = re.compile(r'"Started (?P<server>GRPCInferenceService|HTTPService|Metrics Service) at (?P<address>\S+)"$')
_FATAL = re.compile(r"^error: (?P<why>.*)$|^failed to start|.*Failed to start .*|.*[Aa]ddress already in use.*")
_PROTOBUF = re.compile(r"^\[libprotobuf ERROR [^\]]*\] (?P<why>.*)$")
_FRAMES = re.compile(r"(\\n)+At:.*|\s*$")


class ModelPhase(StrEnum):
    """Triton's own words for a version's state, where it has them."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    UNLOADED = "UNLOADED"


@dataclass(frozen=True, slots=True)
class ModelState:
    """One version's state, and the reason when it is UNAVAILABLE."""

    phase: ModelPhase
    why: str = ""


class TritonOutput:
    """The state of one server, from the lines it has written so far.

    Attributes:
        versions: by (model, version); the version is "" where the whole model failed
            before any version was tried (no folder, broken config.pbtxt).
        grpc_started: its gRPC service accepts requests; all models of the start have
            been tried by then.
        fatal: why the server itself gives up; "" while it does not.
    """

    def __init__(self) -> None:
        self.versions: dict[tuple[str, str], ModelState] = {}
        self.grpc_started = False
        self.fatal = ""
        self._in_table = False
        self._row: tuple[str, str] | None = None
        self._config_error = ""

    def feed(self, line: str) -> None:
        """Take in the next line, without its end."""
        line = line.rstrip()
        if self._in_table or _TABLE_HEAD.match(line):
            self._feed_table(line)
        elif found := _PROTOBUF.match(line):
            self._config_error = found["why"]  # the poll failure that follows names the model, not the fault
        elif found := _LOADING.search(line):
            self._set(found["model"], found["version"], ModelPhase.LOADING)
        elif found := _FAILED.search(line):
            self._set(found["model"], found["version"], ModelPhase.UNAVAILABLE, found["why"])
        elif found := _LOADED.search(line):
            self._set_loaded(found["model"], found["version"])
        elif found := _UNLOADED.search(line):
            self._set(found["model"], found["version"], ModelPhase.UNLOADED)
        elif found := _POLL_FAILED.search(line):
            why = found["why"] + (f": {self._config_error}" if self._config_error else "")
            self._config_error = ""
            self._set(found["model"].rpartition("/")[2], "", ModelPhase.UNAVAILABLE, why)
        elif found := _STARTED.search(line):
            self.grpc_started |= found["server"] == "GRPCInferenceService"
        elif found := _FATAL.match(line):
            self.fatal = self.fatal or (found["why"] or line)

    def failures(self, requested: Iterable[str]) -> dict[str, str]:
        """The requested models that are not wholly loaded, each with its reason in one line."""
        found: dict[str, str] = {}
        for model in requested:
            states = {version: state for (name, version), state in self.versions.items() if name == model}
            bad = [
                f"version {version}: {state.why}" if version else state.why
                for version, state in states.items()
                if state.phase is ModelPhase.UNAVAILABLE
            ]
            if bad:
                found[model] = "; ".join(bad)
            elif not any(state.phase is ModelPhase.READY for state in states.values()):
                found[model] = "the server said nothing of it"
        return found

    def is_settled(self, requested: Iterable[str]) -> bool:
        """Whether the start is over: it serves and every requested model has its verdict, or it gave up."""
        if self.fatal:
            return True
        wanted = set(requested)
        pending = any(state.phase is ModelPhase.LOADING for (name, _), state in self.versions.items() if name in wanted)
        return self.grpc_started and not pending

    def _feed_table(self, line: str) -> None:
        if not line:
            self._in_table, self._row = False, None
            return
        self._in_table = True
        row = _MODEL_ROW.match(line)
        if row is None or _TABLE_HEAD.match(line):
            return
        if not row["model"]:
            return  # a reason's further lines: stack frames
        self._row = (row["model"], row["version"])
        phase, _, why = row["status"].partition(": ")
        if phase in set(ModelPhase):
            self._set(*self._row, ModelPhase(phase), why)

    def _set_loaded(self, model: str, version: str | None) -> None:
        """Without a version the line speaks of all those it was loading."""
        for name, number in list(self.versions):
            if name == model and (version or number) == number:
                state = self.versions[name, number]
                if version or state.phase is ModelPhase.LOADING:
                    self._set(name, number, ModelPhase.READY)

    def _set(self, model: str, version: str, phase: ModelPhase, why: str = "") -> None:
        self.versions[model, version] = ModelState(phase, _FRAMES.sub("", why))
