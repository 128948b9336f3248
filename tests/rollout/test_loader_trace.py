"""Where an engine keeps weights, learnt from loaders like vLLM's, against what those loaders do with real tensors.

python -m pytest tests/rollout/test_loader_trace.py
"""

import pytest
import torch
from torch import Tensor, nn

from r1zero.rollout import loader_trace


class Engine(nn.Module):
    """Cuts rows and columns by tensor rank 1 of 2, fuses, pads, turns and casts, as vLLM's modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Parameter(torch.zeros(2 * 3, 5))  # gate and up: rows 3..5 of each
        self.columns = nn.Parameter(torch.zeros(6, 2))
        self.padded = nn.Parameter(torch.zeros(4, 5))  # rows 4..6 of 7, and one that nobody has
        self.experts = nn.Parameter(torch.zeros(2, 4, 3))
        self.bias = nn.Parameter(torch.zeros(4))
        self.cast, self.turned = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(5, 3))

    def load_weights(self, weights) -> None:
        for name, tensor in weights:
            if name in ("gate", "up"):
                self.fused.data.narrow(0, 3 * (name == "up"), 3).copy_(tensor.narrow(0, 3, 3))
            elif name == "columns":
                self.columns.data.copy_(tensor.narrow(1, 2, 2))
            elif name == "padded":
                self.padded[:3].data.copy_(tensor[4:7])
                self.padded[3:].data.fill_(0)
            elif name.startswith("expert"):
                # held the other way round, as vllm-ascend keeps experts
                self.experts.data.transpose(1, 2)[int(name[-1])].narrow(0, 1, 2).copy_(tensor)
            elif name == "cast":
                self.cast.data.copy_(tensor.to(torch.float64))
            elif name == "turned":
                self.turned.data.copy_(tensor.t())
            else:
                getattr(self, name).data.copy_(tensor)


SHAPES = {
    "gate": (6, 5),
    "up": (6, 5),
    "columns": (6, 4),
    "padded": (7, 5),
    "expert0": (2, 4),
    "expert1": (2, 4),
    "bias": (4,),
    "cast": (4,),
    "turned": (3, 5),
}
AXIS = {"columns": 1}


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def test_learning_writes_nothing_and_leaves_out_what_is_not_a_plain_copy() -> None:
    engine = Engine()
    known = loader_trace.learn(engine.load_weights, SHAPES.items(), torch.float32)
    assert set(known) == set(SHAPES) - {"cast", "turned"}
    assert all(
        not p.any() for name, p in engine.named_parameters() if name != "cast"
    )  # a cast copy was not seen coming
    assert [(place.corner, tuple(place.target.shape)) for place in known["up"]] == [((3, 0), (3, 5))]
    assert [(place.corner, tuple(place.target.shape)) for place in known["columns"]] == [((0, 2), (6, 2))]


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_writing_pieces_to_their_places_equals_loading(pieces: int) -> None:
    loaded, written = Engine(), Engine()
    known = loader_trace.learn(written.load_weights, SHAPES.items(), torch.float32)
    loaded.load_weights((name, tensor) for name, tensor in tensors().items() if name in known)
    with torch.no_grad():
        for name, found in known.items():
            axis, first = AXIS.get(name, 0), 0
            for piece in tensors()[name].chunk(pieces, axis):
                loader_trace.write(found, axis, first, piece)
                first += piece.shape[axis]
    for name, parameter in loaded.named_parameters():
        if name not in ("cast", "turned"):
            assert torch.equal(parameter, getattr(written, name)), name


def test_what_is_written_is_the_engines_own_memory() -> None:
    engine = Engine()
    known = loader_trace.learn(engine.load_weights, SHAPES.items(), torch.float32)
    assert all(
        known[name][0].target.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
        for name, parameter in {"gate": engine.fused, "expert1": engine.experts, "padded": engine.padded}.items()
    )
