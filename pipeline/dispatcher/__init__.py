"""From flights to calls and back: `dispatch` queues and batches them, `calls` runs each call on the fleet."""

from pipeline.dispatcher.calls import Dispatched, report_bug
from pipeline.dispatcher.dispatch import Dispatcher, FleetView

__all__ = ["Dispatched", "Dispatcher", "FleetView", "report_bug"]
