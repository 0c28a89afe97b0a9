"""The model that a server runs: its shape from its file, and the cache planned from the server's flags."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llamatel.errors import LlamatelError
from llamatel.flags.server_settings import ServerSettings
from llamatel.gguf.split_files import parse_gguf_header
from llamatel.llama.log.logged_server import LoggedServer
from llamatel.llama.watch.kv_state import LoadedModel, Polled, pool_capacity
from llamatel.llama.watch.local_process import LocalProcess
from llamatel.plan.cache_plan import cache_plan, plan_error
from llamatel.plan.llama_build import LlamaBuild, parse_build
from llamatel.plan.model_shape import ModelShape
from llamatel.plan.shape_from_gguf import shape_from_gguf

_log = logging.getLogger(__name__)


class ModelFile:
    """Reads the model's file; reads it again only if the server has loaded another model. Not thread-safe."""

    def __init__(self) -> None:
        self._model = LoadedModel()
        self._read_for: tuple[object, ...] | None = None
        self._compared: Mapping[str, int] = {}

    def read(
        self,
        logged: LoggedServer,
        settings: ServerSettings | None,
        process: LocalProcess | None,
        named: str | None,
        build: str | None = None,
    ) -> LoadedModel:
        """What is known of the model; ``named``: its path in ``/props``, ``build``: llama.cpp's build.

        Takes some milliseconds for a new model.
        """
        loaded = (
            settings, None if process is None else process.pid, named, logged.model_path, logged.draft_path,
            logged.slots, logged.slot_context, logged.kv_unified, logged.pool, build,
        )  # fmt: skip
        if self._read_for != loaded:
            self._model = _read(logged, settings, process, named, parse_build(build))
            self._read_for = loaded
            self._compared = {}
        if self._compared != logged.reported:
            self._compared = dict(logged.reported)
            self._model = _compared(self._model, logged.reported)
        return self._model


def _read(
    logged: LoggedServer,
    settings: ServerSettings | None,
    process: LocalProcess | None,
    named: str | None,
    build: LlamaBuild | None,
) -> LoadedModel:
    if settings is None or process is None:
        return LoadedModel(None, settings)
    shape = _shape(process.model_file(settings.model, (named, logged.model_path)), build)
    if settings.not_understood:
        return LoadedModel(shape)
    if shape is None:
        return LoadedModel(None, settings)
    if logged.draft_path is not None:
        # A repository may have its own draft model, loaded without a flag: the log names it, and its file.
        draft = process.model_file(settings.draft_model, (logged.draft_path,))
        settings = replace(settings, draft_model=str(draft or logged.draft_path))
        shape = replace(shape, draft=_shape(draft, build))
    return LoadedModel(shape, settings, cache_plan(shape, _as_fitted(settings, logged, shape)))


def _as_fitted(settings: ServerSettings, logged: LoggedServer, shape: ModelShape) -> ServerSettings:
    """The settings with the context size that llama.cpp chose, if no flag sets it and the log has it."""
    if settings.ctx_size:
        return settings
    pool = pool_capacity(logged, Polled(), LoadedModel(shape, settings))
    # Below a batch's length the context also bounds the batch, by its size before padding, which is not reported.
    return replace(settings, ctx_size=pool) if pool is not None and pool >= settings.batch_size else settings


def _compared(model: LoadedModel, reported: Mapping[str, int]) -> LoadedModel:
    """The model; its plan is no longer exact if llama.cpp reports other sizes."""
    plan = model.plan
    if plan is None or model.sure is None or not reported:
        return model
    error = plan_error(plan, reported)
    if not error:
        return replace(model, plan_error_bytes=0)
    why = (
        f"llama.cpp reports {error / 2**20:+,.2f} MiB more than planned"
        if error > 0
        else (f"llama.cpp reports {-error / 2**20:,.2f} MiB less than planned")
    )
    _log.warning(
        "the planned KV cache of %s is wrong (%s): planned sizes are no longer exported; please report the model, the "
        "flags and the llama.cpp build",
        "the model" if model.shape is None else model.shape.name or model.shape.architecture,
        why,
    )
    return replace(model, plan=replace(plan, exact=False, why_not_exact=why), plan_error_bytes=error)


def _shape(path: Path | None, build: LlamaBuild | None) -> ModelShape | None:
    if path is None:
        return None
    try:
        return shape_from_gguf(parse_gguf_header(path, read_tensors=True), build)
    except (LlamatelError, OSError) as error:
        _log.debug("the model's header cannot be read: %s", error)
        return None
