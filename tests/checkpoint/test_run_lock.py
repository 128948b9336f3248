"""Two jobs cannot write one run's folder, and a job that has died does not keep it.

python -m pytest tests/test_run_lock.py
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from r1zero.checkpoint import run_lock
from r1zero.checkpoint.run_lock import RunLock
from r1zero.config import UserError

HOLDER = (
    "import sys, time; from pathlib import Path; from r1zero.checkpoint.run_lock import RunLock; lock = "
    "RunLock(Path(sys.argv[1])); "
    "print('held', flush=True); time.sleep(600)"
)


def test_a_second_job_is_refused_by_name_and_the_folder_is_free_once_the_first_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"another job writes this run's folder \\(process {holder.pid} on "):
            RunLock(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    lock = RunLock(tmp_path)
    assert json.loads((tmp_path / run_lock.NAME).read_text())["process"] == os.getpid()
    lock.release()
    RunLock(tmp_path).release()


def test_a_holder_on_another_host_counts_while_it_renews_its_lock(tmp_path):
    """As on a file system that does not share the kernel's locks between hosts."""
    path = tmp_path / run_lock.NAME
    path.write_text(json.dumps({"host": "elsewhere", "process": 7, "since": "today"}))
    with pytest.raises(UserError, match="process 7 on elsewhere, since today"):
        RunLock(tmp_path)
    os.utime(path, (time.time() - run_lock.STALE_S - 1,) * 2)
    RunLock(tmp_path).release()


def test_a_lock_is_renewed(tmp_path, monkeypatch):
    lock, path = RunLock(tmp_path), tmp_path / run_lock.NAME
    os.utime(path, (0, 0))
    lock.renew()
    assert path.stat().st_mtime == 0, "not at every call"
    monkeypatch.setattr(run_lock, "RENEW_S", 0.0)
    lock.renew()
    assert path.stat().st_mtime > time.time() - 60
    lock.release()


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_file_that_a_full_disk_left_unreadable_is_nobodys(tmp_path, content):
    (tmp_path / run_lock.NAME).write_text(content)
    RunLock(tmp_path).release()


def test_a_run_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "runs").write_text("a file where a folder must be")
    with pytest.raises(UserError, match=r"runs/x: cannot be written \(Not a directory\); change run.dir"):
        RunLock(tmp_path / "runs" / "x")
