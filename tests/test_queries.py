"""SQL from a model: run in the sandbox, compared outside."""

from __future__ import annotations

import pytest

from autograder.artifacts import queries
from autograder.sandbox.warm import BARE, Sandbox
from loralab.tasks.sql import Shop

SHOP = Shop("exam")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(BARE) as sandbox:
        yield sandbox


def test_right_queries_are_right_however_they_are_spelled(sandbox):
    alike = [(f"SELECT * FROM ({pair.target})", pair.target) for pair in SHOP.pairs(20, "exam")]
    assert queries.right_answers(sandbox, SHOP, alike) == [True] * 20


def test_wrong_and_hostile_queries_are_wrong_and_stop_nobody(sandbox):
    reference = "SELECT COUNT(*) FROM customers"
    bad = ["SELECT 19", "UPDATE customers SET age = 1", "ATTACH 'x.db' AS x; SELECT 20", "", "\0",
           "SELECT load_extension('x')", "SELECT hex(zeroblob(1000000000))", "DROP TABLE customers",
           "SELECT count(*) FROM customers a, customers b, customers c, customers d, customers e, "
           "customers f, customers g", "SELECT '20'", "SELECT 20.5"]
    pairs = [(query, reference) for query in bad] + [("SELECT 20", reference)]
    assert queries.right_answers(sandbox, SHOP, pairs) == [False] * len(bad) + [True]


def test_a_query_that_ends_its_process_costs_the_next_ones_nothing(sandbox, monkeypatch):
    monkeypatch.setattr(queries, "RUN", queries.RUN.replace(
        "    return", "    if query == 'crash':\n        import os; os._exit(0)\n    return"))
    reference = "SELECT COUNT(*) FROM customers"
    pairs = [("crash", reference), (reference, reference), ("crash", reference)]
    assert queries.right_answers(sandbox, SHOP, pairs) == [False, True, False]
