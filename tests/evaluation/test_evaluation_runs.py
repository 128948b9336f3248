"""Evaluation in real runs of a tiny model: it changes nothing of training, and its figures are those of the responses.

python -m pytest tests/evaluation/test_evaluation_runs.py
"""

import json
import re
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1zero import config
from r1zero.data import pass_rates
from r1zero.data.prompts import PromptSet
from r1zero.reward.boxes import last_box
from r1zero.reward.equality.answers import equal
from tests import jobs
from tests.checkpoint.runs import entries, figures

SETS = [
    "evaluation.sets.greedy.path={base}/data",
    "evaluation.sets.sampled.path={base}/data",
    "evaluation.sets.sampled.samples=3",
    "evaluation.sets.sampled.temperature=0.8",
    "evaluation.sets.sampled.max_response_tokens=32",  # longer than in training
]


def run(ranks, base, tmp_path, name, *overrides, size=2):
    sets = [text.format(base=base) for text in SETS]
    arguments = [str(base / "job.toml"), *sets, f"run.dir={tmp_path}", f"run.name={name}", *overrides]
    log = tmp_path / f"{name}.log"
    log.unlink(missing_ok=True)
    return ranks.job(size, arguments, log)["statuses"], log.read_text()


@pytest.fixture(scope="module")
def evaluated(ranks, base, tmp_path_factory):
    """A run of three iterations, evaluated before the first, after the second and after the last."""
    folder = tmp_path_factory.mktemp("evaluated")
    best = ["evaluation.best=eval/sampled/format", "checkpoint.keep=1"]
    statuses, log = run(ranks, base, folder, "with", "evaluation.every_iterations=2", *best)
    assert statuses == [0, 0], log[-3000:]
    return folder / "with"


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


def responses(folder, name):
    parts = sorted(folder.glob(f"{name}.engine_*.parquet"))
    return sorted(
        (row for part in parts for row in pq.read_table(part).to_pylist()), key=lambda r: (r["row"], r["sample"])
    )


@pytest.mark.slow
def test_a_run_with_evaluation_is_bit_equal_to_the_run_without(ranks, base, evaluated, tmp_path):
    arguments = [str(base / "job.toml"), f"run.dir={tmp_path}", "run.name=without"]
    assert ranks.job(2, arguments, tmp_path / "log")["statuses"] == [0, 0]
    plain = figures(tmp_path / "without")
    trained = [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in figures(evaluated)]
    assert trained[0] == {"iteration": 0} and trained[1:] == plain
    assert (evaluated / "samples.jsonl").read_bytes() == (tmp_path / "without" / "samples.jsonl").read_bytes()
    theirs, ours = (entries(f / "checkpoints" / "step_3") for f in (tmp_path / "without", evaluated))
    assert theirs == ours and len(ours) > 60


@pytest.mark.slow
def test_figures_are_those_of_the_responses_that_were_written(base, evaluated):
    assert [line["iteration"] for line in lines(evaluated) if "eval/greedy/pass@1" in line] == [0, 2, 3]
    prompts = PromptSet.open(str(base / "data"))
    for name, n in (("greedy", 1), ("sampled", 3)):
        rows = responses(evaluated / "eval" / "step_2", name)
        assert [(r["row"], r["sample"]) for r in rows] == [(i, s) for i in range(len(prompts)) for s in range(n)]
        for r in rows:
            box = last_box(r["response"])
            assert r["label"] == prompts[r["row"]].label
            assert r["correct"] == (box is not None and equal(box.content, r["label"]))
        found = lines(evaluated)[2]
        assert found[f"eval/{name}/pass@1"] == pytest.approx(sum(r["correct"] for r in rows) / len(rows))
        assert found[f"eval/{name}/response_length/mean"] == pytest.approx(sum(r["length"] for r in rows) / len(rows))
        assert found[f"eval/{name}/truncated"] == pytest.approx(sum(r["truncated"] for r in rows) / len(rows))
        rates = pass_rates.read(str(evaluated / "eval" / "step_2" / f"{name}.pass_rates.jsonl"))
        assert rates == {
            (prompts[i].text, prompts[i].label): sum(r["correct"] for r in rows if r["row"] == i) / n
            for i in range(len(prompts))
        }
    assert max(r["length"] for r in responses(evaluated / "eval" / "step_2", "sampled")) == 32


@pytest.mark.slow
def test_a_greedy_response_is_the_one_that_transformers_gives(base, evaluated):
    tokenizer = AutoTokenizer.from_pretrained(base / "base")
    model = AutoModelForCausalLM.from_pretrained(base / "base", dtype=torch.float32, attn_implementation="eager")
    known = set(tokenizer.get_vocab().values())
    forbidden = [i for i in range(model.config.vocab_size) if i not in known]
    prompts = PromptSet.open(str(base / "data"))
    for row in responses(evaluated / "eval" / "step_0", "greedy")[:8]:
        ids = list(prompts[row["row"]].token_ids)
        sampled = []
        while len(sampled) < row["length"]:
            with torch.no_grad():
                logits = model(torch.tensor([ids + sampled])).logits[0, -1]
            sampled.append(int(logits.index_fill(0, torch.tensor(forbidden), -torch.inf).argmax()))
        kept = [i for i in sampled if i not in tokenizer.all_special_ids]
        assert tokenizer.decode(kept, skip_special_tokens=False) == row["response"]


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_marked(evaluated):
    values = {
        line["iteration"]: line["eval/sampled/format"] for line in lines(evaluated) if "eval/sampled/format" in line
    }
    best = max((2, 3), key=lambda i: (values[i], -i))
    folder = evaluated / "checkpoints"
    assert (folder / "best").read_text() == f"step_{best}\n" and (folder / "latest").read_text() == "step_3\n"
    assert {p.name for p in folder.glob("step_*")} == {f"step_{best}", "step_3"}


