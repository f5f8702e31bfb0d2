"""The inference log's tables, as numbered SQL files beside this module, and the runner that applies them."""

from pipeline.sink.migrations.runner import MIGRATIONS_TABLE, Migration, load_migrations, migrate

__all__ = ["MIGRATIONS_TABLE", "Migration", "load_migrations", "migrate"]
