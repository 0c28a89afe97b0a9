"""What people see: dashboards, alert and recording rules, all made from the metric table."""
