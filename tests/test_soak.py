"""The soak of ``make soak``, in a short form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.soak import Soak
from tests.servers import without_settings


@pytest.mark.slow
@pytest.mark.usefixtures("promtool")
def test_soak_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)
    figures = Soak(tmp_path, seconds=15.0, seed=7).run()
    assert figures["faults"]
