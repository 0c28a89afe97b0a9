"""One llama.cpp context in this process with an observed graph. Used by the child process, and by tests."""

from __future__ import annotations

import contextlib
import ctypes
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llamatel.errors import ExploreError, UsageError, install_command
from llamatel.explore.capture import Capture, LayerAttention
from llamatel.explore.explore_request import CaptureRequest, check_memory
from llamatel.explore.ggml import Ggml
from llamatel.explore.tensor_observer import LayerRecord, Observer, why_missing
from llamatel.gguf import parse_gguf_header
from llamatel.plan.model_shape import ModelShape
from llamatel.plan.shape_from_gguf import shape_from_gguf

if TYPE_CHECKING:
    import numpy.typing as npt

Progress = Callable[[str, int, int], None]
"""Called with the current step, its progress, and its total."""

_NO_FLASH = 0
_TYPES = {"f32": 0, "f16": 1}


def bindings() -> Any:
    """llama-cpp-python's low-level functions. Raises ExploreError where it is not installed or does not load."""
    try:
        from llama_cpp import llama_cpp
    except ImportError:
        raise ExploreError(f"this needs llama-cpp-python: {install_command('explore')}") from None
    except (OSError, RuntimeError) as error:
        raise ExploreError(f"llama-cpp-python does not load: {error}") from None
    return llama_cpp


