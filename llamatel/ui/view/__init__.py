"""Views of requests: lines, a waterfall, a summary.

Pure functions from records to rich's ``Text``, so that a terminal, a pipe and a test get the same characters.
"""

from llamatel.ui.view.glyphs import ASCII, UNICODE, Glyphs, glyphs_for
from llamatel.ui.view.kv_cache_line import kv_cache_line
from llamatel.ui.view.request_line import request_header, request_line, reuse_line
from llamatel.ui.view.summary_text import summary_sentence, summary_table
from llamatel.ui.view.waterfall import waterfall

__all__ = [
    "ASCII",
    "UNICODE",
    "Glyphs",
    "glyphs_for",
    "kv_cache_line",
    "request_header",
    "request_line",
    "reuse_line",
    "summary_sentence",
    "summary_table",
    "waterfall",
]
