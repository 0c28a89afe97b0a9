"""``serve --preset``: arguments for a machine, computed from the model's header before the server starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llamatel.cli.plan import flag_words
from llamatel.llama.server.preset_arguments import preset_arguments
from llamatel.plan.advice import devices_in_words


def with_preset(
    name: str, model: str | None, arguments: Mapping[str, Any], server_args: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """The arguments of ``ServerManager.start_server`` with those of the preset, and a line that describes them."""
    added, chosen = preset_arguments(name, model, [*flag_words(arguments), *server_args])
    flags = " ".join(flag_words(added))
    text = f"llamatel: {name} ({devices_in_words(chosen.devices)}): {flags or 'nothing to add to your flags'}"
    if chosen.longest > (chosen.settings.ctx_size or 0):
        text += f"; the context can grow to {chosen.longest} tokens"
    return {**arguments, **added}, text
