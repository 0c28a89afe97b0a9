"""What a person sees of requests: lines, a waterfall, a summary.

Pure functions from records to rich's ``Text``, so that a terminal, a pipe and a test get the same characters.
"""

from llamatel.view.glyphs import ASCII, UNICODE, Glyphs, glyphs_for
from llamatel.view.kv_cache import kv_cache_line
from llamatel.view.line import request_header, request_line
from llamatel.view.summary import summary_sentence, summary_table
from llamatel.view.waterfall import waterfall

__all__ = [
    "ASCII",
    "UNICODE",
    "Glyphs",
    "glyphs_for",
    "kv_cache_line",
    "request_header",
    "request_line",
    "summary_sentence",
    "summary_table",
    "waterfall",
]
