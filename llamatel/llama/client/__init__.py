"""A client of llama.cpp's server."""

from __future__ import annotations

from llamatel.llama.client.llama_client import LlamaCppClient as LlamaCppClient
from llamatel.llama.client.token_stream import Stream as Stream
