"""``llamatel.init()`` in applications: it never prevents their start, and works with their own OpenTelemetry setup.

Each program runs in its own process, as an application does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamatel.errors import PipelineError
from llamatel.telemetry.otlp_options import OtlpOptions
from tests.parts import OtlpSink, free_port

ROOT = Path(__file__).parent.parent
HTTP = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}


def run(program: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program with a clean OTEL_* environment and require exit code 0."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LLAMATEL_"))}
    path = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "collectors", ROOT / "dashboards"))
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, "PYTHONPATH": path, "OTEL_EXPORTER_PROMETHEUS_PORT": "0", "LLAMATEL_URL": "none", **env},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran


STARTS = "import llamatel; llamatel.init(); print('started')"


@pytest.mark.parametrize("level", ["WARNING", "DEBUG"])
@pytest.mark.parametrize("variable", ["HEADERS", "TRACES_HEADERS", "METRICS_HEADERS"])
def test_init_malformed_headers_are_never_shown(otlp_sink: OtlpSink, variable: str, level: str) -> None:
    program = f"""
import logging, llamatel
logging.basicConfig(level=logging.{level})
llamatel.init()
with llamatel.span("mine"):
    pass
assert llamatel.shutdown()
"""
    named = f"OTEL_EXPORTER_OTLP_{variable}"
    ran = run(
        program, **HTTP, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.endpoint, **{named: "Authorization: Bearer sekret123"}
    )
    assert named in ran.stderr
    for part in ("sekret", "Bearer", "Authorization"):
        assert part not in ran.stderr + ran.stdout
    assert "sekret" not in str([span.attributes for span in otlp_sink.spans()])


@pytest.mark.parametrize(
    ("env", "lines"),
    [
        ({"OTEL_TRACES_EXPORTER": "otlp_proto_http", "OTEL_METRICS_EXPORTER": "none"}, 0),
        ({"OTEL_TRACES_EXPORTER": "otlp_proto_grpc", "OTEL_METRICS_EXPORTER": "none"}, 0),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, 1),
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, 1),
        (
            {
                "OTEL_TRACES_EXPORTER": "otlp",
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
            },
            1,
        ),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "zipkin", "OTEL_BSP_MAX_QUEUE_SIZE": "x"}, 0),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "://", "OTEL_METRICS_EXPORTER": "none"}, 1),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "many"}, 1),
        ({"OTEL_EXPORTER_PROMETHEUS_PORT": "many"}, 2),  # and 9464 may be in use
        ({"OTEL_METRICS_EXEMPLAR_FILTER": "sometimes"}, 1),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon", **HTTP}, 4),
        ({"LLAMATEL_URL": "http://elsewhere:1"}, 1),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"}, 1),  # the SDK cannot be imported with it
        ({"OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": "-1", "OTEL_PROPAGATORS": "tracecontext,b4"}, 2),
        ({"OTEL_PYTHON_TRACER_PROVIDER": "x", "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "process, x"}, 2),
        ({"OTEL_PYTHON_TRACER_PROVIDER": "sdk_tracer_provider", "OTEL_PYTHON_CONTEXT": "contextvars_context"}, 0),
        ({"OTEL_SPAN_EVENT_COUNT_LIMIT": "", "OTEL_PROPAGATORS": "none"}, 0),
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote", "OTEL_TRACES_SAMPLER_ARG": "endpoint=x"}, 1),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nan"}, 1),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a"}, 1),
    ],
)
def test_init_starts_with_any_environment(env: dict[str, str], lines: int) -> None:
    ran = run(STARTS, **env)
    assert ran.stdout == "started\n"
    assert len(ran.stderr.splitlines()) <= lines, ran.stderr


@pytest.mark.parametrize(
    ("name", "protocol"), [("otlp_proto_http", "http/protobuf"), ("otlp_proto_grpc", "grpc"), ("otlp", "http/protobuf")]
)
def test_init_python_exporter_names_imply_the_protocol(name: str, protocol: str) -> None:
    program = "import llamatel; print(llamatel.init().settings.traces_otlp.protocol)"
    ran = run(
        program,
        OTEL_TRACES_EXPORTER=name,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318",
        OTEL_METRICS_EXPORTER="none",
    )
    assert ran.stdout == f"{protocol}\n"


@pytest.mark.parametrize("named", [True, False])
def test_init_address_in_use_is_one_line(named: bool) -> None:
    """A named metrics port in use is not replaced; the default port is."""
    port = free_port()
    program = f"""
