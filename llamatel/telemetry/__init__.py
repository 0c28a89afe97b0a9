"""OpenTelemetry: from records to metrics and spans, and out over OTLP and to Prometheus.

- A finished request: ``observer`` (queue and thread) -> collectors (``collector_guard``) -> samples ->
  ``instruments`` -> ``metric_store``, or ``sdk_instruments`` where the meter provider is the application's.
- Its spans: ``request_spans`` -> ``request_encoder``, or the SDK's tracer -> ``span_export`` -> ``otlp_spool`` ->
  ``otlp_delivery``.
- A scrape or push: ``instruments`` -> a snapshot of ``watched_servers`` -> collectors -> samples ->
  ``exposition`` (text), ``metric_points`` (OTLP).
- Setup: ``settings`` -> ``pipeline_builder`` -> ``pipeline``; ``connect`` puts an observer on it.

No other package of llamatel uses the OpenTelemetry SDK.
"""
