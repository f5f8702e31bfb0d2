"""What a request lets the cache do: RFC 9111 section 5.2.1, for inference."""

from functools import lru_cache
from typing import NamedTuple

from schemas.errors import ErrorCode, WireError


class CachePolicy(NamedTuple):
    """What may be done for one request.

    Attributes:
        read: a stored answer may be given.
        store: the computed answer may be stored.
        join: an equal request that is already running may answer this one too.
        only_stored: nothing may be computed; without a stored answer it is CACHE_MISS.
        max_age_s: the oldest stored answer that will do, or None for any that lives.
    """

    read: bool = True
    store: bool = True
    join: bool = True
    only_stored: bool = False
    max_age_s: float | None = None

    def takes(self, age_s: float) -> bool:
        """Whether a stored answer of this age will do."""
        return self.read and (self.max_age_s is None or age_s <= self.max_age_s)


DEFAULT = CachePolicy()


@lru_cache(maxsize=1024)
def parse_cache_control(text: str | None) -> CachePolicy:
    """The policy that a `cache_control` asks for. Unknown words are ignored (RFC 9111 section 5.2.3).

    no-cache computes anew, then stores; it joins no flight that is older than itself. no-store reads but does not
    store. max-age=N takes stored answers up to N seconds old. only-if-cached computes nothing and waits for no one.

    Raises:
        WireError: INVALID_REQUEST for a max-age that is no number of seconds.
    """
    if not text:
        return DEFAULT
    policy = DEFAULT
    for directive in text.lower().split(","):
        word, _, argument = directive.strip().partition("=")
        if word == "no-cache":
            policy = policy._replace(read=False, join=False)
        elif word == "no-store":
            policy = policy._replace(store=False)
        elif word == "only-if-cached":
            policy = policy._replace(only_stored=True, join=False)
        elif word == "max-age":
            seconds = argument.strip().strip('"')
            if not (seconds.isascii() and seconds.isdigit()):
                raise WireError(
                    ErrorCode.INVALID_REQUEST, f"cache_control: max-age needs whole seconds, got {argument!r:.40}"
                )
            # Of several the strictest counts (RFC 9111 section 4.2.1 lets a cache choose so).
            limit = float(seconds) if policy.max_age_s is None else min(float(seconds), policy.max_age_s)
            policy = policy._replace(max_age_s=limit)
    return policy
