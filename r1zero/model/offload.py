"""Moves the trained model's weights, gradients and optimizer state to the device when needed, and off it afterwards.

megatron-core keeps a model's weights in a few flat buffers, of which every parameter is a view, and the gradients
likewise. Freeing a buffer's storage and allocating it again keeps all views valid.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor


class WeightOffload:
    """Host copies of the weights by name ("policy", "original"). At most one of them is on the device.

    chunks: the trained model, whose weights must still be the original ones.
    """

    def __init__(self, chunks: list[DistributedDataParallel], device: torch.device):
        self.device = device
        self.buffers = [b for chunk in chunks for b in chunk.buffers + chunk.expert_parallel_buffers]
        self.copies: dict[str, list[Tensor]] = {}
        self.present = "policy"
        self.snapshot("original")

    def snapshot(self, name: str) -> None:
        """Copy the weights on the device to the host under `name`."""
        pinned = self.device.type != "cpu"
        if name not in self.copies:
            self.copies[name] = [
                torch.empty(b.param_data.shape, dtype=b.param_data.dtype, pin_memory=pinned) for b in self.buffers
            ]
        for host, buffer in zip(self.copies[name], self.buffers, strict=True):
            host.copy_(buffer.param_data)  # blocking: the storage is freed next

    def onload(self, name: str) -> None:
        """Put the weights stored under `name` on the device."""
        if self.present == name:
            return
        for host, buffer in zip(self.copies[name], self.buffers, strict=True):
            _resize(buffer.param_data, buffer.param_data.numel())
            buffer.param_data.copy_(host)
        self.present = name

    def offload(self) -> None:
        """Free the device memory of weights and gradients. The policy's weights are kept on the host."""
        self.snapshot("policy")
        self.present = ""
        for tensor in self._storages():
            _resize(tensor, 0)

    def flat(self, parameter: Tensor) -> Tensor:
        """Returns the policy's elements of a parameter, 1-D, from the device or the host, wherever they are."""
        if self.present == "policy":
            return parameter.detach().view(-1)
        for host, buffer in zip(self.copies["policy"], self.buffers, strict=True):
            if parameter in buffer.param_index_map:
                begin, end, _ = buffer.param_index_map[parameter]
                return host[begin:end]
        return parameter.detach().view(-1)  # a buffer such as the router's bias, which stays on the device

    def gradients(self) -> None:
        """Allocate the gradients again. Their content is undefined; they are zeroed before each update."""
        for buffer in self.buffers:
            _resize(buffer.grad_data, buffer.grad_data.numel())

    def _storages(self) -> Iterator[Tensor]:
        for buffer in self.buffers:
            yield buffer.param_data
            yield buffer.grad_data


class OptimizerOffload:
    """Keeps Adam's moments and the fp32 master weights on the host, except in the context of `on_device()`.

    The optimizer steps, saves and loads inside that context. The step itself runs on the device, so results do not
    change. By contrast, megatron-core's optimizer_cpu_offload steps on the host and needs CUDA streams, and MindSpeed's
    swap_optimizer replaces the optimizer.
    """

    def __init__(self, optimizer: MegatronOptimizer, device: torch.device):
        self.parts = getattr(optimizer, "chained_optimizers", [optimizer])
        self.pinned = device.type != "cpu"
        self.copies: dict[int, tuple[Tensor, Tensor]] = {}
        """id of a tensor -> the tensor, and its content while it has no memory."""
        self._leave()

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """A context in which the optimizer's state is on the device. Changes to it are kept."""
        for tensor, host in self.copies.values():
            _resize(tensor, tensor.numel())
            tensor.copy_(host)
        try:
            yield
        finally:
            self._leave()

    def content(self, tensor: Tensor) -> Tensor:
        """Returns the elements of one of the optimizer's tensors, from the device or the host, wherever they are."""
        kept = self.copies.get(id(tensor))
        return kept[1] if kept and not tensor.untyped_storage().size() else tensor.detach()

    @torch.no_grad()
    def _leave(self) -> None:
        """Move all tensors to the host. They are listed anew each time, because the first step creates the moments and
        loading replaces tensors."""
        kept = self.copies
        self.copies = {}
        for tensor in self._tensors():
            found = kept.get(id(tensor))
            host = (
                found[1]
                if found and found[0] is tensor
                else torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.pinned)
            )
            host.copy_(tensor)  # blocking: the storage is freed next
            _resize(tensor, 0)
            self.copies[id(tensor)] = tensor, host

    def _tensors(self) -> Iterator[Tensor]:
        for part in self.parts:
            model = {buffer.param_data.untyped_storage().data_ptr() for buffer in part.buffers}
            yield from (
                p
                for group in part.optimizer.param_groups
                for p in group["params"]
                if p.untyped_storage().data_ptr() not in model
            )  # weights in fp32 are their own masters
            yield from (
                t
                for state in part.optimizer.state.values()
                for t in state.values()
                if isinstance(t, Tensor) and t.dim()
            )


def _resize(tensor: Tensor, numel: int) -> None:
    tensor.untyped_storage().resize_(numel * tensor.element_size())
