"""`loralab measure`: what a run writes down, however it ends; lists of runs; a GPU's counters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from loralab import cli, memory
from loralab.errors import CourseError
from loralab.measure import loop, meters, model, runs
from loralab.measure import run as one
from loralab.measure.command import main
from loralab.memory.ledger import Ledger
from loralab.memory.storages import LiveStorages
from tests.tiny_models import TINY

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

TINY_LORA = {"model": TINY["llama"], "method": "lora", "rank": 4, "seq": 16, "attention": "eager"}
STAGES = ["loaded", "adapters", "optimizer", "first forward", "first backward", "first step",
          "later forward", "later backward", "later step", "end"]  # fmt: skip


# --- one run -------------------------------------------------------------------------------------


def test_a_run_says_what_it_took_and_what_was_predicted():
    found = json.loads(json.dumps(one.run(TINY_LORA)))
    assert found["status"] == "ok"
    measured, predicted = found["measured"], found["predicted"]
    assert list(measured["stages"]) == STAGES
    assert measured["peak_allocated"] == predicted["simulation"]
    assert predicted["error"]["simulation"] == 0 and abs(predicted["error"]["formula"]) < 0.1
    assert len(measured["seconds_per_step"]) == one.STEPS and measured["tokens_per_second"] > 0
    assert found["environment"]["torch"] == torch.__version__
    assert measured["counted_by"] == "followed storages"


def test_its_settings_can_be_given_again():
    found = one.run(TINY_LORA | {"autocast": True, "optimizer": "adamw_foreach"}, steps=2)
    again = one.run(found["settings"], steps=2)
    assert again["settings"] == found["settings"]
    assert again["measured"]["peak_allocated"] == found["measured"]["peak_allocated"]


@pytest.mark.parametrize(
    "given, options, said",
    [
        ({"model": "gpt2", "optimizer": "adamv"}, {}, "adamv"),
        ({"model": "gpt3"}, {}, "gpt3"),
        ({"model": {"model_type": "none"}}, {}, "configuration"),
        ({"model": "gpt2", "rnak": 3}, {}, "rnak"),
        (TINY_LORA | {"optimizer": "paged_adamw_8bit"}, {}, "CUDA"),
        (TINY_LORA | {"attention": "sdpa-efficient"}, {}, "kernel|backend"),
        ({"model": TINY["llama"], "method": "full", "seq": 8, "master_weights": True}, {},
         "fp32 copy"),
        (TINY_LORA, {"device": "cuda"}, "no CUDA GPU"),
        (TINY_LORA, {"steps": 1}, "1 steps"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_here_is_said_in_a_line(given, options, said):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    found = one.run(given, **{"device": "cpu"} | options)
    assert found["status"] == "unsupported" and len(found["reason"].splitlines()) == 1
    assert re.search(said, found["reason"])


@pytest.mark.parametrize(
    "where, stage", [("model.loaded", "loaded"), ("model.ready", "adapters"),
                     ("loop.train", "first forward")],
)  # fmt: skip
def test_running_out_of_memory_gives_a_record(where, stage, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nAnd more.")

    owner, name = where.split(".")
    monkeypatch.setattr({"model": model, "loop": loop}[owner], name, full)
    found = one.run(TINY_LORA)
    assert (found["status"], found["stage"]) == ("out of memory", stage)
    assert found["reason"] == "CUDA out of memory. Tried to allocate 20.00 GiB."
    assert found["predicted"]["simulation"] and "error" not in found["predicted"]


def test_running_out_in_a_later_stage_keeps_what_was_measured(monkeypatch):
    def stops(model, optimizer, settings, tokens, labels, steps, reached):
        reached(0, "forward")
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(loop, "train", stops)
    found = one.run(TINY_LORA, predict=False)
    assert (found["status"], found["stage"]) == ("out of memory", "first backward")
    assert list(found["measured"]["stages"]) == STAGES[:4]


def test_whatever_else_breaks_is_a_record_too(monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: [][0])
    found = one.run(TINY_LORA)
    assert found["status"] == "failed" and found["reason"].startswith("IndexError")


def test_a_model_that_would_fill_main_memory_is_not_begun():
    found = one.run({"model": "llama-3.1-70b", "method": "full"}, device="cpu", predict=False)
    assert (found["status"], found["stage"]) == ("out of memory", "loaded")


def test_a_base_model_is_quantised_layer_by_layer():
    """While it is loaded, little more is there than in the end."""
    config = TINY["llama"] | {"num_hidden_layers": 12, "intermediate_size": 1000}
    settings = one.settings_of({"model": config, "method": "qlora", "seq": 8})
    ledger = Ledger()
    with LiveStorages(ledger):
        made = model.loaded(settings, torch.device("cpu"))
    largest = max(layer.weights for layer in settings.arch.linear)
    whole = settings.arch.parameters * settings.dtype.itemsize
    assert ledger.peak - ledger.live < 12 * largest < whole / 2
    assert made.is_loaded_in_4bit


# --- lists ---------------------------------------------------------------------------------------


def write(path, lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n"
                            for line in lines))
    return path


def test_a_list_is_taken_up_where_it_was_left(tmp_path):
    a, b, c = ({"model": "gpt2", "rank": rank} for rank in (1, 2, 3))
    wanted = write(tmp_path / "runs.jsonl", ["# three runs\n", a, "\n", b, c, a])
    out, seen = tmp_path / "out.jsonl", []

    def measure_one(given, left):
        seen.append(given["rank"])
        return {"settings": dict(given), "status": "ok"}

    stopped = runs.measure(runs.read(wanted), out, measure_one)
    assert next(stopped)[0] == 2
    with out.open("a") as file:
        file.write('{"given": {"model": "gpt2", "rank": 2}, "settings": {"mo')  # a line cut short
    assert [left for left, _ in runs.measure(runs.read(wanted), out, measure_one)] == [1, 0]
    assert list(runs.measure(runs.read(wanted), out, measure_one)) == []
    assert seen == [1, 2, 3]
    assert runs.measured_in(out) == {runs.key(given) for given in (a, b, c)}


def test_no_run_is_begun_that_would_not_end_in_time(tmp_path):
    wanted = [{"model": "gpt2", "rank": rank} for rank in range(1, 6)]

    def measure_one(given, left):
        time.sleep(0.2)
        return {"status": "ok"}

    found = list(runs.measure(wanted, tmp_path / "out.jsonl", measure_one, seconds=0.7))
    assert found[-1][1] is None and 1 < len(found) < 5
    assert len(runs.measured_in(tmp_path / "out.jsonl")) == len(found) - 1


@pytest.mark.parametrize("line", ["[1]\n", "{\n"])
def test_a_line_that_is_no_run_is_named(line, tmp_path):
    with pytest.raises(CourseError, match="line 2"):
        runs.read(write(tmp_path / "runs.jsonl", [{"model": "gpt2"}, line]))
    with pytest.raises(CourseError, match="cannot be read"):
        runs.read(tmp_path / "none.jsonl")


@pytest.fixture
def python_that(tmp_path, monkeypatch):
    """Put a script in the place of the Python that runs are measured in."""

    def does(commands):
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\n{commands}\n")
        script.chmod(0o755)
        monkeypatch.setattr(runs.sys, "executable", str(script))

    return does


def own(left=None, limit=60.0):
    return runs.in_own_process(TINY_LORA, left, options=[], limit=limit)


def test_a_process_that_is_killed_leaves_a_record(python_that):
    python_that("kill -9 $$")
    found = own()
    assert found["status"] == "failed" and "signal 9" in found["reason"]
    python_that("echo 'Segmentation what?' >&2; exit 3")
    assert own()["reason"] == "Segmentation what?"


def test_a_process_that_takes_too_long_is_ended(python_that):
    python_that("exec sleep 60")
    assert own(limit=0.5)["status"] == "too slow"
    assert own(left=0.5) is None


def test_a_runs_process_ends_with_whoever_started_it():
    waits = ("from loralab.measure import runs; runs.end_with_parent(); import time;"
             "print('up', flush=True); time.sleep(60)")  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"up\n"
    child.stdin.close()
    assert child.wait(20) == 1
    child.stdout.close()


# --- the command ---------------------------------------------------------------------------------


def test_a_list_from_the_command_line_each_in_its_own_process(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    wanted = write(tmp_path / "runs.jsonl", [TINY_LORA, {"model": "gpt2", "method": "lora",
                                                         "optimizer": "none"}])
    arguments = ["--runs", str(wanted), "--out", str(tmp_path / "out.jsonl"), "--device", "cpu",
                 "--steps", "2"]  # fmt: skip
    assert main(arguments) == 0
    said = capsys.readouterr().err.splitlines()
    assert "simulation +0.00% (1 left)" in said[0] and "unsupported" in said[1]
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["ok", "unsupported"]
    assert main(arguments) == 0 and capsys.readouterr().err == ""
    assert main([*arguments, "--in-process", "--seconds", "0"]) == 0  # nothing is left to do


def test_one_run_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY["llama"]))
    out = tmp_path / "out.jsonl"
    called = CliRunner().invoke(cli.app, [
        "measure", "--model", str(tmp_path), "--method", "qlora", "--seq", "16", "--kbit-prep",
        "--autocast", "--targets", "q_proj,v_proj", "--device", "cpu", "--steps", "2", "--out",
        str(out), "--attention", "sdpa-math", "--no-predict",
    ])  # fmt: skip
    assert called.exit_code == 0
    found = json.loads(called.stdout)
    assert found["settings"]["kbit_prep"] and found["settings"]["targets"] == "q_proj,v_proj"
    assert found["status"] == "ok" and "predicted" not in found
    assert json.loads(out.read_text())["measured"] == found["measured"]


def test_the_settings_go_by_the_names_that_memory_gives_them():
    said = CliRunner().invoke(cli.app, ["measure", "--help"]).output
    for name in memory.settings.__kwdefaults__:
        assert f"--{name.replace('_', '-')}" in said


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "--model"),
        (["--runs", "a.jsonl"], "--out"),
        (["--runs", "a.jsonl", "--out", "b.jsonl", "--rank", "3"], "own settings"),
    ],
)
def test_arguments_that_do_not_go_together(arguments, said, capsys):
    assert main(arguments) == 1
    assert said in capsys.readouterr().err


# --- elsewhere -----------------------------------------------------------------------------------

WITHOUT = """
import importlib.machinery, json, sys
hidden = {"trl", "datasets", "nbgrader", "typer", "rich", "bitsandbytes", "jupyterlab"}
ordinary = importlib.machinery.PathFinder.find_spec

