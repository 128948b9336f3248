"""The header of a recipe names the commands that make its data, and these commands make what it reads.

python -m pytest tests/config/test_shipped_recipes.py
"""

import re
from pathlib import Path

import pytest

from r1zero import config
from r1zero.config import Config
from r1zero.data.prepare import DataConfig
from r1zero.reward.rules import RULES

RECIPES = [
    Path("configs/a3.toml"),
    Path("configs/h100_qwen2.5_7b.toml"),
    *sorted(Path("configs/recipes").glob("*.toml")),
]


def header(file: Path) -> str:
    """The comment at the beginning of a file, with continued lines joined."""
    lines = file.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    return re.sub(r"\\\n\s*", "", "\n".join(line.removeprefix("#").strip() for line in lines))


def prepared(file: Path) -> dict[str, DataConfig]:
    """Output folder -> data config, of each preprocess.py command in the header."""
    commands = re.findall(r"^python preprocess\.py (configs/data/\S+)((?: +[\w.]+=\S+)*)", header(file), re.MULTILINE)
    made = [config.load(path, overrides.split(), DataConfig) for path, overrides in commands]
    return {one.output: one for one in made}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_commands_of_a_recipe_make_the_data_that_it_reads(file: Path) -> None:
    cfg, made = config.load(str(file), [], Config), prepared(file)
    read = [cfg.data.path, *(one.path for one in cfg.evaluation.sets.values())]
    assert sorted(made) == sorted(read)
    templates = {made[path].template for path in read}
    assert {one.tokenizer for one in made.values()} == {cfg.model.path} and len(templates) == 1
    assert max(one.max_prompt_tokens for one in made.values()) <= cfg.rollout.max_prompt_tokens
    assert f"--local-dir {cfg.model.path}" in header(file)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_says_whether_it_was_run_and_what_to_expect(file: Path) -> None:
    cfg, said = config.load(str(file), [], Config), header(file)
    assert "Run or not:" in said and "What to expect" in said and str(file) in said
    assert cfg.run.name == file.stem and set(cfg.reward.rules) <= set(RULES)
