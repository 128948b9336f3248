"""Several inputs as one data set: their own columns, their weights, and the mean reward of each.

python -m pytest tests/data/test_mixture.py
"""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import preprocess
from r1zero import config
from r1zero.config import UserError
from r1zero.data import labels, mixture, prepare, store
from r1zero.data.data_config import DataConfig
from r1zero.data.prompts import PromptSet
from tests import jobs

SAVED = "tests/inputs/prompts/saved"
CONFIG = """
template = "qwen_r1"
max_prompt_tokens = 4000
[map_keys]
prompt = "problem"
response = "answer"
[sources.sums]
input = "{folder}/sums.jsonl"
[sources.words]
input = "{folder}/words.jsonl"
[sources.words.map_keys]
prompt = "question"
response = "result"
solution = "worked"
[sources.chats]
input = "{saved}"
handler = "messages"
[sources.chats.map_keys]
prompt = "prompt"
response = "reward_model.ground_truth"
"""


@pytest.fixture
def made(tokenizer_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Preprocesses 20 sums, 10 word problems and 5 chats; gives the exit status, the words and the number of each."""
    sums = [{"problem": f"{i}+{i}", "answer": 2 * i} for i in range(20)]
    words = [{"question": f"What is twice {i}?", "result": str(2 * i), "worked": "w", "level": "1"} for i in range(10)]
    for name, rows in (("sums", sums), ("words", words)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mix.toml").write_text(CONFIG.format(folder=tmp_path, saved=Path(SAVED).absolute()))

    def call(*overrides: str) -> tuple[int, str, dict[str, int]]:
        fixed = [f"tokenizer={tokenizer_path}", f"output={tmp_path}/out"]
        status = preprocess.main([str(tmp_path / "mix.toml"), *fixed, *overrides])
        prompts = PromptSet.open(str(tmp_path / "out")) if status == 0 else []
        counts = Counter(prompts[i].dataset for i in range(len(prompts)))
        return status, capsys.readouterr().err, dict(counts)

    return call


def weights(**of: float) -> list[str]:
    return [f"sources.{name}.weight={weight}" for name, weight in of.items()]


def test_without_weights_every_row_of_each_source_is_kept_in_order(made, tmp_path):
    status, words, counts = made('dataset_additional_keys=["level"]')
    assert status == 0 and counts == {"sums": 20, "words": 10, "chats": 5} and "kept of words" in words
    prompts = PromptSet.open(str(tmp_path / "out"))
    assert prompts.datasets == ("chats", "sums", "words") and prompts.meta["datasets"] == counts
    assert [prompts[i].dataset for i in (0, 19, 20, 30)] == ["sums", "sums", "words", "chats"]
    assert [prompts[i].label for i in (1, 21, 31)] == ["2", "2", "2"] and "What is 1+1?" in prompts[31].text
    assert prompts[20].additional == {"level": "1"} and prompts[30].additional == {"level": "0"}  # sums have no level
    assert prompts[0].additional == {"level": None}
    assert [Path(one["path"]).name for one in prompts.meta["sources"]][:2] == ["sums.jsonl", "words.jsonl"]


@pytest.mark.parametrize(
    "given_weights, overrides, expected",
    [
        ({"sums": 1, "words": 1, "chats": 1}, [], {"sums": 5, "words": 5, "chats": 5}),
        ({"sums": 2, "words": 1, "chats": 0.5}, [], {"sums": 20, "words": 10, "chats": 5}),
        ({"sums": 4, "words": 1, "chats": 1}, [], {"sums": 20, "words": 5, "chats": 5}),
        ({"sums": 1, "words": 1, "chats": 1}, ["selection.sample=7"], {"sums": 3, "words": 2, "chats": 2}),
        ({"sums": 0.8, "words": 0.1, "chats": 0.1}, ["selection.sample=20"], {"sums": 16, "words": 2, "chats": 2}),
    ],
)
def test_weights_are_the_shares_of_the_sources(made, given_weights, overrides, expected):
    status, _, counts = made(*weights(**given_weights), *overrides)
    assert status == 0 and counts == expected
    assert made(*weights(**given_weights), *overrides)[2] == counts


def test_which_prompts_are_kept_depends_on_the_seed(made, tmp_path):
    def kept(seed: int) -> list[str]:
        assert made(*weights(sums=1, words=1, chats=1), f"selection.seed={seed}")[0] == 0
        prompts = PromptSet.open(str(tmp_path / "out"))
        return [prompts[i].text for i in range(len(prompts))]

    assert kept(0) == kept(0) != kept(1)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 50), st.floats(0.1, 10)), min_size=2),
    st.integers(0, 60),
)
def test_quotas_are_within_one_of_the_exact_share_and_use_up_a_source(sources, total):
    available = Counter({name: count for name, (count, _) in sources.items()})
    shares = {name: weight / sum(w for _, w in sources.values()) for name, (_, weight) in sources.items()}
    try:
        found = mixture.quotas(available, {name: weight for name, (_, weight) in sources.items()}, total)
    except UserError:
        return
    assert sum(found.values()) == total or not total
    reached = total or min(available[name] / shares[name] for name in shares)
    assert all(abs(found[name] - reached * shares[name]) <= 1 + 1e-9 for name in shares)
    assert total or any(found[name] == available[name] for name in found)


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["input=x.jsonl"], "input = 'x.jsonl' is set beside [sources]; remove one of them"),
        (weights(sums=1), "sources.words has no weight, but others have; give all of them a weight, or none"),
        (weights(sums=0, words=1, chats=1), "sources.sums.weight = 0.0; it must be more than 0"),
        (['sources."a b".input=x'], "a b"),
        (["sources.a.input=none.jsonl", "sources.a.handler=gsm8k"], "input = 'none.jsonl': there is no such file"),
        (["sources.words.map_keys.prompt=problem"], "sources.words.input"),
        (["sources.words.handler=word"], "handler = 'word': is not known; the known ones are"),
        (["sources.words.weigth=1"], "unknown key sources.words.weigth; the nearest known one is sources.words.weight"),
        ([*weights(sums=1, words=1, chats=1), "selection.sample=30"], "has only 5; lower selection.sample, or this"),
        ([*weights(sums=9, words=1, chats=1), "selection.sample=2"], "is so small that no prompt of this source"),
        ([*weights(sums=1, words=1, chats=1), "selection.limit=3"], "selection.limit = 3 would keep the first rows"),
        (['dataset_additional_keys=["levl"]'], "sums.jsonl or {folder}/words.jsonl or {saved} has a column 'levl'"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(made, tmp_path, overrides, sentence):
    status, words, _ = made(*overrides)
    assert (
        status == 2
        and sentence.format(folder=tmp_path, saved=Path(SAVED).absolute()) in words
        and words.splitlines()[-1].startswith("preprocess.py: ")
    )
    assert words.count("preprocess.py: ") == 1 and not (tmp_path / "out").exists()


def test_columns_and_input_must_be_named_somewhere(tokenizer_path, tmp_path, capsys):
    (tmp_path / "none.toml").write_text('template = "qwen_r1"\n')
    fixed = [str(tmp_path / "none.toml"), f"tokenizer={tokenizer_path}", f"output={tmp_path}/out"]
    assert preprocess.main(fixed) == 2 and "input is missing; name the data to read" in capsys.readouterr().err
    assert preprocess.main([*fixed, f"sources.a.input={SAVED}"]) == 2
    assert "map_keys is missing and has no default" in capsys.readouterr().err


def test_labels_are_those_of_all_sources(made, tmp_path, tokenizer_path):
    overrides = [f"tokenizer={tokenizer_path}", f"output={tmp_path}/out"]
    found = list(labels.rows(config.load(str(tmp_path / "mix.toml"), overrides, DataConfig)))
    assert len(found) == 35 and [row.solution for row in (found[0], found[20])] == [None, "w"]


def steps(rank, cfg):
    return jobs.with_trainer(rank, cfg, lambda trainer: [trainer.sync_and_check(0), trainer.step(1), trainer.step(2)])


def test_a_run_has_the_mean_reward_of_each_source(ranks, tmp_path):
    base = jobs.make_base(tmp_path, "qwen2")
    rows = (base / "problems.jsonl").read_text().splitlines(keepends=True)
    random.Random(0).shuffle(rows)
    for name, part in (("a", rows[:40]), ("b", rows[40:])):
        (base / f"{name}.jsonl").write_text("".join(part))
    overrides = [f"sources.{name}.input={base}/{name}.jsonl" for name in "ab"]
    overrides += ["input=", f"tokenizer={base}/base", f"output={base}/data"]
    prepare.prepare(config.load("configs/data/quickstart.toml", overrides, DataConfig), lambda *_: None)
    cfg = jobs.job_config(base, config.Layout(), grpo={"prompts_per_iteration": 24})
    (_, *mine), (_, *theirs) = ranks.run(steps, cfg, size=2)
    assert (base / "data" / store.META).is_file()
    for values, others in zip(mine, theirs, strict=True):
        found = {name: value for name, value in values.items() if name.startswith("reward/source/")}
        assert found == {name: others[name] for name in found} and set(found) == {"reward/source/a", "reward/source/b"}
        low, high = sorted(found.values())
        assert low <= values["grpo/rewards/mean"] <= high and low < high
