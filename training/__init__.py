"""Trains the tiny model that llamatel ships (``python -m training``). Only for development: needs PyTorch."""
