"""The language as tokens: a small byte-pair vocabulary, and rows of tokens, each with a weight in the loss."""

from __future__ import annotations

from random import Random

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from . import language

SPECIAL = (language.BEGIN, language.END, *language.ROLES.values())
VOCABULARY = 768
_WORDS_AT_A_TIME = (4, 40)


def train_tokenizer(seed: int) -> Tokenizer:
    """Byte-level BPE, split as GPT-2 splits: llama.cpp's "gpt2" with the same merges gives the same tokens."""
    random = Random(seed)
    texts = [language.story(random, 6) for _ in range(1500)]
    for make in language.QUESTIONS * 1000:
        question = make(random)
        texts += [question.text, question.answer]
    # Every word, at the start of a text and after a space; and as a person writes, with a capital.
    texts += [f"{word} {word} {word.capitalize()} {word.capitalize()}" for word in language.WORDS] * 20
    texts += [language.SYSTEM] * 200
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Rows:
    """Rows of ``length`` tokens, each beginning with the begin token, made of chats, stories or repeated lists.

    With each token its weight in the loss: 0 where it cannot be predicted (a list's first turn, the user's turn).
    """

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._random = Random(seed)
        self._begin = tokenizer.token_to_id(language.BEGIN)
        self._ordinary = range(len(SPECIAL), tokenizer.get_vocab_size())

    def batch(self, rows: int, length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Tokens and weights, each rows × length."""
        made = [self._row(length) for _ in range(rows)]
        tokens = np.array([tokens for tokens, _ in made], dtype=np.int64)
        return tokens, np.array([weights for _, weights in made], dtype=np.float32)

    def _row(self, length: int) -> tuple[list[int], list[float]]:
        kind = self._random.random()
        if kind < 0.4:
            tokens, weights = self._chats(length)
        elif kind < 0.55:
            tokens = self._encode(language.story(self._random, length // 8))
            weights = [1.0] * len(tokens)
        else:
            tokens, weights = self._repeats(length, any_token=kind < 0.8)
        return [self._begin, *tokens][:length], [0.0, *weights][:length]

    def _chats(self, length: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        weights: list[float] = []
        if self._random.random() < 0.3:
            tokens += self._encode(f"{language.ROLES['system']}{language.SYSTEM}{language.END}")
            weights += [0.0] * len(tokens)
        while len(tokens) < length:
            question = self._random.choice(language.QUESTIONS)(self._random)
            question_tokens = self._encode(
                f"{language.ROLES['user']}{question.text}{language.END}{language.ROLES['assistant']}"
            )
            answer = self._encode(f"{question.answer}{language.END}")
            tokens += question_tokens + answer
            weights += [0.1] * len(question_tokens) + [1.0] * len(answer)
        return tokens, weights

    def _repeats(self, length: int, *, any_token: bool) -> tuple[list[int], list[float]]:
        """The same list until the row is full; from the second turn on it can be known."""
        words = self._random.randint(*_WORDS_AT_A_TIME)
        if any_token:
            part = self._random.choices(self._ordinary, k=words)
        else:
            part = self._encode(" " + " ".join(self._random.choices(language.WORDS, k=words)))
        times = length // len(part) + 1
        return part * times, [0.0] * len(part) + [1.0] * len(part) * (times - 1)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids
