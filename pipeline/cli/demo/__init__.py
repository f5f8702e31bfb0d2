"""`demo`: start everything, send real requests, show what happened, stop.

command.py       the command and its steps
requests.py      digits with their true labels, sentences; a third of them repeated
sending.py       through the public client, with progress
verification.py  every answer against onnxruntime in this process, every row against ClickHouse
summary.py       what a newcomer sees at the end
"""

from pipeline.cli.demo.command import add_to

__all__ = ["add_to"]
