"""Translate English into a language that does not exist.

Its words and its grammar are made from a seed, so nothing of it can be in any model's pretraining,
and every class or student can have a language of their own. The grammar, for every seed: the verb
comes last; adjectives and numbers follow their noun; endings mark plural, object and past; a
number makes the plural ending drop; negation is a word before the verb; a question opens with a
word. Words, endings and the order of number and adjective come from the seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from loralab.tasks import Pair, in_split

# English forms: singular and plural; base, third person, past.
NOUNS = {
    "dog": "dogs", "cat": "cats", "bird": "birds", "child": "children", "teacher": "teachers",
    "stone": "stones", "tree": "trees", "house": "houses",
}  # fmt: skip
SUBJECTS = 5  # the first five nouns can act
VERBS = {
    "see": ("sees", "saw"), "find": ("finds", "found"), "hold": ("holds", "held"),
    "like": ("likes", "liked"),
}  # fmt: skip
ADJECTIVES = ("old", "red", "small")
NUMBERS = ("two", "three", "five")

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "sh", "kr")
_VOWELS = ("a", "e", "i", "o", "u", "ou")
_CODAS = ("b", "k", "l", "m", "n", "p", "r", "sk", "t", "v", "z")


@dataclass(frozen=True)
class NounPhrase:
    """What the English and the new language both say: a noun, how many, and which."""

    noun: str
    plural: bool = False
    number: str | None = None
    adjective: str | None = None

    def english(self) -> str:
        words = [self.number or "the"]
        words += [self.adjective] if self.adjective else []
        words.append(NOUNS[self.noun] if self.plural or self.number else self.noun)
        return " ".join(words)


@dataclass(frozen=True)
class Sentence:
    """Subject, verb, object; present or past; stated, denied or asked."""

    subject: NounPhrase
    verb: str
    object: NounPhrase
    past: bool = False
    negated: bool = False
    question: bool = False

    def english(self) -> str:
        subject, object = self.subject.english(), self.object.english()
        many = self.subject.plural or self.subject.number is not None
        third, past = VERBS[self.verb]
        helper = "did" if self.past else "do" if many else "does"
        if self.question:
            negation = "not " if self.negated else ""
            return f"{helper} {subject} {negation}{self.verb} {object}?"
        if self.negated:
            return f"{subject} {helper} not {self.verb} {object}."
        verb = past if self.past else self.verb if many else third
        return f"{subject} {verb} {object}."


@dataclass(frozen=True)
class Language:
    """A language made from `seed`. Equal seeds give equal languages."""

    seed: str | int = "course"

    @cached_property
    def _made(self) -> dict:
        chance = random.Random(f"language:{self.seed}")
        taken: set[str] = set()

        def word() -> str:
            while True:
                made = chance.choice(_ONSETS) + chance.choice(_VOWELS) + chance.choice(_CODAS)
                # A short stem that opens a longer word would make endings ambiguous.
                if not any(made.startswith(old) or old.startswith(made) for old in taken):
                    taken.add(made)
                    return made

        words = {
            english: word()
            for english in (*NOUNS, *VERBS, *ADJECTIVES, *NUMBERS, "not", "whether")
        }
        endings = chance.sample(["im", "ot", "esh", "uk", "ave", "olo", "ith", "an"], 3)
        return {
            "words": words,
            "endings": dict(zip(("plural", "object", "past"), endings, strict=True)),
            "adjective_first": chance.random() < 0.5,
            "name": (word() + chance.choice(("i", "o", "a"))).capitalize(),
        }

    @property
    def name(self) -> str:
        """What the language calls itself."""
        return self._made["name"]

    @property
    def dictionary(self) -> dict[str, str]:
        """English word (singular, base form) to the language's stem."""
        return dict(self._made["words"])

    @property
    def endings(self) -> dict[str, str]:
        """The endings for "plural", "object" and "past"."""
        return dict(self._made["endings"])

    def translate(self, sentence: Sentence) -> str:
        """The sentence in this language: what a perfect model would write."""
        words, endings = self._made["words"], self._made["endings"]

        def phrase(part: NounPhrase, ending: str) -> list[str]:
            # The plural ending drops after a number: the number says it already.
            plural = endings["plural"] if part.plural and not part.number else ""
            tail = [part.adjective, part.number]
            if not self._made["adjective_first"]:
                tail.reverse()
            return [words[part.noun] + plural + ending, *(words[word] for word in tail if word)]

        out = [words["whether"]] if sentence.question else []
        out += phrase(sentence.subject, "")
        out += phrase(sentence.object, endings["object"])
        out += [words["not"]] if sentence.negated else []
        out.append(words[sentence.verb] + (endings["past"] if sentence.past else ""))
        return " ".join(out)

    def pairs(self, count: int, split: str = "train", seed: int = 0) -> list[Pair]:
        """`count` different English sentences with their translations.

        `split`: "train", "test" or "exam"; a sentence is in one of them only, for every seed.
        """
        chance = random.Random(f"pairs:{split}:{seed}")
        seen: dict[str, Pair] = {}
        while len(seen) < count:
            sentence = _draw(chance)
            english = sentence.english()
            if in_split(english, split):
                seen.setdefault(english, Pair(english, self.translate(sentence)))
        return list(seen.values())

    def prompt(self, english: str) -> str:
        """The text that a model is asked to continue with the translation."""
        return f"{english}\n{self.name}:"


def _draw(chance: random.Random) -> Sentence:
    nouns = list(NOUNS)

    def phrase(candidates: list[str]) -> NounPhrase:
        kind = chance.choice(("singular", "plural", "number"))
        return NounPhrase(
            chance.choice(candidates),
            plural=kind == "plural",
            number=chance.choice(NUMBERS) if kind == "number" else None,
            adjective=chance.choice(ADJECTIVES) if chance.random() < 0.5 else None,
        )

    return Sentence(
        phrase(nouns[:SUBJECTS]),
        chance.choice(list(VERBS)),
        phrase(nouns),
        past=chance.random() < 0.5,
        negated=chance.random() < 0.3,
        question=chance.random() < 0.3,
    )