def find_spec(_, name, path=None, target=None):
    return None if name.split(".")[0] in hidden else ordinary(name, path, target)

importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
from loralab.measure.command import main
main(json.loads(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "more, status, reason",
    [
        (["--method", "lora"], "ok", ""),
        (["--method", "qlora"], "unsupported", "QLoRA needs bitsandbytes, which is not installed."),
        (["--method", "lora", "--loss", "trl"], "unsupported",
         "the loss 'trl' needs trl, which is not installed."),
        (["--method", "full", "--optimizer", "adamw_8bit"], "unsupported",
         "the optimizer 'adamw_8bit' needs bitsandbytes, which is not installed."),
    ],
)  # fmt: skip
def test_it_runs_where_only_torch_transformers_and_peft_are(more, status, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY["llama"]))
    arguments = ["--model", str(tmp_path), "--seq", "16", "--device", "cpu", *more,
                 "--attention", "eager"]  # fmt: skip
    said = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(arguments)], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads(said.stdout.splitlines()[-1])
    assert (found["status"], found.get("reason", "")) == (status, reason)
    if status == "ok":
        assert found["predicted"]["error"]["simulation"] == 0


# --- a GPU's counters, without one ---------------------------------------------------------------


class Allocator:
    """Stands in for torch.cuda: what it hands out grows by one block whenever it is asked."""

    def __init__(self):
        self.now = self.peak = 10 * 2**20
        self.context, self.total = 500 * 2**20, 80 * 2**30

    def allocated(self, *_):
        self.now += 512
        self.peak = max(self.peak, self.now)
        return self.now

    def highest(self, *_):
        return self.peak

    def forget(self, *_):
        self.peak = self.now

    def clear_workspaces(self):
        self.now -= 8 * 2**20

    def free_and_total(self, *_):
        return self.total - self.context - self.now - 3 * 2**20, self.total


