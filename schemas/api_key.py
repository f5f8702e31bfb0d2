"""API keys as they are kept: whose they are, what they may, and a digest that no key can be made from."""

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

KEY_ID_PATTERN = r"^[0-9a-f]{16}$"


class ApiKeyRecord(BaseModel):
    """One key; the record's key on the topic is its `id`, and a key that was revoked has none any more."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: Annotated[str, Field(pattern=KEY_ID_PATTERN)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the secret part, in hex.")]
    tenant: Annotated[str, Field(max_length=128)] = Field(default="", description="Empty: requests without a tenant.")
    label: Annotated[str, Field(max_length=200)] = Field(default="", description="What its owner calls it.")
    rate: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="Requests per second of the tenant, on average; absent: no limit."
    )
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="So many at once; absent: two seconds of the rate, at least 1."
    )
    created_at: AwareDatetime
