"""`loralab memory`: its options, and what they ask for.

Names are looked over before torch is imported, so that a wrong one is answered at once.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer
from rich.console import Console
from typer.core import TyperCommand

from loralab import memory_names
from loralab.errors import CourseError

if TYPE_CHECKING:
    from loralab.memory import Estimate
    from loralab.memory.fit import Fit

GiB = 2**30
FIGURES = (".png", ".pdf", ".svg")
# What is no setting of a training step.
OUTPUT = ("simulated", "as_json", "gpu", "compare", "sweep", "plot", "models")


class Command(TyperCommand):
    """Shows the defaults of `loralab.memory.settings`, which takes torch, in its help only."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from loralab.memory import settings

        defaults = inspect.signature(settings).parameters
        for option in self.params:
            if (known := defaults.get(option.name)) and known.default is not known.empty:
                option.show_default = _said(known.default)
        super().format_help(ctx, formatter)


def _said(value: Any) -> str:
    """A value as it is given on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "by the others" if value is None else str(value)


def _option(kind: Any, *names: str, text: str, panel: str, metavar: str | None = None) -> Any:
    return Annotated[kind, typer.Option(*names, help=text, metavar=metavar, show_default=False,
                                        rich_help_panel=panel)]


def _choice(known: Mapping[str, Any] | tuple[str, ...]) -> str:
    return "|".join(known)


WHAT, STEP, SHOWN = "What is trained", "The training step", "What is shown"
Model = _option(str | None, "--model", panel=WHAT, metavar="NAME",
                text="A name (--models lists them), a config.json, a folder or a hub id.")
Method = _option(str | None, "--method", panel=WHAT, metavar=_choice(memory_names.METHODS),
                 text="Full fine-tuning, LoRA, or LoRA on a model in 4 bits.")
Rank = _option(int | None, "--rank", panel=WHAT, text="Rank of the adapters.")
Alpha = _option(int | None, "--alpha", panel=WHAT, text="lora_alpha; it costs no memory.")
Dropout = _option(float | None, "--dropout", panel=WHAT, text="Dropout before the adapters.")
Targets = _option(str | None, "--targets", panel=WHAT, metavar="NAME,NAME",
                  text="Linear layers that get an adapter.")
Dtype = _option(str | None, "--dtype", panel=WHAT, metavar=_choice(memory_names.DTYPES),
                text="Of the weights; for QLoRA of those that are not quantised.")
AdapterDtype = _option(str | None, "--adapter-dtype", panel=WHAT,
                       metavar=_choice(memory_names.DTYPES), text="Of the adapters.")
DoubleQuant = _option(bool | None, "--double-quant/--no-double-quant", panel=WHAT,
                      text="Quantise the quantisation constants too.")
KbitPrep = _option(bool | None, "--kbit-prep/--no-kbit-prep", panel=WHAT,
                   text="PEFT's prepare_model_for_kbit_training: fp32 for what is not quantised.")
MasterWeights = _option(bool | None, "--master-weights/--no-master-weights", panel=WHAT,
                        text="An fp32 copy of all weights, in full fine-tuning.")
Batch = _option(int | None, "--batch", panel=STEP, text="Sequences in a batch.")
Seq = _option(int | None, "--seq", panel=STEP, text="Tokens in a sequence, padding included.")
Optimizer = _option(str | None, "--optimizer", panel=STEP, metavar="NAME",
                    text=f"{', '.join(memory_names.OPTIMIZERS)}; or transformers' name of it.")
Loss = _option(str | None, "--loss", panel=STEP, metavar=_choice(memory_names.LOSSES),
               text="A plain loop, transformers' Trainer, or TRL's SFTTrainer.")
Checkpointing = _option(bool | None, "--checkpointing/--no-checkpointing", panel=STEP,
                        text="Keep each block's input only, and compute the rest again.")
Attention = _option(str | None, "--attention", panel=STEP, metavar="KERNEL",
                    text=f"{', '.join(memory_names.ATTENTION)}.")
Autocast = _option(bool | None, "--autocast/--no-autocast", panel=STEP, text="Mixed precision.")
ComputeDtype = _option(str | None, "--compute-dtype", panel=STEP,
                       metavar=_choice(memory_names.DTYPES),
                       text="Of matrix products, under autocast and in 4-bit layers.")
Gpu = _option(str | None, "--gpu", panel=SHOWN, metavar="24GB",
              text="Does it fit this card? If not, what would make it fit? Its GB are GiB.")
Simulated = _option(bool, "--simulate", panel=SHOWN,
                    text="Run the step on tensors without data, rather than add up formulas.")
Compare = _option(str | None, "--compare", panel=SHOWN, metavar="METHOD,METHOD",
                  text="Methods side by side.")
Sweep = _option(str | None, "--sweep", panel=SHOWN, metavar="SETTING=VALUE,VALUE",
                text="One setting at several values: rank=4,8,16. Lists of targets have ; between "
                     "them.")
Plot = _option(Path | None, "--plot", panel=SHOWN, metavar="FILE",
               text=f"A figure of the sweep ({', '.join(FIGURES)}).")
AsJson = _option(bool, "--json", panel=SHOWN, text="JSON, with all sizes in bytes.")
Models = _option(bool, "--models", panel=SHOWN, text="List the names of models, and end.")


def memory(
    context: typer.Context,
    model: Model = None, method: Method = None, rank: Rank = None, alpha: Alpha = None,
    dropout: Dropout = None, targets: Targets = None, dtype: Dtype = None,
    adapter_dtype: AdapterDtype = None, double_quant: DoubleQuant = None,
    kbit_prep: KbitPrep = None, master_weights: MasterWeights = None,
    batch: Batch = None, seq: Seq = None, optimizer: Optimizer = None, loss: Loss = None,
    checkpointing: Checkpointing = None, attention: Attention = None, autocast: Autocast = None,
    compute_dtype: ComputeDtype = None,
    gpu: Gpu = None, simulated: Simulated = False, compare: Compare = None, sweep: Sweep = None,
    plot: Plot = None, as_json: AsJson = False, models: Models = False,
) -> None:  # fmt: skip
    """Predict the GPU memory of a training step: does it fit? No GPU or weights are needed."""
    if models:
        print(json.dumps(list(memory_names.ARCHITECTURES)) if as_json
              else "\n".join(memory_names.ARCHITECTURES))
        return
    asked = read(context.params)
    with _waiting("simulating" if simulated else "reading the model"):
        found, fits = answer(asked)
    if plot:
        _draw(asked, found, plot)
    if as_json:
        shown = [one.to_dict() | ({"fit": fit.to_dict()} if fit else {})
                 for one, fit in zip(found, fits)]
        print(json.dumps(shown if asked.several else shown[0], indent=2))
        return
    show(asked, found, fits)
    if plot:
        print(f"\nFigure: {plot}")


# --- what is asked for ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """The runs to predict: (label, settings with model and method) of each. `card`: bytes.

    `varied`: the setting that a sweep varies, "method" for a comparison, None for a single run.
    """

    runs: tuple[tuple[str, dict[str, Any]], ...]
    varied: str | None = None
    compared: bool = False
    card: int | None = None
    simulated: bool = False

    @property
    def several(self) -> bool:
        return self.varied is not None


def read(options: Mapping[str, Any]) -> Asked:
    """The options as given, None where not. Raises CourseError, by names alone: no model is
    looked at."""
    given = {name: value for name, value in options.items()
             if name not in OUTPUT and value is not None}
    if "targets" in given:
        given["targets"] = _targets(given["targets"])
    compare, sweep, plot = options["compare"], options["sweep"], options["plot"]
    if compare is not None and sweep is not None:
        raise CourseError("--compare and --sweep do not go together.",
                          "To compare methods in a sweep's table: --sweep method=full,lora,qlora.")
    varied, values = None, [None]
    if compare is not None:
        varied, values = "method", _parts(compare, ",", "--compare full,lora,qlora")
    if sweep is not None:
        varied, values = swept(sweep)
    if varied in given:
        raise CourseError(
            f"{_flag(varied)} is given twice: there, and in "
            f"{'--compare' if compare is not None else '--sweep'}.", "Leave one of them out.")
    if plot is not None:
        _check_plot(plot, sweep)
    if not given.get("model") and varied != "model":
        raise CourseError("Which model?", "Say --model NAME; --models lists the names.")
    runs = []
    for value in values:
        run = given | ({varied: value} if varied else {})
        for name, chosen in run.items():
            memory_names.check(name, chosen)
        runs.append((_said(value), run))
    card = None if options["gpu"] is None else card_bytes(options["gpu"])
    return Asked(tuple(runs), varied, compare is not None, card, options["simulated"])


def swept(text: str) -> tuple[str, list[Any]]:
    """The setting and the values of "rank=4,8". Raises CourseError."""
    example = "--sweep rank=4,8,16"
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    kinds = {setting: get_args(hint)[0] for setting, hint in get_type_hints(memory).items()
             if setting not in OUTPUT and get_args(hint)}
    memory_names.one_of(name, kinds, "setting")
    if not equals:
        raise CourseError(f"--sweep {text}: without values.", f"Say {example}.")
    between = ";" if name == "targets" else ","
    parts = _parts(values, between, example if name != "targets" else
                   "--sweep 'targets=q_proj,v_proj;all-linear'")
    return name, [_value(name, part, kinds[name]) for part in parts]


def _value(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        said = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
        if text.lower() not in said:
            raise CourseError(f"{name} is on or off, not {text!r}.", f"Say --sweep {name}=on,off.")
        return said[text.lower()]
    try:
        return _targets(text) if name == "targets" else kind(text)
    except ValueError:
        raise CourseError(f"{name} is a number; {text!r} is none.",
                          f"Say --sweep {name}=NUMBER,NUMBER.") from None


def _parts(text: str, between: str, example: str) -> list[str]:
    parts = [part.strip() for part in text.split(between)]
    if not all(parts):
        raise CourseError(f"A value is missing in {text!r}.", f"Say {example}.")
    return list(dict.fromkeys(parts))


def _targets(text: str) -> str:
    return ",".join(_parts(text, ",", "--targets q_proj,v_proj"))


def _flag(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def card_bytes(text: str) -> int:
    """Bytes of a card of "24GB", "24", "24GiB" or "24576MiB": its maker's GB are GiB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:(gi?b?)|(mi?b?))?", text.strip().lower())
    if not found or not float(found[1]):
        raise CourseError(f"--gpu {text}: no size of a card.", "Say it in GB, such as --gpu 24GB.")
    return round(float(found[1]) * (2**20 if found[3] else GiB))


