"""The library for producers and consumers."""

from pipeline.client.arrays import outputs_as_numpy
from pipeline.client.client import Client
from pipeline.client.errors import KafkaUnavailable, ResultNotReceived
from pipeline.client.submitted import Submitted

__all__ = ["Client", "KafkaUnavailable", "ResultNotReceived", "Submitted", "outputs_as_numpy"]
