"""LogOnce: one message per key until reset."""

from __future__ import annotations

import logging

import pytest

from llamatel.outputs.log_once import LogOnce


def test_log_once_logs_a_key_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    once = LogOnce(logging.getLogger("llamatel.test"))
    assert [once.warning("a", "%s is down", "a") for _ in range(3)] == [True, False, False]
    assert once.info("b", "b is up")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "a is down"),
        ("INFO", "b is up"),
    ]
    assert caplog.records[0].funcName == "<listcomp>" or caplog.records[0].filename == "test_log_once.py"


def test_log_once_reset_allows_the_key_again(caplog: pytest.LogCaptureFixture) -> None:
    once = LogOnce(logging.getLogger("llamatel.test"))
    assert not once.reset("a")
    once.warning("a", "down")
    assert once.reset("a")
    assert once.warning("a", "down")
    assert len(caplog.records) == 2


def test_log_once_error_carries_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    once = LogOnce(logging.getLogger("llamatel.test"))
    try:
        raise ValueError("x")
    except ValueError:
        once.error("a", "failed", exc_info=True)
    assert caplog.records[0].exc_info
    assert caplog.records[0].levelno == logging.ERROR


def test_log_once_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    once = LogOnce(logging.getLogger("llamatel.test"))
    for number in range(1000):
        once.warning(str(number), "down")
    assert len(caplog.records) == 256
