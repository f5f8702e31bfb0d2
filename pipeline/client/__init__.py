"""The library for producers and consumers."""

from pipeline.client.arrays import outputs_as_numpy
from pipeline.client.client import Client
from pipeline.client.errors import (
    ClientForked,
    GatewayRefused,
    GatewayUnavailable,
    IdReused,
    KafkaUnavailable,
    PipelineUnavailable,
    ResultGone,
    ResultNotReceived,
)
from pipeline.client.http_client import HttpClient
from pipeline.client.interface import InferenceClient
from pipeline.client.submitted import Submitted
from pipeline.client.sync_client import SyncClient, SyncSubmitted
from pipeline.client.window import Progress
from pipeline.errors import InferenceFailed

__all__ = [
    "Client",
    "ClientForked",
    "GatewayRefused",
    "GatewayUnavailable",
    "HttpClient",
    "IdReused",
    "InferenceClient",
    "InferenceFailed",
    "KafkaUnavailable",
    "PipelineUnavailable",
    "Progress",
    "ResultGone",
    "ResultNotReceived",
    "Submitted",
    "SyncClient",
    "SyncSubmitted",
    "outputs_as_numpy",
]
