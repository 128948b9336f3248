"""What lies in the memory that sleeps and is neither a parameter nor a buffer: nobody restores it but who knows of
it."""

import gc
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Found:
    tag: str
    """Of the sleeping allocator: weights, or kv_cache."""
    names: tuple[str, ...]
    """module.name of a global, or Class.attribute of what holds it; none where nobody does."""
    content: Tensor


def unregistered(model: torch.nn.Module) -> dict[int, Found]:
    """By address, the blocks of the pool that no parameter and no buffer of the model lies in."""
    from vllm_ascend.device_allocator.camem import CaMemAllocator

    registered = {_block(tensor) for tensor in (*model.parameters(), *model.buffers())}
    tags = {
        pointer: data.tag
        for pointer, data in CaMemAllocator.get_instance().pointer_to_data.items()
        if pointer not in registered
    }
    gc.collect()
    gc.unfreeze()  # what was alive after the imports is among what is looked for
    tensors = [
        thing
        for thing in gc.get_objects()
        if type(thing) is Tensor and thing.device.type == "npu" and _block(thing) in tags
    ]
    names = _names(tensors)
    gc.freeze()  # else every later collection, of which the engine asks for many, walks all that was imported
    found = {}
    for pointer, tag in tags.items():
        over = [tensor for tensor in tensors if _block(tensor) == pointer]
        content = max(over, key=Tensor.numel).cpu() if over else torch.empty(0)
        found[pointer] = Found(tag, tuple(sorted({name for tensor in over for name in names[id(tensor)]})), content)
    return found


def _block(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _names(tensors: list[Tensor]) -> dict[int, set[str]]:
    """By the tensor's id, the names under which modules and objects hold it, themselves or in a list or tuple."""
    names: dict[int, set[str]] = {id(tensor): set() for tensor in tensors}
    holders = gc.get_referrers(*tensors) if tensors else []
    sequences = [holder for holder in holders if isinstance(holder, list | tuple) and holder is not tensors]
    dictionaries = (
        [holder for holder in (*holders, *gc.get_referrers(*sequences)) if isinstance(holder, dict)] if holders else []
    )
    owners = {
        id(vars(owner)): owner
        for owner in (gc.get_referrers(*dictionaries) if dictionaries else [])
        if hasattr(owner, "__dict__")
    }
    for owner in holders:  # Python may keep the attributes of an object without a dictionary until it is asked for one
        if hasattr(owner, "__dict__"):
            owners[id(vars(owner))] = owner
            dictionaries.append(vars(owner))
    within = {id(sequence): [id(item) for item in sequence] for sequence in sequences}
    for dictionary in dictionaries:
        owner = owners.get(id(dictionary))
        if owner is None:
            continue
        prefix = owner.__name__ if isinstance(owner, ModuleType) else type(owner).__name__
        for name, value in list(dictionary.items()):
            for held in within.get(id(value), [id(value)]):
                if held in names:
                    names[held].add(f"{prefix}.{name}")
    return names
