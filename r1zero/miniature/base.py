"""The base model: configuration and schedule for each family, the training loop, and the saved files."""

import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, DeepseekV3Config, PreTrainedConfig, PreTrainedModel, Qwen2Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from r1zero.miniature import corpus, problems, tokenizer

NOT_SCORED = -100
Document = tuple[list[int], list[int]]
"""Token ids of the prompt, and of the answer with the end token."""


@dataclass(frozen=True)
class Recipe:
    """How the base model of a family is trained."""

    config: PreTrainedConfig
    steps: int
    documents: int = 64
    """Number of documents per step."""
    lr: float = 3e-3
    """Peak learning rate, after WARM_UP steps. From there it decreases linearly to LAST_LR of it."""


WARM_UP = 30
LAST_LR = 0.02
GRAD_CLIP = 1.0
BUCKET = 8
"""Number of batches whose documents are sorted by length together: little padding, and still mixed batches."""

COMMON: dict[str, Any] = {
    "vocab_size": tokenizer.VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    # The usual 0.02 is for widths of thousands; here it would cost the first few hundred steps.
    "initializer_range": 0.06,
    "dtype": "bfloat16",
}
ROUTING: dict[str, Any] = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
"""Fields without which vLLM does not use the correction bias. transformers 5 does not declare them."""
BIAS_RATE = 1e-3
"""Change per step of the router's correction bias (DeepSeek-V3, arXiv 2412.19437, sections 2.1.2 and 4.2)."""


def recipes(end: int) -> dict[str, Recipe]:
    """Returns one recipe per family. end: the id of the token that ends a document."""
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": end}
    return {
        "qwen2": Recipe(Qwen2Config(**COMMON, **ends, num_key_value_heads=2), steps=800),
        "deepseek_v3": Recipe(
            DeepseekV3Config(
                **COMMON,
                **ends,
                num_key_value_heads=4,
                # vLLM on a CPU has kernels only for kv_lora_rank + qk_rope_head_dim of 320, 512 and 576.
                kv_lora_rank=256,
                qk_rope_head_dim=64,
                qk_nope_head_dim=32,
                v_head_dim=32,
                q_lora_rank=96,
                first_k_dense_replace=1,
                n_routed_experts=8,
                n_shared_experts=1,
                moe_intermediate_size=96,
                # Hugging Face scores a group by its best 2 experts, megatron by its best topk / topk_group; here these
                # are equal.
                num_experts_per_tok=2,
                n_group=2,
                topk_group=1,
                norm_topk_prob=True,
                **ROUTING,
                num_mtp_layers=0,
            ),
            steps=4000,
        ),
    }


def documents(encode: tokenizer.Qwen2Tokenizer, pool: dict[int, list[str]], rng: random.Random) -> Iterator[Document]:
    """Yields documents without end, in batches of a thousand. Asserts that none is reserved for training or testing."""
    while True:
        drawn = corpus.documents(pool, 1000, rng)
        strangers = [expression for expression, _ in drawn if problems.part(expression) != "corpus"]
        assert not strangers, f"reserved for training or evaluation, but in the corpus: {strangers[:3]}"
        prompts = encode([problems.prompt(expression) for expression, _ in drawn]).input_ids
        answers = encode([text for _, text in drawn]).input_ids
        yield from ((asked, [*said, encode.eos_token_id]) for asked, said in zip(prompts, answers, strict=True))


def batches(read: Iterator[Document], size: int, pad: int, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields input ids and labels, both (size, longest). Labels are NOT_SCORED on the prompt and the padding."""
    while bucket := sorted(islice(read, size * BUCKET), key=lambda document: sum(map(len, document))):
        groups = [bucket[i : i + size] for i in range(0, len(bucket), size)]
        rng.shuffle(groups)
        for group in groups:
            longest = sum(map(len, group[-1]))
            ids = torch.full((len(group), longest), pad)
            labels = torch.full((len(group), longest), NOT_SCORED)
            for row, (asked, said) in enumerate(group):
                length = len(asked) + len(said)
                ids[row, :length] = torch.tensor(asked + said)
                labels[row, len(asked) : length] = torch.tensor(said)
            yield ids, labels


def learning_rate(step: int, steps: int) -> float:
    """Returns the share of the peak learning rate."""
    return min((step + 1) / WARM_UP, LAST_LR + (1 - LAST_LR) * (1 - step / steps))


def balance(router: DeepseekV3TopkRouter, inputs: tuple[Tensor], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """A forward hook that raises the bias of experts chosen less than average, and lowers that of the others."""
    if router.training:
        chosen = outputs[2].flatten().bincount(minlength=router.num_experts).float()
        bias: Any = router.e_score_correction_bias
        bias += BIAS_RATE * (chosen.mean() - chosen).sign()


def train(
    model: PreTrainedModel, recipe: Recipe, stream: Iterator[tuple[Tensor, Tensor]], progress: Progress
) -> tuple[float, int]:
    """Train with the next-token loss on the answers.

    Returns the mean loss of the last tenth of the steps, and the number of tokens read without padding. Uses bf16
    autocast only if the CPU multiplies bf16 natively: an AVX2 core does 2 GFLOP/s in bf16 and 66 in fp32.
    """
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, recipe.steps))
    bar = progress.add_task("base model", total=recipe.steps, loss=math.nan)
    losses: list[float] = []
    tokens = 0
    fast_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    model.train()
    for ids, labels in stream:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16):
            logits = model(input_ids=ids, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=NOT_SCORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        tokens += int((ids != model.config.pad_token_id).sum()) + len(ids)
        progress.update(bar, advance=1, loss=losses[-1])
    return statistics.mean(losses[-(len(losses) // 10 + 1) :]), tokens


def save(model: PreTrainedModel, encode: tokenizer.Qwen2Tokenizer, folder: Path) -> None:
    """Save model and tokenizer in Hugging Face's format, in bf16 except for the router's correction bias (fp32)."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    model.save_pretrained(folder)
    encode.save_pretrained(folder)


@dataclass(frozen=True)
class Made:
    """What training a base model took and reached."""

    parameters: int
    tokens: int
    """Number of tokens read in training, with prompts and end tokens."""
    loss: float
    """Nats per answer token, mean over the last tenth of the steps."""


def make(folder: Path, family: str, seed: int, steps: int | None, progress: Progress) -> Made:
    """Train a base model and save it in `folder`. steps: None for the number of the family's recipe."""
    encode = tokenizer.build()
    recipe = recipes(encode.eos_token_id)[family]
    recipe = replace(recipe, steps=steps or recipe.steps)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = AutoModelForCausalLM.from_config(recipe.config, dtype=torch.float32, attn_implementation="eager")
    for module in model.modules():
        if isinstance(module, DeepseekV3TopkRouter):
            module.register_forward_hook(balance)
    read = documents(encode, problems.split()["corpus"], rng)
    stream = islice(batches(read, recipe.documents, encode.eos_token_id, rng), recipe.steps)
    loss, tokens = train(model, recipe, stream, progress)
    save(model, encode, folder)
    return Made(sum(parameter.numel() for parameter in model.parameters()), tokens, loss)
