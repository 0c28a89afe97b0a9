"""The private parts of opentelemetry-python that llamatel uses: they exist, and have a fallback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from llamatel.telemetry import sdk_adapter

TELEMETRY = Path(sdk_adapter.__file__).parent

PROGRAM = """
import logging, sys
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from llamatel.telemetry import sdk_adapter
{before}
ours, theirs = TracerProvider(shutdown_on_exit=False), TracerProvider(shutdown_on_exit=False)
sdk_adapter.set_global(ours)
assert trace.get_tracer_provider() is ours
trace.set_tracer_provider(theirs)
meters, other = MeterProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False)
sdk_adapter.set_global(meters)
assert metrics.get_meter_provider() is meters
metrics.set_meter_provider(other)
print(trace.get_tracer_provider() is theirs, metrics.get_meter_provider() is other)
"""


@pytest.mark.parametrize(
    ("before", "replaced"), [("", "True True"), ("sdk_adapter._allow_another = lambda *_: False", "False False")]
)
def test_sdk_adapter_set_global_lets_the_application_replace_ours(before: str, replaced: str) -> None:
    """With the private parts a later registration works; without them ours stays, as the API has it."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() == replaced


@pytest.mark.parametrize(("module", "name"), sdk_adapter.PARTS)
def test_sdk_adapter_private_parts_exist(module: object, name: str) -> None:
    places = (module, getattr(module, "_internal", None))
    assert any(isinstance(getattr(getattr(place, name, None), "_done", None), bool) for place in places)


def test_sdk_adapter_recognises_placeholders() -> None:
    assert sdk_adapter.is_placeholder(trace.ProxyTracerProvider())
    assert not sdk_adapter.is_placeholder(TracerProvider(shutdown_on_exit=False))
    assert not sdk_adapter.is_placeholder(MeterProvider(shutdown_on_exit=False))
    program = "from opentelemetry import metrics; print(type(metrics.get_meter_provider()).__name__)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "_ProxyMeterProvider"
    assert metrics is not None


def test_no_other_module_uses_private_parts_of_the_sdk() -> None:
    """Neither a private module, nor a private attribute of what comes from it, nor its loggers."""
    private = re.compile(r"(from|import) opentelemetry\.\S*\b_(?!logs\b)\w+|getLogger\(.opentelemetry")
    found = [
        f"{path.name}: {line.strip()}"
        for path in TELEMETRY.parent.rglob("*.py")
        if path.name != "sdk_adapter.py"
        for line in path.read_text().splitlines()
        if private.search(line)
    ]
    assert found == []
