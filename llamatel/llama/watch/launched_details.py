"""What a snapshot tells of a launched server beside its state and its counters: slots, KV cache, model, settings.

Asked for is only ``/slots``, and that seldom (``slot_watch``), and where it found its model, if its log has another
name for it; the rest is in its log, its flags and its model's file.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from llamatel.flags.parse import parse_server_flags
from llamatel.flags.server_settings import ServerSettings
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.log.logged_server import LoggedServer
from llamatel.llama.server.server_command import CommandLine
from llamatel.llama.watch.kv_state import LoadedModel, kv_cache_state
from llamatel.llama.watch.loaded_model import read_loaded_model
from llamatel.llama.watch.slot_polling import Activity, SlotsNow, SlotWatch
from llamatel.plan.model_shape import ModelShape
from llamatel.snapshots import KvCacheState, SlotState

_PROPS_S = 0.5


@dataclass(frozen=True, slots=True)
class Details:
    """Fields of a ServerSnapshot by their names."""

    slots: tuple[SlotState, ...] | None = None
    decode_rate: float | None = None
    kv_cache: KvCacheState | None = None
    model: ModelShape | None = None
    settings: ServerSettings | None = None
    stale: bool = False
    asked: bool = False
    """Whether the server was asked for its slots, which takes a task number."""


class LaunchedServer:
    """Follows one server over the lives of its process. Thread-safe."""

    def __init__(self, command: CommandLine) -> None:
        environ = {**os.environ, **command.environment}
        self._flags = parse_server_flags(command.arguments, environ=environ, lenient=True)
        self._read = None if self._flags.not_understood else self._flags
        sleeps_after = self._flags.sleep_idle_seconds
        self._slots = SlotWatch(
            sleeps_after_s=sleeps_after if sleeps_after > 0 else None, always=self._flags.slot_save_path is not None
        )
        self._lock = threading.Lock()
        self._model = LoadedModel()
        self._model_of: tuple[object, ...] | None = None
        self._told: tuple[str | None, str] | None = None
        """A model's name in the log, and the path of its file as the server told it."""

    def restarted(self) -> None:
        """The server's process was replaced."""
        self._slots.restarted()

    def details(
        self, client: ServerClient | None, facts: LoggedServer, activity: Activity, generated_total: float | None
    ) -> Details:
        """What is known of a server that is up; without a ``client`` its slots are not asked for."""
        now = SlotsNow()
        if client is not None:
            now = self._slots.look(client, activity, generated_total, time.monotonic())
        model = self._loaded(facts, client)
        return Details(
            now.slots,
            now.decode_rate,
            kv_cache_state(facts, now.slots, model),
            model.shape,
            self._settings(facts),
            now.stale,
            now.asked,
        )

    def _loaded(self, facts: LoggedServer, client: ServerClient | None) -> LoadedModel:
        """Read anew only when the server has loaded something else."""
        with self._lock:
            path = self._file(facts, client)
            loaded = (path, facts.draft_path, facts.slots, facts.slot_context, facts.kv_unified, facts.pool)
            if self._model_of != loaded:
                self._model = read_loaded_model(facts, self._read, path)
                self._model_of = loaded
            return self._model

    def _file(self, facts: LoggedServer, client: ServerClient | None) -> str | None:
        """The model's file. One from a hub goes by its name there in the log, and its path is in ``/props``."""
        named = None if self._read is None else self._read.model
        for path in (facts.model_path, named):
            if path is not None and Path(path).is_file():
                return path
        if self._told is not None and self._told[0] == facts.model_path:
            return self._told[1]
        path = None if client is None else client.props(_PROPS_S).model_path
        if path is not None:
            self._told = facts.model_path, path
        return path

    def _settings(self, facts: LoggedServer) -> ServerSettings:
        """As given; slots and pool as the log has them, where llama.cpp chose them itself."""
        settings = self._flags
        if facts.slots is not None:
            settings = replace(settings, parallel=facts.slots, given=settings.given | {"parallel"})
        if facts.kv_unified is not None:
            settings = replace(settings, kv_unified=facts.kv_unified, given=settings.given | {"kv_unified"})
        return settings
