"""Train the tiny model: ``python -m training [--out FILE] [--steps N]``. The same for a seed and a PyTorch build."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch.nn import functional

from . import language
from .corpus import Rows, train_tokenizer
from .export import write_gguf
from .network import Network, Sizes

SHIPPED = Path(__file__).resolve().parent.parent / "llamatel" / "models" / "tiny.gguf"
SEED = 7
STEPS = 875
SHORT, LONG = 128, 1024
"""Tokens in a row: most steps on short ones, the last ``LONG_SHARE`` on rows as long as the context."""
LONG_SHARE = 0.1
TOKENS = 6144
"""In a batch."""
RATE, WARMUP = 6e-3, 60


def _rate(step: int, steps: int) -> float:
    """Warm-up, then a cosine down to a twentieth."""
    done = max(step - WARMUP, 0) / max(steps - WARMUP, 1)
    return RATE * min((step + 1) / WARMUP, 1.0) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def train(network: Network, rows: Rows, steps: int) -> None:
    """Next-token prediction with AdamW."""
    matrices = [parameter for parameter in network.parameters() if parameter.dim() == 2]
    norms = [parameter for parameter in network.parameters() if parameter.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
    device = network.token_embd.weight.device
    start = time.monotonic()
    for step in range(steps):
        length = LONG if step >= steps * (1 - LONG_SHARE) else SHORT
        tokens, weights = (torch.from_numpy(part).to(device) for part in rows.batch(TOKENS // length, length))
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, steps)
        logits = network(tokens[:, :-1])
        losses = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        loss = (losses * weight).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5}  loss {loss.item():.3f}  {time.monotonic() - start:6.1f} s", flush=True)


@torch.no_grad()
def answers_right(network: Network, tokenizer: Tokenizer, questions: int = 25) -> dict[str, float]:
    """By kind of question, the share answered right, word for word, greedily."""
    random, device = Random(SEED + 1), network.token_embd.weight.device
    end = tokenizer.token_to_id(language.END)
    shares = {}
    for make in language.QUESTIONS:
        right = 0
        for _ in range(questions):
            question = make(random)
            roles = language.ROLES
            text = f"{language.BEGIN}{roles['user']}{question.text}{language.END}{roles['assistant']}"
            tokens = tokenizer.encode(text).ids
            start = len(tokens)
            while len(tokens) < start + 60:
                tokens.append(int(network(torch.tensor([tokens], device=device))[0, -1].argmax()))
                if tokens[-1] == end:
                    break
            right += tokenizer.decode(tokens[start:-1]).strip() == question.answer
        shares[make.__name__] = right / questions
    return shares


def main() -> None:
    """Train, test, write."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cuda: the same in some seconds, with other rounding")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    tokenizer = train_tokenizer(SEED)
    split = [word for word in language.WORDS if len(tokenizer.encode(f" {word}").ids) > 1]
    network = Network(Sizes(vocabulary=tokenizer.get_vocab_size())).to(options.device)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{parameters:,} parameters; words of several tokens: {split or 'none'}", flush=True)
    train(network, Rows(tokenizer, SEED), options.steps)
    for kind, share in answers_right(network, tokenizer).items():
        print(f"{kind}: {share:.0%} right")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(options.out, network.cpu(), tokenizer, LONG)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
