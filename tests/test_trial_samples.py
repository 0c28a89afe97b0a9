"""What broke when llamatel was tried as a platform engineer (issue 17): each finding has a test, or a reason.

Numbers and texts follow the list of findings of 26 November 2026.
"""

from __future__ import annotations

from tests.test_wild_samples import missing_tests

FINDINGS: dict[str, tuple[str, ...]] = {
    "B1 no alert when the server of a serve crashes": (
        "test_rules.py::test_rules_pass_promtool_test",
        "test_rules.py::test_rules_with_objectives_and_expected_targets",
        "test_rules.py::test_incident_table_equals_last_run",
        "test_dashboards_live.py::test_rules_record_and_fire_live",
        "test_cli_serve.py::test_serve_reports_killed_server",
    ),
    "B2 plan -c 0 -np N": (
        "test_llama_builds.py::test_plan_slot_context_by_build",
        "test_plan_cli.py::test_plan_slot_capped_at_training_context",
    ),
    "1 sidecars cannot be told apart": (
        "test_dashboards.py::test_dashboards_legends_by_server_show_the_instance",
        "test_dashboards.py::test_dashboards_keep_and_show_labels_of_targets",
        "test_deploy.py::test_prometheus_keeps_labels_of_observed_servers",
        "test_alarms.py::test_alarm_names_the_labels_of_its_server",
        "test_top.py::test_server_table_labels",
        "test_page.py::test_overview_labels",
    ),
    "2 recording rules drop namespace, pod, cluster": (
        "test_rules.py::test_every_aggregation_keeps_the_labels_of_targets",
    ),
    "3 no alert on failed requests": (
        "test_rules.py::test_alert_has_firing_and_silent_cases",
        "test_alarms.py::test_alarms_error_rate",
    ),
    "4 one slow request pages; objectives cannot be chosen": (
        "test_rules.py::test_rules_pass_promtool_test",
        "test_cli_dashboards.py::test_export_objectives_in_rules_and_dashboards",
        "test_alarms.py::test_alarms_objectives_need_enough_requests",
        "test_alarms.py::test_alarms_use_the_users_objectives",
    ),
    "5 page and top in the shipped deployments": (
        "test_deploy.py::test_compose_commands_run_and_measure",
        "test_deploy.py::test_kubernetes_page_tokens_from_secrets",
        "test_page.py::test_page_beyond_loopback_without_token",
        "test_page.py::test_page_token",
        "test_top.py::test_top_page_not_served",
    ),
    "6 attach --log - ends with the stream": ("test_cli_serve.py::test_attach_continues_after_log_end",),
    "7 only polled: No traffic": (
        "test_dashboards.py::test_panel_description_unit_and_texts",
        "test_attach.py::test_attach_slots_and_counters_match_server",
        "test_page_in_browser.py::test_page_many_servers",
    ),
    "8 the sidecar's log and its position": (
        "test_deploy.py::test_kubernetes_sidecar_log_is_bounded",
        "test_log_file.py::test_position_survives_restarts",
        "test_log_file.py::test_position_survives_rotation",
    ),
    "9 SIGHUP, logrotate, systemd": (
        "test_appended_file.py::test_logrotate_reopens_files",
        "test_deploy.py::test_systemd_unit_valid_and_hardened",
        "test_systemd_notify.py::test_attach_notifies_ready_watchdog_reload_and_stopping",
    ),
    "10 one host behind a reverse proxy; labels of targets": (
        "test_attach.py::test_attach_servers_separated_by_path",
        "test_attach.py::test_targets_labels",
    ),
    "11 logs wrapped in JSON": (
        "test_log_wrappers.py::test_unwrap_all_requests",
        "test_log_exports.py::test_export_all_requests",
        "test_attach_log.py::test_attach_log_without_requests_message",
    ),
    "12 model of the requests in a backlog": (
        "test_attach_log.py::test_attach_backlog_has_the_labels_of_the_polled_server",
    ),
    "13 totals of a router that swaps": (
        "test_router.py::test_router_swaps_keep_token_totals",
        "test_router.py::test_router_log_found_and_read",
        "test_router.py::test_router_without_log_shows_what_is_missing",
    ),
    "14 plan of qwen4exp": ("test_llama_builds.py::test_plan_by_build",),
    "serve --host x.sock, attach unix://": (
        "test_server_manager.py::test_manager_unix_socket",
        "test_attach.py::test_attach_unix_socket",
    ),
    "OTLP over HTTP to another port": (
        "test_otlp.py::test_otlp_http_endpoint_on_an_unusual_port_is_detected",
        "test_otlp.py::test_otlp_grpc_to_an_http_server_hints_at_the_protocol",
    ),
    "REQUESTS_CA_BUNDLE": ("test_init.py::test_otlp_options_ignore_ca_variables_of_other_libraries",),
    "client certificate": (
        "test_attach.py::test_attach_client_certificate",
        "test_attach.py::test_attach_certificates_are_rotated",
    ),
    "requests.lost undercounts": (
        "test_golden_logs.py::test_reader_counts_requests_of_missing_lines",
        "test_log_file.py::test_file_counts_bytes_lost_to_truncation",
    ),
    "start_time changes twice": ("test_attach.py::test_attach_one_start_time_per_process",),
    "alerts_test.yml with promtool 3": ("test_rules.py::test_rules_pass_promtool_test",),
    "records_dropped has no 0": ("test_instruments.py::test_server_collector_samples",),
    "runbook_url, description": ("test_rules.py::test_alert_annotations_have_labels_and_absolute_runbook",),
    "overview: KV pool, colours, links, annotations, legends": (
        "test_dashboards_live.py::test_panels_kv_pool_as_configured",
        "test_dashboards.py::test_servers_table_has_colours_order_and_links",
        "test_dashboards.py::test_dashboards_annotations_use_existing_metrics",
        "test_dashboards.py::test_panel_description_unit_and_texts",
    ),
    "burn-rate panel; variables for cluster and namespace": (
        "test_dashboards_live.py::test_panels_burn_rate_equals_responses",
        "test_dashboards_live.py::test_dashboard_variable_values",
    ),
    "HEAD, /healthz, own CPU and memory": (
        "test_systemd_notify.py::test_endpoint_health_and_readiness",
        "test_instruments.py::test_server_collector_own_process",
    ),
    "native histograms": (
        "test_dashboards_live.py::test_stores_native_histograms_only_where_converted",
        "test_rules.py::test_rules_pass_promtool_test",
    ),
    ":9464 as address": ("test_settings.py::test_settings_metrics_address_without_a_host",),
    "top with many servers": (
        "test_top.py::test_top_server_table_fills_the_terminal",
        "test_top.py::test_top_search_lists_matching_servers",
        "test_top.py::test_top_home_and_end_select_first_and_last_server",
        "test_top.py::test_top_shows_since_when_a_server_is_down",
    ),
    "page: search, down since, models of a router": ("test_page_in_browser.py::test_page_many_servers",),
    "warnings twice, no time, advice for attached servers": (
        "test_cli_serve.py::test_attach_continues_after_log_end",
        "test_alarms.py::test_alarms_down_not_while_starting",
    ),
    "a router's model that fails": ("test_alarms.py::test_alarms_model_of_a_router_failed",),
    "778 KiB against 768 KiB": ("test_kv_state.py::test_kv_cache_line_bytes_as_plan_where_llama_cpp_rounds",),
    "/dev/full on --server-log": (
        "test_server_manager.py::test_manager_full_disk_drops_log_copy_only",
        "test_appended_file.py::test_server_log_continues_after_a_full_disk",
    ),
    "one call for three documents or inputs is three requests": (
        "test_call_groups.py::test_rerank_call_is_one_request",
        "test_call_groups.py::test_rerank_calls_counted_in_every_output",
        "test_client_models.py::test_client_rerank_span",
    ),
}
"""Finding: its tests."""


def test_findings_have_tests() -> None:
    assert not missing_tests(FINDINGS)
