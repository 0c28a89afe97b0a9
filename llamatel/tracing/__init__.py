"""Spans for one's own code and for client calls, and the joining of calls with a server's requests."""
