"""The tiny model's world: some sixty words, facts to look up, numbers to count, stories, and lists that repeat.

Everything is drawn from a ``random.Random``, so that a seed is a corpus. Nothing here needs more than Python: the tests
put the questions that this module makes to the shipped model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey")
THINGS = ("ball", "cup", "hat", "box", "key", "book", "lamp", "chair", "boat", "drum")
ANIMALS = ("cat", "dog", "bird", "fox", "bear", "fish", "horse", "mouse")
NAMES = ("anna", "ben", "clara", "david", "emma", "felix", "greta", "hugo")
PLACES = ("house", "garden", "forest", "river", "hill", "town", "school", "field")
NUMBERS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty", "fifty",
)  # fmt: skip
COUNTED = 20
"""The first so many numbers follow one another."""
WORDS = (*COLOURS, *THINGS, *ANIMALS, *NAMES, *PLACES, *NUMBERS)

SYSTEM = "you answer in short sentences ."
BEGIN, END = "<|begin|>", "<|end|>"
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Question:
    """A user's message, with facts, and the only right answer."""

    text: str
    answer: str


def _facts(random: Random, subjects: tuple[str, ...], properties: tuple[str, ...]) -> list[tuple[str, str]]:
    chosen = random.sample(subjects, random.randint(2, 4))
    return [(subject, random.choice(properties)) for subject in chosen]


def colour(random: Random) -> Question:
    """Facts about the colours of things; the question is about one."""
    facts = _facts(random, THINGS, COLOURS)
    thing, of = random.choice(facts)
    text = " ".join(f"the {name} is {value} ." for name, value in facts)
    return Question(f"{text} what color is the {thing} ?", f"the {thing} is {of} .")


def place(random: Random) -> Question:
    """Facts about where people are; the question is about one."""
    facts = _facts(random, NAMES, PLACES)
    name, at = random.choice(facts)
    text = " ".join(f"{who} is in the {where} ." for who, where in facts)
    return Question(f"{text} where is {name} ?", f"{name} is in the {at} .")


def count(random: Random) -> Question:
    """Counting from one number to another."""
    first, last = sorted(random.sample(range(COUNTED), 2))
    text = " ".join(NUMBERS[first : last + 1])
    return Question(f"count from {NUMBERS[first]} to {NUMBERS[last]} .", f"{text} .")


def repeat(random: Random) -> Question:
    """A list of words to repeat."""
    text = " ".join(random.choices(WORDS, k=random.randint(3, 16)))
    return Question(f"say again : {text} .", f"{text} .")


QUESTIONS: tuple[Callable[[Random], Question], ...] = (colour, place, count, repeat)


def story(random: Random, sentences: int) -> str:
    """A story without end: a person meets animals and carries things about."""
    who, where = random.choice(NAMES), random.choice(PLACES)
    animal, thing, of = random.choice(ANIMALS), random.choice(THINGS), random.choice(COLOURS)
    text = [f"one day {who} went to the {where} ."]
    for _ in range(sentences):
        kind = random.randrange(5)
        if kind == 0:
            where = random.choice(PLACES)
            text.append(f"then {who} and the {animal} went to the {where} .")
        elif kind == 1:
            animal, of = random.choice(ANIMALS), random.choice(COLOURS)
            text.append(f"in the {where} there was a {of} {animal} .")
        elif kind == 2:
            text.append(f"the {of} {animal} said hello to {who} .")
        elif kind == 3:
            thing = random.choice(THINGS)
            text.append(f"{who} gave the {thing} to the {animal} .")
        else:
            text.append(f"the {animal} put the {thing} in the {where} .")
    return " ".join(text)


def repeated_words(random: Random, words: int, times: int) -> str:
    """A list of words drawn at random, several times over: what only a look back can predict."""
    return " ".join(random.choices(WORDS, k=words) * times)
