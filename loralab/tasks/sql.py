"""Questions about a small shop, answered in SQL and scored by running the query.

Two queries that give the same rows are both right, however they are spelled. A generated query is
a stranger's code: it runs on a fresh in-memory copy, may only read that table with functions that
are known, and is stopped when it takes too long or too much.
"""

from __future__ import annotations

import random
import re
import sqlite3
from dataclasses import dataclass
from functools import cached_property

from loralab.tasks import Pair, in_split

NAMES = ("Ada", "Bela", "Chen", "Dana", "Emil", "Fadi", "Gaia", "Hugo", "Ines", "Juma", "Kaya",
         "Lars", "Mina", "Nils", "Olga", "Peng", "Rosa", "Sven", "Tara", "Yusuf")  # fmt: skip
CITIES = ("Oslo", "Lima", "Cairo", "Quito", "Turin", "Busan", "Accra", "Porto", "Dakar", "Delhi")
COLUMNS = {"age": (18, 80), "orders": (0, 40), "spent": (0, 900)}

STEPS = 1_000_000  # of SQLite's virtual machine, about
ROWS = 1000
MAX_QUERY = 1000  # characters
# Those that ask about a table. Others make random, dated, huge or outside values.
FUNCTIONS = frozenset(
    "abs avg coalesce count group_concat ifnull iif instr length like lower ltrim max min nullif "
    "round rtrim substr substring sum total trim typeof upper".split()
)
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1000,  # bytes of a text and of a row
    sqlite3.SQLITE_LIMIT_COLUMN: 32,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 8,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 10_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 8,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
# SQLite copies a common table expression wherever it is named, before any limit counts: twenty
# that each name the last one twice are a million copies and a gigabyte.
_WITH = re.compile(r"\bwith\b", re.IGNORECASE)


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
        """The rows that a query gives (the first `ROWS`), sorted.

        Raises `sqlite3.Error` or `sqlite3.Warning` when it is no single reading statement, uses
        another table, `WITH`, or a function that is not in `FUNCTIONS`, is longer than `MAX_QUERY`,
        or takes more than about `STEPS` steps or 1000 bytes a row; ValueError for a text with a NUL
        or half a character.
        """
        if len(query) > MAX_QUERY:
            raise sqlite3.DataError("the query is too long")
        if _WITH.search(query):
            raise sqlite3.NotSupportedError("WITH is not allowed")
        table = sqlite3.connect(":memory:")
        try:
            columns = "name TEXT, city TEXT, age INT, orders INT, spent INT"
            table.execute(f"CREATE TABLE customers({columns})")
            table.executemany("INSERT INTO customers VALUES (?, ?, ?, ?, ?)", self.rows)
            # What is sorted stays in memory, where the limits above bound it: no file is written.
            table.execute("PRAGMA temp_store = MEMORY")
            for limit, value in _LIMITS.items():
                table.setlimit(limit, value)
            table.set_authorizer(_may)
            steps = iter(range(STEPS // 1000))
            table.set_progress_handler(lambda: next(steps, None) is None, 1000)
            return sorted(table.execute(query).fetchmany(ROWS), key=repr)
        finally:
            table.close()

    def same_result(self, query: str, reference: str) -> bool:
        """Whether both queries run and give the same rows."""
        try:
            return self.execute(query) == self.execute(reference)
        except (sqlite3.Error, sqlite3.Warning, ValueError):
            return False


def _may(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    """SQLite's authorizer: whether a statement may do this while it is prepared."""
    allowed = (
        action == sqlite3.SQLITE_SELECT
        # A name without a column is a subquery's, or a table of which only rows are counted.
        or (action == sqlite3.SQLITE_READ and (first == "customers" or not second))
        or (action == sqlite3.SQLITE_FUNCTION and second in FUNCTIONS)
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


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
