"""Clients of a llama.cpp server."""

from __future__ import annotations

from llamatel.llama.client.aio import AsyncLlamaCppClient as AsyncLlamaCppClient
from llamatel.llama.client.aio_stream import AsyncStream as AsyncStream
from llamatel.llama.client.stream import Stream as Stream
from llamatel.llama.client.sync import LlamaCppClient as LlamaCppClient
