"""Launches a llama.cpp server: backend, command line, process, supervision."""
