"""Logs of real llama.cpp builds with their clients' responses; see README.md."""
