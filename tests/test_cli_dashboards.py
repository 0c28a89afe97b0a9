"""``llamatel dashboards``: export to a folder, push over Grafana's HTTP API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from llamatel.cli.main import main
from llamatel_dashboards import published
from tests.grafana_server import GrafanaServer
from tests.parts import free_port
from tests.parts.processes import accepts

TOKEN = "glsa_" + "x" * 32


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFANA_TOKEN", raising=False)


def test_export_writes_what_grafana_and_prometheus_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "folder"
    for _ in range(2):  # a second time replaces
        assert main(["dashboards", "export", str(folder)]) == 0
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {str(folder / name) for name in written} == set(capsys.readouterr().out.split())
    assert {name for name in written if name.startswith("dashboards/")} == {
        f"dashboards/{name}" for name in published.dashboards()
    }
    assert {"rules/alerts.yml", "rules/recording.yml"} <= written
    [provider] = yaml.safe_load((folder / "provisioning/dashboards/llamatel.yaml").read_text())["providers"]
    shown = {json.loads(path.read_text())["title"] for path in Path(provider["options"]["path"]).glob("*.json")}
    assert shown == {model["title"] for model in published.dashboards().values()}
    sources = yaml.safe_load((folder / "provisioning/datasources/llamatel.yaml").read_text())["datasources"]
    by_uid = {source["uid"]: source for source in sources}
    assert {source["type"] for source in sources} == {"prometheus", "tempo"}
    [exemplars] = by_uid["llamatel-prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars["datasourceUid"] in by_uid


def test_export_for_a_grafana_that_sees_the_files_elsewhere(tmp_path: Path) -> None:
    assert main(["dashboards", "export", str(tmp_path), "--dashboards-path", '/var/lib/"grafana"']) == 0
    [provider] = yaml.safe_load((tmp_path / "provisioning/dashboards/llamatel.yaml").read_text())["providers"]
    assert provider["options"]["path"] == '/var/lib/"grafana"'


def test_export_to_where_one_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        said = capsys.readouterr().out
        monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
        assert main(["dashboards", "push", grafana.url]) == 0
        assert grafana.folders == {"llamatel": "llamatel"}
        assert {uid: {**model, "id": None} for uid, model in expected.items()} == {
            uid: model for uid, (model, _) in grafana.dashboards.items()
        }
        assert {folder for _, folder in grafana.dashboards.values()} == {"llamatel"}
        assert all(f"{grafana.url}/d/{uid}/" in said for uid in expected)
        grafana.folders["other"] = "Team"
        assert main(["dashboards", "push", grafana.url, "--folder", "Team"]) == 0
        assert {folder for _, folder in grafana.dashboards.values()} == {"other"}
        assert main(["dashboards", "push", grafana.url, "--folder", ""]) == 0
        assert {folder for _, folder in grafana.dashboards.values()} == {None}
    assert TOKEN not in "".join(capsys.readouterr())


def test_an_old_grafana_gets_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with GrafanaServer(version="10.4.2") as grafana:
        assert main(["dashboards", "push", grafana.url]) == 0
    assert "this is 10.4.2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("token", "role", "said"),
    [
        (None, "Editor", "wants a valid token (Invalid API key): --token-file FILE, or GRAFANA_TOKEN"),
        ("wrong", "Editor", "wants a valid token"),
        (TOKEN, "Viewer", "it needs the role Editor"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(
    token: str | None, role: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("GRAFANA_TOKEN", token)
    with GrafanaServer(TOKEN, role) as grafana:
        assert main(["dashboards", "push", grafana.url]) == 1
        assert not grafana.dashboards
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1
    assert "wrong" not in errors
    assert TOKEN not in errors


def test_nobody_there_and_somebody_else_there(capsys: pytest.CaptureFixture[str]) -> None:
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
def test_wrong_usage_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboards", "push", *words]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "secret" not in errors


@pytest.mark.parametrize("content", ["", "two tokens", "naïve", "line\nline"])
def test_a_token_file_that_holds_no_token(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text(content)
    assert main(["dashboards", "push", "http://127.0.0.1:1", "--token-file", str(tmp_path / "token")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
