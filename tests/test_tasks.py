"""The two tasks: made from a seed, never mixed between splits, scored by what is right."""

import resource
import sqlite3
import time

import pytest

from loralab.tasks import in_split
from loralab.tasks.language import NOUNS, Language, NounPhrase, Sentence
from loralab.tasks.sql import Shop

SPLITS = ("train", "test", "exam")


def test_equal_seeds_give_equal_languages_and_others_differ():
    assert Language("ada").dictionary == Language("ada").dictionary
    assert Language("ada").dictionary != Language("bela").dictionary


@pytest.mark.parametrize("seed", ["course", 0, 1, "ada"])
def test_words_are_different_and_none_opens_another(seed):
    words = list(Language(seed).dictionary.values())
    assert len(set(words)) == len(words)
    assert not [(a, b) for a in words for b in words if a != b and b.startswith(a)]


def test_the_grammar_says_what_it_claims():
    language = Language("ada")
    words, ends = language.dictionary, language.endings
    one = Sentence(NounPhrase("dog"), "see", NounPhrase("cat", plural=True), past=True)
    assert one.english() == "the dog saw the cats."
    assert language.translate(one) == (
        f"{words['dog']} {words['cat']}{ends['plural']}{ends['object']} {words['see']}{ends['past']}"
    )
    asked = Sentence(NounPhrase("bird", number="two"), "like", NounPhrase("tree"), question=True,
                     negated=True)
    assert asked.english() == "do two birds not like the tree?"
    translated = language.translate(asked).split()
    assert translated[:2] == [words["whether"], words["bird"]], "no plural ending after a number"
    assert translated[-2:] == [words["not"], words["like"]]


@pytest.mark.parametrize("task", [Language("course"), Shop()], ids=["language", "sql"])
def test_splits_never_meet_whatever_the_seed(task):
    drawn = {
        split: {pair.source for seed in (0, 1) for pair in task.pairs(100, split, seed)}
        for split in SPLITS
    }
    assert not drawn["train"] & drawn["test"] and not drawn["test"] & drawn["exam"]
    assert all(in_split(source, split) for split in SPLITS for source in drawn[split])
    assert task.pairs(20) == task.pairs(20)
    assert len({pair.source for pair in task.pairs(300)}) == 300


def test_two_english_sentences_that_mean_different_things_are_translated_differently():
    for seed in range(5):
        pairs = Language(seed).pairs(800)
        assert len({pair.target for pair in pairs}) == len(pairs)


def test_every_noun_is_practised():
    text = " ".join(pair.source for pair in Language().pairs(400))
    assert all(noun in text for noun in NOUNS)


def test_queries_are_scored_by_what_they_return():
    shop = Shop()
    for question, query in shop.pairs(40):
        assert shop.execute(query), question
    reference = "SELECT name FROM customers WHERE age > 40"
    assert shop.same_result("select NAME from customers where not age <= 40;", reference)
    assert not shop.same_result("SELECT name FROM customers WHERE age > 41 OR age < 20", reference)
    assert not shop.same_result("Paris", reference)


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE customers",
        "UPDATE customers SET age = 1",
        "ATTACH DATABASE 'x.db' AS x",
        "PRAGMA writable_schema = 1",
        "SELECT 1; SELECT 2",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c",
        "COMMIT",
        "BEGIN",
        "VACUUM INTO 'x.db'",
        "CREATE TEMP TABLE t(a)",
        "INSERT INTO customers VALUES ('a', 'b', 1, 2, 3) RETURNING *",
        "SELECT load_extension('x')",
        "SELECT random()",
        "SELECT sql FROM sqlite_master",
        "SELECT * FROM pragma_database_list",
        "SELECT value FROM json_each('[1]')",
        "SELECT ?",
        "SELECT " + "(" * 400 + "1" + ")" * 400,
        "SELECT CAST(x'ff' AS TEXT)",
    ],
)
def test_a_generated_query_may_only_read_and_not_for_long(query, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((sqlite3.Error, sqlite3.Warning)):
        Shop().execute(query)
    assert not list(tmp_path.iterdir())


# Each takes a gigabyte or minutes where nothing bounds it.
DOUBLING = "".join(f", t{i} AS (SELECT 1 FROM t{i - 1}, t{i - 1} x)" for i in range(1, 30))
CROSSED = ", ".join(f"customers c{i}" for i in range(60))
LONG = "(SELECT group_concat('aaaaaaa', '') FROM customers, customers)"
BOMBS = {
    "zeroblob": "SELECT zeroblob(1000000000)",
    "hex": "SELECT hex(hex(zeroblob(400000000)))",
    "printf": "SELECT printf('%.*c', 1000000000, 'x')",
    "replace": "SELECT replace(replace(name, 'a', 'aaaaaaaaa'), 'a', 'aaaaaaaaa') FROM customers",
    "group_concat": f"SELECT group_concat(c1.name) FROM {CROSSED}",
    "concatenated": "SELECT " + " || ".join([LONG] * 8),
    "doubling": f"WITH t0 AS (VALUES (1)){DOUBLING} SELECT 1 FROM t29",
    "doubling inside": f"SELECT 1 FROM (with t0 AS (VALUES (1)){DOUBLING} SELECT 1 FROM t29)",
    "crossed": f"SELECT COUNT(*) FROM {CROSSED}",
    "sorted": f"SELECT * FROM {CROSSED.split(', customers c6')[0]} ORDER BY random()",
    "wildcards": f"SELECT 1 FROM customers a, customers b WHERE {LONG} LIKE '{'%a' * 30}%b'",
    "long": "SELECT 1 " + "-- " * 10_000_000,
}


@pytest.mark.parametrize("query", BOMBS.values(), ids=BOMBS)
def test_a_generated_query_takes_no_gigabyte_and_no_minute(query):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    with pytest.raises(sqlite3.Error):
        Shop().execute(query)
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_hostile_queries_are_wrong_and_nothing_else():
    shop = Shop()
    for query in [*BOMBS.values(), "", "SELECT 1\0", "SELECT '\ud800'", "SELECT 1; SELECT 2"]:
        assert shop.same_result(query, "SELECT name FROM customers") is False
