"""Fuzzing of the parsers of external input: ``make fuzz``; a short form is in ``tests/test_fuzz.py``."""
