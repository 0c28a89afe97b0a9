"""Servers that others run: which they are, and how they are followed."""
