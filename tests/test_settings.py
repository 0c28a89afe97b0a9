"""Flags and the OTEL_* environment, as settings."""

from __future__ import annotations

from typing import Any

import pytest

from llamatel.errors import UsageError
from llamatel.telemetry.settings import OtlpTarget, Settings

COLLECTOR = "http://collector:4317"


def test_settings_default_is_prometheus_on_loopback() -> None:
    settings = Settings.from_env({})
    assert settings == Settings(metrics_addr=("127.0.0.1", 9464))
    assert settings.traces_otlp is None
    assert settings.metrics_otlp is None


@pytest.mark.parametrize(
    ("env", "traces", "metrics"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}, OtlpTarget(COLLECTOR, "grpc"), OtlpTarget(COLLECTOR, "grpc")),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"},
            OtlpTarget("http://collector:4318/v1/traces", "http/protobuf"),
            OtlpTarget("http://collector:4318/v1/metrics", "http/protobuf"),
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://vendor/otlp"},
            OtlpTarget("https://vendor/otlp/v1/traces", "http/protobuf"),
            OtlpTarget("https://vendor/otlp/v1/metrics", "http/protobuf"),
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf"},
            OtlpTarget(COLLECTOR, "grpc"),
            OtlpTarget(f"{COLLECTOR}/v1/metrics", "http/protobuf"),
        ),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": COLLECTOR}, OtlpTarget(COLLECTOR, "grpc"), None),
        (
            {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318/custom"},
            None,
            OtlpTarget("http://collector:4318/custom", "http/protobuf"),
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, OtlpTarget("http://localhost:4317", "grpc"), None),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_TRACES_EXPORTER": "none"},
            None,
            OtlpTarget(COLLECTOR, "grpc"),
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_METRICS_EXPORTER": "none"},
            OtlpTarget(COLLECTOR, "grpc"),
            None,
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_TRACES_EXPORTER": " "}, None, None),
    ],
)
def test_settings_otlp_targets(env: dict[str, str], traces: OtlpTarget | None, metrics: OtlpTarget | None) -> None:
    settings = Settings.from_env(env)
    assert (settings.traces_otlp, settings.metrics_otlp) == (traces, metrics)


def test_settings_arguments_win_over_environment() -> None:
    env = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://elsewhere:4318/v1/traces",
        "OTEL_EXPORTER_PROMETHEUS_PORT": "1",
        "OTEL_METRICS_EXPORTER": "otlp",
    }
    settings = Settings.from_env(env, otlp_endpoint="collector:4317", metrics_addr="[::1]:0", otlp_protocol="grpc")
    assert settings.traces_otlp == settings.metrics_otlp == OtlpTarget("http://collector:4317", "grpc")
    assert settings.metrics_addr == ("::1", 0)


def test_settings_prometheus_address_from_environment() -> None:
    env = {"OTEL_EXPORTER_PROMETHEUS_HOST": "::1", "OTEL_EXPORTER_PROMETHEUS_PORT": "9999"}
    assert Settings.from_env(env).metrics_addr == ("::1", 9999)
    assert Settings.from_env(env, metrics_addr="none").metrics_addr is None
    assert Settings.from_env({"OTEL_METRICS_EXPORTER": "console"}).metrics_addr is None


def test_settings_metrics_address_without_a_host() -> None:
    """Prometheus's own form for all addresses."""
    assert Settings.from_env({}, metrics_addr=":9464").metrics_addr == ("0.0.0.0", 9464)  # noqa: S104


def test_settings_console_and_span_queue() -> None:
    settings = Settings.from_env({"OTEL_TRACES_EXPORTER": "console, otlp", "OTEL_BSP_MAX_QUEUE_SIZE": "100"})
    assert settings.traces_console
    assert settings.traces_otlp is not None
    assert (settings.span_queue_size, settings.span_batch_size) == (100, 100)


def test_otlp_target_shown_without_password() -> None:
    settings = Settings.from_env({}, otlp_endpoint="http://me:secret@collector:4318")
    assert settings.traces_otlp is not None
    assert settings.traces_otlp.shown == "http://collector:4318"


