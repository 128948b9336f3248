"""Elements of the model on each rank, in the trainer by pipeline stage and in the engine, and of activations."""

from dataclasses import dataclass
from typing import NamedTuple

from r1zero.distributed.layout import Layout
from r1zero.model import placement
from r1zero.model.shape import Shape
from r1zero.model.weights import Weight
from r1zero.weight_sync.routes import Routes, axis, required_span


@dataclass(frozen=True)
class Stage:
    """Number of elements on each rank of one pipeline stage of a trainer or reference."""

    layers: int
    dense: int
    """Trained; replicated over data-parallel ranks."""
    experts: int
    """Trained; replicated over expert-data-parallel ranks."""
    buffers: int
    """fp32 tensors that are not trained: the routers' biases."""
    work: float
    """Parameters used per token, on all tensor ranks together and without the embedding."""
    feed: float
    """The part of `work` in the feed-forward parts of the layers, dense or with experts."""

    @property
    def elements(self) -> int:
        """Number of trained elements."""
        return self.dense + self.experts


def stages(routes: Routes, grids: placement.MegatronGrids) -> list[Stage]:
    """Returns the sizes of all pipeline stages of a trainer or reference with these grids."""
    shape, tp, etp, ep = routes.shape, grids.dense.size("tp"), grids.experts.size("etp"), grids.experts.size("ep")
    layers = placement.stages(shape, grids)
    where = [s for s, run in enumerate(layers) for _ in run]
    sums, work, feed = [[0, 0, 0] for _ in layers], [0.0 for _ in layers], [0.0 for _ in layers]
    for weight in routes.weights:
        last = len(layers) - 1
        homes = {"first": [0], "last": [last], "both ends": sorted({0, last})}.get(weight.place) or [
            where[weight.require_layer()]
        ]
        degree = 1 if weight.cut is None else tp if weight.expert is None else etp
        for stage in homes:
            if weight.fp32:
                sums[stage][2] += weight.size
            elif weight.expert is None:
                sums[stage][0] += weight.size // degree
            else:
                sums[stage][1] += weight.size // degree  # of all experts; divided by ep below
            used = active_params(weight, shape) if stage == homes[-1] else 0.0
            work[stage] += used
            feed[stage] += used if ".mlp." in f".{weight.parameter}" else 0.0
    return [
        Stage(len(run), dense, experts // ep, buffers, *of_work)
        for run, (dense, experts, buffers), *of_work in zip(layers, sums, work, feed, strict=True)
    ]


def active_params(weight: Weight, shape: Shape) -> float:
    """Returns the mean number of a weight's parameters with which a token is multiplied. The embedding counts 0,
    because it is looked up."""
    if weight.place == "first":
        return 0.0
    if weight.expert is None:
        return float(weight.size)
    moe = shape.require_moe()
    return weight.size * (moe.topk / moe.experts)


def engine_elements(routes: Routes) -> tuple[int, int]:
    """Returns (elements of the run's type, fp32 elements) on each rollout rank in vLLM. It is the same on all ranks."""
    rank, plain, fp32 = routes.layout.rollout.ranks[0], 0, 0
    for weight in routes.weights:
        span = required_span(weight, routes.shape, routes.layout.rollout, routes.distribution, rank)
        if span:
            size = weight.size // weight.shape[axis(weight)] * (span.end - span.first)
            plain, fp32 = (plain, fp32 + size) if weight.fp32 else (plain + size, fp32)
    return plain, fp32


def absorbed_elements(shape: Shape, layout: Layout) -> int:
    """Returns the elements of the copies of kv_b_proj that Ascend's latent attention keeps for decoding (W_UV,
    W_UK_T)."""
    if not shape.mla:
        return 0
    return (
        shape.layers
        * shape.heads
        * (shape.mla.qk_nope_head_dim + shape.mla.v_head_dim)
        * shape.mla.kv_lora_rank
        // layout.rollout.size("tp")
    )


def attention_operations(shape: Shape, context: float) -> float:
    """Returns the operations of attention for one token that sees `context` tokens, over all layers and heads."""
    values = shape.mla.v_head_dim if shape.mla else shape.head_dim
    return 2.0 * shape.layers * shape.heads * (shape.head_dim + values) * context


class LayerSize(NamedTuple):
    """Elements per token on one rank."""

    kept: float
    """Saved for the backward pass."""
    feed: float
    """The part of `kept` that the feed-forward part saves."""
    forward: float
    """Alive at the same time in a pass that saves nothing."""
    backward: float
    """Gradients that are alive at the same time, in addition to what was saved."""


class Pass(NamedTuple):
    """Conditions of a forward or backward pass on which the size of a layer depends."""

    tp: int
    experts_cut: int
    """Number of ranks that split an expert. Each of them then holds its routed tokens in full."""
    imbalance: float
    """Number of tokens for this rank's experts, relative to the mean."""
    itemsize: int
    scores: int
    """Length of the sequences whose attention scores are saved; 0: fused attention saves none."""
    attended: float
    """Number of tokens that attention works on, relative to the tokens of the pass. It is above 1 if responses share
    their prompts, because attention repeats a prompt's queries, keys and values for each response."""


def layer_size(shape: Shape, layer: int, on: Pass) -> LayerSize:
    """Returns the activations of a megatron-core layer with our norm and attention, under sequence parallelism.

    Activation functions are not fused. A norm saves its input in fp32, the normalised input, and its output, which is
    the input of the next linear layer. A gated linear unit saves its two inputs, the activated gate, and the product.
    An expert also saves the product times its probability.
    tests/plan/test_plan_against_run.py compares this with the storages of a run.
    """
    h, heads, wide = shape.hidden_size, shape.heads, 4 / on.itemsize
    q, out = heads * shape.head_dim, heads * (shape.mla.v_head_dim if shape.mla else shape.head_dim)
    scores = heads * on.scores * (1 if wide == 1 else wide + 1)
    if mla := shape.mla:
        latents = (2 + wide) * ((mla.q_lora_rank or 0) + mla.kv_lora_rank) + (mla.qk_rope_head_dim if wide == 1 else 0)
        attention = latents + (2 * q + out + scores) * on.attended + out
    else:
        attention = (q + 2 * shape.kv_heads * shape.head_dim + scores) * on.attended + q
    feed = whole = 0.0
    if shape.is_moe(layer):
        moe = shape.require_moe()
        feed = 5 * moe.topk * on.imbalance * moe.ffn_hidden_size + 4 * moe.shared_experts * moe.ffn_hidden_size
        whole = moe.topk * on.imbalance * h * (on.tp if on.experts_cut > 1 else 1)
    else:
        feed = 4 * shape.ffn_hidden_size
    feed += whole
    norms = 2 * (2 + wide) * h
    return LayerSize(
        (norms + attention + feed) / on.tp,
        feed / on.tp,
        (5 * h + max(attention + q + 2 * scores * on.attended, feed)) / on.tp,
        (h + max(attention, feed)) / on.tp,
    )
