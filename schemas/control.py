"""The control topic: what an operator asks of all workers or of the watcher, and what they answer.

A record is a command, or a reply with the command's id; replies have the header `in-reply-to`. A command with
a member that a worker does not know is refused by it: what it means might be to clear less.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter

from schemas.request import ID_PATTERN

CommandId = Annotated[str, Field(pattern=ID_PATTERN)]
# Of scopes, and of models: with the longest names, 4 bytes for each character, 560 kB of the topic's 1 MiB.
USAGE_MAX = 200
IN_REPLY_TO = "in-reply-to"


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class CacheStatsCommand(_Wire):
    """Asks every worker what its cache holds, and how often it helped."""

    command: Literal["cache.stats"] = "cache.stats"
    id: CommandId


class CacheClearCommand(_Wire):
    """Asks every worker to drop stored answers, and to store nothing of what it has begun; no filter means all."""

    command: Literal["cache.clear"] = "cache.clear"
    id: CommandId
    tenant: str | None = Field(default=None, description="Only of this tenant; empty for requests without one.")
    model_name: str | None = Field(default=None, description="Only of this model.")
    model_version: str | None = Field(default=None, description="Only of versions with this number.")


class ModelPromoteCommand(_Wire):
    """Asks the watcher to make a version the default, or to try it with a share of the requests that name none.

    Done again, it changes nothing: a command that two watchers read is obeyed once.
    """

    command: Literal["model.promote"] = "model.promote"
    id: CommandId
    model_name: str
    version: str
    share: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="Of a trial; 0 ends it. Absent: the version becomes the default."
    )
    expected_default: str | None = Field(default=None, description="Refused where another version is the default.")


class CacheUsage(_Wire):
    """What is held of one tenant's answers by one version; `bytes` with all that is counted for them."""

    tenant: str = Field(description="Empty for requests without one.")
    model_name: str
    model_version: str
    entries: NonNegativeInt
    bytes: NonNegativeInt


class CacheRequests(_Wire):
    """Requests for one model since the worker's start, by how they met the cache."""

    model_name: str
    hits: NonNegativeInt = 0
    misses: NonNegativeInt = 0
    coalesced: NonNegativeInt = 0
    refreshes: NonNegativeInt = 0
    bypassed: NonNegativeInt = 0


class SharedCacheCounts(_Wire):
    """What a worker counted of the shared cache since its start, by outcome, kind, reason or direction."""

    look_ups: dict[str, int]
    writes: dict[str, int]
    errors: dict[str, int]
    refused_entries: dict[str, int]
    bytes: dict[str, int]
    saved_bytes: NonNegativeInt
    queue_bytes: NonNegativeInt
    usable: bool


class _Reply(_Wire):
    id: CommandId
    worker: str
    partitions: tuple[NonNegativeInt, ...] = Field(description="Of requests, that it has now.")


class CacheStatsReply(_Reply):
    """One worker's own cache. Counts are since its start, of entries unless they say otherwise."""

    command: Literal["cache.stats"] = "cache.stats"
    entries: NonNegativeInt
    bytes: NonNegativeInt
    bytes_max: NonNegativeInt
    evicted: NonNegativeInt = Field(description="Had to make room.")
    expired: NonNegativeInt
    refused: NonNegativeInt = Field(description="Too large to be stored at all.")
    cleared: NonNegativeInt
    retired: NonNegativeInt = Field(description="Of versions that are not served any more.")
    requests: tuple[CacheRequests, ...] = Field(description=f"The {USAGE_MAX} models with most requests.")
    requests_left_off: NonNegativeInt = Field(default=0, description="How many models are not listed.")
    usage: tuple[CacheUsage, ...] = Field(description=f"The {USAGE_MAX} that hold most bytes.")
    usage_left_off: NonNegativeInt = Field(default=0, description="How many are not listed.")
    shared: SharedCacheCounts | None = None


class CacheClearReply(_Reply):
    """What one worker dropped of its own cache."""

    command: Literal["cache.clear"] = "cache.clear"
    entries: NonNegativeInt
    bytes: NonNegativeInt


class ModelPromoteReply(_Wire):
    """What the watcher did: the model's record now, or why nothing was changed."""

    command: Literal["model.promote"] = "model.promote"
    id: CommandId
    watcher: str
    error: str | None = None
    changed: bool = False
    default_version: str | None = None
    previous_version: str | None = None
    effective_at: str | None = Field(default=None, description="When it counts; RFC 3339, UTC.")


CacheCommand = CacheStatsCommand | CacheClearCommand
CacheReply = CacheStatsReply | CacheClearReply
ControlCommand = CacheCommand | ModelPromoteCommand
ControlReply = CacheReply | ModelPromoteReply
COMMANDS: TypeAdapter[ControlCommand] = TypeAdapter(Annotated[ControlCommand, Field(discriminator="command")])
REPLIES: TypeAdapter[ControlReply] = TypeAdapter(Annotated[ControlReply, Field(discriminator="command")])