@pytest.mark.parametrize(
    ("env", "arguments", "expected"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, {}, "jaeger"),
        ({"OTEL_TRACES_EXPORTER": "prometheus"}, {}, "prometheus"),
        ({"OTEL_METRICS_EXPORTER": "none,otlp"}, {}, "cannot be combined"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, {}, "http/json"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, {}, "no scheme"),
        ({"OTEL_EXPORTER_PROMETHEUS_PORT": "many"}, {}, "OTEL_EXPORTER_PROMETHEUS"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, {}, "OTEL_BSP_MAX_QUEUE_SIZE"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "soon"}, {}, "OTEL_BSP_SCHEDULE_DELAY"),
        ({}, {"otlp_endpoint": "ftp://collector"}, "ftp://collector"),
        ({}, {"otlp_endpoint": "http://collector:port"}, "collector:port"),
        ({}, {"otlp_endpoint": "http://"}, "not an OTLP endpoint"),
        ({}, {"otlp_endpoint": "collector:4317", "otlp_protocol": "udp"}, "udp"),
        ({}, {"otlp_endpoint": "collector"}, "'collector' is not an OTLP endpoint: write it like"),
        ({}, {"metrics_addr": "9464"}, "9464"),
        ({}, {"metrics_addr": "localhost"}, "localhost"),
        ({}, {"metrics_addr": "::1:9464"}, "::1:9464"),
        ({}, {"metrics_addr": "localhost:70000"}, "70000"),
        ({}, {"shutdown_timeout_s": 0.0}, "more than 0"),
    ],
)
def test_settings_invalid_values_are_one_line(env: dict[str, str], arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as refused:
        Settings.from_env(env, **arguments)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [("http://127.0.0.1:9464", "http://127.0.0.1:9464"), ("http://localhost:1/metrics", "http://localhost:1"),
     ("http://[::1]:9464/", "http://[::1]:9464"), ("none", "none"), ("", None)],
)  # fmt: skip
def test_settings_llamatel_url_is_on_this_machine(url: str, expected: str | None) -> None:
    assert Settings.from_env({"LLAMATEL_URL": url}).llamatel_url == expected
    for wrong in ("10.0.0.1:9464", "http://10.0.0.1:9464", "https://127.0.0.1:1", "http://127.0.0.1", "http://[", "x"):
        with pytest.raises(UsageError, match="LLAMATEL_URL must be"):
            Settings.from_env({"LLAMATEL_URL": wrong})
    with pytest.raises(UsageError) as refused:
        Settings.from_env({"LLAMATEL_URL": "http://me:s3cret@127.0.0.1:9464"})
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [("https://gpu-host", "https://gpu-host:443"), ("https://gpu-host:9443/llamatel/metrics", "https://gpu-host:9443/llamatel"),
     ("https://[2001:db8::1]/", "https://[2001:db8::1]:443")],
)  # fmt: skip
def test_settings_llamatel_url_over_tls_needs_the_token(url: str, expected: str) -> None:
    with_token = {"LLAMATEL_PAGE_TOKEN": "s3cret"}
    assert Settings.from_env({"LLAMATEL_URL": url, **with_token}).llamatel_url == expected
    for wrong in ({"LLAMATEL_URL": url}, {"LLAMATEL_URL": url.replace("https", "http"), **with_token}):
        with pytest.raises(UsageError, match=r"LLAMATEL_URL must be .*LLAMATEL_PAGE_TOKEN"):
            Settings.from_env(wrong)
    with pytest.raises(UsageError, match="LLAMATEL_CA_FILE: "):
        Settings.from_env({"LLAMATEL_CA_FILE": "/missing.pem"})


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://h:4318/v1/traces", "http://h:4318/v1/metrics"), ("http://h:4318/v1/logs/", "http://h:4318/v1/metrics"),
        ("http://h:4318/otlp/V1/Traces?key=s3cret", "http://h:4318/otlp/v1/metrics?key=s3cret"),
        ("http://h:4318/otlp?key=s3cret", "http://h:4318/otlp/v1/metrics?key=s3cret"),
    ],
)  # fmt: skip
def test_settings_general_endpoint_with_a_signal_path_or_a_query(endpoint: str, expected: str) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    found = Settings.from_env(env)
    assert found.metrics_otlp is not None
    assert found.metrics_otlp.endpoint == expected
    assert "s3cret" not in found.metrics_otlp.url + "".join(found.problems)
