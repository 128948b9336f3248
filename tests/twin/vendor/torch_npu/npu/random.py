"""torch_npu.npu.random: one generator for the process, apart from the host's."""

from typing import Any

import torch
from torch import Tensor

from torch_npu.device import DEVICES, library, operators


def manual_seed(seed: int) -> None:
    operators.seed(int(seed))


manual_seed_all = manual_seed


def initial_seed() -> int:
    return operators.initial_seed()


def get_rng_state(device: Any = None) -> Tensor:
    return operators.rng_state()


def set_rng_state(new_state: Tensor, device: Any = None) -> None:
    operators.set_rng_state(new_state)


def get_rng_state_all() -> list[Tensor]:
    return [get_rng_state()] * DEVICES


def set_rng_state_all(new_states: list[Tensor]) -> None:
    set_rng_state(new_states[library.twin_device()])


default_generators = (torch.Generator(),) * DEVICES
"""Not the one that is drawn from: who asks wants to know whether there are any."""
