"""Data as people have it: verl's Parquet files, the tokenizer's own chat template, labels with several answers.

python -m pytest tests/data/test_chat.py
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

import preprocess
from r1zero.data.prompts import PromptSet
from r1zero.reward import Scorer
from r1zero.reward.rules import ALTERNATIVES
from tests.data.conftest import build_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% if tone is defined %}({{ tone }}){% endif %}"
)
CONFIG = """
input = "{folder}/rows.parquet"
tokenizer = "{folder}/tokenizer"
output = "{folder}/out"
template = "chat"
handler = "messages"
[map_keys]
prompt = "prompt"
response = "reward_model.ground_truth"
"""
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is 1+1? \n"}]


@pytest.fixture
def made(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Preprocesses rows in verl's format; gives the exit status, the words, the prompts and the tokenizer."""

    def call(rows: list[dict], *overrides: str, template: str | None = CHATML):
        folder = tmp_path / "tokenizer"
        build_tokenizer(folder)
        if template is not None:
            file = folder / "tokenizer_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
        (tmp_path / "data.toml").write_text(CONFIG.format(folder=tmp_path))
        status = preprocess.main([str(tmp_path / "data.toml"), *overrides])
        prompts = PromptSet.open(str(tmp_path / "out")) if status == 0 else None
        return status, " ".join(capsys.readouterr().err.split()), prompts, AutoTokenizer.from_pretrained(folder)

    return call


def verl(messages: list[dict], truth: object) -> dict:
    return {"data_source": "x", "prompt": messages, "reward_model": {"style": "rule", "ground_truth": truth}}


@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": True, "tone": "calm"}])
def test_the_prompt_is_what_transformers_makes_of_the_chat(made, arguments):
    overrides = ["enable_thinking=true", 'template_arguments.tone="calm"'] if arguments else []
    status, words, prompts, tokenizer = made([verl(MESSAGES, "2")], *overrides)
    assert status == 0, words
    expected = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, tokenize=False, **{"enable_thinking": False} | arguments
    )
    assert prompts[0].text == expected and prompts[0].label == "2"
    assert list(prompts[0].token_ids) == tokenizer.encode(expected, add_special_tokens=False)
    prompts.check(prompts.meta["tokenizer"]["digest"])


def test_a_control_token_that_the_data_spells_stays_ordinary_text(made):
    end = [{"role": "user", "content": "1<|im_end|>1"}]
    for flag, count in (("false", 1), ("true", 2)):
        _, _, prompts, tokenizer = made([verl(end, "2")], f"allow_special_tokens={flag}")
        assert list(prompts[0].token_ids).count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == count
        assert prompts[0].text.count("<|im_end|>") == 2


def test_any_answer_of_a_list_is_right(made):
    _, _, prompts, _ = made([verl(MESSAGES, ["1/2", "x+1"])])
    assert prompts[0].label == f"1/2{ALTERNATIVES}x+1"
    with Scorer({"base_acc": 1.0, "acc": 1.0}, 1, 5.0) as scorer:
        for answer in ("0.5", "1+x", "2"):
            scorer.submit(answer, rf"<think>a</think><answer>\boxed{{{answer}}}</answer>", prompts[0].label)
        assert {key: score.scores["base_acc"] for key, score in scorer.collect().items()} == {
            "0.5": 1.0,
            "1+x": 1.0,
            "2": 0.0,
        }


def test_a_number_or_a_list_of_numbers_is_a_label(made):
    assert made([verl(MESSAGES, 2)])[2][0].label == "2"
    assert made([verl(MESSAGES, [2.5, 3.0])])[2][0].label == f"2.5{ALTERNATIVES}3.0"
    assert made([verl(MESSAGES, ["7"])])[2][0].label == "7"


@pytest.mark.parametrize(
    "template, overrides, sentence",
    [
        (None, [], "has no chat template of its own; name an entry of"),
        (CHATML, ["template=qwen_r1", "template_arguments.a=1"], "apply only to the tokenizer's own chat template"),
        ("{{ raise_exception('no system here') }}", [], "the tokenizer's chat template rejects the messages"),
        (
            "{{ messages[-1]['content'] | upper }}",
            [],
            "changes the text of a message, so its place in the prompt is unknown",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_one_sentence_and_nothing_is_written(
    made, tmp_path, template, overrides, sentence
):
    status, words, _, _ = made([verl(MESSAGES, "2")], *overrides, template=template)
    assert status == 2 and sentence in words and not (tmp_path / "out").exists()
