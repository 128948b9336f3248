"""A terminal that cannot show a line, or that is gone, does not stop a run.

python -m pytest tests/observability/test_console.py
"""

import os
import subprocess
import sys

import pytest

LINES = """
import logging, sys
logging.basicConfig(filename=sys.argv[1], level=logging.INFO)
from r1zero.observability.console import Terminal
terminal = Terminal()
for i in range(200):
    terminal.print(f"line {i} \\u2501 {'x' * 1000}")
sys.stderr.write("done")
"""


def run(log, environment=(), **streams):
    return subprocess.run(
        [sys.executable, "-c", LINES, str(log)],
        stderr=subprocess.PIPE,
        env={**os.environ, **dict(environment)},
        check=False,
        **streams,
    )


def test_what_the_terminals_encoding_lacks_is_replaced(tmp_path):
    done = run(tmp_path / "log", {"PYTHONIOENCODING": "latin-1"}.items(), stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stderr == b"done" and done.stdout.startswith(b"line 0 ? xxx")


@pytest.mark.parametrize("how", ["full", "reader gone", "closed"])
def test_a_standard_output_that_fails_is_said_once_and_the_lines_go_to_the_log(tmp_path, how):
    if how == "full":
        with open("/dev/full", "wb") as stream:
            done = run(tmp_path / "log", stdout=stream)
    elif how == "reader gone":
        reader, writer = os.pipe()
        os.close(reader)
        done = run(tmp_path / "log", stdout=writer)
        os.close(writer)
    else:
        done = subprocess.run(
            ["bash", "-c", f'exec "{sys.executable}" -c "$0" "{tmp_path / "log"}" >&-', LINES],
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 0 and done.stderr == b"done", done.stderr
    log = (tmp_path / "log").read_text()
    assert log.count("standard output cannot be written any more") == 1 and "line 199 " in log
