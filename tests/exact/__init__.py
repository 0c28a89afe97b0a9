"""Exactness: our cache sizes against what llama.cpp itself allocates, byte for byte, on tiny models of every kind."""