@pytest.fixture
def allocator(monkeypatch):
    stands = Allocator()
    for name, does in {
        "set_device": lambda _: None, "init": lambda: None, "synchronize": lambda: None,
        "memory_allocated": stands.allocated, "max_memory_allocated": stands.highest,
        "memory_reserved": lambda: stands.now + 2 * 2**20,
        "max_memory_reserved": lambda: stands.peak + 2 * 2**20,
        "reset_peak_memory_stats": stands.forget, "mem_get_info": stands.free_and_total,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, does)
    monkeypatch.setattr(
        torch._C, "_cuda_clearCublasWorkspaces", stands.clear_workspaces, raising=False)
    monkeypatch.setattr(meters, "ask_nvidia_smi", lambda what: "100")
    return stands


def test_what_is_read_from_cuda(allocator):
    """All but the counters themselves, which are torch's."""
    settings = one.settings_of(TINY_LORA)
    measured: dict = {}
    one.train(settings, torch.device("cpu"), 3, measured, meters.Cuda(torch.device("cuda", 0)))
    assert list(measured["stages"]) == STAGES and measured["counted_by"] == "torch.cuda"
    for reading in measured["stages"].values():
        assert reading["reserved"] - reading["allocated"] == 2 * 2**20
        assert reading["peak_reserved"] > reading["peak_allocated"] >= reading["allocated"] - 512
    assert measured["peak_allocated"] == measured["stages"]["later step"]["peak_allocated"]
    assert measured["peak_reserved"] == measured["peak_allocated"] + 2 * 2**20
    assert measured["workspaces"] == pytest.approx(8 * 2**20, abs=512)
    assert measured["used_by_process"] == measured["stages"]["end"]["device_used"] - 100 * 2**20


