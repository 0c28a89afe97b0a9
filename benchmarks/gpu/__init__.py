"""llamatel on a real GPU: its overhead, and the accuracy of its memory, energy and speed figures."""
