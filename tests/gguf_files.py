"""GGUF files for tests, written byte by byte: every version and byte order, valid and invalid."""

from __future__ import annotations

import struct
from collections.abc import Sequence

CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
U32, STRING, ARRAY = 4, 8, 9


class Writer:
    """The pieces of a file, in one version and byte order."""

    def __init__(self, version: int = 3, order: str = "<") -> None:
        self.version = version
        self.order = order
        self.size = "Q" if version > 1 else "I"

    def number(self, code: str, *values: float) -> bytes:
        return struct.pack(f"{self.order}{len(values)}{code}", *values)

    def string(self, text: str | bytes, length: int | None = None) -> bytes:
        data = text.encode() if isinstance(text, str) else text
        return self.number(self.size, len(data) if length is None else length) + data

    def value(self, kind: int, value: object) -> bytes:
        if kind == STRING:
            assert isinstance(value, (str, bytes))
            return self.string(value)
        if kind == ARRAY:
            assert isinstance(value, tuple)
            element, values = value
            return self.number("I", element) + self.number(self.size, len(values)) + b"".join(
                self.value(element, each) for each in values
            )  # fmt: skip
        assert isinstance(value, (int, float))
        return self.number(CODES[kind], value)

    def key(self, name: str | bytes, kind: int, value: object) -> bytes:
        return self.string(name) + self.number("I", kind) + self.value(kind, value)

    def tensor(self, name: str | bytes, shape: Sequence[int], kind: int, offset: int) -> bytes:
        return (
            self.string(name)
            + self.number("I", len(shape))
            + self.number(self.size, *shape)
            + self.number("I", kind)
            + self.number("Q", offset)
        )

    def file(
        self,
        keys: Sequence[bytes] = (),
        tensors: Sequence[bytes] = (),
        *,
        n_keys: int | None = None,
        n_tensors: int | None = None,
        data: int = 0,
        alignment: int = 32,
    ) -> bytes:
        """Return the whole file; counts may be wrong on purpose. ``data`` zero bytes follow, aligned."""
        head = b"GGUF" + self.number("I", self.version)
        head += self.number(self.size, len(tensors) if n_tensors is None else n_tensors)
        head += self.number(self.size, len(keys) if n_keys is None else n_keys)
        head += b"".join(keys) + b"".join(tensors)
        return head + bytes(-len(head) % alignment) + bytes(data) if data else head


def sample(version: int = 3, order: str = "<", *, words: int = 40) -> bytes:
    """A small valid file with every type of value, a vocabulary and three tensors."""
    write = Writer(version, order)
    numbers = {0: 200, 1: -3, 2: 60000, 3: -5, 4: 7, 5: -9, 6: 1.5, 7: True, 10: 1 << 40, 11: -(1 << 40), 12: 0.1}
    keys = [write.key("general.architecture", STRING, "llama"), write.key("general.name", STRING, "Zoë")]
    keys += [write.key(f"llama.number_{kind}", kind, value) for kind, value in numbers.items()]
    keys += [write.key(f"llama.list_{kind}", ARRAY, (kind, (value, value))) for kind, value in numbers.items()]
    keys.append(write.key("llama.attention.head_count_kv", ARRAY, (5, (4, 0, 4))))
    keys.append(write.key("general.tags", ARRAY, (STRING, ("a", "", "x" * 300))))
    tokens = tuple("t" * (number % 300) for number in range(words))
    keys.append(write.key("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)))
    keys.append(write.key("tokenizer.ggml.scores", ARRAY, (6, (0.5,) * words)))
    keys.append(write.key("llama.block_count", U32, 3))
    tensors = [
        write.tensor("token_embd.weight", (64, 4), 0, 0),
        write.tensor("blk.0.attn_q.weight", (256, 2), 12, 1024),
        write.tensor("scale", (), 1, 1312),
    ]
    return write.file(keys, tensors, data=1344)
