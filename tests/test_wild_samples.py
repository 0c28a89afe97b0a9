"""Public bug reports of users of other tools, tried on llamatel: each has a test.

B: logs; C: OpenTelemetry's environment; F: notebooks and scripts; G: servers, routing, TLS, prefixes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent

SAMPLES: dict[str, tuple[str, ...]] = {
    "B1 llama-swap#421, stern#58": (
        "test_log_streams.py::test_streams_by_prefix",
        "test_log_streams.py::test_streams_without_prefix_are_correct_or_unknown",
        "test_log_streams.py::test_streams_random_interleavings_are_never_wrong",
        "test_log_streams.py::test_streams_mixed_log_warns_once",
    ),
    "B2 kubectl#1520": ("test_polling.py::test_polling_processes_answering_in_turns",),
    "B3 dirge#745": ("test_log_wrappers.py::test_unwrap_all_requests",),
    "B4 loki#2281, helm/charts#10424": (
        "test_log_wrappers.py::test_unwrap_all_requests",
        "test_log_exports.py::test_export_all_requests",
    ),
    "B7 kubernetes#126564, moby#37646": ("test_log_silence.py::test_log_silence_while_tokens_are_counted",),
    "B8 logrotate#363, stellar-core#2867": (
        "test_log_file.py::test_file_truncated_under_a_writer_without_append",
        "test_log_file.py::test_file_with_a_hole_of_5_gb",
    ),
    "B9 llama.cpp#9013": (
        "test_key_value_log.py::test_key_value_log_requests",
        "test_attach_log.py::test_attach_log_without_requests_message",
    ),
    "B10 ollama#1365": ("test_attach_log.py::test_attach_log_alone_names_server_and_model",),
    "B11 no report": ("test_attach_log.py::test_attach_backlog_has_the_labels_of_the_polled_server",),
    "C1 opentelemetry-python#4492, litellm#10569": (
        "test_init.py::test_init_malformed_headers_are_never_shown",
        "test_wild_client_samples.py::test_attach_malformed_headers_are_never_shown",
    ),
    "C2 opentelemetry-python#3287": (
        "test_init.py::test_init_starts_with_any_environment",
        "test_init.py::test_init_python_exporter_names_imply_the_protocol",
        "test_application_servers.py::test_own_requests_are_not_traced",
    ),
    "C4 opentelemetry.io#3627, signoz.io#1936": (
        "test_init.py::test_init_general_endpoint_with_a_signal_path",
        "test_init.py::test_init_messages_show_requested_url",
    ),
    "C5 openlit#1369, langfuse#13590": (
        "test_tracing.py::test_span_across_yield",
        "test_tracing.py::test_span_across_yield_of_a_generator_closed_in_another_thread",
        "test_application_servers.py::test_fastapi_stream_client_disconnects",
    ),
    "C7 opentelemetry.io#7081": (
        "test_application_servers.py::test_application_server_workers",
        "test_init.py::test_forked_worker_prometheus_only_warns_once",
    ),
    "C9 prometheus-net#463, gohbase#182, thanos#4190": (
        "test_pipeline.py::test_exemplars_of_unsampled_traces_are_left_out",
        "test_wild_client_samples.py::test_metrics_page_has_no_exemplars_of_unsampled_traces",
    ),
    "C10 opentelemetry-collector-contrib#24054": (
        "test_wild_client_samples.py::test_two_writers_have_no_series_in_common",
        "test_init.py::test_init_service_instance_ids_differ",
    ),
    "F1 marimo#2906, nutpie#223": (
        "test_application_servers.py::test_marimo_is_a_notebook",
        "test_notebook_report.py::test_interactive_notebooks",
        "test_server_manager.py::test_manager_port_of_another_manager",
    ),
    "F2 opentelemetry-python#3743": (
        "test_application_servers.py::test_streamlit_reruns_keep_telemetry",
        "test_init.py::test_init_repeated_with_same_arguments",
    ),
    "F5 cirrus#69, unsloth#7182": ("test_orphan_processes.py::test_killed_kernel_frees_its_port",),
    "G1 granite-cli#92, llama-swap#84": (
        "test_identify.py::test_identify_other_programs",
        "test_attach.py::test_attach_target_is_not_llama_cpp",
    ),
    "G2 lldap#1392": ("test_server_manager.py::test_manager_own_certificate",),
    "G3 koku#583, homarr#6759": ("test_server_manager.py::test_manager_api_prefix",),
    "G4 llama-swap#1135, llama-swap#262": ("test_identify.py::test_identify_llama_swap_upstream_is_not_polled",),
    "G5 llama.cpp#20227, llama.cpp#23096, llama.cpp#27376": (
        "test_attach.py::test_attach_sleep_of_older_build",
        "test_attach.py::test_attach_sleeping_server_is_not_woken",
    ),
    "G6 llama.cpp#6413": ("test_attach.py::test_attach_unix_socket",),
    "G7 ik_llama.cpp#1210": (
        "test_attach.py::test_attach_timeout_is_stale_not_down",
        "test_progress.py::test_long_prefill_is_not_stalled",
    ),
}
"""Sample and issue: its tests."""


def missing_tests(samples: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Samples whose tests, ``MODULE::FUNCTION``, do not exist."""

    @cache
    def functions(module: str) -> set[str]:
        tree = ast.parse((TESTS / module).read_text(encoding="utf-8"))
        return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}

    named = [(sample, *name.partition("::")) for sample, names in samples.items() for name in names]
    return [
        (sample, f"{module}::{function}") for sample, module, _, function in named if function not in functions(module)
    ]


def test_wild_samples_have_tests() -> None:
    assert not missing_tests(SAMPLES)
