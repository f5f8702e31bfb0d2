"""How a connection to a Triton's gRPC endpoint is secured, and opened."""

from collections.abc import Sequence

import grpc
import grpc.aio

from pipeline.config import TlsSettings
from pipeline.errors import SettingsError


def channel_credentials(tls: TlsSettings) -> grpc.ChannelCredentials | None:
    """What a gRPC channel to a Triton with TLS needs; None without TLS.

    Raises:
        SettingsError: a file cannot be read.
    """
    if not tls.enabled:
        return None
    try:
        files = (tls.ca_file, tls.key_file, tls.cert_file)
        return grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in files))
    except OSError as error:
        raise SettingsError(f"settings triton.tls: {error}") from None


def open_channel(
    address: str, credentials: grpc.ChannelCredentials | None, options: Sequence[tuple[str, int]]
) -> grpc.aio.Channel:
    """A channel that connects at its first call.

    Args:
        address: host:port.
        credentials: of a server with TLS; None: without.
        options: of gRPC.
    """
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)
