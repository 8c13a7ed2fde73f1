"""Whether a step fits a card, and whether what is proposed is enough and the cheapest."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from loralab import memory
from loralab.errors import CourseError
from loralab.memory import simulation
from loralab.memory.changes import COSTS, possible
from loralab.memory.fit import FITS, NOT, PERHAPS, accumulated_bytes, fit, verdict

GiB = memory.GiB
CARDS = (6, 8, 12, 16, 24, 48, 80)
STEPS = {
    "gpt2, long batches": ("gpt2", "full", dict(batch=8, seq=1024)),
    "a small model in fp32": ("qwen2.5-0.5b", "full", dict(dtype="fp32", batch=4, seq=2048)),
    "7B in full": ("llama-2-7b", "full", dict(master_weights=True)),
    "unfused": ("tinyllama-1.1b", "full", dict(optimizer="adamw_foreach", checkpointing=False)),
    "LoRA, no checkpointing": ("llama-3.1-8b", "lora", dict(
        batch=6, seq=1024, checkpointing=False, dropout=0.05, rank=64)),
    "LoRA in fp32": ("qwen2.5-1.5b", "lora", dict(dtype="fp32", batch=4, seq=2048)),
    "QLoRA": ("qwen2.5-7b", "qlora", dict(
        batch=4, seq=2048, kbit_prep=True, double_quant=False, rank=16)),
    "capped scores": ("gemma-2-2b", "qlora", dict(batch=2, seq=4096, checkpointing=False)),
    "math kernel": ("phi-3-mini-4k", "lora", dict(seq=4096, attention="sdpa-math")),
    "TRL": ("llama-3.2-3b", "qlora", dict(loss="trl", batch=16, seq=4096, checkpointing=False)),
    "70B": ("llama-3.1-70b", "qlora", dict(seq=1024, checkpointing=False)),
    "nothing helps": ("llama-3.1-70b", "full", {}),
}


@pytest.fixture(scope="module", params=list(product(STEPS, CARDS)), ids=lambda p: f"{p[0]}-{p[1]}")
def case(request):
    """(model, method, settings, bytes of the card, what is said of it)."""
    name, size = request.param
    model, method, given = STEPS[name]
    found = memory.estimate(model, method, **given)
    card = size * GiB
    return model, method, given, card, fit(found, model, method, given, card)


def applied(model, method, given, change, batch):
    """The prediction with the change made, or None where it cannot train; and with the gradients
    that stay while batches are accumulated."""
    settings = {"method": method} | given | change
    try:
        step = memory.settings(model, **settings)
    except CourseError:
        return None, 0
    found = memory.estimate(model, settings.pop("method"), **settings)
    return found, accumulated_bytes(step) if step.batch < batch else 0


def enough(found, more, card, wanted):
    """Whether what was predicted, and so much more, gives at least this verdict."""
    low, high = (round(share * (found.total + more)) for share in (1.02, 1.25))
    return (high + 1_300_000_000 if wanted == FITS else low + 500_000_000) <= card


def test_the_grid_has_all_three_verdicts():
    said = {verdict(memory.estimate(model, method, **given), card * GiB)
            for model, method, given in STEPS.values() for card in CARDS}
    assert said == {FITS, PERHAPS, NOT}


def test_what_is_proposed_is_enough_when_it_is_done(case):
    model, method, given, card, said = case
    batch = given.get("batch", 1)
    for proposal in said.proposals or ():
        found, more = applied(model, method, given, proposal.change, batch)
        assert found.total + more == proposal.predicted.total
        assert verdict(found, card) in (FITS, said.then)
        assert enough(found, more, card, said.then)
        assert proposal.accumulation == batch // found.settings["batch"]
        assert set(proposal.costs) <= set(COSTS)


def test_nothing_cheaper_is_passed_over(case):
    """Against a search of all single changes and pairs, at all levels, in the stated order."""
    model, method, given, card, said = case
    if said.verdict == FITS:
        assert said.proposals is None and said.least is None
        return
    batch = given.get("batch", 1)
    kinds = possible(memory.settings(model, method, **given), given)

    def works(chosen, wanted):
        for levels in product(*(kind.levels for kind in chosen)):
            change = {name: value for level in levels for name, value in level.items()}
            found, more = applied(model, method, given, change, batch)
            if found and enough(found, more, card, wanted):
                return True
        return False

    def cheapest(wanted):
        alone = [kind for kind in kinds if works([kind], wanted)]
        ways = [{frozenset(kind.names)} for kind in alone]
        others = [kind for kind in kinds if kind not in alone]
        pairs = sorted(combinations(range(len(others)), 2), key=lambda pair: pair[::-1])
        for pair in pairs:
            chosen = [others[place] for place in pair]
            if len(ways) >= 3:
                break
            if not chosen[0].names & chosen[1].names and works(chosen, wanted):
                ways.append({frozenset(kind.names) for kind in chosen})
        return [frozenset().union(*way) for way in ways][:3]

    expected = cheapest(said.then)
    if said.then == PERHAPS or not said.proposals:
        assert cheapest(FITS) == []
    if expected:
        assert [frozenset(proposal.change) for proposal in said.proposals] == expected
    elif said.proposals:
        assert len(said.proposals) == 1
    else:
        assert said.least is None or verdict(said.least.predicted, card) == NOT


def test_three_changes_where_two_are_not_enough(case):
    """None of them can be left out."""
    model, method, given, card, said = case
    for proposal in said.proposals or ():
        for name in proposal.change:
            less = {n: v for n, v in proposal.change.items() if n != name and not (
                name == "rank" and n == "alpha")}
            if name == "alpha":
                continue  # it goes with the rank
            found, more = applied(model, method, given, less, given.get("batch", 1))
            assert not found or not enough(found, more, card, said.then)


def test_the_order_of_what_is_given_up():
    """By cost; a change that costs two things is as dear as the dearer."""
    step = memory.settings("llama-2-7b", "qlora", kbit_prep=True, double_quant=False, batch=8,
                           checkpointing=False, optimizer="adamw_foreach", dropout=0.1)
    places = [list(COSTS).index(change.costs[-1]) for change in possible(step, {})]
    assert places == sorted(places)
    assert set(possible(step, {})[0].costs) == {"nothing"}


def test_same_tokens_in_a_step():
    """A smaller batch divides the old one."""
    step = memory.settings("gpt2", batch=12)
    batches = [level["batch"] for change in possible(step, {}) for level in change.levels
               if "batch" in level]
    assert batches == [6, 4, 3, 2, 1]


def test_gpt2s_attention_is_named_so_that_its_mlp_is_not_meant():
    step = memory.settings("gpt2", "lora")
    [fewer] = [change for change in possible(step, {}) if change.names == {"targets"}]
    adapted = memory.settings("gpt2", "lora", **fewer.levels[0]).adapted
    assert len(adapted) == 2 * 12 and all(".attn." in layer.path for layer in adapted)


@pytest.mark.parametrize("model, method, given", [
    ("gpt2", "full", dict(batch=2, seq=256)),
    ("gpt2", "full", dict(batch=1, seq=64)),
    ("smollm2-135m", "full", dict(batch=4, seq=512, checkpointing=False)),
    ("smollm2-135m", "lora", dict(rank=64, seq=512)),
    ("smollm2-135m", "qlora", dict(rank=128, seq=128, loss="trl")),
])  # fmt: skip
def test_accumulated_gradients_are_counted(model, method, given):
    """Against the simulation of a second batch, while the gradients of the first are there."""
    settings = memory.settings(model, method, **given)
    predicted = memory.estimate(model, method, **given).total + accumulated_bytes(settings)
    assert 0.99 < predicted / simulated_with_gradients(settings) < 1.07


def simulated_with_gradients(settings) -> int:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from loralab.memory import kernels
    from loralab.memory.ledger import Ledger
    from loralab.quiet import quiet

    with quiet():
        model = simulation.prepared(settings)
        with FakeTensorMode(allow_non_fake_inputs=True):
            step = simulation.Step(model, settings)
            step.warm()
            step.trace.begin("kept")
            for parameter in step.trained:
                parameter.grad = torch.empty_like(parameter)
                step.storages.add(parameter.grad, "gradients")
            step.run()
    ledger = Ledger()  # of tensors, as the formula
    for part, batch in (("load", 0), ("first step", 0), ("kept", 0), ("forward", 0),
                        ("backward", 0), ("forward", 1), ("names", 0), ("backward", 1)):
        if (part, batch) == ("forward", 1):
            ledger.forget_peak()
        step.trace.play(step.trace.parts[part], ledger, batch)
    return ledger.peak + kernels.CUBLAS_WORKSPACES


def test_a_simulation_is_answered_by_simulations():
    given = dict(batch=8, seq=512, checkpointing=False, optimizer="sgd")
    found = memory.simulate("gpt2", "full", **given)
    said = fit(found, "gpt2", "full", given, 4 * GiB, most=2)
    assert said.verdict == NOT and len(said.proposals) == 2
    for proposal in said.proposals:
        again = memory.simulate("gpt2", "full", **given | proposal.change)
        assert again.by == "simulation"
        assert verdict(again, 4 * GiB) == FITS
        assert again.total <= proposal.predicted.total
