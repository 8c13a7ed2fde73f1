"""Chapter 03's recorded runs: how learning rates are tuned, and what the records hold."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace

import pytest

from loralab import rank_sweep, training
from loralab.checks import ch03
from loralab.rank_sweep import CONFIGURATIONS, RATES, SEEDS
from loralab.training import Run, RunConfig

NAME = "all linear layers, r = 8"


def run(config: RunConfig, loss: float = 1.0, accuracy: float = 0.5) -> Run:
    history = ((1, 9.0), (2, loss), (3, loss), (4, loss))
    return Run(config, accuracy, 1.0, 1, {}, 1, history, "here", {})


def at(rate: float, loss: float, seed: int = 0) -> Run:
    return run(replace(CONFIGURATIONS[NAME], learning_rate=rate, seed=seed), loss)


def tune(losses: dict[float, float]) -> tuple[list[float], float]:
    """The rates that are tried where each gives that loss, and the one that is chosen."""
    runs: list[Run] = []
    while (rate := rank_sweep.next_rate(runs)) is not None:
        runs.append(at(rate, losses[rate]))
    return [one.config.learning_rate for one in runs], rank_sweep.tuned(runs)


def test_tuning_goes_on_until_the_best_has_a_worse_neighbour_on_either_side():
    falling = dict(zip(RATES, (6, 5, 4, 3, 2, 9.0)))
    tried, best = tune(falling)
    assert best == 3e-2 and set(tried) == {3e-3, 1e-2, 3e-2, 1e-1}
    middle = dict(zip(RATES, (6, 5, 1, 3, 4, 9.0)))
    tried, best = tune(middle)
    assert best == 3e-3 and set(tried) == {1e-3, 3e-3, 1e-2}


def test_tuning_ends_at_the_end_of_the_rates():
    assert tune(dict(zip(RATES, (1, 2, 3, 4, 5, 6.0))))[1] == RATES[0]
    assert tune(dict(zip(RATES, (6, 5, 4, 3, 2, 1.0))))[1] == RATES[-1]


def test_a_run_that_diverged_is_never_chosen():
    runs = [at(3e-3, math.nan), at(1e-2, 5.0)]
    assert rank_sweep.tuned(runs) == 1e-2


def test_only_the_first_seed_tunes():
    runs = [at(1e-3, 3), at(3e-3, 2), at(1e-2, 4), at(3e-3, 9, seed=1), at(1e-2, 0, seed=1)]
    assert rank_sweep.tuned(runs) == 3e-3 and rank_sweep.next_rate(runs) is None


def test_every_seed_is_trained_at_the_tuned_rate_and_then_it_is_done():
    runs = [at(1e-3, 3), at(3e-3, 2), at(1e-2, 4)]
    for seed in SEEDS[1:]:
        config = rank_sweep.next_run(NAME, runs)
        assert (config.seed, config.learning_rate) == (seed, 3e-3)
        runs.append(run(config))
    assert rank_sweep.next_run(NAME, runs) is None


def test_recording_trains_what_is_missing_and_can_be_stopped(monkeypatch, tmp_path):
    monkeypatch.setattr(rank_sweep, "RECORDS", tmp_path / "records.json")
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    trained: list[RunConfig] = []

    def train(config, *, progress):
        trained.append(config)
        return run(config, loss=abs(math.log10(config.learning_rate) + 2.5))

    monkeypatch.setattr(training, "run", train)
    some = rank_sweep.record([NAME])
    next(some), next(some)  # stopped after two
    assert len(rank_sweep.recorded()) == 2 and rank_sweep.chosen() == {}
    every = list(rank_sweep.record([NAME]))
    assert len(every) == len(SEEDS) and len(trained) == len(set(trained)) == len(SEEDS) + 2
    assert [one.config.seed for one in rank_sweep.chosen()[NAME]] == list(SEEDS)


def test_configurations_are_told_apart_whatever_the_rate_and_seed():
    for name, config in CONFIGURATIONS.items():
        assert rank_sweep.name_of(replace(config, learning_rate=7e-3, seed=5)) == name
        assert config.lora_alpha == 2 * config.r


def test_the_recorded_runs_are_those_of_the_program():
    """Every configuration is complete, and nothing in the file is of another program."""
    runs = rank_sweep.recorded()
    assert len({one.config for one in runs}) == len(runs)
    assert {rank_sweep.name_of(one.config) for one in runs} == set(CONFIGURATIONS)
    chosen = rank_sweep.chosen()
    assert list(chosen) == list(CONFIGURATIONS)
    for name, five in chosen.items():
        assert [one.config.seed for one in five] == list(SEEDS), name
        assert all(0 <= one.accuracy <= 1 and one.history[-1][0] > 150 for one in five)
    text = json.dumps([one.to_json() for one in runs], indent=1) + "\n"
    assert rank_sweep.RECORDS.read_text("utf-8") == text


def test_q_and_v_have_as_many_parameters_as_all_layers():
    chosen = rank_sweep.chosen()
    everywhere = chosen["all linear layers, r = 8"][0].trainable
    assert chosen["q and v, r = 42"][0].trainable == pytest.approx(everywhere, rel=0.01)


ACCURACY = {name: [run.accuracy for run in runs] for name, runs in rank_sweep.chosen().items()}
ALL = "all linear layers, r = "


def test_what_the_chapter_says_of_the_differences():
    against = {name: ch03.interval(found, ACCURACY[NAME]) for name, found in ACCURACY.items()}
    for name in ("q and v, r = 8", "q and v, r = 42"):
        assert max(ACCURACY[name]) <= 0.055 and against[name][1] < -0.8
    assert against[f"{ALL}1"][1] < 0
    for rank in (4, 16, 64):
        low, high = against[f"{ALL}{rank}"]
        assert low < 0 < high, rank
    assert against[f"{ALL}4"][0] == pytest.approx(-0.62, abs=0.005)


def test_what_the_chapter_says_of_single_runs():
    """The figure's alt text, and the sentence below it."""
    said = {1: (0.20, 0.83), 4: (0.07, 0.97), 8: (0.81, 1.00), 16: (0.64, 0.98), 64: (0.88, 1.00)}
    for rank, (low, high) in said.items():
        found = ACCURACY[f"{ALL}{rank}"]
        assert (min(found), max(found)) == pytest.approx((low, high), abs=0.006), rank


