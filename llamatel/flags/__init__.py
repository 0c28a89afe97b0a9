"""llama-server's flags: one table, and the settings that a command line comes to."""
