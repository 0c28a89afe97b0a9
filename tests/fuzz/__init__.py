"""Fuzzing of what reads strangers' files. Not part of ``make test``: ``python -m tests.fuzz --help``."""
