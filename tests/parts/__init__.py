"""The real programs that tests run: llama.cpp's server, an OpenTelemetry collector, Prometheus.

``python -m tests.parts`` gets and builds what is missing; fixtures for them are in ``tests/conftest.py``.
"""

from __future__ import annotations

from .missing import MissingPart, in_ci
from .otlp import OtlpSink, RotelAgent, SinkEvent, SinkMetric, SinkPoint, SinkRequest, SinkSpan
from .processes import Child, PartFailed, accepts, free_port, kill_survivors, survivors, wait_until

__all__ = [
    "Child",
    "MissingPart",
    "OtlpSink",
    "PartFailed",
    "RotelAgent",
    "SinkEvent",
    "SinkMetric",
    "SinkPoint",
    "SinkRequest",
    "SinkSpan",
    "accepts",
    "free_port",
    "in_ci",
    "kill_survivors",
    "survivors",
    "wait_until",
]
