"""External input, read within bounds of time, size and depth: HTTP, JSON, text files, credentials."""
