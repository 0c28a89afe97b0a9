"""Rules: current, accepted by promtool of Prometheus 2 and 3 and by vmalert, each alert with cases."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamatel.errors import UsageError
from llamatel.metrics import table
from llamatel.telemetry.prometheus_names import prometheus_label, prometheus_name
from llamatel.ui.objectives import Objectives
from llamatel_dashboards import rules
from llamatel_dashboards.alerts import Alert, alerts
from llamatel_dashboards.rule_options import RuleOptions
from tests.acceptance import incident_day
from tests.parts.monitoring import sid_program
from tests.parts.prometheus import prometheus_program
from tests.prometheus_series import prometheus_series

CASES = Path(__file__).parent / "rules"
RUNBOOK = Path(__file__).parents[1] / "docs" / "alerts.md"
ALL = tuple(alerts(RuleOptions(expected=('instance="a"',))))
"""Including the optional alert."""
EVERY_CHOICE = RuleOptions(
    objectives=Objectives(
        ttft_s=1.0, tpot_s=0.075, error_budget=0.005, error_rate=0.01, min_requests=7, lost_prefill_s=2.0
    ),
    jobs=r"gpu|llama-[ab]|node\d+\.x",
    keep_labels=("namespace", "team"),
    expected=('job="llamatel", instance=~"gpu-1:.*"', 'instance="gpu-2:9464"'),
    runbook_url="https://wiki.example/runbooks",
)


def promtool(version: int) -> Path:
    return prometheus_program("promtool") if version == 2 else sid_program("promtool")


def run(program: Path, *arguments: object) -> str:
    done = subprocess.run([program, *map(str, arguments)], check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write(folder: Path, options: RuleOptions | None = None, *, only_summaries: bool = False) -> None:
    for name, content in rules.groups(options).items():
        for group in content["groups"]:
            for rule in group["rules"] if only_summaries else ():
                if "annotations" in rule:
                    rule["annotations"] = {"summary": rule["annotations"]["summary"]}
        (folder / name).write_text(rules.to_yaml(content))


def test_rules_files_are_current() -> None:
    kept = {path.name: path.read_text(encoding="utf-8") for path in rules.FOLDER.glob("*.yml")}
    assert kept == rules.rendered(), "run: python -m llamatel_dashboards.rules"


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("options", [RuleOptions(), EVERY_CHOICE], ids=["default", "every choice"])
def test_rules_pass_promtool_check(version: int, options: RuleOptions, tmp_path: Path) -> None:
    write(tmp_path, options)
    for path in tmp_path.glob("*.yml"):
        assert "SUCCESS" in run(promtool(version), "check", "rules", "--lint=all", "--lint-fatal", path)


@pytest.mark.parametrize(
    ("version", "cases"), [(2, "alerts_test.yml"), (3, "alerts_test.yml"), (3, "native_histograms_test.yml")]
)
def test_rules_pass_promtool_test(version: int, cases: str, tmp_path: Path) -> None:
    write(tmp_path, only_summaries=True)  # the other annotations have no templates
    (tmp_path / cases).write_text((CASES / cases).read_text())
    run(promtool(version), "test", "rules", tmp_path / cases)


@pytest.mark.parametrize("version", [2, 3])
def test_rules_with_objectives_and_expected_targets(version: int, tmp_path: Path) -> None:
    write(tmp_path, EVERY_CHOICE, only_summaries=True)
    cases = CASES / "options_test.yml"
    (tmp_path / cases.name).write_text(cases.read_text())
    run(promtool(version), "test", "rules", tmp_path / cases.name)


def test_rules_by_vmalert(tmp_path: Path) -> None:
    """Vmalert's own check of expressions and templates; the alerts fire in test_dashboards_victoria_metrics."""
    for number, options in enumerate((RuleOptions(), EVERY_CHOICE)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, options)
        run(sid_program("vmalert"), "-dryRun", f"-rule={folder}/*.yml")


def cases() -> list[dict[str, Any]]:
    tests = [test for path in CASES.glob("*_test.yml") for test in yaml.safe_load(path.read_text())["tests"]]
    return [case for test in tests for case in test.get("alert_rule_test", ())]


@pytest.mark.parametrize("alert", ALL, ids=lambda alert: alert.name)
def test_alert_has_firing_and_silent_cases(alert: Alert) -> None:
    found = [bool(case.get("exp_alerts")) for case in cases() if case["alertname"] == alert.name]
    assert set(found) == {True, False}


