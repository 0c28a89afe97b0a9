"""User interfaces: live state, alarms, terminal, web page, notebook and reports."""
