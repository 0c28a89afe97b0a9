"""Objectives: from flags, a values file and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamatel.errors import UsageError
from llamatel.ui.objectives import Objectives


def test_objectives_units() -> None:
    values = {"ttft": "1s", "tpot": "80ms", "error-budget": "0.5%", "error-rate": "0.02", "min-requests": "7"}
    values["lost-prefill"] = "30s"
    assert Objectives.parse(values) == Objectives(1.0, 0.08, 0.005, 0.02, 7, 30)
    assert Objectives.parse({"ttft": "2m"}).ttft_s == 120


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ttft", "0"), ("ttft", "-1s"), ("ttft", "1h"), ("ttft", "nan"), ("ttft", "1e400"), ("ttft", "9" * 5000),
        ("tpot", ""), ("error-budget", "0%"), ("error-budget", "100%"), ("error-budget", "%"), ("error-rate", "1"),
        ("min-requests", "0"), ("min-requests", "1.5"), ("ttl", "1s"),
    ],
)  # fmt: skip
def test_objectives_rejected(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=key):
        Objectives.parse({key: value})


def test_objectives_from_environment(tmp_path: Path) -> None:
    assert Objectives.from_environment({}) == Objectives()
    inline = {"LLAMATEL_OBJECTIVES": "ttft=1s, tpot=80ms"}
    assert Objectives.from_environment(inline) == Objectives(ttft_s=1.0, tpot_s=0.08)
    file = tmp_path / "objectives.yaml"
    file.write_text("ttft: 500ms\nerror-budget: 1%\n")
    assert Objectives.from_environment({"LLAMATEL_OBJECTIVES": str(file)}) == Objectives(ttft_s=0.5, error_budget=0.01)
    with pytest.raises(UsageError, match="LLAMATEL_OBJECTIVES: ttft"):
        Objectives.from_environment({"LLAMATEL_OBJECTIVES": "ttft=soon"})


@pytest.mark.parametrize(
    "text", ["- ttft", "ttft: [1]", "ttft: &a [*a]", "{", "ttft: !!python/name:os.system x", "[" * 5000, "x" * 70000]
)
def test_objectives_file_rejected(text: str, tmp_path: Path) -> None:
    file = tmp_path / "objectives.yaml"
    file.write_text(text)
    with pytest.raises(UsageError):
        Objectives.read(file)
    with pytest.raises(UsageError, match="cannot read"):
        Objectives.read(tmp_path / "none")
