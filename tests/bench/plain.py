"""A plain version of the step with transformers alone, for comparison: one process, all cores, padding, no parallelism.

It samples with a key-value cache, grades, and computes advantages, the reference's logprobs, the loss, its gradient and
an AdamW update. Sequences are sorted by length into batches of 64, with eager attention (the fastest kind for short
sequences on a CPU). It has none of the trainer's guarantees, and does not pay for them: samples that do not depend on
batching, grading that can be killed, the engine's logprobs, exact resuming.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1zero import config
from r1zero.batch import Prompt
from r1zero.config import Config
from r1zero.data.prompts import PromptOrder, PromptSet
from r1zero.grpo import advantages
from r1zero.reward.rules import base_acc

DEVICES = 64


class Loop:
    def __init__(self, cfg: Config):
        self.cfg = cfg
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(cfg.run.seed)
        self.encode = AutoTokenizer.from_pretrained(cfg.model.path)
        self.end = self.encode.eos_token_id
        self.policy, self.reference = (
            AutoModelForCausalLM.from_pretrained(cfg.model.path, dtype=torch.float32, attn_implementation="eager")
            for _ in range(2)
        )
        self.adam = torch.optim.AdamW(
            self.policy.parameters(),
            cfg.optimizer.lr,
            betas=(cfg.optimizer.adam_beta1, cfg.optimizer.adam_beta2),
            weight_decay=0.0,
            fused=True,
        )
        self.prompts = PromptSet.open(cfg.data.path)
        self.order = PromptOrder(len(self.prompts), cfg.run.seed, cfg.data.shuffle)

    def steps(self) -> Iterator[dict[str, float]]:
        """Yields the seconds, response tokens and mean reward of each step."""
        while True:
            began = time.perf_counter()
            chosen = [self.prompts[row] for row in self.order.take(self.cfg.grpo.prompts_per_iteration)]
            asked = [p for p in chosen for _ in range(self.cfg.grpo.group_size)]
            prompt_BP, mask_BP = self._padded(asked)
            answer_BN = self._sample(prompt_BP, mask_BP)
            lengths_B = (answer_BN == self.end).int().argmax(1) + 1
            lengths_B[(answer_BN != self.end).all(1)] = answer_BN.shape[1]
            texts = self.encode.batch_decode(
                [row[:n] for row, n in zip(answer_BN.tolist(), lengths_B.tolist(), strict=True)],
                skip_special_tokens=True,
            )
            rewards_B = torch.tensor(
                [base_acc(t, lambda c, p=p: c.strip() == p.label) for t, p in zip(texts, asked, strict=True)]
            )
            rewards_PG = rewards_B.view(-1, self.cfg.grpo.group_size)
            self._update(
                prompt_BP,
                mask_BP,
                answer_BN,
                lengths_B,
                advantages(rewards_PG, torch.ones_like(rewards_PG, dtype=torch.bool)).flatten(),
            )
            yield {
                "seconds": time.perf_counter() - began,
                "tokens": float(lengths_B.sum()),
                "reward": float(rewards_B.mean()),
            }

    def _padded(self, asked: list[Prompt]) -> tuple[Tensor, Tensor]:
        longest = max(len(p.token_ids) for p in asked)
        ids = torch.tensor([[self.end] * (longest - len(p.token_ids)) + list(p.token_ids) for p in asked])
        mask = torch.tensor([[0] * (longest - len(p.token_ids)) + [1] * len(p.token_ids) for p in asked])
        return ids, mask

    @torch.no_grad()
    def _sample(self, prompt_BP: Tensor, mask: Tensor) -> Tensor:
        columns, past, done = [], None, torch.zeros(len(prompt_BP), dtype=torch.bool)
        now, positions = prompt_BP, (mask.cumsum(1) - 1).clamp(min=0)
        for _ in range(self.cfg.rollout.max_response_tokens):
            out = self.policy(
                input_ids=now,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
            )
            past = out.past_key_values
            token = torch.where(
                done, self.end, torch.multinomial((self._masked(out.logits[:, -1])).softmax(-1), 1)[:, 0]
            )
            columns.append(token)
            done |= token == self.end
            if done.all():
                break
            now, positions = token[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], 1)
        return torch.stack(columns, 1)

    def _masked(self, logits: Tensor) -> Tensor:
        logits[..., len(self.encode) :] = -torch.inf
        return logits

    def _update(
        self, prompt_BP: Tensor, mask_BP: Tensor, answer_BN: Tensor, lengths_B: Tensor, advantages_B: Tensor
    ) -> None:
        cfg, width = self.cfg.grpo, prompt_BP.shape[1]
        ids = torch.cat([prompt_BP, answer_BN], 1)
        real = torch.arange(answer_BN.shape[1]) < lengths_B[:, None]
        attention = torch.cat([mask_BP, real.long()], 1)
        for i in lengths_B.argsort().split(DEVICES):
            upto = width + int(lengths_B[i].max())
            inputs = {
                "input_ids": ids[i, :upto],
                "attention_mask": attention[i, :upto],
                "position_ids": (attention[i, :upto].cumsum(1) - 1).clamp(min=0),
            }
            mask = real[i, : upto - width]
            with torch.no_grad():
                ref = self._logprobs(self.reference, inputs, width)
            new = self._logprobs(self.policy, inputs, width)
            ratio = (new - new.detach()).exp()
            k3 = (ref - new).exp() - (ref - new) - 1
            loss = ((-ratio * advantages_B[i, None] + cfg.kl_coef * k3) * mask).sum() / real.sum()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.cfg.optimizer.clip_grad)
        self.adam.step()
        self.adam.zero_grad()

    def _logprobs(self, model: Any, inputs: dict[str, Tensor], width: int) -> Tensor:
        logits = self._masked(model(**inputs, use_cache=False).logits[:, width - 1 : -1].float())
        return logits.log_softmax(-1).gather(-1, inputs["input_ids"][:, width:, None])[..., 0]


def main() -> None:
    """python -m tests.bench.plain ITERATIONS CONFIG [section.key=value ...]: prints one JSON line per step."""
    loop = Loop(config.load(sys.argv[2], sys.argv[3:], Config))
    for line in islice(loop.steps(), int(sys.argv[1])):
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
