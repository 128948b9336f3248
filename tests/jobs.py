"""The real job in the ranks of a test: tiny random models, real data, the real trainer, rules that reward at random
weights too."""

import json
import random
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
import torch.distributed as dist

from r1zero import config
from r1zero.config import Config
from r1zero.distributed import device, launcher, layout

RULE = f"{Path(__file__).resolve().with_name('rules.py')}:even_share"
RARE_RULE = f"{Path(__file__).resolve().with_name('rules.py')}:rarely"


def make_base(folder: Path, family: str, seed: int = 0) -> Path:
    """A random model of the family with the miniature's tokenizer, in fp32, and its preprocessed problems: folder/base,
    folder/data."""
    from transformers import AutoModelForCausalLM

    from r1zero.data import prepare
    from r1zero.miniature import problems, tokenizer

    encode = tokenizer.build()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(model_config(family, encode.eos_token_id), dtype=torch.float32)
    for name, p in model.named_parameters():
        if "norm" not in name:  # flat logits would hide errors
            torch.nn.init.normal_(p, std=0.08)
    model.save_pretrained(folder / "base")
    encode.save_pretrained(folder / "base")
    chosen = problems.draw(problems.split()["train"], 48, random.Random(seed))
    problems.write(folder / "problems.jsonl", chosen)
    overrides = [f"input={folder}/problems.jsonl", f"tokenizer={folder}/base", f"output={folder}/data"]
    prepare.prepare(config.load("configs/data/quickstart.toml", overrides, prepare.DataConfig), lambda *_: None)
    return folder


ROUTER, BIAS = (f"model.layers.1.mlp.gate.{name}" for name in ("weight", "e_score_correction_bias"))


def make_ties(base: Path, folder: Path) -> Path:
    """A copy of a DeepSeek-V3 in whose layer 1 the experts 2 and 3 have the same row of the router, so that all tokens
    for which they compete are ties. Their bias makes these fewer."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    file = folder / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors[ROUTER][3] = tensors[ROUTER][2]
    tensors[BIAS][2:4] -= 0.1
    save_file(tensors, file, {"format": "pt"})
    return folder


def prefer_expert_2(bias: torch.Tensor) -> torch.Tensor:
    """The correction bias with which an engine chooses expert 2 wherever it and expert 3 are equal."""
    return bias.index_fill(0, torch.tensor(3), float(bias[3]) - 2e-7)


def model_config(family: str, end: int):
    """The miniature's config of the family, or for other families one as small, with the same vocabulary."""
    from transformers import DeepseekV2Config, DeepseekV3Config, LlamaConfig, MistralConfig, Qwen3MoeConfig

    from r1zero.miniature import base
    from tests.oracles.tiny_models import DENSE, GROUPED, LITE, LLAMA, MOONLIGHT, ROUTED

    configs = {name: recipe.config for name, recipe in base.recipes(end).items()}
    same = dict(vocab_size=configs["qwen2"].vocab_size, bos_token_id=None, eos_token_id=end, pad_token_id=end)
    configs |= {
        "llama": LlamaConfig(**{**LLAMA, **same}),
        "mistral": MistralConfig(**{**DENSE, "head_dim": 64, "sliding_window": None, **same}),
        "qwen3_moe": Qwen3MoeConfig(**{**ROUTED, **same}),
        "deepseek_v2": DeepseekV2Config(**{**GROUPED, **same}),
        "deepseek_v2_lite": DeepseekV2Config(**{**LITE, **same}),
        "moonlight": DeepseekV3Config(**{**MOONLIGHT, **same}),
    }
    return configs[family]


def job_config(folder: Path, grids: config.Layout, **sections: dict) -> Config:
    """A short job over `grids` in fp32; sections override fields: grpo=dict(kl_coef=0.0)."""
    fields = {
        "run": dict(name="job", dir=str(folder / "runs"), iterations=3, dtype="float32", seed=7),
        "model": dict(path=str(folder / "base")),
        "data": dict(path=str(folder / "data")),
        "rollout": dict(
            max_prompt_tokens=32,
            max_response_tokens=24,
            max_num_seqs=64,
            max_num_batched_tokens=4096,
            kv_cache_gib=0.0625,
        ),
        "grpo": dict(prompts_per_iteration=8, group_size=4, kl_coef=0.05),
        "reward": dict(rules={RULE: 1.0}),
        "optimizer": dict(lr=3e-3),
        "train": dict(micro_batch_tokens=512),
    }
    kinds = {
        "run": config.Run,
        "model": config.Model,
        "data": config.Data,
        "rollout": config.Rollout,
        "grpo": config.Grpo,
        "reward": config.Reward,
        "optimizer": config.Optimizer,
        "train": config.Train,
        "checkpoint": config.Checkpoint,
    }
    return Config(
        layout=grids,
        **{name: kind(**{**fields.get(name, {}), **sections.get(name, {})}) for name, kind in kinds.items()},
    )


def with_trainer(rank: int, cfg: Config, use):
    """Build the real Trainer on this rank of the test's world, call use(trainer), and take everything down again."""
    from megatron.core import parallel_state

    from r1zero.reward import Scorer
    from r1zero.trainer import Trainer

    device.start(cfg.run.device, rank)
    size = dist.get_world_size()
    grids = layout.carve(cfg.layout, size)
    layout.check_batch(cfg, grids)
    scorer = Scorer(cfg.reward.rules, 1, cfg.reward.deadline_s) if rank in grids.rollout else None
    with ExitStack() as stack:
        stack.callback(parallel_state.destroy_model_parallel)
        if scorer:
            stack.callback(scorer.close)
        trainer = Trainer(cfg, grids, launcher.Launch(rank, size, rank, size, "none"), scorer, torch.device("cpu"))
        stack.callback(trainer.roles.close)
        found = use(trainer)
        dist.barrier()
        return found


def metrics_of(cfg: Config) -> list[dict]:
    return [json.loads(line) for line in (Path(cfg.run.dir) / cfg.run.name / "metrics.jsonl").read_bytes().splitlines()]


def alive(*words: str) -> list[str]:
    """Processes that have all the words in their command line, whose parts end with a zero."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            text = entry.read_text()
            found += [text] * all(word in text for word in words)
    return found
