"""Clients fill every string of every endpoint with log lines, records and long words: none are recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.injection import FIRST_TASK, MORE_RAW, MORE_VECTORS, RAW, VECTORS, WORD, payload
from tests.parts import llama_server
from tests.test_log_injection import FORGEABLE_AS_TEXT, Attacked, check_unforged, refused, wrapped_tasks
from tests.test_log_wrappers import WRAPPERS
from tests.tiny_gguf import write_tiny_model

_STAMPS = ("0.00.000.001", "0.00.900.000", "9.00.000.000", "9999999.59.999.999")
_FORGEABLE = {
    "chat.grammar_closed", "chat.response_object", "chat.response_pattern_closed", "chat.response_schema_closed",
    "chat.samplers_closed", "completion.samplers_closed_2",
    "completion.schema_additional", "completion.schema_def_name", "completion.schema_items_closed",
    "completion.schema_one_of", "completion.schema_remote_ref", "responses.tool_type_multi", "v1_completions.samplers",
}  # fmt: skip
"""The documented vectors, in other fields and endpoints."""
_FORGEABLE_VERBOSE = {
    "chat.continue", "chat.grammar", "completion.generation_prompt", "completion.grammar", "completion.grammar_lark",
    "completion.grammar_lark2", "completion.grammar_lark3", "completion.grammar_lark4", "completion.grammar_number",
    "completion.grammar_recursive", "completion.grammar_ref", "completion.grammar_rule_name",
    "completion.grammar_token", "completion.grammar_undefined",
}  # fmt: skip
"""With ``-lv 5``, which prints grammars and the start of the answer as they are."""
_SEPARATORS = ("\u2028", "\u2029", "\u0085", "\r", "\x0b", "\x0c", "\x1c", "\0\n", "\n\x1b[0m", "\n\ufeff", '\\n"}\n')
"""What a reader of lines might take for a line end, and what may hide one."""


def _texts() -> list[str]:
    lines = [payload(FIRST_TASK + number, records=False, stamp=stamp) for number, stamp in enumerate(_STAMPS)]
    records = payload(FIRST_TASK + 90, records=True)
    return [
        *lines,
        records,
        records + lines[0],
        lines[0].replace("\n", "\r\n"),
        "\x1b[0m" + lines[0],
        WORD,
        WORD + lines[0],
        *(lines[0].replace("\n", separator) for separator in _SEPARATORS),
    ]


def run(folder: Path) -> dict[str, Any]:
    """Attack both backends, with records and with text as their log."""
    model = write_tiny_model(folder / "tiny.gguf")
    figures: dict[str, Any] = {
        "vectors": len(VECTORS) + len(RAW) + len(MORE_VECTORS) + len(MORE_RAW),
        "payloads": len(_texts()) + 2,
    }
    for name, backend in (("xllamacpp", "xllamacpp"), ("llama-server", str(llama_server()))):
        tried = rejected = 0
        for texts in (None, _texts()):
            attacked = Attacked(backend, model, texts=texts, more=True)
            check_unforged(attacked)
            tried += len(attacked.attempts)
            rejected += refused(attacked.attempts)
        verbose = Attacked(backend, model, "-lv", "5", more=True)
        check_unforged(verbose)
        assert not any("launch_slot_" in repr(record) for record in verbose.records)
        log = folder / f"{name}.log"
        as_text = Attacked(backend, model, "--no-log-jsonl", more=True, log=log)
        assert as_text.forged <= FORGEABLE_AS_TEXT | _FORGEABLE, as_text.forged
        plain, wrapped = wrapped_tasks(log, WRAPPERS)
        forging = {wrapper for wrapper, tasks in wrapped.items() if not tasks <= plain}
        assert forging <= {"journald export, binary"}  # a size of 10 is a line end there: the start may be lost
        as_verbose_text = Attacked(backend, model, "--no-log-jsonl", "-lv", "5", more=True)
        assert as_verbose_text.forged <= FORGEABLE_AS_TEXT | _FORGEABLE | _FORGEABLE_VERBOSE, as_verbose_text.forged
        figures[name] = {
            "requests": tried,
            "answered_with_an_error": rejected,
            "forged": 0,
            "forged_at_lv_5": 0,
            "wrappers_that_forge_more": sorted(forging),
            "forged_in_a_text_log": sorted(as_text.forged),
            "forged_in_a_text_log_at_lv_5": sorted(as_verbose_text.forged - as_text.forged),
        }
    return figures
