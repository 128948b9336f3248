"""The order of waking and loading on NPU, with vllm-ascend 0.23.0's own functions, taken out of the pinned wheel and
run on the CPU.

python -m pytest tests/rollout/test_npu.py
"""

import ast
import types
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from r1zero.config import UserError
from r1zero.rollout import loader_trace, npu
from tests import wheels

ASCEND = wheels.PINNED[0]
HIDDEN, INNER, EXPERTS, HEADS, LATENT, NOPE, VALUE = 6, 5, 4, 2, 3, 4, 2


def function(module: str, qualname: str, **names: Any) -> Any:
    """A function of the wheel with the names it uses from outside."""
    node = wheels.find(wheels.tree(ASCEND, module), qualname)
    node.returns, node.decorator_list = None, []
    for arg in node.args.args:
        arg.annotation = None
    space = {"torch": torch, **names}
    exec(compile(ast.Module([node], []), module, "exec"), space)  # the pinned wheel's own source
    return space[node.name]


class Method:
    """vllm-ascend's processing of experts, without the plain vLLM part above it, which does nothing for bf16."""

    _maybe_pad_weight = staticmethod(lambda weight: weight)
    enabled = SimpleNamespace(enable_fused_mc2=0)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        node = wheels.find(
            wheels.tree(ASCEND, "vllm_ascend.ops.fused_moe.fused_moe"),
            "AscendUnquantizedFusedMoEMethod.process_weights_after_loading",
        )
        own = ast.FunctionDef(node.name, node.args, node.body[1:], [], lineno=1, col_offset=0)  # without super()
        space = {"torch": torch, "get_ascend_config": lambda: self.enabled, "maybe_trans_nz": lambda weight: weight}
        exec(compile(ast.fix_missing_locations(ast.Module([own], [])), "fused_moe", "exec"), space)
        space[node.name](self, layer)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w13_weight = nn.Parameter(torch.zeros(EXPERTS, 2 * INNER, HIDDEN), requires_grad=False)
        self.w2_weight = nn.Parameter(torch.zeros(EXPERTS, HIDDEN, INNER), requires_grad=False)
        self.w13_weight.weight_loader = self.w2_weight.weight_loader = self.weight_loader
        self.quant_method = Method()

    def weight_loader(self, parameter: nn.Parameter, loaded: Tensor, expert: int, rows: slice) -> None:
        parameter.data[expert, rows].copy_(loaded)


class Attention(nn.Module):
    kv_lora_rank, num_heads, qk_nope_head_dim, v_head_dim = LATENT, HEADS, NOPE, VALUE
    enable_mlapo, fa_quant_layer, layer_sharding_kwargs = False, False, None

    def __init__(self) -> None:
        super().__init__()
        self.kv_b_proj = nn.Linear(LATENT, HEADS * (NOPE + VALUE), bias=False)
        self.kv_b_proj.weight.requires_grad_(False)
        self.kv_b_proj.quant_method = LinearMethod()

    def process_weights_after_loading(self, dtype: torch.dtype) -> None:
        function(
            "vllm_ascend.attention.mla_v1",
            "AscendMLAImpl.process_weights_after_loading",
            UnquantizedLinearMethod=LinearMethod,
            ACL_FORMAT_FRACTAL_ND=2,
            torch_npu=SimpleNamespace(npu_format_cast=lambda t, _: t),
            maybe_trans_nz=lambda weight: weight,
        )(self, dtype)


class LinearMethod:
    def process_weights_after_loading(self, layer: nn.Module) -> None:
        pass


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts, self.attention = Experts(), Attention()
        self.register_buffer("cos", torch.arange(3.0))

    def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        for name, tensor in weights:
            kind, _, expert = name.partition(".")
            if kind == "kv_b":
                self.attention.kv_b_proj.weight.data.copy_(tensor)
                continue
            parameter = self.experts.w2_weight if kind == "down" else self.experts.w13_weight
            rows = {"gate": slice(0, INNER), "up": slice(INNER, 2 * INNER), "down": slice(None)}[kind]
            parameter.weight_loader(parameter, tensor, int(expert), rows)


def process(model: Model, config: Any, device: torch.device) -> None:
    """vLLM's order: every quant_method, then attention."""
    model.experts.quant_method.process_weights_after_loading(model.experts)
    model.attention.process_weights_after_loading(torch.float32)


