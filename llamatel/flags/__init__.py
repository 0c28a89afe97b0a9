"""llama-server's flags: one table, and the settings that follow from a command line."""
