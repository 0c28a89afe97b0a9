"""Compares the newest llama.cpp that can be had here with what llamatel knows: ``make upstream``."""
