"""Configurations of every family, what llama.cpp's converter makes of them, and the library's defaults.

Made at development time, by ``make configs``; the tests read only what is committed here.
"""