def test_predictions_for_a_gpu_count_what_only_a_gpu_has(allocator):
    settings = one.settings_of(TINY_LORA)
    measured = {"counted_by": "torch.cuda", "peak_allocated": 40_000_000, "peak_reserved": 50_000_000,
                "held": {"weights": 10, "adapters": 0}}  # fmt: skip
    found = one.predictions(settings, measured)
    step = {"model": settings.arch, "method": "lora", "rank": 4, "seq": 16, "attention": "eager"}
    assert found["simulation"] == memory.simulate(**step).total
    assert found["formula"] == memory.estimate(**step).total
    hopper = one.predictions(settings, measured, "9.0")
    assert hopper["workspaces"] == 64 * 2**20 > found["workspaces"] > 16 * 2**20
    assert hopper["simulation"] - found["simulation"] == hopper["workspaces"] - found["workspaces"]
    assert one.predictions(settings, measured, "8.9") == found
    assert found["reserved"] == memory.simulate(**step).reserved
    error = found["error"]
    assert error["simulation"] == pytest.approx(found["simulation"] / 40e6 - 1, abs=1e-6)
    assert error["reserved"] == pytest.approx(found["reserved"] / 50e6 - 1, abs=1e-6)
    assert error["held"]["weights"] == found["held"]["weights"] - 10
