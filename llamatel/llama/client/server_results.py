"""What a server answers beside what its model does: tokens, templates, its own state (tools/server/README.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llamatel.llama.client.result import Result


@dataclass(frozen=True)
class Tokens(Result):
    """``tokenize``: the ids."""

    tokens: tuple[int, ...] = ()
    pieces: tuple[str | list[int], ...] = ()
    """With ``with_pieces``: the text of each; its bytes where they are no UTF-8."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[int]:
        return iter(self.tokens)


@dataclass(frozen=True)
class Detokenized(Result):
    """``detokenize``."""

    content: str = ""


@dataclass(frozen=True)
class Prompt(Result):
    """``apply_template``: the messages as the model gets them."""

    prompt: str = ""


@dataclass(frozen=True)
class Health(Result):
    """``health``: ``status`` is ``ok``, or ``loading`` while the model loads."""

    status: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it can be asked."""
        return self.status == "ok"

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True)
class Props(Result):
    """``props``: what the server is. ``n_ctx`` of ``default_generation_settings`` is a slot's."""

    total_slots: int | None = None
    model_path: str | None = None
    model_alias: str | None = None
    build_info: str | None = None
    chat_template: str | None = None
    default_generation_settings: Mapping[str, Any] = field(default_factory=dict)
    modalities: Mapping[str, Any] = field(default_factory=dict)
    is_sleeping: bool | None = None

    @property
    def n_ctx(self) -> int | None:
        """Tokens that one slot holds."""
        value = self.default_generation_settings.get("n_ctx")
        return value if isinstance(value, int) else None


@dataclass(frozen=True)
class Slot(Result):
    """One slot at this moment."""

    id: int = 0
    n_ctx: int | None = None
    is_processing: bool | None = None
    id_task: int | None = None
    n_prompt_tokens: int | None = None
    n_prompt_tokens_processed: int | None = None
    n_prompt_tokens_cache: int | None = None


@dataclass(frozen=True)
class SlotAction(Result):
    """A slot that was saved, restored or erased; bytes in ``n_written`` and ``n_read``."""

    id_slot: int | None = None
    filename: str | None = None
    n_saved: int | None = None
    n_written: int | None = None
    n_restored: int | None = None
    n_read: int | None = None
    n_erased: int | None = None


@dataclass(frozen=True)
class Model(Result):
    """A model that the server has."""

    id: str | None = None
    owned_by: str | None = None
    created: int | None = None
    meta: Mapping[str, Any] | None = None
    """Sizes, such as ``n_ctx_train``, ``n_params``; None while it is not loaded."""
    status: Mapping[str, Any] | None = None
    """A router's word on whether it is loaded."""


@dataclass(frozen=True)
class Models(Result):
    """``models.list``."""

    data: tuple[Model, ...] = ()


@dataclass(frozen=True)
class LoraAdapter(Result):
    """An adapter and how much it weighs."""

    id: int = 0
    path: str | None = None
    scale: float | None = None
