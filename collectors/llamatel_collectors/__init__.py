"""What llamatel measures: one file a collector, found through the entry-point group ``llamatel.collectors``."""
