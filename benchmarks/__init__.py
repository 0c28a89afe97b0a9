"""What llamatel costs: the same load with and without it. ``python -m benchmarks --help``; ``make bench`` runs it."""
