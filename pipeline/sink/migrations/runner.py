"""Applies the SQL files of this folder, each once, in the order of their numbers.

ClickHouse has no transaction around DDL and no lock that a client could hold, so safety comes from three habits:
every statement says IF NOT EXISTS, a file is recorded after its last statement, and the record is keyed by number.
Two runners at once then do the same harmless things; one that dies half way is repeated from the start of its file.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.config import ClickHouseSettings
from pipeline.errors import EventStoreError
from pipeline.ports import InsertBlock

_log = logging.getLogger(__name__)

MIGRATIONS_TABLE = "schema_migrations"
_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
# ReplacingMergeTree: two runners at once record a number twice; FINAL reads one.
_CREATE_TABLE = f"""CREATE TABLE IF NOT EXISTS {MIGRATIONS_TABLE}
(
    number UInt32,
    name String,
    checksum String,
    applied_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree ORDER BY number SETTINGS non_replicated_deduplication_window = 1000"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One SQL file.

    Attributes:
        number: its place in the order, from 1, without gaps.
        name: the file's name.
        statements: what it runs, in order.
        checksum: BLAKE3 of its statements; comments may change.
    """

    number: int
    name: str
    statements: tuple[str, ...]
    checksum: str


def load_migrations(folder: Path = Path(__file__).parent) -> list[Migration]:
    """The migrations of a folder, in order.

    Raises:
        EventStoreError: there are none, a name is not `0001_words.sql`, or a number is missing or used twice.
    """
    migrations = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise EventStoreError(f"migration {path}: its name is not of the form 0001_words.sql", retryable=False)
        statements = _statements(path.read_text(encoding="utf-8"))
        checksum = blake3("\n;\n".join(statements).encode()).hexdigest()
        migrations.append(Migration(int(match[1]), path.name, statements, checksum))
    numbers = [migration.number for migration in migrations]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise EventStoreError(f"migrations in {folder}: their numbers are {numbers}, not 1, 2, 3, …", retryable=False)
    return migrations


def _statements(sql: str) -> tuple[str, ...]:
    """Splits at semicolons that end a line; comments (whole lines, and the tail of a line after ` -- `) are dropped."""
    lines = [line.split(" -- ")[0].rstrip() for line in sql.splitlines() if not line.lstrip().startswith("--")]
    parts = "\n".join(lines).split(";\n")
    return tuple(part.strip().removesuffix(";") for part in parts if part.strip(" \n;"))


async def migrate(settings: ClickHouseSettings, migrations: Sequence[Migration] | None = None) -> list[str]:
    """Makes the database and its tables as this program knows them; a second run changes nothing.

    Args:
        settings: where, and the database's name.
        migrations: other ones than this folder's, for tests.

    Returns:
        The names of the files that were applied now.

    Raises:
        EventStoreError: a file that was applied has changed since (`retryable` False), or the server refused or did
            not answer; running it again continues.
    """
    known = load_migrations() if migrations is None else migrations
    async with ClickHouseEventStore(settings, database="") as server:
        await server.command(f"CREATE DATABASE IF NOT EXISTS `{settings.database}`")
    async with ClickHouseEventStore(settings) as store:
        await store.command(_CREATE_TABLE)
        applied = await _applied(store)
        _refuse_changed(known, applied, settings.database)
        names = []
        for migration in known:
            if migration.number in applied:
                continue
            _log.info("migration %s: %d statements", migration.name, len(migration.statements))
            for statement in migration.statements:
                await store.command(statement)
            await _record(store, migration)
            names.append(migration.name)
        return names


async def _applied(store: ClickHouseEventStore) -> dict[int, tuple[str, str]]:
    """Name and checksum by number."""
    answer = await store.query(f"SELECT number, name, checksum FROM {MIGRATIONS_TABLE} FINAL")  # noqa: S608 - a constant
    return {number: (name, checksum) for number, name, checksum in answer.rows}


def _refuse_changed(known: Sequence[Migration], applied: dict[int, tuple[str, str]], database: str) -> None:
    for migration in known:
        name, checksum = applied.get(migration.number, (migration.name, migration.checksum))
        if checksum != migration.checksum:
            raise EventStoreError(
                f"migration {migration.name} differs from {name}, which database {database!r} has: "
                "what was applied never changes; put the change into a migration of its own",
                retryable=False,
            )


async def _record(store: ClickHouseEventStore, migration: Migration) -> None:
    columns: dict[str, Sequence[object]] = {
        "number": [migration.number],
        "name": [migration.name],
        "checksum": [migration.checksum],
    }
    await store.insert([InsertBlock(MIGRATIONS_TABLE, columns)], f"{migration.number}/{migration.checksum}")
