"""What the ranks of a test world do: build a model on a grid, run megatron's schedule, bring results together by HF
name."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from r1zero import config
from r1zero.distributed import layout
from r1zero.distributed.layout import MegatronGrids
from r1zero.model.families import read_shape
from tests.oracles.transformers_model import LENGTHS, Oracle

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Built:
    grids: MegatronGrids
    shape: Any
    chunks: list[torch.nn.Module]
    optimizer: Any
    scheduler: Any
    cfg: config.Config
    hosts: Any

    @property
    def trained(self) -> Any:
        from r1zero.checkpoint.training import TrainedModel

        return TrainedModel(self.chunks, self.optimizer, self.scheduler, self.shape, self.grids, self.hosts)


def grid(**degrees: Any) -> config.MegatronGrid:
    """tp, pp, ep, ranks, layers."""
    names = dict(
        tp="tensor_model_parallel_size",
        pp="pipeline_model_parallel_size",
        ep="expert_model_parallel_size",
        layers="pipeline_layers",
    )
    return config.MegatronGrid(**{names.get(key, key): value for key, value in degrees.items()})


def build_on(
    oracle: Oracle,
    place: config.MegatronGrid,
    dtype: str = "float32",
    recompute: str = "none",
    trainable: bool = True,
    lr: float = 1e-2,
    clip_grad: float = 1e4,
    recompute_layers: tuple[int, ...] = (),
) -> Built | None:
    """The model with its weights on the grid's ranks; None on others."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from megatron.core import parallel_state

    from r1zero.checkpoint.base_weights import load_base_weights
    from r1zero.model import build
    from r1zero.model.optimizer import build_optimizer

    parallel_state.destroy_model_parallel()
    cfg = config.Config(
        run=config.Run(dtype=dtype),
        train=config.Train(recompute=recompute, recompute_layers=recompute_layers),
        optimizer=config.Optimizer(lr=lr, clip_grad=clip_grad),
    )
    grids = layout._megatron("layout.train", place, dist.get_world_size())
    if dist.get_rank() not in grids.dense:
        return None
    hosts = build.initialize(grids, "cpu", 1)
    shape = read_shape(oracle.folder)
    chunks = build.build_model(shape, cfg, grids, trainable)
    load_base_weights(chunks, shape, grids, str(oracle.folder))
    optimizer, scheduler = build_optimizer(chunks, cfg.optimizer, grids) if trainable else (None, None)
    return Built(grids, shape, chunks, optimizer, scheduler, cfg, hosts)


