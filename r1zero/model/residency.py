"""Where the trained model's weights and gradients are: on the device while they are used, else on the host or nowhere.

megatron-core keeps a model's weights in a few flat buffers, of which every parameter is a view; the same holds for its
gradients. Freeing a buffer's storage and taking it again leaves all views as they are.
"""

from collections.abc import Iterator

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor


class Residency:
    """Host copies of the weights by name ("policy", "original"), one of them at a time on the device, or none.

    chunks: the trained model, whose weights are the original ones now.
    """

    def __init__(self, chunks: list[DistributedDataParallel], device: torch.device):
        self.device = device
        self.buffers = [b for chunk in chunks for b in chunk.buffers + chunk.expert_parallel_buffers]
        self.copies: dict[str, list[Tensor]] = {}
        self.present = "policy"
        self.keep("original")

    def keep(self, name: str) -> None:
        """Copy what is on the device to the host under `name`."""
        pinned = self.device.type != "cpu"
        if name not in self.copies:
            self.copies[name] = [torch.empty(b.param_data.shape, dtype=b.param_data.dtype, pin_memory=pinned) for b in self.buffers]
        for host, buffer in zip(self.copies[name], self.buffers, strict=True):
            host.copy_(buffer.param_data)   # blocking: the storage is freed next

    def bring(self, name: str) -> None:
        """Put the weights kept under `name` on the device."""
        if self.present == name:
            return
        for host, buffer in zip(self.copies[name], self.buffers, strict=True):
            _resize(buffer.param_data, buffer.param_data.numel())
            buffer.param_data.copy_(host)
        self.present = name

    def leave(self) -> None:
        """Free the device of weights and gradients; the policy's weights wait on the host."""
        self.keep("policy")
        self.present = ""
        for tensor in self._storages():
            _resize(tensor, 0)

    def gradients(self) -> None:
        """Give the gradients memory again; they are zeroed before each update anyway."""
        for buffer in self.buffers:
            _resize(buffer.grad_data, buffer.grad_data.numel())

    def _storages(self) -> Iterator[Tensor]:
        for buffer in self.buffers:
            yield buffer.param_data
            yield buffer.grad_data


def _resize(tensor: Tensor, numel: int) -> None:
    tensor.untyped_storage().resize_(numel * tensor.element_size())
