"""Recording and alert rules: fresh, valid for the real promtool, each shown to fire, on metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamatel_dashboards import rules
from tests.parts.prometheus import prometheus_program

CASES = Path(__file__).parent / "rules" / "alerts_test.yml"
RUNBOOK = Path(__file__).parents[1] / "docs" / "alerts.md"


def promtool(*arguments: object) -> str:
    run = subprocess.run(
        [prometheus_program("promtool"), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_committed_files_are_fresh() -> None:
    kept = {path.name: path.read_text(encoding="utf-8") for path in rules.FOLDER.glob("*.yml")}
    assert kept == rules.rendered(), "run: python -m llamatel_dashboards.rules"


def test_promtool_finds_nothing_wrong() -> None:
    for path in rules.FOLDER.glob("*.yml"):
        assert "SUCCESS" in promtool("check", "rules", "--lint=all", "--lint-fatal", path)


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    for path in (*rules.FOLDER.glob("*.yml"), CASES):
        shutil.copy(path, tmp_path)
    promtool("test", "rules", tmp_path / CASES.name)


def cases() -> list[dict[str, Any]]:
    return [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test.get("alert_rule_test", ())]


@pytest.mark.parametrize("alert", tuple(rules.alerts()), ids=lambda alert: alert.name)
def test_each_alert_is_seen_to_fire_and_not_to_fire(alert: rules.Alert) -> None:
    mine = [bool(case.get("exp_alerts")) for case in cases() if case["alertname"] == alert.name]
    assert set(mine) == {True, False}


def test_the_runbook_has_an_entry_for_each_alert_and_no_other() -> None:
    headings = re.findall(r"^### (\w+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [alert.name for alert in rules.alerts()]
