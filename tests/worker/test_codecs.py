"""Producers compress as they like: every codec of Kafka must be readable with what is installed."""

import pytest
from aiokafka import codec


@pytest.mark.parametrize("name", ["gzip", "snappy", "lz4", "zstd"])
def test_codec_is_installed(name: str) -> None:
    """A codec that is missing would end every worker that meets a record in it."""
    assert getattr(codec, f"has_{name}")()
