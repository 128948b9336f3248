"""Measures training in plain torch on the samples of a run: mpirun -np RANKS python -m tests.bench.floor_training
CONFIG RUN FIRST [section.key=value ...]

Started by tests/bench/step.py --floor. RUN is the folder of a run with metrics.dump = "all". Each rank trains on as
many and as long samples as its engine had in each iteration from FIRST on, without sharing prompts, with a Qwen2 of the
run's shape that consists of torch's own functions: packed sequences, padded only for attention, chunks of
train.micro_batch_tokens, and logits of response tokens only. Nothing of this project and no megatron-core is in it.
Rank 0 prints a JSON object with the seconds of each iteration: `reference` (a forward pass), `update` (forward,
backward, all-reduce, clipping and Adam) and `sync` (a copy of all weights).
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from r1zero.config import Config, UserError
from r1zero.distributed import device, world
from r1zero.model import build, overrides
from tests.bench.floor import WARM_UP, opened

Sample = tuple[int, int]
"""Number of tokens of a prompt and of its response."""
Chunk = tuple[Tensor, list[Sample]]
"""The tokens of some samples, end to end."""


class Attention(nn.Module):
    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        width, heads = shape["hidden_size"], shape["num_attention_heads"]
        self.heads, self.groups = heads, shape["num_key_value_heads"]
        self.size = shape.get("head_dim") or width // heads
        self.qkv = nn.Linear(width, (heads + 2 * self.groups) * self.size)
        self.out = nn.Linear(heads * self.size, width, bias=False)

    def forward(self, x_TD: Tensor, is_token_BL: Tensor, cos_T1d: Tensor, sin_T1d: Tensor) -> Tensor:
        heads_THd = self.qkv(x_TD).unflatten(-1, (-1, self.size))
        q, k, v = heads_THd.split([self.heads, self.groups, self.groups], 1)
        q, k = (y * cos_T1d + torch.cat(y.chunk(2, -1)[::-1], -1) * sin_T1d for y in (q, k))
        padded = (y.new_zeros(*is_token_BL.shape, *y.shape[1:]).index_put((is_token_BL,), y) for y in (q, k, v))
        q, k, v = (y.transpose(1, 2) for y in padded)
        y_BHLd = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y_BHLd.transpose(1, 2)[is_token_BL].flatten(1))


class Layer(nn.Module):
    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        width, inner = shape["hidden_size"], shape["intermediate_size"]
        self.norms = nn.ModuleList(nn.RMSNorm(width, shape["rms_norm_eps"]) for _ in range(2))
        self.attention = Attention(shape)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x_TD: Tensor, *where: Tensor) -> Tensor:
        x_TD = x_TD + self.attention(self.norms[0](x_TD), *where)
        gate, up = self.gate_up(self.norms[1](x_TD)).chunk(2, -1)
        return x_TD + self.down(F.silu(gate) * up)


class Bare(nn.Module):
    """A Qwen2. Forward returns the logprobs of the response tokens of packed samples."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        self.embedding = nn.Embedding(shape["vocab_size"], shape["hidden_size"])
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape["num_hidden_layers"]))
        self.norm = nn.RMSNorm(shape["hidden_size"], shape["rms_norm_eps"])
        self.head = nn.Linear(shape["hidden_size"], shape["vocab_size"], bias=False)
        size = self.layers[0].attention.size
        self.frequencies = shape.get("rope_theta", 1e4) ** (-torch.arange(0, size, 2) / size)

    def forward(self, tokens_T: Tensor, samples: list[Sample]) -> Tensor:
        lengths = torch.tensor([prompt + response for prompt, response in samples])
        is_token_BL = torch.arange(int(lengths.max())) < lengths[:, None]
        positions_T = torch.arange(is_token_BL.shape[1]).expand_as(is_token_BL)[is_token_BL]
        angles_T1d = (positions_T[:, None] * self.frequencies).repeat(1, 2)[:, None]
        x_TD = self.embedding(tokens_T)
        sign = torch.ones(angles_T1d.shape[-1]).index_fill(0, torch.arange(len(self.frequencies)), -1.0)
        cos, sin = (y.to(x_TD.dtype) for y in (angles_T1d.cos(), angles_T1d.sin() * sign))
        for layer in self.layers:
            x_TD = layer(x_TD, is_token_BL, cos, sin)
        prompts = torch.tensor([prompt for prompt, _ in samples]).repeat_interleave(lengths)
        is_response_T = positions_T >= prompts
        rows = is_response_T.nonzero()[:, 0]
        logits_RV = self.head(self.norm(x_TD[rows - 1])).float()
        return -F.cross_entropy(logits_RV, tokens_T[rows], reduction="none")


def main() -> None:
    cfg, launch, requests = opened(__doc__)
    shape = overrides.stated_config(cfg.model)
    if shape["model_type"] != "qwen2":
        raise UserError(
            f'the plain model is a Qwen2, but the model_type of {cfg.model.path} is "{shape["model_type"]}"'
        )
    samples = [[(len(tokens), length) for tokens, length in of_iteration] for of_iteration in requests]
    world.join(launch, device.start(cfg.run.device, launch.local_rank), cfg.run.timeout_s)
    seconds = measure(cfg, shape, samples)
    if launch.rank == 0:
        sys.stdout.write(json.dumps(seconds) + "\n")
    world.leave(launch)


def measure(cfg: Config, shape: dict[str, Any], samples: list[list[Sample]]) -> dict[str, list[float]]:
    """Returns the seconds of each iteration after the warm-up, until the last rank was ready."""
    torch.manual_seed(0)
    model = Bare(shape).to(build.DTYPES[cfg.run.dtype])
    optimizer = torch.optim.AdamW(model.parameters(), cfg.optimizer.lr, fused=True)
    iterations = [
        [(torch.randint(2, shape["vocab_size"], (sum(map(sum, c)),)), c) for c in cut(cfg, of_iteration)]
        for of_iteration in samples
    ]
    kept = [torch.empty_like(p) for p in model.parameters()]

    def reference(chunks: list[Chunk]) -> None:
        with torch.no_grad():
            for tokens_T, chunk in chunks:
                model(tokens_T, chunk)

    def update(chunks: list[Chunk]) -> None:
        optimizer.zero_grad()
        for tokens_T, chunk in chunks:
            model(tokens_T, chunk).mean().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))
        nn.utils.clip_grad_norm_(model.parameters(), cfg.optimizer.clip_grad, foreach=True)
        optimizer.step()

    def sync(chunks: list[Chunk]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(kept, list(model.parameters()))

    return {work.__name__: timed(work, iterations) for work in (reference, update, sync)}


def cut(cfg: Config, samples: list[Sample]) -> Iterator[list[Sample]]:
    """Yields the samples in chunks of at most train.micro_batch_tokens, those of similar length together."""
    chunk: list[Sample] = []
    for sample in sorted(samples, key=sum):
        if chunk and sum(map(sum, chunk)) + sum(sample) > cfg.train.micro_batch_tokens:
            yield chunk
            chunk = []
        chunk.append(sample)
    yield chunk


def timed(work: Callable[[list[Chunk]], None], iterations: list[list[Chunk]]) -> list[float]:
    found = []
    for chunks in iterations:
        dist.barrier()
        began = time.perf_counter()
        work(chunks)
        last = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
        dist.all_reduce(last, dist.ReduceOp.MAX)
        found.append(float(last))
    return found[WARM_UP:]


if __name__ == "__main__":
    main()
