"""What people look at: live state, alarms, terminal, web page, notebook and reports."""
