"""A tiny llama-architecture GGUF with random weights, for tests and measurements (0.5 MB).

It generates no meaningful text, but exercises llama.cpp's real server. The tokenizer has one token a character with
byte fallback, so a prompt of n ASCII letters is about n + 1 tokens.
"""

from __future__ import annotations

from pathlib import Path

CHAT_TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"


def write_tiny_model(
    path: Path | str,
    *,
    embedding: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    feed_forward: int = 128,
    context: int = 4096,
    half: bool = False,
    seed: int = 0,
    pooling: int | None = None,
) -> Path:
    """Write the model to ``path`` and return it. Shapes and formats: llama.cpp's gguf-py, ``gguf/constants.py``.

    ``half`` stores matrices as 16-bit floats, for models whose dimensions are a real one's. ``pooling`` is the pooling
    type by default.
    """
    import gguf
    import numpy as np

    path = Path(path)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("llamatel tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(embedding)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    head_size = embedding // heads
    writer.add_rope_dimension_count(head_size)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)

    tokens = ["<unk>", "<s>", "</s>"]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    scores = [0.0] * 3
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    types += [gguf.TokenType.BYTE] * 256
    scores += [-1000.0] * 256
    letters = ["\u2581", *map(chr, range(33, 127))]
    tokens += letters
    types += [gguf.TokenType.NORMAL] * len(letters)
    scores += [-1.0] * len(letters)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_vocab_size(len(tokens))
    writer.add_chat_template(CHAT_TEMPLATE)

    random = np.random.default_rng(seed)

    def matrix(name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        writer.add_tensor(name, values.astype(np.float16) if half else values)

    def weights(name: str, *shape: int) -> None:
        if half:
            # A wide layer must not add more to the stream than a narrow one, or it would hide the first dimension.
            values = random.standard_normal(shape, dtype=np.float32)
            values *= 0.4 / shape[1] ** 0.5
            matrix(name, values)
        else:
            matrix(name, (random.standard_normal(shape) * 0.05).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(embedding, dtype=np.float32))

    # The first dimension of the stream is constant and positive, so the first column of the output matrix acts as a
    # bias: it keeps the model from generating bytes that are no UTF-8 and from ending on its own.
    embeddings = random.standard_normal((len(tokens), embedding)).astype(np.float32)
    embeddings[:, 0] = 6.0
    matrix("token_embd.weight", embeddings)
    ones("output_norm.weight")
    output = (random.standard_normal((len(tokens), embedding)) * 0.3).astype(np.float32)
    output[:, 0] = 0.0
    output[: 3 + 256, 0] = -20.0
    matrix("output.weight", output)
    for block in range(layers):
        ones(f"blk.{block}.attn_norm.weight")
        weights(f"blk.{block}.attn_q.weight", embedding, embedding)
        weights(f"blk.{block}.attn_k.weight", kv_heads * head_size, embedding)
        weights(f"blk.{block}.attn_v.weight", kv_heads * head_size, embedding)
        weights(f"blk.{block}.attn_output.weight", embedding, embedding)
        ones(f"blk.{block}.ffn_norm.weight")
        weights(f"blk.{block}.ffn_gate.weight", feed_forward, embedding)
        weights(f"blk.{block}.ffn_up.weight", feed_forward, embedding)
        weights(f"blk.{block}.ffn_down.weight", embedding, feed_forward)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
