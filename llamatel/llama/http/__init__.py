"""Polls a llama.cpp server over HTTP: properties, slots, counters; of a router, its models."""
