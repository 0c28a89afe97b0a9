"""deploy/: everything that can be tested without Docker and Kubernetes; deploy/README.md lists the rest."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser as promql
import pytest
import yaml

from llamatel_dashboards import published
from tests.attached import unmanaged
from tests.documents import ROOT, complaint
from tests.load import Clients, completion
from tests.parts import Prometheus, free_port, wait_until
from tests.parts.monitoring import sid_program
from tests.parts.processes import Child
from tests.prometheus_series import prometheus_series

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
KUBERNETES = "1.31"
CUSTOM = {"ServiceMonitor", "ScaledObject"}
"""Kinds defined by operators, without a schema in a package."""
METRICS_PORT = 9464


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def manifests() -> list[Any]:
    return [
        pytest.param(document, id=f"{path.stem}-{document['kind']}")
        for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


def test_deploy_yaml_and_json_files_are_valid() -> None:
    files = [path for path in DEPLOY.rglob("*") if path.suffix in (".yaml", ".yml")]
    assert len(files) >= 10
    for path in files:
        assert list(yaml.safe_load_all(path.read_text()))
    for path in DEPLOY.rglob("*.json"):
        json.loads(path.read_text())


# Compose


def mounts() -> Iterator[tuple[str, str, str]]:
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source, target = re.sub(r"\$\{[^}]*\}", "VARIABLE", mount).split(":")[:2]
            yield name, source, target


def test_compose_mounts_exist() -> None:
    for _, source, _ in mounts():
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
        else:
            assert source == "VARIABLE" or source in COMPOSE["volumes"]
    assert set(COMPOSE["volumes"]) == {source for _, source, _ in mounts()} & set(COMPOSE["volumes"])


def test_compose_loopback_ports_and_versions() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        if "build" not in service and "$" not in service["image"]:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        assert set(service.get("depends_on", ())) <= set(SERVICES)


def addresses(value: Any) -> Iterator[str]:
    """Find ``HOST:PORT`` addresses of other services in a file or a command line."""
    yield from re.findall(r"(?:https?://|[\s\"'\[]|^)([a-z]+:\d{4,5})\b", json.dumps(value))


def listening() -> set[str]:
    """Return the ports of compose.yaml's services, from their own configuration files."""
    collector = read("collector/collector.yaml")
    protocols = collector["receivers"]["otlp"]["protocols"]
    tempo = read("tempo/tempo.yaml")
    found = {f"collector:{protocol['endpoint'].rpartition(':')[2]}" for protocol in protocols.values()}
    found |= {f"tempo:{tempo['server']['http_listen_port']}"}
    tempo_receiver = tempo["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    found |= {f"tempo:{tempo_receiver.rpartition(':')[2]}", "prometheus:9090"}
    commands = {name: SERVICES[name]["command"] for name in ("llama", "llamatel")}
    found |= {f"llama:{commands['llama'][commands['llama'].index('--port') + 1]}"}
    metrics = commands["llamatel"][commands["llamatel"].index("--metrics-addr") + 1]
    return found | {f"llamatel:{metrics.rpartition(':')[2]}"}


def test_compose_addresses_match_listeners() -> None:
    files = ["prometheus/prometheus.yml", "collector/collector.yaml", "grafana/provisioning/datasources/llamatel.yaml"]
    wanted = {found for name in files for found in addresses(read(name))}
    wanted |= {found for service in SERVICES.values() for found in addresses(service.get("command", ()))}
    assert len(wanted) >= 6
    assert wanted <= listening()


def test_provisioning_equals_export(tmp_path: Path) -> None:
    [path] = [target for name, source, target in mounts() if name == "grafana" and "llamatel_dashboards" in source]
    urls = ("http://prometheus:9090", "http://tempo:3200")
    published.export(tmp_path, published.ExportOptions(dashboards_path=path, prometheus_url=urls[0], tempo_url=urls[1]))
    for name in ("dashboards/llamatel.yaml", "datasources/llamatel.yaml"):
        assert (DEPLOY / "grafana/provisioning" / name).read_text() == (tmp_path / "provisioning" / name).read_text()
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(f"{path}/")
    assert Path(home).name in published.dashboards()


@pytest.mark.slow
def test_compose_commands_run_and_measure(llama_server_binary: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Run llama.cpp's and llamatel's command lines from the file, with only paths and ports changed."""
    server_port, metrics_port = free_port(), free_port()
    token = tmp_path / "token"
    token.write_text("a-page-token")
    here = {
        "^/run/secrets/page_token$": str(token),
        "^/var/lib/llamatel/": f"{tmp_path}/",
        r"\$\{MODEL:[^}]*\}": tiny_model.name,
        "^/models/": f"{tiny_model.parent}/",
        "^/var/log/llama/": f"{tmp_path}/",
        "llama:8080$": f"127.0.0.1:{server_port}",
        "collector:4317$": f"127.0.0.1:{free_port()}",
        "^0[.]0[.]0[.]0": "127.0.0.1",
        "^8080$": str(server_port),
        ":9464$": f":{metrics_port}",
    }

    def words(service: str) -> Iterator[str]:
        for word in SERVICES[service]["command"]:
            for there, local in here.items():
                word = re.sub(there, local, word)  # noqa: PLW2901
            yield word

    server = Child([llama_server_binary, *words("llama")], tmp_path / "llama.out")
    llamatel = [sys.executable, "-m", "llamatel.cli.main", *words("llamatel")]
    watcher = Child(llamatel, tmp_path / "llamatel.out", SERVICES["llamatel"]["environment"])

    def measured() -> str:
        clients.send(completion("Hello", 4))
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5) as answer:
                text = str(answer.read().decode())
        except OSError:
            return ""
        return text if "llamacpp_requests_total{" in text and "llamacpp_kv_cache_headroom{" in text else ""

    try:
        with Clients(f"http://127.0.0.1:{server_port}") as clients:
            text = wait_until(measured, 60, "llamatel measures", every=0.5)
            page = urllib.request.Request(f"http://127.0.0.1:{metrics_port}/")
            page.add_header("Authorization", f"Basic {base64.b64encode(b'llamatel:a-page-token').decode()}")
            with urllib.request.urlopen(page, timeout=5) as answer:
                assert "<html" in answer.read().decode()
            for probe in ("healthz", "readyz"):
                with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/{probe}", timeout=5) as answer:
                    assert answer.status == 200
    finally:
        output = watcher.output()
        watcher.stop()
        server.stop()
    assert "llamacpp_tokens_total{" in text, output
    assert 'service_name="llamatel"' in text


# Prometheus and the Collector


@pytest.mark.parametrize("name", ["prometheus.yml", "fleet.yml", "kubernetes.yml"])
def test_prometheus_configuration_is_valid(name: str, promtool: Path, tmp_path: Path) -> None:
    config = read(f"prometheus/{name}")
    for job in config["scrape_configs"]:
        if job.pop("kubernetes_sd_configs", None) is not None:  # Debian's Prometheus is built without it
            job["static_configs"] = [{"targets": ["pod:9464"]}]
    config["rule_files"] = [str(published.RULES / "*.yml")]
    (tmp_path / "targets").mkdir()
    for path in (DEPLOY / "prometheus/targets").iterdir():
        (tmp_path / "targets" / path.name).write_text(path.read_text())
    (tmp_path / name).write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [promtool, "check", "config", tmp_path / name], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr


def test_prometheus_keeps_labels_of_observed_servers(
    llama_server_binary: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Sidecars whose servers have the same address, and a llamatel in another namespace that polls one of them."""
    [monitor] = _of_kind("ServiceMonitor")
    assert all(endpoint["honorLabels"] for endpoint in monitor["spec"]["endpoints"])
    [sidecar] = [each for each in containers() if "pod=$(POD)" in each.values[0]]
    words = sidecar.values[0]
    labels = [words[index + 1] for index, word in enumerate(words) if word == "--label"]
    [job] = read("prometheus/kubernetes.yml")["scrape_configs"]
    del job["kubernetes_sd_configs"]
    job["static_configs"] = []
    started = []
    try:
        with unmanaged(llama_server_binary, tmp_path, "-m", tiny_model, "--metrics") as server:
            for namespace, pod in (("prod", "llama-0"), ("staging", "llama-0"), ("monitoring", "llamatel-1")):
                own = labels if namespace != "monitoring" else ["namespace=dev", "pod=llama-9"]
                own = [label.replace("$(NAMESPACE)", namespace).replace("$(POD)", pod) for label in own]
                given = [word for label in own for word in ("--label", label)]
                address = f"127.0.0.1:{free_port()}"
                attach = [sys.executable, "-m", "llamatel.cli.main", "attach", server.url, "--metrics-addr", address]
                started.append(Child([*attach, *given], tmp_path / f"{pod}-{namespace}.log"))
                meta = {"namespace": namespace, "pod_name": pod, "pod_container_port_name": "metrics"}
                meta["pod_label_app_kubernetes_io_name"] = "llama"
                meta = {f"__meta_kubernetes_{name}": value for name, value in meta.items()}
                job["static_configs"].append({"targets": [address], "labels": meta})
            every = {"scrape_interval": "250ms", "scrape_timeout": "250ms"}
            with Prometheus({"global": every, "scrape_configs": [job]}, tmp_path / "prometheus") as prometheus:
                wait_until(lambda: len(prometheus.query("llamacpp_server_up == 1")) == 3, 30, "three llamatels")
                series = [metric for metric, _ in prometheus.query("llamacpp_server_up")]
                assert not [name for metric in series for name in metric if name.startswith("exported_")]
                assert {(one["namespace"], one["pod"], one["instance"]) for one in series} == {
                    ("prod", "llama-0", "llama-0"), ("staging", "llama-0", "llama-0"), ("dev", "llama-9", "llamatel-1"),
                }  # fmt: skip
                assert {metric["namespace"] for metric, _ in prometheus.query("up")} == {
                    "prod",
                    "staging",
                    "monitoring",
                }
    finally:
        for child in started:
            child.stop()


def test_prometheus_targets_have_the_metrics_port() -> None:
    for path in (DEPLOY / "prometheus/targets").iterdir():
        targets = [target for group in json.loads(path.read_text()) for target in group["targets"]]
        assert targets
        assert all(target.endswith(f":{METRICS_PORT}") for target in targets)


def test_collector_pipelines_are_complete() -> None:
    config = read("collector/collector.yaml")
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in config["service"]["pipelines"].values() for name in pipeline[kind]}
        assert used == set(config[kind])
    statements = config["processors"]["transform/names"]["metric_statements"][0]["statements"]
    assert statements == ['set(unit, "") where unit == "1"']
    assert config["service"]["pipelines"]["metrics"]["processors"].index("transform/names") >= 0


# Kubernetes


@pytest.mark.parametrize("manifest", manifests())
def test_kubernetes_manifest_is_valid(manifest: dict[str, Any]) -> None:
    if manifest["kind"] in CUSTOM:
        assert manifest["apiVersion"] in ("monitoring.coreos.com/v1", "keda.sh/v1alpha1")
        assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def _of_kind(kind: str) -> list[dict[str, Any]]:
    return [parameter.values[0] for parameter in manifests() if parameter.values[0]["kind"] == kind]


def test_kubernetes_labels_ports_and_volumes_fit() -> None:
    pods = {deployment["metadata"]["name"]: deployment["spec"]["template"] for deployment in _of_kind("Deployment")}
    for deployment in _of_kind("Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
        volumes = {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]}
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    for service in _of_kind("Service"):
        pod = pods[service["metadata"]["name"]]
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        names = {port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", ())}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    [monitor] = _of_kind("ServiceMonitor")
    [match] = monitor["spec"]["selector"]["matchExpressions"]
    labelled = {service["metadata"]["labels"][match["key"]] for service in _of_kind("Service")}
    assert labelled == set(match["values"])
    assert all(endpoint["port"] == "metrics" for endpoint in monitor["spec"]["endpoints"])
    for scaler in (*_of_kind("ScaledObject"), *_of_kind("HorizontalPodAutoscaler")):
        assert scaler["spec"]["scaleTargetRef"]["name"] in pods


def containers() -> list[Any]:
    found = [("compose", SERVICES["llamatel"]["command"])]
    for deployment in _of_kind("Deployment"):
        pod = deployment["spec"]["template"]["spec"]["containers"]
        found += [(deployment["metadata"]["name"], each["args"]) for each in pod if each["name"] == "llamatel"]
    return [pytest.param(words, id=name) for name, words in found]


def test_kustomize_builds_the_base() -> None:
    argv = [str(sid_program("kustomize")), "build", str(DEPLOY / "kubernetes")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {each["kind"] for each in yaml.safe_load_all(done.stdout)} == {"Deployment", "Service", "ServiceMonitor"}


def test_kubernetes_page_tokens_from_secrets() -> None:
    for deployment in _of_kind("Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        [container] = [each for each in spec["containers"] if each["name"] == "llamatel"]
        path = container["args"][container["args"].index("--page-token-file") + 1]
        [mount] = [each for each in container["volumeMounts"] if path.startswith(each["mountPath"] + "/")]
        [volume] = [each for each in spec["volumes"] if each["name"] == mount["name"]]
        assert volume["secret"]["secretName"] == "llamatel-page"
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert COMPOSE["secrets"]["page_token"]["file"].startswith("${PAGE_TOKEN_FILE:?")


def test_kubernetes_sidecar_log_is_bounded() -> None:
    [sidecar] = [each for each in _of_kind("Deployment") if each["metadata"]["name"] == "llama"]
    spec = sidecar["spec"]["template"]["spec"]
    [limit] = [each for each in spec["containers"] if each["name"] == "log-limit"]
    [log] = [each for each in spec["volumes"] if each["name"] == "log"]
    kib = int(re.findall(r"-gt (\d+)", limit["command"][-1])[0])
    assert log["emptyDir"]["sizeLimit"] == "1Gi"
    assert kib * 1024 < 2**30 / 2


@pytest.mark.parametrize("words", containers())
def test_kubernetes_containers_use_existing_flags(words: list[str]) -> None:
    assert complaint(words) is None
    assert words[words.index("--metrics-addr") + 1] == f"0.0.0.0:{METRICS_PORT}"


def queries() -> Iterator[str]:
    for scaled in _of_kind("ScaledObject"):
        yield from (trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"])
    for config in _of_kind("ConfigMap"):
        for rule in yaml.safe_load(config["data"].get("config.yaml", "{}")).get("rules", ()):
            for query in (rule["seriesQuery"], rule["metricsQuery"]):
                filled = query.replace("<<.Series>>", re.findall(r"^\w+", rule["seriesQuery"])[0])
                yield filled.replace("<<.LabelMatchers>>", 'pod!=""').replace("<<.GroupBy>>", "pod")


def test_kubernetes_scaling_queries_existing_metrics() -> None:
    found = list(queries())
    assert len(found) == 6
    for query in found:
        promql.parse(query)
        assert set(re.findall(r"\bllamacpp_\w+", query)) <= set(prometheus_series())
    [scaler] = _of_kind("HorizontalPodAutoscaler")
    [adapter] = [config for config in _of_kind("ConfigMap") if "config.yaml" in config["data"]]
    rules = yaml.safe_load(adapter["data"]["config.yaml"])["rules"]
    served = {rule.get("name", {}).get("as") or re.findall(r"^\w+", rule["seriesQuery"])[0] for rule in rules}
    assert {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]} == served


# systemd

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_unit_valid_and_hardened(unit: Path, tmp_path: Path) -> None:
    program = tmp_path / "llamatel"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/usr/local/bin/llamatel", str(program)))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert unit.name not in done.stdout + done.stderr, done.stdout + done.stderr
    argv = ["systemd-analyze", "security", "--offline=true", "--threshold=40", str(copy)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_unit_uses_existing_flags(unit: Path) -> None:
    text = unit.read_text()
    verb = re.findall(r"^ExecStart=/usr/local/bin/llamatel (\w+) \$ARGS$", text, re.MULTILINE)[0]
    example = re.findall(r"^# ARGS, for example: (.*)$", text, re.MULTILINE)[0]
    assert complaint([verb, *example.split()]) is None
    assert "Type=notify" in text
    assert "WatchdogSec=" in text


# The image


def test_dockerfile_copies_existing_files_as_non_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    allowed = re.findall(r"^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert set(copied) == set(allowed)
    assert re.search(r"^USER \d+$", text, re.MULTILINE)
    assert json.loads(re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)[0]) == ["llamatel"]
    assert f"EXPOSE {METRICS_PORT}" in text


def test_container_image_was_built_and_run() -> None:
    """The proof needs four minutes: ``python -m tests.acceptance container_image``."""
    result = json.loads((ROOT / "tests/acceptance/results/container_image.json").read_text())
    assert result["passed"]
    steps = re.findall(r"^(?:FROM|ARG|WORKDIR|COPY|RUN|USER|ENV|EXPOSE|HEALTHCHECK|ENTRYPOINT)\b",
                       (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)  # fmt: skip
    assert result["figures"]["steps"] == len(steps)


def test_dockerfile_files_build_and_install_wheel(tmp_path: Path) -> None:
    for name in re.findall(r"^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    argv = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(tmp_path),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = (tmp_path / "dist").glob("llamatel-*.whl")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    program = "import llamatel_dashboards as d, llamatel as l; print(d.__file__, l.__file__)"
    program += "; from llamatel.cli.main import main"
    program += f"; raise SystemExit(main(['dashboards', 'export', {str(tmp_path / 'out')!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=site / "bin",
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].count(str(site)) == 2
    for name in (
        "llamatel/models/tiny.gguf",
        "llamatel/ui/web/index.html",
        "llamatel_dashboards/grafana/overview.json",
    ):
        assert (site / name).is_file()
    assert (site / "bin" / "llamatel").is_file()
