"""What --doctor finds on this machine.

python -m pytest tests/preflight/test_doctor.py
"""

import subprocess
import sys
from pathlib import Path

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


def test_doctor_needs_no_config_and_a_run_does():
    command = [sys.executable, str(ROOT / "train.py")]
    shown = subprocess.run([*command, "--doctor"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0 and "ok      torch: found " in shown.stdout and not shown.stderr
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "a config is required" in refused.stderr
