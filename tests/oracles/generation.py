"""Comparisons with transformers in fp32."""

import numpy as np
import torch

from r1zero.rollout import draw
from r1zero.rollout.engine import request_seed
from tests.oracles import tiny_models as models
from tests.rollout import cases
from tests.rollout.cases import Answer, Case

TOLERANCE = 1e-5


def worst(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """Largest difference of any token's logprob."""
    return max(abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))


def expected(case: Case, answer: Answer, path: str | None = None) -> list[list[float]]:
    """Logprobs of each prompt with its response under the checkpoint loaded last, or under another."""
    sequences = cases.texts(case, answer)
    return models.logprobs(path or case.loads[-1], sequences, case.temperature, list(case.forbidden_ids))


def gap(case: Case, answer: Answer, path: str | None = None) -> float:
    """Between transformers and both the scores and the logprobs that came with the samples."""
    theirs = expected(case, answer, path)
    sampled = [of_all[-len(r.token_ids) :] for r, of_all in zip(answer.responses, theirs, strict=True)]
    return max(worst(answer.scores, theirs), worst([r.logprobs for r in answer.responses], sampled))


def redrawn(case: Case, answer: Answer) -> list[list[int]]:
    """The tokens that the draw gives from transformers' distributions after the prompt and the sampled tokens."""
    cfg, first = case.cfg, case.prompts[0].row
    rows = models.distributions(case.loads[-1], cases.texts(case, answer), case.temperature, list(case.forbidden_ids))
    found = []
    for response, of_all in zip(answer.responses, rows, strict=True):
        count = len(response.token_ids)
        seed = request_seed(cfg.run.seed, case.iteration, first + response.prompt, response.sample)
        numbers = draw.uniforms(
            np.full(count, seed, np.uint64), np.arange(count, dtype=np.uint64), draw.levels(of_all.shape[1])
        )
        found.append(draw.choose(of_all[-count:], torch.from_numpy(numbers)).tolist())
    return found