@pytest.mark.slow
def test_eval_of_the_newest_checkpoint_on_one_rank_gives_the_figures_of_the_run_on_two(ranks, base, evaluated):
    other = ["data.shuffle=false", "checkpoint.resume=never"]  # only resuming would refuse these
    statuses, log = run(ranks, base, evaluated.parent, "with", "--eval", *other, size=1)
    assert statuses == [0], log[-3000:]
    last = lines(evaluated)[-1]
    assert last["iteration"] == 3, "an evaluation alone adds no line to the records of the run"
    for name in ("greedy", "sampled"):
        line = next(text for text in log.splitlines() if text.startswith(f"eval {name}: "))
        assert f"pass@1 {last[f'eval/{name}/pass@1']:.3f}" in line
        assert f"length {last[f'eval/{name}/response_length/mean']:.1f} " in line
    theirs = responses(evaluated / "eval" / "step_3", "sampled")
    assert len(list((evaluated / "eval" / "step_3").glob("sampled.engine_*"))) == 1, "parts of another layout are gone"
    assert len(theirs) == 3 * 48


@pytest.mark.slow
def test_eval_takes_a_hugging_face_folder_or_one_checkpoint(ranks, base, evaluated, tmp_path):
    for name, folder, expected in (
        ("hf", base / "base", evaluated / "eval" / "step_0"),
        ("step", evaluated / "checkpoints" / "step_3", evaluated / "eval" / "step_3"),
    ):
        statuses, log = run(ranks, base, tmp_path, name, "--eval", str(folder), size=1)
        assert statuses == [0], log[-3000:]
        (made,) = (tmp_path / name / "eval").iterdir()
        assert responses(made, "sampled") == responses(expected, "sampled")
        assert not (tmp_path / name / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["evaluation.sets.sampled.temperature=0.0"], "samples = 3 with temperature = 0 would give 3 equal responses"),
        (["evaluation.sets.sampled.samples=0"], "evaluation.sets.sampled.samples = 0; it must be at least 1"),
        (["evaluation.sets.greedy.pth=x"], "unknown key evaluation.sets.greedy.pth; the nearest known one is"),
        (["evaluation.sets.new.samples=1"], "evaluation.sets.new.path is missing and has no default"),
        (["evaluation.correct=acc"], "evaluation.correct = 'acc'; it must be 'answer' or one of reward.rules"),
        (
            ["evaluation.sets.greedy.path=nowhere"],
            "evaluation.sets.greedy.path must be a folder that preprocess.py wrote",
        ),
        (["evaluation.best=eval/greedy/pass@2"], "evaluation.best = 'eval/greedy/pass@2' is not a metric of this run"),
        (["evaluation.best=eval/greedy/truncated"], "for which higher is better; it must be one of eval/greedy/pass@1"),
        (["--eval"], "checkpoints holds no checkpoint; name a folder"),
        (["--eval", "/nowhere"], "--eval /nowhere: is neither a folder in Hugging Face's format"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(ranks, base, tmp_path, overrides, sentence):
    statuses, log = run(ranks, base, tmp_path, "bad", *overrides, size=1)
    said = [line for line in log.splitlines() if line.strip()]
    assert statuses == [2] and sentence in said[-1] and len(said) == 1, log
    assert not list(tmp_path.glob("bad/metrics.jsonl")) and not list(tmp_path.glob("bad/eval"))


def progress_of_an_evaluation(rank, cfg):
    """Returns the line that the terminal would show after each step that ends responses, and after the evaluation."""

    def use(trainer):
        lines, see = [], trainer.progress.see

        def see_and_read(responses):
            see(responses)
            lines.append(trainer.progress.line())

        trainer.progress.see = see_and_read
        trainer._show_progress()
        trainer.sync_and_check(0)
        trainer._evaluate("here")
        trainer.progress.close()
        return [*lines, trainer.progress.line()]

    return jobs.with_trainer(rank, cfg, use)


def test_the_terminal_shows_how_far_the_evaluation_of_a_set_is(ranks, base, tmp_path):
    sets = {
        name: config.EvaluationSet(path=str(base / "data"), samples=samples, temperature=float(samples > 1))
        for name, samples in (("greedy", 1), ("sampled", 3))
    }
    cfg = jobs.job_config(base, config.Layout(), run={"dir": str(tmp_path)})
    cfg = replace(cfg, evaluation=config.Evaluation(sets=sets))
    prompts = len(PromptSet.open(str(base / "data")))
    first, other = ranks.run(progress_of_an_evaluation, cfg, size=2)
    share = -(-prompts // 2)
    pattern = re.compile(r"evaluation of (\w+), \d+ s, (\d+) of (\d+) responses of this engine finished( \(.*)?")
    found = [pattern.fullmatch(line).groups() for line in first[:-1]]
    for name, total in (("greedy", share), ("sampled", 3 * share)):
        counts = [int(count) for of, count, every, _ in found if (of, int(every)) == (name, total)]
        assert counts == sorted(set(counts)) and len(counts) > 1 and counts[-1] == total
    assert [of for of, *_ in found] == sorted(of for of, *_ in found) and {of for of, *_ in found} == set(sets)
    assert first[-1] == "" and len(other) > 1