@pytest.mark.parametrize("alert", ALL, ids=lambda alert: alert.name)
def test_alert_queries_existing_metrics(alert: Alert) -> None:
    recorded = {rule["record"] for rule in rules.recording(RuleOptions())}
    native = {prometheus_name(row) for row in prometheus_series().values()}
    names = set(
        re.findall(r"\b(?:llamacpp|llamatel|gen_ai|hw)[\w:]*", re.sub(r"\((?:\w+, )*\w+\)|\"[^\"]*\"", "", alert.expr))
    )
    assert names <= set(prometheus_series()) | native | recorded | set(alert.expr.split())
    assert alert.severity in ("critical", "warning", "info")


def test_alert_annotations_have_labels_and_absolute_runbook() -> None:
    for alert in ALL:
        annotations = alert.rule("https://wiki.example/alerts")["annotations"]
        assert annotations["runbook_url"] == f"https://wiki.example/alerts#{alert.name.lower()}"
        assert "runbook_url" not in alert.rule(None)["annotations"]
        assert "$labels" in annotations["summary"]
        assert annotations["description"].endswith((".", "?"))


def test_runbook_has_an_entry_with_three_parts_for_each_alert() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    entries = re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in entries] == [alert.name for alert in ALL]
    for name, entry in entries:
        parts = re.findall(r"^\*\*(Meaning|Diagnosis|Remedy)\.\*\*", entry, re.MULTILINE)
        assert parts == ["Meaning", "Diagnosis", "Remedy"], name


def test_incident_table_equals_last_run() -> None:
    result = json.loads(incident_day.RESULT.read_text(encoding="utf-8"))
    assert result["passed"]
    text = RUNBOOK.read_text(encoding="utf-8")
    assert incident_day.page_with(text, result) == text, "run: python -m tests.acceptance.incident_day"
    names = {alert.name for alert in ALL}
    assert {row["alert"] for row in result["figures"]["alerts"]} <= names
    assert {row["severity"] for row in result["figures"]["alerts"]} == {"critical", "warning", "info"}


@pytest.mark.parametrize("options", [RuleOptions(), EVERY_CHOICE], ids=["default", "every choice"])
def test_every_aggregation_keeps_the_labels_of_targets(options: RuleOptions) -> None:
    """Servers of one name in two namespaces, clusters or environments are never summed or matched."""
    own = {"le", *(prometheus_label(each) for row in table().values() for each in row.attributes)}
    for content in rules.groups(options).values():
        for rule in content["groups"][0]["rules"]:
            for kind, text in re.findall(r"\b(by|on|without|ignoring) \(([^()]*)\)", rule["expr"]):
                labels = set(text.split(", "))
                if kind in ("by", "on"):
                    assert {"cluster", "env", "namespace", *(options.keep_labels or ())} <= labels, rule
                else:
                    assert labels <= own, rule
            assert not re.search(r"\b(?:sum|count|group|max|min|avg) ?\(", rule["expr"]), rule
    chosen = [rule["expr"] for rule in rules.recording(EVERY_CHOICE) if "missed" in rule["record"]]
    assert all(", namespace, team)" in expr and "without" not in expr for expr in chosen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RuleOptions(Objectives(ttft_s=0.9)), "--ttft 0.9s is not a bucket bound .*: 1, 0.75"),
        (RuleOptions(Objectives(tpot_s=0.08)), "--tpot"),
        (RuleOptions(keep_labels=("a b",)), "not a label name"),
        (RuleOptions(keep_labels=("a)",)), "not a label name"),
        (RuleOptions(expected=("instance",)), "matchers"),
        (RuleOptions(expected=('instance="a"} or up{',)), "matchers"),
        (RuleOptions(expected=(r'instance=~"gpu-\d"',)), "matchers"),
        (RuleOptions(runbook_url="docs/alerts.md"), "absolute"),
        (RuleOptions(jobs='a"b'), "quotation"),
        (RuleOptions(jobs="(a"), "regular expression"),
    ],
)
def test_rule_options_rejected(options: RuleOptions, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options.check()


def test_rule_options_accepted() -> None:
    RuleOptions().check()
    EVERY_CHOICE.check()
