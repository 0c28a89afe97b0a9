"""The model that a launched server runs: its shape, from its file, and its cache as planned with the server's flags."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from llamatel.errors import LlamatelError
from llamatel.flags.server_settings import ServerSettings
from llamatel.gguf.split_files import parse_gguf_header
from llamatel.llama.log.logged_server import LoggedServer
from llamatel.llama.watch.kv_state import LoadedModel, pool_capacity
from llamatel.plan.cache_plan import cache_plan
from llamatel.plan.model_shape import ModelShape
from llamatel.plan.shape_from_gguf import shape_from_gguf

_log = logging.getLogger(__name__)


def read_loaded_model(facts: LoggedServer, settings: ServerSettings | None, path: str | None) -> LoadedModel:
    """What the model's file and the settings say; what cannot be read stays None. Reads headers (some milliseconds)."""
    shape = _shape(path)
    if shape is None or settings is None:
        return LoadedModel(shape, settings)
    if facts.draft_path is not None:
        # A repository's own draft may come with its model, unasked for: the log tells that, and its file.
        settings = replace(settings, draft_model=facts.draft_path)
        shape = replace(shape, draft=_shape(facts.draft_path))
    return LoadedModel(shape, settings, cache_plan(shape, _as_fitted(settings, facts, shape)))


def _as_fitted(settings: ServerSettings, facts: LoggedServer, shape: ModelShape) -> ServerSettings:
    """The settings with the context that llama.cpp chose, where it was left to it and its log says which."""
    if settings.ctx_size:
        return settings
    pool = pool_capacity(facts, None, LoadedModel(shape, settings))
    # Below a batch's length the context also bounds the batch, by its size before padding, which nobody tells.
    return replace(settings, ctx_size=pool) if pool is not None and pool >= settings.batch_size else settings


def _shape(path: str | None) -> ModelShape | None:
    if path is None or not Path(path).is_file():
        return None
    try:
        return shape_from_gguf(parse_gguf_header(path, read_tensors=True))
    except (LlamatelError, OSError) as error:
        _log.debug("the model's header cannot be read: %s", error)
        return None