def _check_plot(plot: Path, sweep: str | None) -> None:
    if sweep is None:
        raise CourseError("--plot draws a sweep.", "Say --sweep rank=4,8,16 as well.")
    if plot.suffix.lower() not in FIGURES:
        raise CourseError(f"{plot}: what kind of figure?",
                          f"Give a name that ends in {', '.join(FIGURES)}.")
    folder = plot.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or plot.is_dir():
        raise CourseError(f"{plot} cannot be written.", "Name a file in a folder of yours.")


# --- what is answered ----------------------------------------------------------------------------


def answer(asked: Asked) -> tuple[list[Estimate], list[Fit | None]]:
    """A prediction for each run, and what is said of the card, if one is given.

    All runs are looked over before the first is predicted. Ways to make it fit are for a single
    run only. Raises CourseError.
    """
    from loralab import memory
    from loralab.memory import fit
    from loralab.quiet import quiet

    predict = memory.simulate if asked.simulated else memory.estimate
    found, fits = [], []
    with quiet():
        for _, run in asked.runs:
            step = memory.settings(**run)
            if asked.varied not in (None, "model", "method", *step.described()):
                raise CourseError(f"{_flag(asked.varied)} changes nothing in {step.method}.",
                                  f"Sweep one of {', '.join(step.described())}.")
        for _, run in asked.runs:
            found.append(predict(**run))
            if not asked.card:
                fits.append(None)
            elif asked.several:
                fits.append(fit.Fit(asked.card, fit.verdict(found[-1], asked.card)))
            else:
                given = {name: value for name, value in run.items()
                         if name not in ("model", "method")}
                fits.append(fit.fit(found[-1], run["model"], found[-1].settings["method"], given,
                                    asked.card))
    return found, fits


def show(asked: Asked, found: list[Estimate], fits: list[Fit | None]) -> None:
    from loralab import memory_report as report

    labels = [label for label, _ in asked.runs]
    if asked.compared:
        report.show_comparison(labels, found, fits)
    elif asked.varied:
        report.show_sweep(asked.varied, labels, found, fits)
    else:
        report.show_one(found[0])
        if fits[0]:
            report.show_fit(found[0], fits[0])


def _draw(asked: Asked, found: list[Estimate], plot: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from loralab import plots

    plots.use_style()
    values = [run[asked.varied] for _, run in asked.runs]
    figure = plots.memory_sweep(asked.varied, values, found, card=asked.card)
    try:
        figure.savefig(plot)
    except OSError as error:
        raise CourseError(f"{plot} cannot be written: {error}.", "Name another file.") from None


@contextmanager
def _waiting(text: str) -> Iterator[None]:
    """A sign on a terminal that something is being done. It keeps stderr as it is now, since the
    model libraries are silenced meanwhile."""
    with Console(file=sys.stderr).status(text):
        yield
