"""The programs accept the commands of the documents: their files exist, and so do their options and the keys they set.

Commands that name a placeholder, such as CONFIG, are checked up to it.

python -m pytest tests/test_commands.py
"""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from r1zero import config
from r1zero.config import Config, limits
from r1zero.data.prepare import DataConfig

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "launch/README.md", "launch/TROUBLESHOOTING.md"]
"""The translations have the same commands, which tests/test_documents.py compares."""
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:python|mpirun|torchrun|sbatch|bash|launch/\w+\.sh|r1zero-\w+) .+")
LAUNCHER = re.compile(r"(?:mpirun -np \d+|torchrun --nproc-per-node \d+) (?:python )?")
SCRIPT = re.compile(r"(?:bash |sbatch (?:--\S+ )*)?launch/(\w+\.sh)\s*(.*)")
PROGRAM = re.compile(r"(?:python )?(?:-m (r1zero[\w.]*|tests\.bench\.\w+)|(train|convert|preprocess)\.py)\s*(.*)")
OPTION = re.compile(r"--[a-z][\w-]*")
NO_PROGRAM = re.compile(r"(?:python3?[\d.]* )?-m (?:venv|pytest)|python -c|mpirun \.\.\.|torchrun \.\.\.")


def commands(document: str) -> list[str]:
    """The commands of a document, each on one line, without environment variables and comments."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = "".join(f"{line[4:]}\n" for line in re.findall(r"^ {4}.*", text, re.MULTILINE)).replace("\\\n", " ")
    inline = [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", re.sub(r"^ {4}.*$", "", text, flags=re.M))]
    lines = [re.split(r"\s+# ", line)[0].strip() for line in [*blocks.splitlines(), *inline]]
    found = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line) for line in lines if COMMAND.fullmatch(line)]
    return sorted({line for line in found if not NO_PROGRAM.match(line)})


EVERY = [(document, command) for document in DOCUMENTS for command in commands(document)]


def source(name: str) -> str:
    """The text of a program: a module, or a file in the root."""
    if (ROOT / f"{name}.py").exists():
        return (ROOT / f"{name}.py").read_text(encoding="utf-8")
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{name}.__main__")
    assert spec is not None and spec.origin, name
    return Path(spec.origin).read_text(encoding="utf-8")


def test_the_documents_have_commands_of_every_program() -> None:
    text = "\n".join(command for _, command in EVERY)
    assert len(EVERY) > 60
    for name in ("train.py", "convert.py", "preprocess.py", "r1zero.report", "r1zero.samples", "r1zero.reward"):
        assert name in text


@pytest.mark.parametrize("document, command", EVERY, ids=[f"{d}: {c[:60]}" for d, c in EVERY])
def test_a_command_is_accepted(document: str, command: str) -> None:
    command = LAUNCHER.sub("", command)
    if script := SCRIPT.match(command):
        text, arguments, name = (ROOT / "launch" / script[1]).read_text(encoding="utf-8"), script[2], "train"
    else:
        program = PROGRAM.match(command)
        assert program, command
        name, arguments = program[1] or program[2], program[3]
        text = source(name)
    words = shlex.split(arguments)
    options = {word for word in words if OPTION.fullmatch(word)}
    own = {option for option in options if option in text}
    assert options <= own or (script and all(option in source("train") for option in options - own)), options
    files = [word for word in words if word.endswith(".toml") and word.startswith("configs/")]
    if name in ("train", "convert", "preprocess") and files:
        cls = DataConfig if name == "preprocess" else Config
        overrides = [word for word in words if re.match(r"[a-z_.0-9]+=", word)]
        loaded = config.load(str(ROOT / files[0]), overrides, cls)
        if isinstance(loaded, Config):
            limits.check(loaded)
