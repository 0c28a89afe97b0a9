"""The GGUF reader as a target: files of every version and byte order, changed at random."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.fuzz.gguf_header import check
from tests.fuzz.target import Target
from tests.gguf_files import ARRAY, STRING, U32, Writer, sample

_NUMBERS = (0, 1, 2, 7, 8, 9, 13, 31, 32, 255, 256, 512, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, 1 << 63, -1)


def corpus() -> list[bytes]:
    """Valid files to start from."""
    files = [sample(version, order) for version in (1, 2, 3) for order in "<>"]
    write = Writer()
    names = ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "context_length")
    for architecture in ("llama", "gemma3", "deepseek2", "jamba", "qwen3next", "nanbeige"):
        keys = [write.key("general.architecture", STRING, architecture)]
        keys += [write.key(f"{architecture}.{name}", U32, 4) for name in names]
        keys.append(write.key(f"{architecture}.attention.key_length", ARRAY, (U32, (4, 4, 0, 1))))
        keys.append(write.key("tokenizer.ggml.tokens", ARRAY, (STRING, ("a", "bc", "") * 9)))
        files.append(write.file(keys, [write.tensor("blk.0.attn_q.weight", (32, 4), 8, 0)], data=160))
    return files


def mutate(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    """A few random edits: bytes, numbers that matter, cuts, repeats, splices."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 5)):
        at = dice.randrange(len(changed) + 1)
        kind = dice.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] = dice.randrange(256)
        elif kind == 1:
            size = dice.choice((1, 4, 4, 8, 8))
            number = dice.choice(_NUMBERS) & ((1 << 8 * size) - 1)
            changed[at : at + size] = number.to_bytes(size, dice.choice(("little", "big")))
        elif kind == 2:
            del changed[at : at + dice.randint(1, 30)]
        elif kind == 3:
            changed[at:at] = dice.randbytes(dice.randint(1, 20))
        elif kind == 4:
            changed[at:at] = changed[at : at + dice.randint(1, 200)]
        elif kind == 5 and dice.random() < 0.3:
            other = dice.choice(others)
            changed[at:] = other[dice.randrange(len(other)) :]
    return bytes(changed)


GGUF = Target("gguf_header", check, corpus, mutate)
