"""llamatel's tests; the real programs that they run are in ``tests.parts``."""