def schedule(
    built: Built,
    samples: list[torch.Tensor],
    packs: int,
    forward_only: bool = False,
    experts: list[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Run megatron's schedule over this rank's samples in `packs` micro-batches. Returns the last stage's logits (T, V
    / tp). experts: of each sample, in place of the routers' own."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from r1zero.model import build, packing

    targets = sum(LENGTHS) - len(LENGTHS)
    groups = [samples[i::packs] for i in range(packs)]
    chosen = [torch.cat(experts[i::packs]) if experts else None for i in range(packs)]
    kept = []

    def step(data: Any, chunk: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
        group, given = next(data)
        lengths = [len(s) for s in group]
        packed = packing.pack(lengths, built.grids.dense.size("tp"), CPU, experts_TLK=given)
        tokens = torch.cat(group)
        hidden = build.forward(chunk, tokens, packed)

        def loss(hidden: torch.Tensor) -> Any:
            logits = hidden @ build.output_weight(chunk).T
            kept.append(logits.detach().clone())
            ends = torch.tensor(lengths).cumsum(0) - 1
            rows = torch.ones(len(tokens), dtype=torch.bool).index_fill(0, ends, False).nonzero().squeeze(1)
            return cross_entropy(logits[rows], tokens[rows + 1]) / targets, torch.tensor(0, dtype=torch.int), {}

        return hidden, loss

    get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=zip(groups, chosen, strict=True),
        model=built.chunks,
        num_microbatches=packs,
        seq_length=1,
        micro_batch_size=1,
        forward_only=forward_only,
        force_all_reduce=not forward_only,
    )
    return kept


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over tokens, the vocabulary cut over tensor ranks."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    return vocab_parallel_cross_entropy(logits.float(), targets).sum()


def my_samples(built: Built, oracle: Oracle) -> tuple[list[int], list[torch.Tensor]]:
    """Numbers and tokens of the sequences of this rank's data-parallel index."""
    index = built.grids.dense.coordinate(dist.get_rank(), "dp")
    numbers = list(range(len(LENGTHS)))[index :: built.grids.dense.size("dp")]
    pieces = oracle.tokens.split(LENGTHS)
    return numbers, [pieces[i] for i in numbers]


def gathered(built: Built, oracle: Oracle, what: Callable[[Any], torch.Tensor]) -> dict[str, torch.Tensor]:
    """HF name -> full tensor of something that lies like the parameters do, on every rank of the grid."""
    from r1zero.model import mapping
    from tests.oracles import gathered_weights as generic

    local = {
        name: replace(found, parameter=what(found.parameter))
        for name, found in mapping.local_tensors(built.chunks, built.shape, built.grids).items()
        if not found.weight.fp32
    }
    found = generic.stream(
        local, built.shape, built.grids, lambda weight: () if weight.fp32 else built.grids.dense.ranks, torch.float32
    )
    return {name: tensor.clone() for name, tensor in found}


def parity(
    rank: int,
    oracle: Oracle,
    place: config.MegatronGrid,
    packs: int = 1,
    recompute: str = "none",
    experts: torch.Tensor | None = None,
) -> dict[str, Any] | None:
    """Against transformers: the largest logit error and its scale, for each HF name the gradient's error relative to
    its norm; and the norm of the whole gradient that megatron clips by. experts: those of all tokens, for the oracle
    that was computed with them."""
    built = build_on(oracle, place, recompute=recompute)
    if built is None:
        return None
    numbers, samples = my_samples(built, oracle)
    for chunk in built.chunks:
        chunk.zero_grad_buffer()
    pieces = None if experts is None else experts.split(LENGTHS)
    kept = schedule(built, samples, packs, experts=[pieces[n] for n in numbers] if pieces else None)
    gradients = gathered(built, oracle, lambda parameter: parameter.main_grad)
    expected = oracle.gradients()
    errors = {name: float((gradients[name] - g).norm() / g.norm().clamp_min(1e-12)) for name, g in expected.items()}
    assert gradients.keys() == expected.keys()
    _, norm, _ = built.optimizer.step()
    found: dict[str, Any] = {"gradients": errors, "norm": norm}
    if kept:
        order = [n for i in range(packs) for n in numbers[i::packs]]
        reference = torch.cat([oracle.logits().split(LENGTHS)[n] for n in order])
        width = built.shape.vocab_size // built.grids.dense.size("tp")
        first = width * built.grids.dense.coordinate(rank, "tp")
        reference = reference[:, first : first + width]
        found |= {"logits": float((torch.cat(kept) - reference).abs().max()), "scale": float(reference.abs().max())}
    return found


def train(built: Built, oracle: Oracle, steps: int) -> None:
    _, samples = my_samples(built, oracle)
    for _ in range(steps):
        for chunk in built.chunks:
            chunk.zero_grad_buffer()
        built.optimizer.zero_grad()
        schedule(built, samples, 2)
        built.optimizer.step()
        built.scheduler.step(1)


def state(built: Built, oracle: Oracle) -> dict[str, torch.Tensor]:
    """HF name -> weights, fp32 masters and both moments, gathered; and the rate of the next step."""
    found = {f"weight {name}": t for name, t in gathered(built, oracle, lambda p: p.float()).items()}
    for key in ("param", "exp_avg", "exp_avg_sq"):
        found |= {
            f"{key} {name}": t
            for name, t in gathered(built, oracle, lambda p, key=key: _full_state(built, p, key)).items()
        }
    return found | {"lr": torch.tensor(built.optimizer.param_groups[0]["lr"])}


def _full_state(built: Built, parameter: torch.Tensor, key: str) -> torch.Tensor:
    """A parameter's optimizer state, put together from its data-parallel shards."""
    from megatron.core import parallel_state

    expert = not getattr(parameter, "allreduce", True)
    group = parallel_state.get_expert_data_parallel_group() if expert else parallel_state.get_data_parallel_group()
    full = torch.zeros(parameter.numel())
    for part in built.optimizer.chained_optimizers:
        if parameter in part.model_param_group_index_map:
            index, order = part.model_param_group_index_map[parameter]
            main = part.optimizer.param_groups[index]["params"][order]
            cut = part._get_model_param_range_map(parameter)["param"]
            full[cut.start : cut.end] = main.detach() if key == "param" else part.optimizer.state[main][key]
    dist.all_reduce(full, group=group)
    return full.view(parameter.shape)


def save_then_continue(
    rank: int, oracle: Oracle, place: config.MegatronGrid, dtype: str, folder: Any
) -> dict[str, torch.Tensor] | None:
    """Three steps, a checkpoint, three more. Returns the state at the checkpoint and at the end, told apart by a
    prefix."""
    from r1zero.checkpoint import saving

    built = build_on(oracle, place, dtype)
    if built is None:
        return None
    train(built, oracle, 3)
    middle = state(built, oracle)
    saving.save(folder, 3, built.trained, {"cursor": 17}, keep=config.Checkpoint())
    noise = torch.rand(3)
    train(built, oracle, 3)
    return (
        {f"middle {k}": v for k, v in middle.items()}
        | {f"end {k}": v for k, v in state(built, oracle).items()}
        | {"noise": noise}
    )


def load_then_continue(
    rank: int, oracle: Oracle, place: config.MegatronGrid, dtype: str, folder: Any
) -> dict[str, torch.Tensor] | None:
    from r1zero.checkpoint import step_folders, training

    built = build_on(oracle, place, dtype)
    found = step_folders.newest(folder)
    assert (found.iteration, found.extra) == (3, {"cursor": 17})
    if built is None:
        return None
    training.load(found, built.trained)
    assert {
        float(state["step"]) for part in built.optimizer.chained_optimizers for state in part.optimizer.state.values()
    } == {3.0}
    middle = state(built, oracle)
    noise = torch.rand(3)
    train(built, oracle, 3)
    return (
        {f"middle {k}": v for k, v in middle.items()}
        | {f"end {k}": v for k, v in state(built, oracle).items()}
        | {"noise": noise}
    )


def streamed(
    rank: int, oracle: Oracle, place: config.MegatronGrid, receivers: dict[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """What this rank gets when weights whose name contains a key of `receivers` (the first that fits) go to those
    ranks."""
    from r1zero.model import mapping
    from tests.oracles import gathered_weights as generic

    built = build_on(oracle, place, trainable=False)
    grids = layout._megatron("layout.train", place, dist.get_world_size())
    shape = read_shape(oracle.folder)
    local = mapping.local_tensors(built.chunks, shape, grids) if built else {}
    found = generic.stream(
        local, shape, grids, lambda w: next(v for k, v in receivers.items() if k in w.name), torch.float32
    )
    return {name: tensor.clone() for name, tensor in found}


def logits_of_packs(rank: int, oracle: Oracle, place: config.MegatronGrid, dense_tokens: int) -> dict[str, Any] | None:
    """The last stage's logits with all sequences in one pack, and with each in a pack of its own."""
    from unittest import mock

    from r1zero.model import packing

    built = build_on(oracle, place, trainable=False)
    if built is None:
        return None
    _, samples = my_samples(built, oracle)
    with torch.no_grad(), mock.patch.object(packing, "DENSE_TOKENS", dense_tokens):
        return {
            "together": schedule(built, samples, 1, forward_only=True),
            "alone": schedule(built, samples, len(samples), forward_only=True),
        }


def trained(
    rank: int,
    oracle: Oracle,
    place: config.MegatronGrid,
    recompute: str,
    packs: int,
    recompute_layers: tuple[int, ...] = (),
) -> dict[str, torch.Tensor] | None:
    """Weights and fp32 buffers after two updates."""
    built = build_on(oracle, place, recompute=recompute, recompute_layers=recompute_layers)
    if built is None:
        return None
    _, samples = my_samples(built, oracle)
    for _ in range(2):
        for chunk in built.chunks:
            chunk.zero_grad_buffer()
        built.optimizer.zero_grad()
        schedule(built, samples, packs)
        built.optimizer.step()
        built.scheduler.step(1)
    buffers = {
        name: b.clone() for chunk in built.chunks for name, b in chunk.named_buffers() if name.endswith("expert_bias")
    }
    assert all(b.dtype == torch.float32 for b in buffers.values())
    return gathered(built, oracle, lambda parameter: parameter) | buffers


def rates(rank: int, oracle: Oracle, warmup: int) -> list[float]:
    """Learning rates of the first updates."""
    from r1zero.model.optimizer import build_optimizer

    built = build_on(oracle, grid())
    cfg = config.Optimizer(lr=1.0, lr_warmup_iterations=warmup)
    optimizer, scheduler = build_optimizer(built.chunks, cfg, built.grids)
    found = []
    for _ in range(5):
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step(1)
    return found


def transformers_beside_megatron(rank: int, oracle: Oracle) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain transformers' logits in a process that megatron-core runs in, and in one where it does not."""
    import transformers

    build_on(oracle, grid())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        oracle.folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return torch.cat([model(piece[None]).logits[0] for piece in oracle.tokens.split(LENGTHS)]), oracle.logits()
