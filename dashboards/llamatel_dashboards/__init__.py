"""Dashboards, alert rules and recording rules, all built from the metric table."""
