"""Configurations of every family, their keys after llama.cpp's converter, and the library's defaults.

Generated at development time by ``make configs``; the tests only read the committed files.
"""
