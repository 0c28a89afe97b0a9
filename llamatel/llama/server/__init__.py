"""A server of our own: which llama.cpp, its command line, its process, its life."""