class Session:
    """A model, loaded. A context manager."""

    def __init__(self, path: str, *, gpu_layers: int = 0) -> None:
        self._api = api = bindings()
        self.ggml = Ggml(api._lib)
        self.version = _version()
        self.shape: ModelShape = shape_from_gguf(parse_gguf_header(path))
        api.llama_backend_init()
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = gpu_layers
        self._model = api.llama_model_load_from_file(path.encode(), parameters)
        if not self._model:
            raise ExploreError(f"llama.cpp cannot load {path}")
        self.vocabulary = api.llama_model_get_vocab(self._model)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._api.llama_model_free(self._model)

    def tokenize(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """The text's tokens, with those that the model adds at the start and the end."""
        raw = text.encode()
        room = len(raw) + 16
        tokens = (self._api.llama_token * room)()
        n = self._api.llama_tokenize(self.vocabulary, raw, len(raw), tokens, room, True, special)
        if n < 0:
            raise ExploreError("llama.cpp cannot tokenize this prompt")
        return tuple(tokens[:n])

    def text(self, token: int) -> str:
        """A token as text."""
        buffer = ctypes.create_string_buffer(256)
        n = self._api.llama_token_to_piece(self.vocabulary, token, buffer, len(buffer), 0, True)
        return buffer.raw[: max(n, 0)].decode(errors="replace")

    def random_tokens(self, count: int, seed: int) -> tuple[int, ...]:
        """Different random ordinary tokens, after the model's start token."""
        api, chosen = self._api, random.Random(seed)
        total = api.llama_vocab_n_tokens(self.vocabulary)
        begin = api.llama_vocab_bos(self.vocabulary)
        tokens: dict[int, None] = {}  # each once: a token that occurs twice would be an unwanted repetition
        for _ in range(1000 * count):
            token = chosen.randrange(total)
            text = self.text(token)
            if not api.llama_vocab_is_control(self.vocabulary, token) and text.strip() and "\ufffd" not in text:
                tokens[token] = None
            if len(tokens) == count:
                break
        else:
            raise ExploreError(f"the model has no {count} ordinary tokens to draw")
        return (*([begin] if begin >= 0 and api.llama_vocab_get_add_bos(self.vocabulary) else []), *tokens)

    def chat(self, prompt: str) -> str:
        """The prompt as a user's message in the model's chat template."""
        template = self._api.llama_model_chat_template(self._model, None)
        if not template:
            raise UsageError("the model has no chat template: leave --chat out")
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        messages = [{"role": "user", "content": prompt}]
        try:
            made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template.decode())
            return made.render(messages=messages, add_generation_prompt=True, bos_token="", eos_token="")
        except TemplateError as error:
            raise UsageError(f"the model's chat template cannot be used: {error}") from None

    @contextlib.contextmanager
    def context(
        self, tokens: int, *, observer: Observer | None = None, cache_type: str = "f16", threads: int | None = None
    ) -> Iterator[Context]:
        """A context for this many tokens. Without an observer it is as fast as llama.cpp without flash attention."""
        api = self._api
        parameters = api.llama_context_default_params()
        parameters.n_ctx = -(-tokens // 256) * 256
        parameters.n_batch = parameters.n_ubatch = max(tokens, 32)
        parameters.n_seq_max = 1
        parameters.flash_attn_type = _NO_FLASH
        parameters.type_k = parameters.type_v = _TYPES[cache_type]
        parameters.swa_full = True  # a cell for each position in windowed layers too: the mask is the window
        parameters.no_perf = True
        if threads:
            parameters.n_threads = parameters.n_threads_batch = threads
        callback = api.ggml_backend_sched_eval_callback(observer or _no_observer)
        if observer is not None:
            parameters.cb_eval = callback
        made = api.llama_init_from_model(self._model, parameters)
        if not made:
            raise ExploreError("llama.cpp cannot make a context for this model without flash attention")
        try:
            yield Context(api, made, callback)
        finally:
            api.llama_free(made)


def _no_observer(_address: int, _query: bool, _user_data: object) -> bool:
    return False


class Context:
    """Decodes into one sequence."""

    def __init__(self, api: Any, context: Any, callback: object) -> None:
        self._api, self._context, self._callback = api, context, callback

    def decode(self, tokens: Sequence[int]) -> None:
        """One pass. Raises ExploreError if llama.cpp refuses it."""
        array = (self._api.llama_token * len(tokens))(*tokens)
        code = self._api.llama_decode(self._context, self._api.llama_batch_get_one(array, len(tokens)))
        if code != 0:
            raise ExploreError(f"llama_decode failed ({code})")

    def likeliest(self, vocabulary: Any) -> int:
        """The most likely next token after the last pass."""
        import numpy as np

        logits = self._api.llama_get_logits_ith(self._context, -1)
        total = self._api.llama_vocab_n_tokens(vocabulary)
        return int(np.argmax(np.ctypeslib.as_array(logits, (total,))))

    def forget(self, begin: int = 0) -> bool:
        """Drop the cache from position ``begin`` on; False if the memory cannot (recurrent states)."""
        memory = self._api.llama_get_memory(self._context)
        if begin == 0:
            self._api.llama_memory_clear(memory, False)
            return True
        return bool(self._api.llama_memory_seq_rm(memory, 0, begin, -1))


def capture_here(request: CaptureRequest, progress: Progress | None = None) -> Capture:
    """Capture in this process. A failed assertion of llama.cpp ends it: ``explore_child.capture`` uses a child."""
    step = progress or (lambda _what, _done, _total: None)
    step("loading the model", 0, 1)
    with Session(request.model, gpu_layers=request.gpu_layers) as session:
        return _capture(session, request, step)


def _prompt(session: Session, request: CaptureRequest) -> tuple[int, ...]:
    if request.tokens is not None:
        tokens = request.tokens
    elif request.repeat is not None:
        drawn = session.random_tokens(request.repeat, request.seed)
        tokens = (*drawn, *drawn[-request.repeat :])
    else:
        text = session.chat(request.prompt) if request.chat else request.prompt
        tokens = session.tokenize(text)
    if not tokens:
        raise UsageError("there are no tokens: give a --prompt")
    return tokens


def _capture(session: Session, request: CaptureRequest, step: Progress) -> Capture:
    start = time.perf_counter()
    prompt = _prompt(session, request)
    total = len(prompt) + request.generate
    rows = range(*(request.rows or (0, total)))
    rows = range(rows.start, min(rows.stop, total))
    if not rows:
        raise UsageError(f"there are {total} tokens, and no row {rows.start}")
    chosen = request.chosen_layers(session.shape)
    request.check_heads(session.shape)
    check_memory(request, session.shape, total)
    observer = Observer(session.ggml, frozenset(chosen), request.heads)
    passes: list[dict[int, LayerRecord]] = []
    tokens = list(prompt)
    with session.context(total, observer=observer, cache_type=request.cache_type, threads=request.threads) as context:
        done = 0
        for number in range(request.generate + 1):
            step("decoding", number, request.generate + 1)
            new = tokens[done:]
            observer.begin(min(max(rows.start - done, 0), len(new) - 1), len(tokens))
            context.decode(new)
            if observer.failure is not None:
                raise observer.failure
            if done + len(new) > rows.start and done < rows.stop:
                passes.append(observer.layers)
            elif passes:
                _renew(passes[-1], observer.layers)
            done = len(tokens)
            if number < request.generate:
                tokens.append(context.likeliest(session.vocabulary))
    step("decoding", request.generate + 1, request.generate + 1)
    layers = {layer: joined for layer in chosen if (joined := _join(layer, passes, rows, total, request)) is not None}
    return Capture(
        model=request.model,
        token_ids=tuple(tokens),
        texts=tuple(session.text(token) for token in tokens),
        prompt_tokens=len(prompt),
        rows=rows,
        layers=layers,
        missing=_missing(session.shape, passes, chosen),
        llama_cpp=session.version,
        cache_type=request.cache_type,
        seconds=time.perf_counter() - start,
    )


def _renew(kept: dict[int, LayerRecord], later: dict[int, LayerRecord]) -> None:
    """Keys and values of tokens after the last row."""
    for layer, record in later.items():
        if layer in kept:
            kept[layer].keys, kept[layer].values = record.keys, record.values


def _missing(shape: ModelShape, passes: list[dict[int, LayerRecord]], chosen: tuple[int, ...]) -> dict[int, str]:
    by_index = {layer.index: layer for layer in shape.trunk}
    missing = {}
    for index in chosen:
        layer = by_index[index]
        why = why_missing(passes[0], index, attends=layer.attends, recurrent=layer.state is not None)
        if why is not None:
            missing[index] = why
    return missing


def _join(
    index: int, passes: list[dict[int, LayerRecord]], rows: range, total: int, request: CaptureRequest
) -> LayerAttention | None:
    """The rows of all passes, one under the other, each as long as the last."""
    records = [made[index] for made in passes if index in made and made[index].weights is not None]
    if not records:
        return None
    last = records[-1]
    weights = _stack([record.weights for record in records], total)[:, : len(rows)]
    queries = _stack([record.queries for record in records], None)[:, : len(rows)]
    masks = [record.visible for record in records]
    visible = _stack([mask[None] if mask is not None else None for mask in masks], total)[0, : len(rows)]
    assert last.keys is not None and last.values is not None and last.scale is not None  # noqa: PT018, S101
    heads = request.heads if request.heads is not None else tuple(range(last.heads_in_all))
    return LayerAttention(
        index=index,
        heads=tuple(head for head in heads if head < last.heads_in_all),
        heads_in_all=last.heads_in_all,
        kv_heads=last.kv_heads,
        weights=weights,
        queries=queries,
        keys=last.keys,
        values=last.values,
        visible=visible.astype(bool),
        scale=last.scale,
        max_bias=last.max_bias,
        softcapped=last.softcapped,
        sinks=last.sinks,
        latent=last.kv_heads == 1 and last.keys.shape[2] != last.values.shape[2],
    )


def _stack(parts: Sequence[npt.NDArray[Any] | None], width: int | None) -> npt.NDArray[Any]:
    """Arrays of heads × rows × columns under one another, missing columns 0."""
    import numpy as np

    there = [part for part in parts if part is not None]
    if len(there) != len(parts):
        raise ExploreError("llama.cpp computed a part of a layer's attention only; it is not understood")
    if width is None:
        return np.concatenate(there, axis=1)
    whole = np.zeros((there[0].shape[0], sum(part.shape[1] for part in there), width), there[0].dtype)
    done = 0
    for part in there:
        whole[:, done : done + part.shape[1], : part.shape[2]] = part
        done += part.shape[1]
    return whole


def _version() -> str:
    from importlib.metadata import version

    return f"llama-cpp-python {version('llama-cpp-python')}"
