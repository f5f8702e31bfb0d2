"""What a registration pass tells of each version."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.watcher.repository.model_folder import Fault, UnfinishedVersion
from schemas.registry import ModelRecord

Outcome = Literal["announced", "unchanged", "invalid", "rejected", "failing", "unreachable", "postponed"]
"""`failing` was announced before and goes on, though a server has trouble with it now; nothing is known against what is
`unreachable` or `postponed`, and it is tried again."""


@dataclass(frozen=True, slots=True)
class VersionReport:
    """What became of one version; `seconds` of its model's pass."""

    model_name: str
    version: str
    state: Outcome
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RegistrationReport:
    """What a pass did: versions, the repository's faults, and every record on the models topic."""

    versions: tuple[VersionReport, ...]
    faults: tuple[Fault, ...]
    records: Mapping[str, ModelRecord]
    unreachable: tuple[str, ...]
    unfinished: tuple[UnfinishedVersion, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything in the repository is served everywhere and announced."""
        good = all(version.state in ("announced", "unchanged") for version in self.versions)
        return good and not self.faults and not self.unreachable

    @property
    def is_settled(self) -> bool:
        """Whether another look brings nothing about until something changes."""
        waiting = any(version.state in ("postponed", "unreachable") for version in self.versions)
        return not (waiting or self.unreachable or self.unfinished)

    def lines(self) -> list[tuple[str, bool]]:
        """The pass in words: each line, and whether it tells of something wrong."""
        lines: list[tuple[str, bool]] = []
        for version in self.versions:
            good = version.state in ("announced", "unchanged")
            reason = f": {version.reason}" if version.reason else ""
            lines.append((f"{version.model_name} version {version.version} {version.state}{reason}", not good))
        lines += [(str(fault), True) for fault in self.faults]
        lines += [(str(version), False) for version in self.unfinished]
        lines += [(f"Triton at {address} did not answer", True) for address in self.unreachable]
        return lines


def version_reports(
    model_name: str,
    good: Mapping[str, str],
    announced: ModelRecord | None,
    failures: Mapping[str, tuple[Outcome, str]],
    seconds: float,
    notes: Mapping[str, str],
) -> tuple[VersionReport, ...]:
    """One report for each version: the failures, and the rest of `good` (version -> fingerprint), with `notes`."""
    reports = [
        VersionReport(model_name, number, outcome, reason, seconds) for number, (outcome, reason) in failures.items()
    ]
    for number, digest in good.items():
        if number not in failures:
            known = announced.versions.get(number) if announced else None
            known_good = known is not None and known.state != "rejected" and known.fingerprint == digest
            outcome: Outcome = "unchanged" if known_good else "announced"
            reports.append(VersionReport(model_name, number, outcome, notes.get(number, ""), seconds))
    return tuple(sorted(reports, key=lambda report: int(report.version)))
