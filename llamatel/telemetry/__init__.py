"""Providers and exporters of the OpenTelemetry SDK, within bounds. Nothing else in llamatel touches the SDK."""
