"""Evaluates prompt sets on the engines of a run. The prompts of a set are distributed over all engines.

An evaluation does not affect training: the engine's prefix cache is cleared afterwards, and the random generators of
the process are left unchanged. Each response has its own seed, which depends on the run's seed, the set, the prompt and
the number of the response. The evaluations of one run therefore differ only because of the weights.
"""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from r1zero.batch import Prompt, Response
from r1zero.config import Config, EvaluationSet
from r1zero.data import pass_rates
from r1zero.data.prompts import PromptSet
from r1zero.distributed.layout import Layout
from r1zero.evaluation import figures
from r1zero.evaluation.figures import NO_VOTE, Outcomes
from r1zero.grading import Grader
from r1zero.observability import tables
from r1zero.observability.progress import Progress
from r1zero.reward import Score
from r1zero.reward.boxes import last_box
from r1zero.reward.rules import has_base_format
from r1zero.rollout.engine import Engine, Sampling, request_seed

COLUMNS = ("correct", "equal", "in_format", "truncated", "unscored", "length", "reward", "group")
"""The values that are recorded for each response. group: equal answers to a prompt have the same number, counted from
1; a response without an answer has 0."""


class Evaluator:
    """Evaluates the weights that the engines currently have."""

    def __init__(
        self, cfg: Config, layout: Layout, rank: int, grader: Grader, sets: dict[str, PromptSet], progress: Progress
    ):
        self.cfg, self.layout, self.rank, self.grader, self.sets = cfg, layout, rank, grader, sets
        self.progress = progress

    def due(self, iteration: int) -> bool:
        """Returns whether to evaluate after this iteration. Iteration 0 stands for the model before the first one."""
        every = self.cfg.evaluation.every_iterations
        at = iteration in (0, self.cfg.run.iterations) or bool(every and iteration % every == 0)
        return at and bool(self.sets)

    def run(self, engine: Engine | None, device: torch.device, folder: Path) -> dict[str, float]:
        """Evaluate all sets, and write their responses and pass rates to `folder`.

        Collective over all ranks of the world. engine: this rank's engine, or None on a rank that does not generate.
        device: where the collectives of the world need their tensors. Returns the metrics `eval/<set>/<name>`, which
        are equal on all ranks.
        """
        values: dict[str, float] = {}
        for name, prompts in self.sets.items():
            outcomes = self._answer(name, prompts, engine, device, folder)
            values |= {f"eval/{name}/{metric}": value for metric, value in figures.compute(outcomes).items()}
            if self.rank == 0:
                _write_pass_rates(folder / f"{name}.pass_rates.jsonl", prompts, outcomes)
        return values

    def _answer(
        self, name: str, prompts: PromptSet, engine: Engine | None, device: torch.device, folder: Path
    ) -> Outcomes:
        """Generate and grade the responses to one set. Returns the outcomes of the whole set on every rank.

        Engine e of E answers the prompts e, e + E, e + 2E and so on.
        """
        one = self.cfg.evaluation.sets[name]
        # float32, the type on a GPU or NPU, represents flags exactly, as well as token counts and groups below 2^24.
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        table = torch.zeros(len(prompts), one.samples, len(COLUMNS), dtype=dtype)
        share: list[Prompt] = []
        responses: list[Response] = []
        texts: list[str] = []
        if engine is not None:
            first = self.layout.engine_of(self.rank)
            share = [prompts[row] for row in range(first, len(prompts), self.layout.engines)]
            responses = self._responses(name, one, share, engine)
            texts = [self.grader.text(response) for response in responses]
            self._fill(table, share, responses, texts)
        for stale in folder.glob(f"{name}.engine_*.parquet") if self.rank == 0 else ():
            stale.unlink()  # from an earlier evaluation, which may have had more engines
        table = table.to(device)
        dist.all_reduce(table)  # also a barrier: no rank writes its file before rank 0 has removed the stale ones
        table = table.cpu()
        if engine is not None and self.layout.rollout.coordinate(self.rank, "tp") == 0:
            self._write_responses(folder / f"{name}.engine_{first}.parquet", share, responses, texts, table)
        return _outcomes(table.numpy())

    def _responses(self, name: str, one: EvaluationSet, share: list[Prompt], engine: Engine) -> list[Response]:
        """Returns the responses of this rank's engine. This rank's share of them is submitted for grading meanwhile.

        share: the prompts that this engine answers.
        """
        seed = self.cfg.run.seed
        sampling = Sampling(
            one.samples,
            one.temperature,
            one.max_response_tokens or self.cfg.rollout.max_response_tokens,
            lambda p, sample: request_seed(seed, "evaluation", name, share[p].row, sample),
        )

        self.progress.begin(f"evaluation of {name}", len(share) * one.samples)

        def grade(responses: list[Response]) -> None:
            self.progress.see(responses)
            self.grader.start(share, responses, one.samples)

        return engine.evaluate(share, sampling, grade)

    def _fill(self, table: torch.Tensor, share: list[Prompt], responses: list[Response], texts: list[str]) -> None:
        """Write this rank's part of the table: the grades of its share of the responses, once they are graded, and the
        groups of equal answers for its share of the prompts.

        table: (prompts of the set, samples, columns), 0 where another rank writes.
        """
        scorer = self.grader.require_scorer()
        scores = scorer.collect()
        boxes: dict[int, list[str]] = {}
        voters: dict[int, list[int]] = {}
        for response, text in zip(responses, texts, strict=True):
            p, row = response.prompt, share[response.prompt].row
            if score := scores.get(p * table.shape[1] + response.sample):
                table[row, response.sample, :7] = torch.tensor(self._columns(score, response, text))
            if p % self.grader.peers == self.grader.turn and (box := last_box(text)):
                boxes.setdefault(row, []).append(box.content)
                voters.setdefault(row, []).append(response.sample)
        for row, groups in scorer.group(boxes).items():
            for sample, group in zip(voters[row], groups, strict=True):
                table[row, sample, 7] = group + 1

    def _columns(self, score: Score, response: Response, text: str) -> list[float]:
        """Returns the values of one response for all COLUMNS but the last."""
        rule, scored = self.cfg.evaluation.correct, score.outcome == "scored"
        correct = scored and (bool(score.equal) if rule == "answer" else score.scores[rule] > 0)
        return [
            float(correct),
            float(scored and bool(score.equal)),
            float(has_base_format(text)),
            float(response.finish_reason == "length"),
            float(not scored),
            float(len(response.token_ids)),
            score.reward if scored else 0.0,
        ]

    def _write_responses(
        self, path: Path, share: list[Prompt], responses: list[Response], texts: list[str], table: torch.Tensor
    ) -> None:
        rows = []
        for response, text in zip(responses, texts, strict=True):
            prompt = share[response.prompt]
            grades = dict(zip(COLUMNS, table[prompt.row, response.sample].tolist(), strict=True))
            rows.append(
                {
                    "row": prompt.row,
                    "sample": response.sample,
                    "prompt": prompt.text,
                    "response": text,
                    "label": prompt.label,
                    **{key: bool(grades[key]) for key in COLUMNS[:5]},
                    "length": len(response.token_ids),
                    "reward": None if grades["unscored"] else grades["reward"],
                }
            )
        tables.write(path, rows)


def _outcomes(table: NDArray[np.floating]) -> Outcomes:
    correct, equal, in_format, truncated, unscored = (table[..., i] > 0 for i in range(5))
    lengths, groups = (table[..., i].round().astype(np.int64) for i in (5, 7))
    return Outcomes(correct, equal, in_format, truncated, unscored, lengths, groups + NO_VOTE)


def _write_pass_rates(path: Path, prompts: PromptSet, outcomes: Outcomes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = outcomes.correct.shape[1]
    correct = outcomes.correct.sum(axis=1).tolist()
    pass_rates.write(path, ((prompts.source(i), prompts[i], samples, correct[i]) for i in range(len(prompts))))
