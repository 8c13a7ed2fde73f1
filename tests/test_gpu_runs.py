"""The runs measured on a GPU, as chapters show them beside a prediction."""

from __future__ import annotations

import pytest

from loralab import memory
from loralab.memory.gpu_runs import distance


@pytest.mark.parametrize("method", memory.METHODS)
def test_the_nearest_run_of_settings_that_were_measured_is_that_run(method):
    run = next(r for r in memory.gpu_runs() if r.settings["method"] == method)
    given = {k: v for k, v in run.settings.items() if k not in ("model", "method", "compute_dtype")}
    found = memory.nearest(memory.estimate(run.settings["model"], method, **given))
    assert not found.differs and found.allocated == run.allocated
    assert f"{run.allocated / 1e9:.2f} GB allocated" in str(found) and "differs" not in str(found)


def test_what_differs_is_named():
    found = memory.nearest(memory.estimate("llama-2-7b", "qlora", rank=8, seq=1900, loss="trainer"))
    assert found.settings["model"] == "llama-2-7b" and found.settings["seq"] == 2048
    assert found.differs["seq"] == (2048, 1900)
    assert "seq 2,048 (here 1,900)" in str(found)


def test_a_model_that_was_not_measured_is_held_against_one_of_its_size():
    small, large = (memory.nearest(memory.estimate(name, "lora", loss="trainer"))
                    for name in ("qwen2.5-0.5b", "mistral-7b"))
    assert small.settings["model"] in ("smollm2-135m", "gpt2-large", "llama-3.2-1b")
    assert large.settings["model"] in ("llama-2-7b", "qwen2.5-7b")
    assert large.differs["model"][1] == "mistral-7b"


def test_rows_have_the_form_of_the_published_ones():
    rows = memory.gpu_rows()
    assert len(rows) == len(memory.gpu_runs()) > 60
    for row in rows:
        assert row["memory"] == "allocated" and row["method"] in memory.METHODS
        assert row["bytes"] > 0 and row["simulated"] > 0 and row["formula"] > 0


def test_distance_is_none_between_equals_and_counts_both_ways():
    one = {"batch": 1, "seq": 512, "rank": 8, "checkpointing": True}
    other = one | {"batch": 4, "rank": 16, "checkpointing": False}
    assert distance(one, one) == 0
    assert distance(one, other) == distance(other, one) == pytest.approx(2 + 0.3 + 2)


def test_a_run_that_was_not_measured_says_so():
    assert memory.trained_on_gpu("QLoRA").startswith("measured on an NVIDIA H200: 362 MB")
    assert memory.trained_on_gpu("full fine-tuning") == "not measured on a GPU yet"


def test_what_is_simulated_lies_in_the_range_that_is_shown():
    """Full fine-tuning of a 7B model reserves less than 1.02 times what it allocates."""
    found = memory.simulate("llama-2-7b", "full")
    low, high = found.reserved_range
    assert found.total < found.reserved < 1.02 * found.total
    assert low == found.reserved and high == round(1.25 * found.total)
