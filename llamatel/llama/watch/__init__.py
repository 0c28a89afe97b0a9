"""Observes servers: discovery, polling, reading their logs, and engines that embed llama-server."""
