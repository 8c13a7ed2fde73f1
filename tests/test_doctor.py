"""The environment report: a line an item, a fix beside each failure, and it never raises."""

from __future__ import annotations

import os
import sys
from collections import namedtuple
from types import SimpleNamespace

import psutil
import pytest
import torch
from typer.testing import CliRunner

from loralab import base_model, doctor, hardware, paths
from loralab.cli import app
from loralab.doctor import Item
from loralab.errors import CourseError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project and a cache of their own."""
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.setattr(paths, "WORK", tmp_path / "work")
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_an_item_is_one_line_with_its_fix():
    assert str(Item("disk", True, "80 GB free")) == "[OK]   disk: 80 GB free"
    assert str(Item("disk", False, "full", "free some")) == "[FAIL] disk: full → free some"


def test_every_item_that_fails_says_what_to_do(place, monkeypatch):
    monkeypatch.setattr(base_model, "is_ready", lambda: False)
    items = doctor.report()
    assert [item.name for item in items] == list(doctor.ITEMS)
    assert all(item.fix for item in items if not item.ok)
    assert all("\n" not in str(item) for item in items)
    assert next(item for item in items if item.name == "base model").fix.startswith("make lab")


def test_what_breaks_is_a_failed_item_and_the_report_goes_on():
    def broken():
        raise ImportError("libcudart.so: cannot open shared object file\nmore")

    item = doctor._safely("torch", broken)
    assert not item.ok and "libcudart" in item.detail and item.fix

    def told():
        raise CourseError("No network.", "Plug it in.")

    assert doctor._safely("model", told) == Item("model", False, "No network.", "Plug it in.")


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    assert "3.10.4" in doctor._python().detail and "PYTHON=" in doctor._python().fix


def test_another_environment_than_the_courses(place):
    assert doctor._environment().ok  # there is no .venv: conda, or an instructor's own
    (place / ".venv").mkdir()
    item = doctor._environment()
    assert not item.ok and str(place / ".venv") in item.detail and "Change Kernel" in item.fix


def test_the_courses_own_environment_behind_a_link(place, monkeypatch):
    (place / ".venv").mkdir()
    (place / "link").symlink_to(place / ".venv")
    monkeypatch.setattr(sys, "prefix", str(place / "link"))
    assert doctor._environment().ok


def test_versions_are_compared_with_the_lock():
    lock = '# a comment\nnumpy==0.0.1\nno-such-package==1.0\nappnope==0.1; sys_platform == "none"\n'
    locked = doctor.locked_versions(lock)
    assert locked == {"numpy": "0.0.1", "no-such-package": "1.0"}
    wrong = doctor.differences(locked)
    assert wrong[0].endswith("instead of 0.0.1") and wrong[1] == "no-such-package is missing"


def test_a_local_build_of_a_locked_version_is_the_locked_version(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert doctor.differences({"torch": "2.13.0"}) == []


def test_a_pythonpath_is_named_as_the_likely_cause(place, monkeypatch):
    monkeypatch.setattr(doctor, "LOCK", place / "requirements.lock")
    doctor.LOCK.write_text("numpy==0.0.1\n")
    monkeypatch.setenv("PYTHONPATH", "/opt/ros")
    assert "unset it" in doctor._packages().fix
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    assert doctor._packages().fix == "rm -r .venv && make lab"
    monkeypatch.setenv("CONDA_PREFIX", "/opt/conda")
    assert "conda env update" in doctor._packages().fix


def test_a_four_bit_layer_works_here(capfd):
    item = doctor._bitsandbytes()
    assert item.ok, item
    # A student's cell that shows the report must not look like one that went wrong.
    assert capfd.readouterr().err == ""


def test_a_disk_without_room(place, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(1, 1, 10**9))
    item = doctor._disk()
    assert not item.ok and "1.0 GB free" in item.detail and "LORALAB_CACHE" in item.fix


def test_too_little_memory(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory",
                        lambda: SimpleNamespace(total=8 * 2**30, available=2**30))
    item = doctor._memory()
    assert not item.ok and "1.0 of 8.0 GiB" in item.detail and "close" in item.fix


def test_folders_that_cannot_be_written(place):
    assert doctor._work_folder().ok and doctor._cache_folder().ok
    (place / "cache").rmdir()
    (place / "cache").write_text("a file in its place")
    item = doctor._cache_folder()
    assert not item.ok and "LORALAB_CACHE" in item.fix


def test_the_report_prints_every_item_and_an_end(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "ITEMS", {"a": lambda: Item("a", True, "fine"),
                                          "b": lambda: Item("b", False, "bad", "mend it")})
    doctor.print_report()
    assert capsys.readouterr().out.splitlines() == [
        "[OK]   a: fine", "[FAIL] b: bad → mend it", "1 of 2 needs mending: see above."]


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_the_command_exits_by_the_report(monkeypatch, ok, code):
    monkeypatch.setattr(doctor, "ITEMS", {"a": lambda: Item("a", ok, "[x]", "" if ok else "fix")})
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == code
    assert f"[{'OK' if ok else 'FAIL'}]" in done.output and "a: [x]" in done.output


# Hardware -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_cuda_computes_in_bf16_only_where_the_gpu_does(monkeypatch, native, dtype):
    def supported(including_emulation=True):
        return native or including_emulation  # as a T4 answers

    gpu = SimpleNamespace(name="Test GPU", total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    assert hardware.detect() == hardware.Hardware("cuda", "Test GPU", dtype, 16 * 2**30)
    assert hardware.describe() == (
        "Hardware: CUDA (Test GPU), 16.0 GiB memory, computes in "
        + ("bfloat16" if native else "float16"))


def test_a_cpu_computes_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = hardware.detect()
    assert (found.device, found.compute_dtype) == ("cpu", torch.float32)
    assert found.name and found.memory_bytes > 2**28
    assert "\n" not in hardware.describe() and "GiB" in hardware.describe()


@pytest.mark.parametrize(("given", "visible"), [(None, "0"), ("2,3", "2"), ("1", "1"), ("", "")])
def test_one_gpu_is_visible(monkeypatch, given, visible):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    hardware._leave_one_gpu_visible()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
