"""Exactness: planned cache sizes compared byte by byte with llama.cpp's allocations, on tiny models of every kind."""
