"""What polling a server over HTTP shows: its answers, its slots, its counters; of a router, its models."""
