"""TRL's GRPOTrainer on the same model, prompts, lengths and type, one JSON line per step. Run by tests/bench/trl.py.

    python -P trl_peer.py TASK.json      its keys are read below

It runs in a virtual environment of its own, so it imports nothing of this project. The phases are separated by wrapping
two methods of the trainer. The reward asks for the last box, as the miniature's own rule does for numbers.
"""

import json
import os
import re
import sys
import time

with open(sys.argv[1], encoding="utf-8") as file:
    TASK = json.load(file)
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS=str(TASK["threads"]))

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

BOX = re.compile(r"\\boxed\{([^{}]*)\}")


def reward(completions: list[str], label: list[str], **_) -> list[float]:
    found = [BOX.findall(text) for text in completions]
    return [float(bool(boxes) and boxes[-1].strip() == right) for boxes, right in zip(found, label, strict=True)]


class Clock(TrainerCallback):
    """Prints seconds, processor seconds and tokens of each step."""

    def __init__(self) -> None:
        self.rollout = self.logprobs = 0.0
        self.prompt_tokens = self.response_tokens = 0

    def on_step_begin(self, *args, **kwargs) -> None:
        self.__init__()
        self.began, self.processor = time.perf_counter(), time.process_time()

    def on_step_end(self, *args, **kwargs) -> None:
        seconds = time.perf_counter() - self.began
        line = {
            "seconds": seconds,
            "processor_s": time.process_time() - self.processor,
            "rollout": self.rollout,
            "logprobs": self.logprobs,
            "update": seconds - self.rollout - self.logprobs,
            "tokens": self.prompt_tokens + self.response_tokens,
            "response_tokens": self.response_tokens,
        }
        sys.stdout.write("STEP " + json.dumps(line) + "\n")
        sys.stdout.flush()


def main() -> None:
    torch.set_num_threads(TASK["threads"])
    tokenizer = AutoTokenizer.from_pretrained(TASK["model"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    samples = TASK["prompts_per_step"] * TASK["group_size"]
    batch = min(TASK["batch"], samples)
    clock = Clock()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(TASK["model"], dtype=getattr(torch, TASK["dtype"])),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=TASK["folder"],
            max_steps=TASK["steps"],
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=samples // batch,
            num_generations=TASK["group_size"],
            max_completion_length=TASK["response_tokens"],
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            learning_rate=TASK["lr"],
            lr_scheduler_type="constant",
            beta=TASK["kl_coef"],
            adam_beta2=0.95,
            max_grad_norm=1.0,
            loss_type="grpo",
            seed=0,
            use_cpu=True,
            bf16=False,
            fp16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(TASK["prompts"]),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    generate, score = trainer._generate, trainer._generate_and_score_completions

    def timed_generate(*args, **kwargs):
        began = time.perf_counter()
        out = generate(*args, **kwargs)
        clock.rollout += time.perf_counter() - began
        return out

    def timed_score(*args, **kwargs):
        began, before = time.perf_counter(), clock.rollout
        out = score(*args, **kwargs)
        clock.logprobs += time.perf_counter() - began - (clock.rollout - before)
        clock.prompt_tokens += int(out["prompt_mask"].sum())
        clock.response_tokens += int(out["completion_mask"].sum())
        return out

    trainer._generate, trainer._generate_and_score_completions = timed_generate, timed_score
    trainer.train()


main()