def weights(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
    found = {f"{kind}.{e}": torch.randn(shape, generator=g) for e in range(EXPERTS) for kind, shape in shapes.items()}
    return {**found, "kv_b.": torch.randn(HEADS * (NOPE + VALUE), LATENT, generator=g)}


def state(model: Model) -> dict[str, Tensor]:
    """What the model computes with after processing."""
    return {
        "w13": model.experts.w13_weight.data.clone(),
        "w2": model.experts.w2_weight.data.clone(),
        "W_UV": model.attention.W_UV.clone(),
        "W_UK_T": model.attention.W_UK_T.clone(),
    }


def addresses(model: Model) -> list[int]:
    return [
        t.untyped_storage().data_ptr()
        for t in (model.experts.w13_weight, model.experts.w2_weight, model.attention.W_UV, model.attention.W_UK_T)
    ]


CONFIG = SimpleNamespace(hf_text_config=SimpleNamespace(hidden_size=HIDDEN))


def fresh(seed: int) -> Model:
    """An engine that was started with these weights: load, process."""
    model = Model()
    model.load_weights(iter(weights(seed).items()))
    process(model, CONFIG, torch.device("cpu"))
    return model


def sleep_and_wake(model: Model) -> None:
    """Level 2: what is in the allocator is lost; then the wheel's own wake_up of the weights."""
    for tensor in (*model.parameters(), model.attention.W_UV, model.attention.W_UK_T):
        tensor.data.fill_(float("nan"))
    worker = SimpleNamespace(
        vllm_config=SimpleNamespace(model_config=CONFIG, quant_config=None),
        model_runner=SimpleNamespace(model=model),
        _sleep_saved_buffers={"cos": torch.arange(3.0)},
    )
    wake_up = function(
        "vllm_ascend.worker.worker",
        "NPUWorker.wake_up",
        get_ascend_config=lambda: SimpleNamespace(weight_nz_mode=0, enable_sleep_mode_extra_cleanup=False),
        CaMemAllocator=SimpleNamespace(get_instance=lambda: SimpleNamespace(wake_up=lambda tags: None)),
    )
    types.MethodType(wake_up, worker)(["weights"])


def dispatcher() -> Any:
    return SimpleNamespace(
        num_experts=8, num_local_experts=EXPERTS, expert_ids_per_ep_rank=torch.full((8,), -1, dtype=torch.int32)
    )


@pytest.mark.parametrize("asleep", [False, True], ids=["awake", "after a deep sleep"])
def test_taking_new_weights_equals_a_fresh_engine_in_the_same_memory(asleep: bool) -> None:
    model = fresh(1)
    before, plain = addresses(model), dispatcher()
    for seed in (2, 3):
        if asleep:
            sleep_and_wake(model)
        npu.reload_in_order(model, CONFIG, iter(weights(seed).items()), process, [plain, SimpleNamespace()])
        expected = state(fresh(seed))
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state(model).items())
        assert plain.expert_ids_per_ep_rank.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
        plain.expert_ids_per_ep_rank.fill_(-1)
        assert addresses(model) == before, "a second copy of the weights was made"


def test_writing_weights_to_their_places_equals_loading_them_through_deep_sleeps() -> None:
    """Places learnt once stay right: waking and processing put new Parameters around the same memory."""
    model = fresh(1)
    shapes = [(name, tuple(tensor.shape)) for name, tensor in weights(1).items()]
    known = loader_trace.learn(model.load_weights, npu.writable_in_place(model, CONFIG, shapes), torch.float32)
    assert set(known) == set(weights(1)), "nothing goes through the loader"
    before = [known[name][0].target.data_ptr() for name in known]
    for seed in (2, 3):
        sleep_and_wake(model)

        def arriving(seed: int = seed) -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights(seed).items():
                for row in range(len(tensor)):
                    loader_trace.write(known[name], 0, row, tensor[row : row + 1])
            yield from ()

        npu.reload_in_order(model, CONFIG, arriving(), process, [dispatcher()])
        expected = state(fresh(seed))
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state(model).items())
    assert [
        known[name][0].target.data_ptr() for name in known
    ] == before and model.experts.w2_weight.data_ptr() in before


def test_loading_without_preparing_fails_or_is_wrong() -> None:
    """The control: what a plain load after a wake does."""
    model = fresh(1)
    sleep_and_wake(model)
    with pytest.raises(AttributeError, match="weight_loader"):
        model.load_weights(iter(weights(2).items()))


def test_shapes_that_do_not_tell_the_layout_are_refused() -> None:
    model = fresh(1)
    model.experts.w2_weight = nn.Parameter(torch.zeros(EXPERTS, HIDDEN, HIDDEN), requires_grad=False)
    with pytest.raises(RuntimeError, match="cannot be told"):
        npu.prepare_experts(model, HIDDEN)


@pytest.mark.parametrize("name, value", npu.NOT_RECORDED.items())
def test_an_environment_in_which_no_graph_can_be_recorded_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, "0")
    assert npu.graph_mode() == 3
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        npu.graph_mode()
    assert f"{name} = {value}" in str(error.value) and "rollout.graph = false" in str(error.value)
