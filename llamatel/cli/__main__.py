"""``python -m llamatel.cli``: the command line, also from a source tree that is not installed."""

from llamatel.cli.start import run

run()