import socket, llamatel
import llamatel.telemetry.settings as settings
settings.DEFAULT_METRICS_ADDR = "127.0.0.1:{port}"
taken = socket.create_server(("127.0.0.1", {port}))
running = llamatel.init({f"metrics_addr='127.0.0.1:{port}'" if named else ""})
print(running.pipeline.metrics_url)
"""
    ran = run(program, **({} if named else {"OTEL_EXPORTER_PROMETHEUS_PORT": ""}))
    [line] = ran.stderr.splitlines()
    assert str(port) in line
    assert "--" not in line
    assert (ran.stdout.strip() == "None") == named


def test_init_repeated_with_same_arguments() -> None:
    run(
        """
import llamatel
one = llamatel.init(service_name="app", metrics_addr="none")
assert llamatel.init(service_name="app", metrics_addr="none") is one
assert llamatel.init(service_name="other", metrics_addr="none") is not one
"""
    )


def test_init_general_endpoint_with_a_signal_path(otlp_sink: OtlpSink) -> None:
    program = """
import llamatel
llamatel.init()
with llamatel.span("mine"):
    pass
assert llamatel.shutdown()
"""
    ran = run(program, OTEL_EXPORTER_OTLP_ENDPOINT=f"{otlp_sink.endpoint}/v1/traces")
    assert [span.name for span in otlp_sink.spans()] == ["mine"]
    [line] = ran.stderr.splitlines()
    assert "OTEL_EXPORTER_OTLP_ENDPOINT ends in /v1/traces" in line


def test_init_messages_show_requested_url(otlp_sink: OtlpSink) -> None:
    otlp_sink.status = 404
    program = "import llamatel\nllamatel.init()\nwith llamatel.span('x'): pass\nllamatel.shutdown()"
    ran = run(program, **HTTP, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.endpoint, OTEL_METRICS_EXPORTER="none")
    assert f"cannot send spans to {otlp_sink.endpoint}/v1/traces: HTTP 404" in ran.stderr


PROVIDER = """
import llamatel
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
kept = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
def names():
    return [span.name for span in kept.get_finished_spans()]
@llamatel.task
def work():
    with trace.get_tracer("another").start_as_current_span("another"):
        pass
"""


def test_init_provider_registered_later() -> None:
    ran = run(
        PROVIDER
        + """
llamatel.init(keep_traces=True, metrics_addr="none")
work()
assert len(llamatel.last_trace().spans) == 2
trace.set_tracer_provider(provider)
assert trace.get_tracer_provider() is provider
work()
assert sorted(names()) == ["another", "work"], names()
assert len({span.context.trace_id for span in kept.get_finished_spans()}) == 1
assert len(llamatel.last_trace().spans) == 2
"""
    )
    assert ran.stderr == ""


def test_init_provider_registered_before() -> None:
    ran = run(
        PROVIDER
        + """
trace.set_tracer_provider(provider)
running = llamatel.init(keep_traces=True, metrics_addr="none")
work()
assert sorted(names()) == ["another", "work"]
assert len(llamatel.last_trace().spans) == 2
llamatel.shutdown()
work()
assert len(running.pipeline.kept_spans.trace()) == 2
"""
    )
    assert ran.stderr == ""


def test_init_exporting_and_provider_registered_later(otlp_sink: OtlpSink) -> None:
    """The provider of llamatel keeps exporting, and the application's works."""
    run(
        PROVIDER
        + """
llamatel.init()
trace.set_tracer_provider(provider)
work()
assert names() == ["another"]
assert llamatel.shutdown()
""",
        **HTTP,
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.endpoint,
    )
    assert [span.name for span in otlp_sink.spans()] == ["work"]


WORKER = """
import llamatel, os, sys
llamatel.init(service_name="app")
@llamatel.task
def work(): pass
"""