def test_what_the_chapter_says_of_learning_rates():
    """The best falls with the rank, and rank 8's best leaves rank 64 with nothing right."""
    rates = [runs[0].config.learning_rate for name, runs in rank_sweep.chosen().items()
             if name.startswith(ALL)]  # fmt: skip
    assert rates == sorted(rates, reverse=True) and (rates[0], rates[-1]) == (1e-2, 1e-3)
    rate = rank_sweep.chosen()[NAME][0].config.learning_rate
    (same,) = [run for run in rank_sweep.recorded() if run.config.r == 64
               and run.config.learning_rate == rate]  # fmt: skip
    assert rate == 3e-3 and same.accuracy == 0


def test_without_equal_scatter_rank_1_is_still_behind():
    """Welch's interval, with Student's t at the degrees of freedom that it calculates."""
    one, eight = ACCURACY[f"{ALL}1"], ACCURACY[NAME]
    spread = [statistics.variance(values) / len(values) for values in (one, eight)]
    degrees = sum(spread) ** 2 / sum(each**2 / 4 for each in spread)
    assert 4.5 < degrees < 4.6  # t is 2.65 there: between 2.776 at 4 and 2.571 at 5
    middle, half = statistics.mean(one) - statistics.mean(eight), 2.65 * math.sqrt(sum(spread))
    assert (middle - half, middle + half) == pytest.approx((-0.69, -0.03), abs=0.006)


def test_an_interval_of_five_runs():
    """Student's t with four degrees of freedom; the interval of a difference is the chapter's."""
    low, high = rank_sweep.mean_interval([0.2, 0.4, 0.6, 0.4, 0.4])
    assert (low + high) / 2 == pytest.approx(0.4)
    assert high - low == pytest.approx(2 * 2.776 * math.sqrt(0.02) / math.sqrt(5))
    with pytest.raises(ValueError):
        rank_sweep.mean_interval([0.1, 0.2])
    assert ch03.T95[4] == rank_sweep.T95
