"""Right and typical wrong answers to chapter 08's exercises, each written once, as source text.

The adapter is graded by its files: test_capstone.py has its cases.
"""

from __future__ import annotations

import numpy as np
import torch
from answer_sheets import Wrong

from loralab import capstone, memory

# What the cells above an exercise leave behind: imports, and the function of exercise 8.1.
MADE = """
def predict(settings, seconds_per_step):
    cost = memory.estimate(capstone.MODEL, settings["method"], rank=settings["r"],
                           targets=settings["targets"], batch=settings["batch_size"],
                           **capstone.YARDSTICK)
    return {"trainable": cost.trainable, "peak_gib": cost.total / memory.GiB,
            "minutes": settings["steps"] * seconds_per_step / 60}
"""
IMPORTS = {"memory": memory, "capstone": capstone, "np": np, "torch": torch}
exec(MADE, made := dict(IMPORTS))
IMPORTS["predict"] = made["predict"]

# Graded by the files that are handed in.
BY_FILE = ("trained_adapter",)


def changed(old: str, new: str) -> str:
    """MADE with a mistake in it."""
    assert MADE.count(old) == 1
    return MADE.replace(old, new)


def a_plan(after: str = "", **settings: object) -> str:
    """A plan within the budget, with changed settings; `after`: what is done to it at the end."""
    chosen = {"method": "qlora", "targets": "all-linear", "r": 1, "lora_alpha": 4,
              "learning_rate": 0.02, "steps": 90, "batch_size": 4} | settings  # fmt: skip
    return f"""
def plan():
    chosen = {chosen!r}
    found = {{**chosen, **predict(chosen, 2.2), "accuracy": 0.7}}
    {after or "pass"}
    return found
"""


RIGHT = {
    "predict": [
        """
def predict(settings, seconds_per_step):
    keys = {"r": "rank", "targets": "targets", "batch_size": "batch"}
    known = {new: settings[old] for old, new in keys.items()}
    e = memory.estimate("smollm2-135m", settings["method"], dtype=torch.float32, seq=56,
                        compute_dtype=torch.float32, loss="trl", checkpointing=False, **known)
    return dict(minutes=np.float32(settings["steps"]) / 60 * seconds_per_step,
                trainable=torch.tensor(e.trainable), peak_gib=sum(e.components.values()) / 2**30)
""",
        """
def predict(settings, seconds_per_step):
    layers = memory.targeted(memory.describe(capstone.MODEL), settings["targets"])
    trainable = sum(settings["r"] * (one.inputs + one.outputs) for one in layers)
    cost = memory.estimate(capstone.MODEL, settings["method"], rank=settings["r"], alpha=1,
                           targets=settings["targets"], batch=settings["batch_size"],
                           autocast=False, **capstone.YARDSTICK)
    return {"trainable": float(trainable), "peak_gib": cost.total / 1024**3, "note": "by hand",
            "minutes": settings["steps"] / 60 * seconds_per_step}
""",
    ],
    "plan": [
        a_plan(),
        a_plan('found["minutes"] = 9.5', batch_size=1, r=2, steps=900),
        a_plan(targets=["gate_proj", "up_proj", "down_proj"], r=3),
        a_plan('found["targets"] = {*found["targets"]}', targets=("o_proj", "down_proj"), r=4),
        a_plan(after='found["accuracy"] = np.float32(0); found["r"] = torch.tensor(1)'),
        # Typed in as numbers, rounded as people round.
        """
def plan():
    return dict(method="qlora", r=1, lora_alpha=16.0, targets="all-linear", learning_rate=1e-2,
                steps=100, batch_size=4, trainable=305_280, peak_gib=0.466, minutes=5,
                accuracy=0.65, seed=3)
""",
    ],
}

WRONG = [
    Wrong("predict", "all_parameters", changed("cost.trainable", "cost.parameters"), (3,)),
    Wrong("predict", "all_parameters",
          changed("cost.trainable", "memory.describe(capstone.MODEL).parameters"), (3,)),
    Wrong("predict", "targets", changed('settings["targets"]', '"all-linear"'), (1,),
          also=("yardstick",)),
    Wrong("predict", "rank", changed('rank=settings["r"],', ""), (1, 3)),
    Wrong("predict", "rank", changed('settings["r"]', 'settings["lora_alpha"]'), (1, 3)),
    Wrong("predict", "held", changed("cost.total", "cost.static"), (2,)),
    Wrong("predict", "unit", changed("cost.total / memory.GiB", "cost.total / 1e9"), (2,)),
    Wrong("predict", "unit", changed("cost.total / memory.GiB", "cost.total"), (2,)),
    Wrong("predict", "yardstick", changed("**capstone.YARDSTICK", ""), (2,)),
    Wrong("predict", "yardstick",
          changed("**capstone.YARDSTICK", '**{**capstone.YARDSTICK, "loss": "hf"}'), (2,)),
    Wrong("predict", "yardstick",
          changed("**capstone.YARDSTICK", '**{**capstone.YARDSTICK, "dtype": "bf16"}'), (2,)),
    Wrong("predict", "yardstick",
          changed("**capstone.YARDSTICK", '**{**capstone.YARDSTICK, "checkpointing": True}'), (2,)),
    Wrong("predict", "batch", changed('batch=settings["batch_size"],', ""), (2,)),
    Wrong("predict", "method", changed('settings["method"]', '"qlora"'), (2,)),
    Wrong("predict", "seconds", changed("seconds_per_step / 60", "seconds_per_step"), (3,)),
    Wrong("predict", "questions",
          changed('settings["steps"] *', 'settings["steps"] * settings["batch_size"] *'), (3,)),
    Wrong("plan", "incomplete", a_plan('del found["accuracy"]')),
    Wrong("plan", "incomplete", a_plan('found["method"] = "full"')),
    Wrong("plan", "incomplete", a_plan('found["r"] = "one"')),
    Wrong("plan", "incomplete", a_plan('found["targets"] = ["lm_head"]')),
    Wrong("plan", "incomplete", a_plan('found["minutes"] = None')),
    Wrong("plan", "percent", a_plan('found["accuracy"] = 70')),
    Wrong("plan", "over_parameters", a_plan(r=8, lora_alpha=16), (2,)),
    Wrong("plan", "over_memory", a_plan(method="lora"), (2,)),
    Wrong("plan", "over_memory", a_plan(batch_size=8), (2,)),
    Wrong("plan", "over_time", a_plan(steps=400), (2,)),
    Wrong("plan", "stale", a_plan('found["r"] = 1', r=2), (2, 3)),
    Wrong("plan", "stale", a_plan('found["peak_gib"] = 0.3', r=2), (3,)),
    Wrong("plan", "stale", a_plan('found["minutes"] = 0'), (3,)),
]

NOT_BY_HAND = {}

CHEATS = [
    ("predict", "def predict(settings, seconds_per_step):\n"
                "    return {'trainable': 305280, 'peak_gib': 0.586, 'minutes': 3.2}"),
    ("predict", "def predict(settings, seconds_per_step):\n"
                "    known = {'all-linear': (2442240, 0.599162, 5.3333333333333)}\n"
                "    found = known.get(str(settings['targets']), (207360, 0.7194, 2.25))\n"
                "    return dict(zip(('trainable', 'peak_gib', 'minutes'), found))"),
]  # fmt: skip
