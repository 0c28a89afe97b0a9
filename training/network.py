"""The network: llama's architecture, with the rotary embedding as llama.cpp applies it (pairs of neighbours)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Sizes:
    """The model's dimensions."""

    vocabulary: int
    embedding: int = 96
    layers: int = 3
    heads: int = 8
    kv_heads: int = 2
    head_length: int = 32
    feed_forward: int = 192
    rope_base: float = 10000.0
    epsilon: float = 1e-5


def turns(sizes: Sizes, tokens: int, device: torch.device) -> Tensor:
    """The rotations of positions 0 to ``tokens`` as complex numbers, tokens × half a head's length."""
    speeds = sizes.rope_base ** (-torch.arange(0, sizes.head_length, 2, device=device) / sizes.head_length)
    angles = torch.outer(torch.arange(tokens, dtype=torch.float32, device=device), speeds)
    return torch.polar(torch.ones_like(angles), angles)


def rope(x: Tensor, turned: Tensor) -> Tensor:
    """Rotate pairs (0, 1), (2, 3), ... of the last dimension; x is ... × tokens × head length."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turned).flatten(-2)


class Block(nn.Module):
    """One layer. Its parameters have the names of GGUF."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self._sizes = s = sizes
        self.attn_norm = nn.RMSNorm(s.embedding, s.epsilon)
        self.attn_q = nn.Linear(s.embedding, s.heads * s.head_length, bias=False)
        self.attn_k = nn.Linear(s.embedding, s.kv_heads * s.head_length, bias=False)
        self.attn_v = nn.Linear(s.embedding, s.kv_heads * s.head_length, bias=False)
        self.attn_output = nn.Linear(s.heads * s.head_length, s.embedding, bias=False)
        self.ffn_norm = nn.RMSNorm(s.embedding, s.epsilon)
        self.ffn_gate = nn.Linear(s.embedding, s.feed_forward, bias=False)
        self.ffn_up = nn.Linear(s.embedding, s.feed_forward, bias=False)
        self.ffn_down = nn.Linear(s.feed_forward, s.embedding, bias=False)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self._sizes.head_length)).transpose(1, 2)

    def forward(self, x: Tensor, turned: Tensor) -> Tensor:
        """The residual stream, rows × tokens × embedding, a layer on."""
        s = self._sizes
        normed = self.attn_norm(x)
        query = rope(self._heads(self.attn_q(normed), s.heads), turned)
        key = rope(self._heads(self.attn_k(normed), s.kv_heads), turned)
        value = self._heads(self.attn_v(normed), s.kv_heads)
        group = s.heads // s.kv_heads
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attn_output(seen.transpose(1, 2).flatten(-2))
        normed = self.ffn_norm(x)
        return x + self.ffn_down(functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed))


class Network(nn.Module):
    """The whole model; the output matrix is the embeddings'."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.token_embd = nn.Embedding(sizes.vocabulary, sizes.embedding)
        self.blk = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.output_norm = nn.RMSNorm(sizes.embedding, sizes.epsilon)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                out = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(parameter, std=0.05 / (2 * sizes.layers) ** 0.5 if out else 0.05)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, rows × tokens × vocabulary."""
        x = self.token_embd(tokens)
        turned = turns(self.sizes, tokens.shape[1], tokens.device)
        for block in self.blk:
            x = block(x, turned)
        return self.output_norm(x) @ self.token_embd.weight.T
