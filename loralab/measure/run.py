"""One run: a model trained for a few steps, and what it took beside what was predicted."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from statistics import median
from typing import Any

import torch

from loralab import memory
from loralab.errors import CourseError
from loralab.measure import counting, loop, meters, model
from loralab.measure.needed import Unsupported
from loralab.memory import kernels, simulation
from loralab.memory.held import held_bytes
from loralab.memory.settings import Settings, chosen
from loralab.quiet import quiet

STEPS = 3
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "accelerate")
Clock = Callable[[], float]


def run(
    given: Mapping[str, Any], *, steps: int = STEPS, device: str | None = None,
    predict: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Measure one training and return the record, which is plain data for JSON.

    `given`: "model", "method" and settings as in `loralab.memory.settings`; a model may also be a
    configuration in full, as an object. "int8": true stands for 8-bit base weights under LoRA,
    which are measured and not predicted. `device`: "cuda" where there is one, else "cpu".
    All sizes are bytes. `status`: "ok"; "out of memory", with the stage in which it ran out;
    "unsupported" or "failed", with the reason. Raises nothing of its own.
    """
    began = time.perf_counter()
    record: dict[str, Any] = {"settings": dict(given), "status": "ok"}
    stages: dict[str, meters.Reading] = {}
    measured: dict[str, Any] = {"stages": stages}
    place = torch.device("cpu")
    try:
        place = _device(device)
        if steps < 2:
            raise CourseError(f"{steps} steps show no training.",
                              "Two or more: the first one makes the optimizer's states.")
        settings = settings_of(given)
        int8 = bool(given.get("int8"))
        if int8 and settings.method != "lora":
            raise CourseError("8-bit weights are measured under LoRA only.", 'method="lora"')
        predict = predict and not int8
        record["settings"] = settings.described() | {"model": given.get("model")}
        if int8:
            record["settings"]["int8"] = True
        with quiet():
            train(settings, place, steps, measured, int8=int8)
    except Exception as error:
        status, reason = _what_went_wrong(error)
        record |= {"status": status, "reason": reason, "stage": _after(stages)}
    record |= {"environment": environment(place), "measured": measured}
    _release()
    if predict and record["status"] in ("ok", "out of memory"):
        capability = record["environment"].get("compute_capability")
        record["predicted"] = predictions(settings, measured, capability)
    record["seconds"] = round(time.perf_counter() - began, 2)
    return record


def _device(named: str | None) -> torch.device:
    there = torch.cuda.is_available()
    if (named or "").startswith("cuda") and not there:
        raise Unsupported("torch sees no CUDA GPU.", "Use --device cpu.")
    return torch.device("cuda", 0) if there and named != "cpu" else torch.device("cpu")


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Settings as `memory.settings` checks them. Raises CourseError."""
    rest = {name: value for name, value in given.items()
            if name not in ("model", "method", "int8")}
    return chosen(configured(given.get("model")), given.get("method", "qlora"), rest)


def configured(named: Any) -> Any:
    """The configuration that a JSON object is, or the name itself."""
    if not isinstance(named, Mapping):
        return named
    from transformers import AutoConfig

    settings = dict(named)
    try:
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    except (KeyError, ValueError, TypeError) as error:
        raise CourseError(f"transformers makes no model of this configuration ({error}).",
                          'It needs a "model_type" that transformers knows.') from None


# --- the run -------------------------------------------------------------------------------------


def train(
    settings: Settings, device: torch.device, steps: int, measured: dict[str, Any],
    meter: meters.Cuda | meters.Followed | None = None, int8: bool = False,
) -> None:  # fmt: skip
    """Train for some steps, and write into `measured` as far as it comes."""
    stages, seconds = measured.setdefault("stages", {}), []
    if settings.master_weights:
        raise Unsupported("transformers keeps no fp32 copy beside 16-bit weights.",
                          'Its mixed precision is dtype="fp32" with autocast=True.')
    if device.type == "cpu":
        _fits_here(settings)
    torch.manual_seed(0)
    meter = meter or meters.meter(device)
    measured["counted_by"] = meter.counted_by

    made = model.loaded(settings, device, int8)
    meter.know(meters.in_memory(made))
    stages["loaded"] = meter.read()
    made = model.ready(made, settings)
    gc.collect()
    meter.know(meters.in_memory(made))
    stages["adapters"] = meter.read()
    optimizer = loop.optimizer_of(settings, made, device)
    tokens = torch.randint(settings.arch.vocab, (settings.batch, settings.seq), device=device)
    labels = tokens.clone()
    meter.know((tokens, labels))
    stages["optimizer"] = meter.read()

    since = time.perf_counter()

    def reached(step: int, where: str) -> None:
        nonlocal since
        stage = f"{'first' if step == 0 else 'later'} {where}"
        if where == "step":
            if step == 0:
                meter.know(value for state in optimizer.state.values() for value in state.values()
                           if torch.is_tensor(value) and value.device.type == device.type)
                meter.leave_out(loop.counters(optimizer, settings))
        stages[stage] = _highest(stages.get(stage), meter.read())  # waits for the GPU
        if where == "step":
            seconds.append(time.perf_counter() - since)
            measured["held"] = held(made, optimizer, settings)
            since = time.perf_counter()

    with meter.following():
        loop.train(made, optimizer, settings, tokens, labels, steps, reached)
    stages["end"] = meter.read()
    measured |= meter.at_the_end() | summed_up(stages, seconds, settings)


def _fits_here(settings: Settings) -> None:
    """Raises MemoryError for a model that would take a machine's memory from everyone on it."""
    import psutil

    needed, free = sum(held_bytes(settings).values()), psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise MemoryError(f"out of memory: it holds {needed / 1e9:.0f} GB from step to step, and "
                          f"{free / 1e9:.0f} GB are free")


