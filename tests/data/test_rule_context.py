"""pytest tests/data/test_rule_context.py

A reward rule of the user's own gets, in a run, the prompt's text and the columns that dataset_additional_keys kept."""

from pathlib import Path

import preprocess
from r1zero.batch import Response
from r1zero.config import Config, Reward
from r1zero.data import tokenizer as tokens
from r1zero.data.prompts import PromptSet
from r1zero.distributed import layout
from r1zero.grading import Grader
from r1zero.reward import Scorer

RULE = """
def rule(response, label, *, prompt, additional, equal):
    assert response == "so \\\\boxed{x}" and equal(label, label)
    return float(additional["level"])

def length(response, label, prompt):
    return float(len(prompt))
"""


def test_the_engines_prompts_reach_the_rule(tmp_path: Path, tokenizer_path: str) -> None:
    overrides = [
        "input=tests/inputs/prompts/math.jsonl",
        f"tokenizer={tokenizer_path}",
        f"output={tmp_path / 'out'}",
        "max_prompt_tokens=4000",
    ]
    assert preprocess.main(["configs/data/math500.toml", *overrides]) == 0
    prompts = PromptSet.open(str(tmp_path / "out"))
    tokenizer = tokens.load(tokenizer_path)
    rules = {f"{tmp_path / 'own.py'}:{name}": 1.0 for name in ("rule", "length")}
    (tmp_path / "own.py").write_text(RULE)
    cfg = Config(reward=Reward(rules=rules))
    with Scorer(rules, workers=1, deadline_s=20.0) as scorer:
        grader = Grader(cfg, layout.carve(cfg.layout, 1), 0, scorer, tokenizer, [])
        given = [prompts[i] for i in range(3)]
        ids = tokenizer.encode("so \\boxed{x}", add_special_tokens=False)
        grader.submit(given, [Response(number, 0, ids, [0.0] * len(ids), "stop") for number in range(3)])
        scores = list(scorer.collect().values())
    assert [score.scores for score in scores] == [
        dict(zip(rules, (float(prompts.additional(i)["level"]), float(len(prompts[i].text))), strict=True))
        for i in range(3)
    ]
