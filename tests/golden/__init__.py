"""Logs of real llama.cpp builds with what their clients saw; see README.md."""
