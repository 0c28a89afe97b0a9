"""Rules and dashboards as Kubernetes objects, and the kustomization that applies them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llamatel_dashboards.rules import to_yaml

_LABELS = {"app.kubernetes.io/name": "llamatel", "app.kubernetes.io/component": "monitoring"}


def rendered(rules: Mapping[str, Mapping[str, Any]], dashboards: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each file's name and text.

    The PrometheusRule and the ConfigMap hold the same rules, for a Prometheus operator and for a Prometheus that
    mounts its rule files: apply one of them. Each dashboard is a separate ConfigMap, below kubectl's size limit.
    """
    groups = [group for content in rules.values() for group in content["groups"]]
    rule = _object("PrometheusRule", "llamatel", {"prometheus": "kube-prometheus", "role": "alert-rules"})
    rule["apiVersion"] = "monitoring.coreos.com/v1"
    rule["spec"] = {"groups": groups}
    yield "prometheusrule.yaml", to_yaml(rule)
    config = _object("ConfigMap", "llamatel-rules")
    config["data"] = {name: to_yaml(content) for name, content in rules.items()}
    yield "rules-configmap.yaml", to_yaml(config)
    names = []
    for file, text in dashboards.items():
        name = f"llamatel-dashboard-{file.removesuffix('.json').replace('_', '-')}"
        board = _object("ConfigMap", name, {"grafana_dashboard": "1"})
        # The sidecar of Grafana's chart puts the dashboards into this folder where its folderAnnotation is set so.
        board["metadata"]["annotations"] = {"grafana_folder": "llamatel"}
        board["data"] = {f"llamatel-{file}": text}
        names.append(f"dashboard-{file.removesuffix('.json').replace('_', '-')}.yaml")
        yield names[-1], to_yaml(board)
    resources = ["prometheusrule.yaml", *names]
    kustomization = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources}
    yield "kustomization.yaml", to_yaml(kustomization)


def _object(kind: str, name: str, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": {**_LABELS, **(labels or {})}}}
