"""Loads the base model's weights from an HF folder into megatron-core's parameters."""

import torch

from r1zero.checkpoint.hf_files import HfFolder
from r1zero.distributed.layout import MegatronGrids
from r1zero.model.mapping import local_tensors
from r1zero.model.shape import Shape
from r1zero.model.weights import weights


@torch.no_grad()
def load_base_weights(chunks: list[torch.nn.Module], shape: Shape, grids: MegatronGrids, path: str) -> None:
    """Fill the model from an HF folder; each rank reads only its slices.

    Raises UserError if the folder does not fit.
    """
    folder = HfFolder(path, shape, weights(shape))
    for local in local_tensors(chunks, shape, grids).values():
        view = local.view()
        view.copy_(folder.read(local.weight, local.part).view(view.shape))
