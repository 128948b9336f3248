"""What --doctor finds on this machine.

python -m pytest tests/preflight/test_doctor.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from r1zero.preflight import doctor

ROOT = Path(__file__).parents[2]


def test_this_machine_is_fit_and_a_version_that_differs_is_named(monkeypatch, tmp_path):
    rows = {row.what: row for row in doctor.examine()}
    assert {"python", "torch", "mpirun", "CPU", "shared memory", "open files"} <= set(rows)
    assert all(row.grade != "failed" for row in rows.values())
    assert rows["torch"].found == rows["torch"].expected
    pins = tmp_path / "requirements.txt"
    pins.write_text("# a comment\nTorch==1.0\n")
    monkeypatch.setattr(doctor, "REQUIREMENTS", pins)
    changed = next(row for row in doctor.examine() if row.what == "torch")
    assert changed.grade == "warning" and changed.expected == "1.0" and "launch/install.sh" in changed.cure


@pytest.mark.parametrize(
    "version, grade",
    [("3.10.14", "failed"), ("3.11.0", "ok"), ("3.13.9", "ok"), ("3.14.0rc1", "failed"), ("3.9.2", "failed")],
)
def test_the_version_of_python_is_compared(monkeypatch, version, grade):
    monkeypatch.setattr(doctor, "versions", lambda: {"python": version})
    row = next(row for row in doctor.examine() if row.what == "python")
    assert (row.grade, row.found, row.expected) == (grade, version, "3.11 to 3.13")
    assert ("launch/install.sh" in row.cure) == (grade == "failed")


def test_the_supported_versions_of_python_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (major, first), (_, last) = doctor.PYTHON
    assert project["requires-python"] == f">={major}.{first},<{major}.{last + 1}"


@pytest.mark.parametrize(
    "said, grade",
    [
        ("mpirun (Open MPI) 5.0.11", "ok"),
        ("mpirun (Open MPI) 4.1.6", "warning"),
        ("mpirun (Open MPI) 50.1", "warning"),
        ("HYDRA build details:", "warning"),
        ("", "warning"),
    ],
)
def test_the_kind_and_version_of_mpirun_are_compared(monkeypatch, tmp_path, said, grade):
    launcher = tmp_path / "mpirun"
    launcher.write_text(f"#!/bin/sh\necho '{said}'\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    row = next(row for row in doctor.examine() if row.what == "mpirun")
    assert row.grade == grade and row.expected == "Open MPI 5"
    assert row.found == f"{said or 'an unknown version'} at {launcher}"
    assert ("use torchrun" in row.cure) == (grade == "warning")


def test_doctor_needs_no_config_and_a_run_does():
    command = [sys.executable, str(ROOT / "train.py")]
    shown = subprocess.run([*command, "--doctor"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0 and "ok      torch: found " in shown.stdout and not shown.stderr
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "a config is required" in refused.stderr
