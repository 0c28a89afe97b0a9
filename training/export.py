"""Writes the trained network as a GGUF that llama.cpp loads: matrices in F16, norms in F32."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer

from . import language
from .corpus import SPECIAL
from .network import Network


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokens.index(language.BEGIN))
    writer.add_eos_token_id(tokens.index(language.END))
    writer.add_add_bos_token(True)
    writer.add_chat_template(language.CHAT_TEMPLATE)
    writer.add_vocab_size(len(tokens))


def write_gguf(path: Path, network: Network, tokenizer: Tokenizer, context: int) -> None:
    """``context``: the longest rows it was trained on, in tokens."""
    sizes = network.sizes
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("llamatel tiny")
    writer.add_author("llamatel")
    writer.add_license("apache-2.0")
    writer.add_description("A toy that answers in a language of some sixty words; made by python -m training.")
    writer.add_context_length(context)
    writer.add_embedding_length(sizes.embedding)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.feed_forward)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(sizes.head_length)
    writer.add_value_length(sizes.head_length)
    writer.add_rope_dimension_count(sizes.head_length)
    writer.add_rope_freq_base(sizes.rope_base)
    writer.add_layer_norm_rms_eps(sizes.epsilon)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tokenizer(writer, tokenizer)
    for name, parameter in network.named_parameters():
        values = parameter.detach().numpy()
        writer.add_tensor(name, values.astype(np.float16 if values.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