def test_init_forked_workers_have_own_telemetry(otlp_sink: OtlpSink) -> None:
    """Like gunicorn --preload: ``init()`` in the parent, work in forked workers that exit by themselves."""
    ran = run(
        WORKER
        + """
work()
children = []
for _ in range(2):
    child = os.fork()
    if not child:
        work()
        sys.exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
print(os.getpid(), *children)
""",
        **HTTP,
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.endpoint,
    )
    spans = otlp_sink.spans("work")
    assert len(spans) == 3
    assert {span.resource["process.pid"] for span in spans} == set(map(int, ran.stdout.split()))
    assert len({span.resource["service.instance.id"] for span in spans}) == 3
    assert {span.resource["service.name"] for span in spans} == {"app"}
    metrics = {metric.resource["service.instance.id"] for metric in otlp_sink.metrics()}
    assert metrics == {span.resource["service.instance.id"] for span in spans}
    assert ran.stderr == ""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_init_multiprocessing_workers_send_spans(otlp_sink: OtlpSink, method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        WORKER
        + f"""
if __name__ == "__main__":
    import multiprocessing
    context = multiprocessing.get_context({method!r})
    process = context.Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0
"""
    )
    run(
        f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')" if method == "fork" else
        f"import subprocess, sys; subprocess.run([sys.executable, {str(program)!r}], check=True)",
        **HTTP,
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.endpoint,
    )  # fmt: skip
    assert len(otlp_sink.spans("work")) == 1


def test_init_forked_worker_shuts_down_immediately(otlp_sink: OtlpSink) -> None:
    run(
        WORKER
        + """
import time
if not os.fork():
    start = time.monotonic()
    assert llamatel.shutdown()
    assert time.monotonic() - start < 2
    os._exit(0)
assert os.wait()[1] == 0
""",
        **HTTP,
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.endpoint,
    )


def test_forked_worker_prometheus_only_warns_once() -> None:
    ran = run(
        WORKER
        + """
from llamatel.collectors import Sample
if not os.fork():
    for _ in range(3):
        llamatel.runtime.current().instruments.record(Sample("llamacpp.requests", 1, None, {"outcome": "ok"}))
    os._exit(0)
assert os.wait()[1] == 0
"""
    )
    [line] = ran.stderr.splitlines()
    assert "metrics of this forked process are not served" in line


def test_init_service_version_not_llamatels(otlp_sink: OtlpSink) -> None:
    for attributes, expected in (("", None), ("service.version=7", "7")):
        otlp_sink.clear()
        run(
            WORKER + "work()",
            **HTTP,
            OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.endpoint,
            OTEL_RESOURCE_ATTRIBUTES=attributes,
        )
        assert otlp_sink.spans()[0].resource.get("service.version") == expected


def test_init_service_instance_ids_differ(otlp_sink: OtlpSink) -> None:
    """Otherwise series of two llamatel processes that watch the same server would collide in a Collector."""
    for _ in range(2):
        run(WORKER, **HTTP, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.endpoint)
    assert len({metric.resource["service.instance.id"] for metric in otlp_sink.metrics()}) == 2


def test_init_missing_ca_file(otlp_sink: OtlpSink) -> None:
    ran = run(
        STARTS,
        OTEL_EXPORTER_OTLP_ENDPOINT="https://127.0.0.1:4318",
        OTEL_EXPORTER_OTLP_CERTIFICATE="/no/such.pem",
        OTEL_METRICS_EXPORTER="none",
    )
    assert ran.stderr.splitlines() == [
        "OTEL_EXPORTER_OTLP_CERTIFICATE: cannot read /no/such.pem: No such file or directory"
    ]
    with pytest.raises(PipelineError, match=r"cannot read /no/such.pem"):
        OtlpOptions.from_env("traces", "https://h", {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such.pem"}, print)


def test_otlp_options_ignore_ca_variables_of_other_libraries(tmp_path: Path) -> None:
    ours, others = tmp_path / "ours.pem", tmp_path / "others.pem"
    ours.write_text("ours")
    others.write_text("others")
    env = {"REQUESTS_CA_BUNDLE": str(others), "CURL_CA_BUNDLE": str(others)}
    assert OtlpOptions.from_env("traces", "https://h", env, print).ca == b"others"
    env["OTEL_EXPORTER_OTLP_CERTIFICATE"] = str(ours)
    assert OtlpOptions.from_env("traces", "https://h", env, print).ca == b"ours"


def test_otlp_options_signal_variables_win() -> None:
    env = {
        "OTEL_EXPORTER_OTLP_HEADERS": "a=1,b=x%20y,c=plain value",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "A=2",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "3",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "GZIP",
    }
    assert OtlpOptions.from_env("traces", "http://h", env, print).headers == {"a": "2"}
    metrics = OtlpOptions.from_env("metrics", "http://h", env, print)
    assert metrics.headers == {"a": "1", "b": "x y", "c": "plain value"}
    assert (metrics.timeout_s, metrics.compression) == (3.0, "gzip")
    assert "plain" not in repr(metrics)
