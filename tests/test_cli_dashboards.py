"""``llamatel dashboards``: export to a folder, push over Grafana's HTTP API."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from llamatel.cli.main import main
from llamatel_dashboards import published
from tests.grafana_server import GrafanaServer
from tests.parts import free_port
from tests.parts.monitoring import sid_program
from tests.parts.processes import accepts

TOKEN = "glsa_" + "x" * 32


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRAFANA_TOKEN", "LLAMATEL_OBJECTIVES"):
        monkeypatch.delenv(name, raising=False)


def exported(folder: Path, *words: str) -> set[str]:
    assert main(["dashboards", "export", str(folder), *words]) == 0
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_export_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "folder"
    for _ in range(2):  # a second time replaces
        written = exported(folder)
        assert {str(folder / name) for name in written} == set(capsys.readouterr().out.split())
    for kind in ("dashboards", "import"):
        names = {name for name in written if name.startswith(f"{kind}/")}
        assert names == {f"{kind}/{name}" for name in published.dashboards()}
    assert {"rules/alerts.yml", "rules/recording.yml"} <= written
    [provider] = yaml.safe_load((folder / "provisioning/dashboards/llamatel.yaml").read_text())["providers"]
    shown = {json.loads(path.read_text())["title"] for path in Path(provider["options"]["path"]).glob("*.json")}
    assert shown == {model["title"] for model in published.dashboards().values()}


def test_export_data_source_only_on_request(tmp_path: Path) -> None:
    """Two default data sources keep Grafana from starting; a generic name takes over another's (wild.md D1)."""
    assert not [name for name in exported(tmp_path / "plain") if "datasources" in name]
    urls = ("--prometheus-url", "http://prometheus:9090", "--tempo-url", "http://tempo:3200")
    exported(tmp_path, *urls)
    sources = yaml.safe_load((tmp_path / "provisioning/datasources/llamatel.yaml").read_text())["datasources"]
    assert {source["type"]: source["url"] for source in sources} == {"prometheus": urls[1], "tempo": urls[3]}
    by_uid = {source["uid"]: source for source in sources}
    [exemplars] = by_uid["llamatel-prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars["datasourceUid"] in by_uid
    for source in sources:
        assert "isDefault" not in source
        assert source["name"].startswith("llamatel ")


def test_export_dashboards_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(tmp_path, "--dashboards-path", '/var/lib/"llamatel"')
    assert not capsys.readouterr().err
    [provider] = yaml.safe_load((tmp_path / "provisioning/dashboards/llamatel.yaml").read_text())["providers"]
    assert provider["options"]["path"] == '/var/lib/"llamatel"'
    exported(tmp_path, "--dashboards-path", "/var/lib/grafana/dashboards/llamatel")  # wild.md D2
    assert "two providers of one dashboard block each other" in " ".join(capsys.readouterr().err.split())


def test_export_objectives_in_rules_and_dashboards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("ttft: 1s\nerror-budget: 0.5%\n")
    by_flags = ("--ttft", "1s", "--error-budget", "0.5%")
    exported(tmp_path / "flags", *by_flags)
    exported(tmp_path / "values", "--values", str(values))
    monkeypatch.setenv("LLAMATEL_OBJECTIVES", str(values))
    exported(tmp_path / "environment")
    for name in ("rules/alerts.yml", "rules/recording.yml", "dashboards/overview.json"):
        [text] = {(tmp_path / way / name).read_text() for way in ("flags", "values", "environment")}
        assert text != (published.HERE / name.replace("dashboards", "grafana")).read_text()
    presets = {
        variable["name"]: variable["current"]["value"]
        for variable in json.loads(text)["templating"]["list"]
        if variable["type"] == "custom"
    }
    assert presets == {"ttft_objective": "1", "tpot_objective": "0.1", "error_budget": "0.005"}
    exported(tmp_path / "both", "--values", str(values), "--ttft", "5s")
    assert "objective of 5 s" in " ".join((tmp_path / "both/rules/alerts.yml").read_text().split())


def test_export_objective_between_bucket_bounds_is_rounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(tmp_path, "--ttft", "1s", "--tpot", "80ms", "--error-budget", "0.5%")
    assert "--tpot 0.08s: rules and dashboards count at 0.075 s" in capsys.readouterr().err
    assert "objective of 0.075 s" in " ".join((tmp_path / "rules/alerts.yml").read_text().split())


def test_import_prompts_for_data_source(tmp_path: Path) -> None:
    """Like Grafana's import, replace every reference to an input by the chosen data source."""
    exported(tmp_path)
    for name in published.dashboards():
        model = json.loads((tmp_path / "import" / name).read_text())
        [wanted] = model.pop("__inputs")
        assert (wanted["type"], wanted["pluginId"]) == ("datasource", "prometheus")
        assert {each["type"] for each in model.pop("__requires")} == {"grafana", "datasource"}
        text = json.dumps(model).replace(f"${{{wanted['name']}}}", "my-prometheus")
        assert "${DS_" not in text
        [source] = [each for each in json.loads(text)["templating"]["list"] if each["type"] == "datasource"]
        assert source["current"]["value"] == "my-prometheus"
        used = {panel["datasource"]["uid"] for panel in model["panels"] if panel["type"] != "row"}
        assert used == {f"${{{source['name']}}}"}


def test_export_kubernetes_by_kustomize(tmp_path: Path) -> None:
    exported(tmp_path, "--ttft", "1s")
    argv = [str(sid_program("kustomize")), "build", str(tmp_path / "kubernetes")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    [rule] = [each for each in objects if each["kind"] == "PrometheusRule"]
    kept = [
        yaml.safe_load((tmp_path / f"rules/{name}.yml").read_text())["groups"][0] for name in ("recording", "alerts")
    ]
    assert rule["spec"]["groups"] == kept
    boards = [each for each in objects if each["kind"] == "ConfigMap"]
    assert len(boards) == len(published.dashboards())
    for board in boards:
        kubernetes_validate.validate(board, "1.31", strict=True)
        assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
        [text] = board["data"].values()
        assert json.loads(text)["uid"].startswith("llamatel-")
        assert len(json.dumps(board)) < 262_144  # kubectl apply keeps a copy in an annotation of this size
    config = yaml.safe_load((tmp_path / "kubernetes/rules-configmap.yaml").read_text())
    kubernetes_validate.validate(config, "1.31", strict=True)
    assert {name: yaml.safe_load(text)["groups"][0] for name, text in config["data"].items()} == dict(
        zip(("recording.yml", "alerts.yml"), kept, strict=True)
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--ttft", "soon"],
        ["--ttft", "900s"],
        ["--tpot", "0.1ms"],
        ["--error-budget", "0"],
        ["--values", "/no/such/file"],
        ["--keep-labels", "a b"],
        ["--expect", "gpu-1:9464"],
        ["--runbook-url", "docs/alerts.md"],
        ["--job", "("],
        ["--prometheus-url", "prometheus:9090"],
        ["--prometheus-url", "http://user:secret@prometheus:9090"],
        ["--tempo-url", "http://tempo:3200"],
    ],
)
def test_export_wrong_usage_is_one_line(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboards", "export", str(tmp_path), *words]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "secret" not in errors
    assert not list(tmp_path.iterdir())


def test_export_to_an_unwritable_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["dashboards", "export", str(tmp_path / "file" / "below")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_push_installs_and_updates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    expected = {model["uid"]: model for model in published.dashboards().values()}
    with GrafanaServer(TOKEN) as grafana:
        assert main(["dashboards", "push", f"{grafana.url}/", "--token-file", str(tmp_path / "token")]) == 0
        output = capsys.readouterr().out
        monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
        assert main(["dashboards", "push", grafana.url]) == 0
        assert grafana.folders == {"llamatel": "llamatel"}
        assert {uid: {**model, "id": None} for uid, model in expected.items()} == {
            uid: model for uid, (model, _) in grafana.dashboards.items()
        }
        assert {folder for _, folder in grafana.dashboards.values()} == {"llamatel"}
        assert all(f"{grafana.url}/d/{uid}/" in output for uid in expected)
        grafana.folders["other"] = "Team"
        assert main(["dashboards", "push", grafana.url, "--folder", "Team"]) == 0
        assert {folder for _, folder in grafana.dashboards.values()} == {"other"}
        assert main(["dashboards", "push", grafana.url, "--folder", ""]) == 0
        assert {folder for _, folder in grafana.dashboards.values()} == {None}
    assert TOKEN not in "".join(capsys.readouterr())


def test_push_over_a_provisioned_dashboard(capsys: pytest.CaptureFixture[str]) -> None:
    with GrafanaServer(provisioned={"llamatel-overview"}) as grafana:
        assert main(["dashboards", "push", grafana.url]) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "provisioned from a file" in message
    assert "llamatel dashboards export" in message


def test_push_old_grafana_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with GrafanaServer(version="10.4.2") as grafana:
        assert main(["dashboards", "push", grafana.url]) == 0
    assert "this is 10.4.2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("token", "role", "message"),
    [
        (None, "Editor", "needs a valid token (Invalid API key): --token-file FILE, or GRAFANA_TOKEN"),
        ("wrong", "Editor", "needs a valid token"),
        (TOKEN, "Viewer", "it needs the role Editor"),
    ],
)
def test_push_refused_one_line_with_remedy(
    token: str | None, role: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("GRAFANA_TOKEN", token)
    with GrafanaServer(TOKEN, role) as grafana:
        assert main(["dashboards", "push", grafana.url]) == 1
        assert not grafana.dashboards
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert "wrong" not in errors
    assert TOKEN not in errors


def test_push_no_grafana_at_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert not accepts(port)
    assert main(["dashboards", "push", f"http://127.0.0.1:{port}"]) == 1
    assert "cannot reach Grafana" in capsys.readouterr().err
    with GrafanaServer() as grafana:
        assert main(["dashboards", "push", f"{grafana.url}/sub"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["ftp://127.0.0.1"],
        ["127.0.0.1:3000"],
        ["http://admin:secret@127.0.0.1:3000"],
        ["http://127.0.0.1:3000", "--token-file", "/no/such/file"],
        ["http://127.0.0.1:3000", "--token", "secret"],
    ],
)
def test_push_wrong_usage_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboards", "push", *words]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "secret" not in errors


@pytest.mark.parametrize("content", ["", "two tokens", "naïve", "line\nline"])
def test_push_token_file_without_a_token(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text(content)
    assert main(["dashboards", "push", "http://127.0.0.1:1", "--token-file", str(tmp_path / "token")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
