"""Questions about a small shop, answered in SQL and scored by running the query.

Two queries that give the same rows are both right, however they are spelled. A generated query is
a stranger's code: it runs on a fresh in-memory copy, may only read, and is stopped when it takes
too long.
"""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass
from functools import cached_property

from loralab.tasks import Pair, in_split

NAMES = ("Ada", "Bela", "Chen", "Dana", "Emil", "Fadi", "Gaia", "Hugo", "Ines", "Juma", "Kaya",
         "Lars", "Mina", "Nils", "Olga", "Peng", "Rosa", "Sven", "Tara", "Yusuf")  # fmt: skip
CITIES = ("Oslo", "Lima", "Cairo", "Quito", "Turin", "Busan", "Accra", "Porto", "Dakar", "Delhi")
COLUMNS = {"age": (18, 80), "orders": (0, 40), "spent": (0, 900)}
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}


@dataclass(frozen=True)
class Shop:
    """A table `customers(name, city, age, orders, spent)` filled from a seed."""

    seed: str | int = "course"

    @cached_property
    def rows(self) -> tuple[tuple, ...]:
        """The table's rows: each name once."""
        chance = random.Random(f"shop:{self.seed}")
        return tuple(
            (name, chance.choice(CITIES), *(chance.randint(*span) for span in COLUMNS.values()))
            for name in NAMES
        )

    def prompt(self, question: str) -> str:
        """The text that a model is asked to continue with the query."""
        return f"customers(name, city, age, orders, spent)\n{question}\nSQL:"

    def pairs(self, count: int, split: str = "train", seed: int = 0) -> list[Pair]:
        """`count` different questions with a query that answers each.

        Every answer has rows: an empty one would be met by most wrong queries too.
        """
        chance = random.Random(f"questions:{split}:{seed}")
        seen: dict[str, Pair] = {}
        while len(seen) < count:
            pair = _question(chance)
            if in_split(pair.source, split) and self.execute(pair.target) not in ([], [(None,)]):
                seen.setdefault(pair.source, pair)
        return list(seen.values())

    def execute(self, query: str) -> list[tuple]:
        """The rows that a query gives, sorted. Raises `sqlite3.Error` when it is no single
        reading statement, or when it takes more than about a million steps."""
        table = sqlite3.connect(":memory:")
        try:
            columns = "name TEXT, city TEXT, age INT, orders INT, spent INT"
            table.execute(f"CREATE TABLE customers({columns})")
            table.executemany("INSERT INTO customers VALUES (?, ?, ?, ?, ?)", self.rows)
            table.set_authorizer(
                lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY
            )
            steps = iter(range(1000))
            table.set_progress_handler(lambda: next(steps, None) is None, 1000)
            return sorted(table.execute(query).fetchmany(1000), key=repr)
        finally:
            table.close()

    def same_result(self, query: str, reference: str) -> bool:
        """Whether both queries run and give the same rows."""
        try:
            return self.execute(query) == self.execute(reference)
        except (sqlite3.Error, sqlite3.Warning, ValueError):
            return False


def _question(chance: random.Random) -> Pair:
    city, name = chance.choice(CITIES), chance.choice(NAMES)
    column = chance.choice(list(COLUMNS))
    low, high = COLUMNS[column]
    bound = chance.randint(low, high)
    more = chance.random() < 0.5
    sign, words = (">", "more than") if more else ("<", "less than")
    return chance.choice(
        [
            lambda: Pair(
                f"How many customers live in {city}?",
                f"SELECT COUNT(*) FROM customers WHERE city = '{city}'",
            ),
            lambda: Pair(
                f"What is the {column} of {name}?",
                f"SELECT {column} FROM customers WHERE name = '{name}'",
            ),
            lambda: Pair(
                f"Which customers have {column} {words} {bound}?",
                f"SELECT name FROM customers WHERE {column} {sign} {bound}",
            ),
            lambda: Pair(
                f"What is the {'highest' if more else 'lowest'} {column} in {city}?",
                f"SELECT {'MAX' if more else 'MIN'}({column}) FROM customers "
                f"WHERE city = '{city}'",
            ),
            lambda: Pair(
                f"How many customers in {city} have {column} {words} {bound}?",
                f"SELECT COUNT(*) FROM customers WHERE city = '{city}' AND {column} {sign} {bound}",
            ),
            lambda: Pair(
                f"What is the average {column} in {city}?",
                f"SELECT AVG({column}) FROM customers WHERE city = '{city}'",
            ),
        ]
    )()
