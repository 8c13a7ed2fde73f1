"""`loralab memory` as it is typed: numbers, tables, figures, verdicts, and wrong input."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from loralab import memory, memory_command, memory_names, paths
from loralab.cli import app
from loralab.errors import CourseError

EXAMPLE = ("--model qwen2.5-7b --method qlora --rank 16 --alpha 32 "
           "--targets q_proj,k_proj,v_proj,o_proj --seq 1024 --batch 1 "
           "--optimizer paged_adamw_8bit --loss hf --kbit-prep --checkpointing")
SETTINGS = dict(rank=16, alpha=32, targets="q_proj,k_proj,v_proj,o_proj", seq=1024, batch=1,
                optimizer="paged_adamw_8bit", loss="hf", kbit_prep=True, checkpointing=True)


def invoke(line: str):
    return CliRunner().invoke(app, ["memory", *shlex.split(line)])


def shown(line: str) -> str:
    done = invoke(line)
    assert done.exit_code == 0, done.output
    return done.stdout


def from_json(line: str):
    return json.loads(shown(line + " --json"))


def plain(environ=os.environ) -> dict[str, str]:
    """An environment in which the output is as wide as in a file, and has no colours."""
    ours = {name: value for name, value in environ.items()
            if name not in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "PYTHONWARNINGS")}
    return ours | {"COLUMNS": "80", "PYTHONPATH": os.fspath(paths.PROJECT)}


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], env=plain(), capture_output=True, text=True)


# --- one prediction ------------------------------------------------------------------------------


def test_the_example_gives_the_numbers_of_the_formula():
    assert from_json(EXAMPLE) == memory.estimate("qwen2.5-7b", "qlora", **SETTINGS).to_dict()


def test_json_alone_is_on_stdout_and_nothing_on_stderr():
    done = process("-m", "loralab.cli", "memory", *EXAMPLE.split(), "--json")
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout) == memory.estimate("qwen2.5-7b", "qlora", **SETTINGS).to_dict()


def test_a_simulation_gives_its_numbers_and_is_as_quiet():
    line = "--model gpt2 --method lora --targets c_attn --seq 128 --optimizer adamw_8bit"
    done = process("-m", "loralab.cli", "memory", *line.split(), "--simulate", "--json")
    assert done.returncode == 0 and done.stderr == ""
    expected = memory.simulate("gpt2", "lora", targets="c_attn", seq=128, optimizer="adamw_8bit")
    assert json.loads(done.stdout) == expected.to_dict()
    assert expected.by == "simulation"


def test_what_is_not_said_is_as_the_settings_have_it():
    assert from_json("--model gpt2") == memory.estimate("gpt2").to_dict()
    assert from_json("--model gpt2 --loss trl")["settings"]["autocast"] is True


@pytest.mark.parametrize("option, given", [
    ("--method full --master-weights", dict(method="full", master_weights=True)),
    ("--method lora --dropout 0.1", dict(method="lora", dropout=0.1)),
    ("--dtype fp32 --autocast", dict(dtype="fp32", autocast=True)),
    ("--loss trl --no-autocast", dict(loss="trl", autocast=False)),
    ("--adapter-dtype bf16", dict(adapter_dtype="bf16")),
    ("--compute-dtype fp16", dict(compute_dtype="fp16")),
    ("--no-double-quant", dict(double_quant=False)),
    ("--no-kbit-prep", dict(kbit_prep=False)),
    ("--no-checkpointing --batch 3", dict(checkpointing=False, batch=3)),
    ("--attention sdpa-efficient", dict(attention="sdpa-efficient")),
    ("--attention sdpa-flash --kbit-prep --autocast",
     dict(attention="sdpa-flash", kbit_prep=True, autocast=True)),
    ("--targets 'c_attn, c_fc'", dict(targets="c_attn,c_fc")),
    ("--optimizer adamw_torch", dict(optimizer="adamw_foreach")),
])
def test_every_option_is_the_setting_of_that_name(option, given):
    assert from_json(f"--model gpt2 {option}") == memory.estimate("gpt2", **given).to_dict()


def test_every_setting_has_an_option():
    kinds = memory_command.memory.__annotations__
    assert set(memory.settings.__annotations__) - {"return"} <= set(kinds)


def test_a_model_is_a_name_a_file_or_a_folder(tmp_path):
    config = memory.configuration("smollm2-135m").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    for given in (tmp_path, tmp_path / "config.json"):
        found = from_json(f"--model '{given}' --method lora")
        assert found["trainable_parameters"] == 2_442_240 // 10
    assert from_json("--model SmolLM2-135M --method lora")["trainable_parameters"] == 2_442_240


def test_the_table_has_every_component_and_all_three_kinds_of_memory():
    found = memory.estimate("qwen2.5-7b", "qlora", **SETTINGS)
    said = shown(EXAMPLE)
    for name, size in found.components.items():
        assert (memory.LABELS[name] in said) == (size > 0)
    assert f"{found.total / memory.GiB:.2f}" in said and f"{found.total / memory.GB:.2f} GB" in said
    for low, high in (found.reserved_range, found.device_range):
        assert f"{low / memory.GiB:.1f} to {high / memory.GiB:.1f} GiB" in said
    assert found.peak_at in said
    settings = next(line for line in said.splitlines() if line.startswith("Settings: "))
    assert settings == "Settings: " + ", ".join(f"{k}={v}" for k, v in found.settings.items())


def test_bars_follow_one_another_to_the_end():
    bars = [line[len(line) - len(line.lstrip("─")):] for line in shown(EXAMPLE).splitlines()
            if "█" in line]
    ends = [(bar.index("█"), bar.rindex("█")) for bar in bars]
    assert all(last <= first + 1 for (_, last), (first, _) in zip(ends, ends[1:]))
    assert ends == sorted(ends)


def test_names_of_models():
    assert shown("--models").split() == list(memory.ARCHITECTURES)
    assert json.loads(shown("--models --json")) == list(memory.ARCHITECTURES)


def test_help_shows_the_defaults_of_the_settings():
    said = shown("--help")
    for default in ("qlora", "all-linear", "512", "bf16", "on", "by the"):
        assert f"({default}" in said, default


# --- the card ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["24GB", "24", "24 GiB", "24gb", "24.0G", "24576MiB", "24576 MB"])
def test_a_card_of_24_gb_has_24_gib(text):
    assert memory_command.card_bytes(text) == 24 * memory.GiB


@pytest.mark.parametrize("text", ["foo", "", "0", "-8", "24TB", "GB", "1e3", "nan", "8,5"])
def test_what_is_no_card(text):
    with pytest.raises(CourseError, match="24GB"):
        memory_command.card_bytes(text)


def test_a_verdict_and_the_changes():
    line = "--model qwen2.5-7b --rank 16 --seq 2048 --batch 2"
    said = from_json(f"{line} --gpu 16GB")
    fit = said.pop("fit")
    assert said == from_json(line)
    assert fit["verdict"] == "fits perhaps" and fit["card_bytes"] == 16 * memory.GiB
    assert len(fit["changes"]) == 3
    text = shown(f"{line} --gpu 16GB")
    for change in fit["changes"]:
        assert change["verdict"] == "fits"
        assert f"{change['peak_allocated_bytes'] / memory.GiB:.2f}" in text
    assert "--batch 1 (and 2 batches accumulated)" in text


def test_what_is_proposed_can_be_typed():
    """Every proposed option, added to the line, gives the total that was promised."""
    line = "--model llama-3.1-8b --seq 2048 --no-checkpointing --kbit-prep --no-double-quant"
    for change in from_json(f"{line} --gpu 24GB")["fit"]["changes"]:
        from loralab.memory_report import option

        options = " ".join(option(*item) for item in change["change"].items())
        again = from_json(f"{line} {options} --gpu 24GB")
        assert again["peak_allocated_bytes"] == change["peak_allocated_bytes"]
        assert again["fit"]["verdict"] == "fits"


def test_it_is_said_when_it_fits_and_when_nothing_does():
    assert "fits (" in shown("--model gpt2 --gpu 80GB")
    assert "changes" not in from_json("--model gpt2 --gpu 80GB")["fit"]
    said = shown("--model llama-3.1-70b --method full --gpu 24GB")
    assert "does not fit" in said and "Nothing here makes it fit" in said
    fit = from_json("--model llama-3.1-70b --method full --gpu 24GB")["fit"]
    assert fit["changes"] == [] and fit["all_changes"]["device_range_bytes"][0] > fit["card_bytes"]
    assert "would fit perhaps" in shown("--model llama-3.1-70b --no-checkpointing --gpu 48GB")


# --- several -------------------------------------------------------------------------------------


def test_methods_side_by_side():
    line = "--model qwen2.5-1.5b --compare full,lora,qlora"
    expected = [memory.estimate("qwen2.5-1.5b", method) for method in memory.METHODS]
    assert from_json(line) == [one.to_dict() for one in expected]
    said = shown(line + " --gpu 12GB")
    rows = {line.split("  ")[0]: line for line in said.splitlines()}
    for name, label in memory.LABELS.items():
        sizes = [one.components[name] for one in expected]
        assert (label in rows) == any(sizes)
        for size in filter(None, sizes):
            assert f"{size / memory.GiB:.2f}" in rows[label]
    assert rows["a card of 12 GiB"].count("fit") == 3
    assert "rank=8" in said and "kbit_prep=False" in said


@pytest.mark.parametrize("sweep, values", [
    ("rank=4,8,16", [4, 8, 16]),
    ("batch=1,2", [1, 2]),
    ("targets=c_attn;c_attn,c_fc;all-linear", ["c_attn", "c_attn,c_fc", "all-linear"]),
    ("optimizer=adamw,sgd", ["adamw", "sgd"]),
    ("checkpointing=on,off", [True, False]),
    ("dropout=0,0.5", [0.0, 0.5]),
    ("adapter-dtype=fp32,bf16", ["fp32", "bf16"]),
    ("method=lora,full", ["lora", "full"]),
])
def test_one_setting_at_several_values(sweep, values):
    name = sweep.partition("=")[0].replace("-", "_")
    expected = [memory.estimate("gpt2", **{name: value}) for value in values]
    assert from_json(f"--model gpt2 --sweep '{sweep}'") == [one.to_dict() for one in expected]
    said = shown(f"--model gpt2 --sweep '{sweep}'")
    for one in expected:
        assert f"{one.total / memory.GiB:.2f}" in said and f"{one.trainable:,}" in said
    change = (expected[-1].total - expected[0].total) / memory.GiB
    assert f"{change:+.2f}" in said


def test_several_models():
    found = from_json("--sweep model=gpt2,smollm2-135m --method lora")
    assert [one["settings"]["model"] for one in found] == ["gpt2", "smollm2-135m"]


def test_a_card_beside_a_sweep_gets_a_verdict_a_row():
    found = from_json("--model qwen2.5-7b --sweep rank=8,256 --gpu 12GB")
    assert [one["fit"]["verdict"] for one in found] == ["fits", "does not fit"]
    assert all("changes" not in one["fit"] for one in found)
    assert "12 GiB card" in shown("--model qwen2.5-7b --sweep rank=8,256 --gpu 12GB")


@pytest.mark.parametrize("name, starts", [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"),
                                          ("b.svg", b"<?xml")])
def test_the_figure_is_written(tmp_path, name, starts):
    said = shown(f"--model gpt2 --sweep rank=4,8,16 --gpu 8GB --plot '{tmp_path / name}'")
    written = (tmp_path / name).read_bytes()
    assert written.startswith(starts) and len(written) > 5000
    assert name in said.replace("\n", "")


def test_the_figure_shows_each_component_on_a_log_axis():
    from matplotlib import pyplot as plt

    from loralab import plots

    values = [4, 8, 64]
    found = [memory.estimate("gpt2", rank=value) for value in values]
    figure = plots.memory_sweep("rank", values, found, card=8 * memory.GiB)
    [axes] = figure.axes
    assert axes.get_xscale() == "log" and axes.xaxis.get_transform().base == 2
    assert [text.get_text() for text in axes.get_xticklabels()] == ["4", "8", "64"]
    assert "GiB" in axes.get_ylabel()
    tops = sorted({round(bar.get_y() + bar.get_height(), 6) for bar in axes.patches})
    for one in found:
        assert round(one.total / memory.GiB, 6) in tops
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {memory.LABELS[name] for one in found for name, size in one.components.items()
            if size} <= labels and "a card of 8 GiB" in labels
    plt.close(figure)


def test_a_figure_beside_json_leaves_json_alone(tmp_path):
    found = from_json(f"--model gpt2 --sweep targets=c_attn;c_fc --plot '{tmp_path / 'a.png'}'"
                      .replace("targets=c_attn;c_fc", "'targets=c_attn;c_fc'"))
    assert len(found) == 2 and (tmp_path / "a.png").exists()


# --- wrong input ---------------------------------------------------------------------------------

WRONG = {  # what is typed, what has to be named
    "": "--models",
    "--model ''": "--models",
    "--model lama-2-7b": "llama-2-7b",
    "--model gpt2 --method qlorra": "qlora",
    "--model gpt2 --targets q_proj": "c_attn",
    "--model gpt2 --targets c_attn,": "q_proj,v_proj",
    "--model gpt2 --optimizer adam": "adamw",
    "--model gpt2 --loss sft": "trl",
    "--model gpt2 --attention flash": "sdpa-flash",
    "--model gpt2 --dtype float32": "fp32",
    "--model gpt2 --gpu foo": "24GB",
    "--model gpt2 --sweep rank": "rank=4,8,16",
    "--model gpt2 --sweep rank=": "rank=4,8,16",
    "--model gpt2 --sweep rank=4,,8": "rank=4,8,16",
    "--model gpt2 --sweep rank=four": "NUMBER",
    "--model gpt2 --sweep rank=4.5": "NUMBER",
    "--model gpt2 --sweep rnk=4": "rank",
    "--model gpt2 --sweep gpu=8": "setting",
    "--model gpt2 --sweep optimizer=adamw,adam": "adamw_8bit",
    "--model gpt2 --sweep checkpointing=on,maybe": "on,off",
    "--model gpt2 --rank 4 --sweep rank=4,8": "twice",
    "--model gpt2 --no-checkpointing --sweep checkpointing=on,off": "twice",
    "--model gpt2 --method full --compare full,lora": "twice",
    "--model gpt2 --compare full,lora --sweep rank=4,8": "do not go together",
    "--model gpt2 --compare full,lra": "lora",
    "--model gpt2 --compare full,,lora": "full,lora,qlora",
    "--model gpt2 --plot a.png": "--sweep",
    "--model gpt2 --sweep rank=4,8 --plot a.bmp": ".pdf",
    "--model gpt2 --sweep rank=4,8 --plot /no/such/folder/a.png": "folder",
    "--model gpt2 --method full --sweep rank=4,8": "batch",
    "--model gpt2 --rank 1000": "768",
    "--model gpt2 --seq 2048": "1024",
    "--model gpt2 --sweep seq=512,2048": "1024",
    "--model gpt2 --batch 0": "1 or more",
    "--model gpt2 --alpha 0": "1 or more",
    "--model gpt2 --targets lm_head --loss trl": "TRL",
    "--model gemma-2-2b --attention sdpa-flash": "eager",
    "--model gpt2 --method full --master-weights --simulate": "autocast",
    "--model /no/such/config.json": "config.json",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input_is_two_lines_and_exit_code_1(line):
    done = invoke(line)
    assert done.exit_code == 1 and done.stdout == ""
    assert isinstance(done.exception, SystemExit)
    first, second = done.stderr.splitlines()
    assert second.startswith("→ ") and WRONG[line] in done.stderr, done.stderr
    assert invoke(line + " --json").stdout == ""


def test_a_wrong_name_is_answered_without_torch():
    """It takes a second or more to import, and nothing has to be computed."""
    code = ("import sys; from loralab.cli import app\n"
            "try: app(sys.argv[1:])\n"
            "except SystemExit as end: print(end.code, 'torch' in sys.modules)")
    for line in ("--model lama", "--model gpt2 --optimizer adam", "--model gpt2 --gpu foo",
                 "--model gpt2 --sweep loss=hf,none", "--model gpt2 --compare full,lra"):
        assert process("-c", code, "memory", *line.split()).stdout == "1 False\n"


def test_other_commands_do_not_import_more_than_before():
    code = ("import sys, loralab.cli; "
            "print({'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules))")
    assert process("-c", code).stdout == "set()\n"


def test_names_are_those_that_the_settings_take():
    for name in ("METHODS", "OPTIMIZERS", "LOSSES", "ATTENTION", "ARCHITECTURES"):
        assert getattr(memory_names, name) is getattr(memory, name)
    assert list(memory_names.DTYPES) == list(memory.DTYPES)


@pytest.mark.parametrize("config, said", [
    ({"model_type": "t5"}, "'t5' is no language model"),
    ({"model_type": "mamba"}, "'mamba' is no language model"),
    ({"model_type": "gemma3"}, "text_config"),
    ({"model_type": "llama", "hidden_size": "big"}, "hidden_size"),
    ({"model_type": "llama", "hidden_size": 100, "num_attention_heads": 7}, "heads (7)"),
    ({"hidden_size": 64}, "model_type"),
])
def test_a_configuration_of_no_use_is_two_lines_too(config, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = invoke(f"--model '{tmp_path}'")
    assert done.exit_code == 1 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert second.startswith("→ ") and said in done.stderr


# --- the README ----------------------------------------------------------------------------------


def test_the_readme_shows_what_its_command_prints():
    """If the numbers have changed, run the command and paste what it prints."""
    readme = (paths.PROJECT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Will it fit?")[2].partition("\n## ")[0]
    command, printed = re.findall(r"```\w*\n(.*?)```", section, re.DOTALL)[:2]
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    assert program == "loralab"
    done = process("-m", "loralab.cli", *arguments)
    assert done.returncode == 0 and done.stderr == ""

    def lines(text):
        return [line.rstrip() for line in text.strip().splitlines()]

    assert lines(printed) == lines(done.stdout)