def _highest(before: meters.Reading | None, now: meters.Reading) -> meters.Reading:
    return {name: max(size, before[name]) if before else size for name, size in now.items()}


def held(made: Any, optimizer: Any, settings: Settings) -> dict[str, int]:
    """`counting.held`, less the step counters that are not on a GPU."""
    found = counting.held(made, optimizer)
    if next(made.parameters()).device.type == "cpu":
        found["optimizer"] -= sum(c.nbytes for c in loop.counters(optimizer, settings))
    return found


def summed_up(
    stages: Mapping[str, meters.Reading], seconds: list[float], settings: Settings
) -> dict[str, Any]:
    """Peaks and speed of the steps after the first, which has made the optimizer's states."""
    training = {name: found for name, found in stages.items() if name.startswith("later")}
    at = max(training, key=lambda name: training[name]["peak_allocated"])
    found: dict[str, Any] = {"peak_allocated": training[at]["peak_allocated"], "peak_in": at}
    if "peak_reserved" in training[at]:
        found["peak_reserved"] = max(reading["peak_reserved"] for reading in training.values())
    return found | {
        "seconds_per_step": [round(taken, 4) for taken in seconds],
        "tokens_per_second": round(settings.tokens / median(seconds[1:]), 1),
    }


def _after(stages: Mapping[str, Any]) -> str:
    """The stage that was not reached."""
    order = ["loaded", "adapters", "optimizer", "first forward", "first backward", "first step",
             "later forward", "later backward", "later step", "end"]
    return next((name for name in order if name not in stages), "later")


def _what_went_wrong(error: Exception) -> tuple[str, str]:
    said = (str(error).splitlines() or [""])[0][:300] or type(error).__name__
    if isinstance(error, CourseError):
        return "unsupported", error.message
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in str(error).lower() for words in ("out of memory", "can't allocate memory")
    ):
        return "out of memory", said
    if isinstance(error, NotImplementedError) or any(
        words in str(error) for words in ("No available kernel", "No viable backend")
    ):
        return "unsupported", said
    return "failed", f"{type(error).__name__}: {said}"


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- what was predicted --------------------------------------------------------------------------


def predictions(
    settings: Settings, measured: Mapping[str, Any], capability: str | None = None
) -> dict[str, Any]:
    """Formula and simulation for these settings, with the relative errors where it was measured.

    `capability`: the GPU's compute capability, which decides how large cuBLAS's workspaces are.
    For a run on a CPU both leave out what only a GPU has: the rounding of every allocation,
    scratch memory inside kernels, and cuBLAS's workspaces. TRL's loss works on whole tiles at a
    time there, which only the simulation knows.
    """
    on_gpu = measured.get("counted_by") == meters.Cuda.counted_by
    formula = _estimate(settings)
    workspaces = kernels.cublas_workspaces(capability) if on_gpu else 0
    found: dict[str, Any] = {
        "formula": formula.total - formula.components["workspace"] + workspaces,
        "held": {name: size for name, size in formula.held.items() if size},
        "workspaces": workspaces,
    }
    if settings.loss == "trl" and not on_gpu:
        found["formula"] = None
    try:
        peak = simulation.peak_of(settings, on_gpu=on_gpu, workspaces=workspaces)
        found["simulation"] = sum(peak.by.values())
        if on_gpu:
            found["reserved"] = peak.reserved
        found["peak_at"] = f"{peak.phase}, {peak.module}, {peak.operation}"
    except Exception as error:
        found |= {"simulation": None, "why": _what_went_wrong(error)[1]}
    if "peak_allocated" in measured:
        found["error"] = errors(found, measured)
    return found


def _estimate(settings: Settings) -> memory.Estimate:
    said = {name: value for name, value in settings.described().items()
            if name not in ("model", "method")}
    return memory.estimate(settings.arch, settings.method, **said)


def errors(found: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Predicted against measured, as (predicted - measured) / measured; held memory in bytes."""
    pairs = {"formula": "peak_allocated", "simulation": "peak_allocated",
             "reserved": "peak_reserved"}  # fmt: skip
    said: dict[str, Any] = {
        view: round(found[view] / measured[peak] - 1, 6)
        for view, peak in pairs.items() if found.get(view) is not None
    }
    held_bytes = measured["held"]
    said["held"] = {name: found["held"].get(name, 0) - size for name, size in held_bytes.items()
                    if found["held"].get(name, 0) != size}
    return said


# --- where it was measured -----------------------------------------------------------------------


def environment(device: torch.device) -> dict[str, Any]:
    """Versions of the packages that matter, and the device."""
    found: dict[str, Any] = {"python": platform.python_version(), "device": device.type}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "gpu_memory": properties.total_memory,
            "cuda": torch.version.cuda,
            "driver": meters.ask_nvidia_smi("driver_version"),
            "allocator": torch.cuda.get_allocator_backend(),
        }
    return found
