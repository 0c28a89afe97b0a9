"""Spans for application code and client calls; joins calls with a server's requests."""
