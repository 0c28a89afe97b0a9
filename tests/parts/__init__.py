"""The real programs that tests run: llama.cpp's server, an OpenTelemetry collector, Prometheus.

``python -m tests.parts`` downloads and builds missing parts; fixtures for them are in ``tests/conftest.py``.
"""

from __future__ import annotations

from .chromium import chromium_program
from .llama_cpp_python import llama_cpp_python
from .llama_server import llama_server
from .missing import MissingPart, in_ci
from .otlp import OtlpSink, SinkEvent, SinkMetric, SinkPoint, SinkRequest, SinkSpan
from .processes import Child, PartFailed, accepts, free_port, kill_survivors, survivors, wait_until
from .prometheus import Prometheus, prometheus_program, scrape_config
from .rotel import RotelAgent, rotel_program
from .sid import sid_llama_server
from .trained_model import smollm2
from .valgrind import valgrind_program
from .vocabularies import vocabularies
from .wheels import library_server, xllamacpp_server

__all__ = [
    "Child",
    "MissingPart",
    "OtlpSink",
    "PartFailed",
    "Prometheus",
    "RotelAgent",
    "SinkEvent",
    "SinkMetric",
    "SinkPoint",
    "SinkRequest",
    "SinkSpan",
    "accepts",
    "chromium_program",
    "free_port",
    "in_ci",
    "kill_survivors",
    "library_server",
    "llama_cpp_python",
    "llama_server",
    "prometheus_program",
    "rotel_program",
    "scrape_config",
    "sid_llama_server",
    "smollm2",
    "survivors",
    "valgrind_program",
    "vocabularies",
    "wait_until",
    "xllamacpp_server",
]
