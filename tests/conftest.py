"""Fixtures: real parts, started for the test that asks for them and ended after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamatel.llama.tiny_model import write_tiny_model
from tests.parts import MissingPart, OtlpSink, RotelAgent, in_ci, kill_survivors
from tests.parts.processes import SESSION_MARK


def _missing(error: MissingPart) -> None:
    """Skip with the command that mends it; in CI a missing part fails the test."""
    if in_ci():
        raise error
    pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def processes() -> Iterator[None]:
    """Fails the session if any process that a test started is still running at its end."""
    os.environ[SESSION_MARK] = str(os.getpid())
    yield
    left = kill_survivors()
    assert not left, f"processes that tests left running: {left}"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF with random weights (0.5 MB) that llama.cpp's server loads at once."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def otlp_sink() -> Iterator[OtlpSink]:
    """An OTLP/HTTP receiver that keeps what arrives."""
    with OtlpSink() as sink:
        yield sink


@pytest.fixture
def rotel(otlp_sink: OtlpSink, tmp_path: Path) -> Iterator[RotelAgent]:
    """A running rotel that sends what it gets on to ``otlp_sink``."""
    agent = RotelAgent(otlp_sink, tmp_path)
    try:
        agent.start()
    except MissingPart as error:
        _missing(error)
    yield agent
    agent.stop()
