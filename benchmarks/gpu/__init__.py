"""llamatel on a real GPU: what it costs there, and whether what it says about memory, energy and speed is true."""
