"""The example of README.md does what it says, up to the training: python -m pytest tests/data/test_readme_example.py"""

import re
import shlex
from pathlib import Path

import pytest

import preprocess
from r1zero import config
from r1zero.config import limits
from r1zero.data.prompts import PromptSet
from r1zero.reward import Scorer

ROOT = Path(__file__).parents[2]
SECTION = "### Example: verl's Parquet, your template and your rule"


@pytest.fixture
def example(tokenizer_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Makes the files of the example in an empty folder, which becomes the working directory. Returns the commands."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition(SECTION)[2].partition("\n## ")[0]
    blocks = [
        "".join(line[4:] + "\n" for line in block.splitlines())
        for block in re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)
    ]
    named = re.findall(r"^`(my_\w+\.\w+)`:$", text, re.MULTILINE)
    make, *files, commands = blocks
    assert named == ["my_data.toml", "my_templates.json", "my_rules.py"] and len(files) == len(named)
    monkeypatch.chdir(tmp_path)
    for name, content in zip(named, files, strict=True):
        Path(name).write_text(content.replace("runs/quickstart/base", tokenizer_path), encoding="utf-8")
    exec(make, {})
    return [shlex.split(line) for line in commands.replace("\\\n", " ").splitlines()]


def test_the_example_of_the_readme_prepares_two_disjoint_sets_and_its_rule_grades_them(example, capsys):
    train, held_out, job, *_ = example
    for command in (train, held_out):
        assert command[:2] == ["python", "preprocess.py"] and preprocess.main(command[2:]) == 0
    assert "Question: 0+0=?" in capsys.readouterr().err
    sets = [PromptSet.open(folder) for folder in ("data/sums", "data/sums_held_out")]
    texts = [{one[i].text for i in range(len(one))} for one in sets]
    assert len(texts[0]) + len(texts[1]) == 100 and texts[1] and not texts[0] & texts[1]

    assert job[:5] == ["mpirun", "-np", "2", "python", "train.py"] and job[5] == "configs/cpu.toml"
    cfg = config.load(str(ROOT / job[5]), job[6:], config.Config)
    limits.check(cfg)
    assert cfg.data.path == "data/sums" and cfg.evaluation.sets["held_out"].path == "data/sums_held_out"
    prompt = sets[0][0]
    with Scorer(cfg.reward.rules, workers=1, deadline_s=20.0) as scorer:
        for key, response in enumerate((rf"<think>a</think><answer>\boxed{{{prompt.label}}}</answer>", "x" * 60)):
            scorer.submit(key, response, prompt.label, prompt.text, prompt.additional)
        assert [score.reward for score in scorer.collect().values()] == [1.1, 0.0]
