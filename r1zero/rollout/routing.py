"""Returns the experts that an engine chose for each token, for train.routing_replay.

The choice for a token is kept like its keys and values: by its slot in the key-value cache. A token whose keys and
values come from the prefix cache thus has the choice with which they were computed.

vLLM 0.32 delivers these choices itself (enable_return_routed_experts), but only with its second model runner, which
takes other logits processors. This module uses the parts of it that do not depend on the runner: the capture in the
routers, and the field of the output. vllm-ascend 0.23 delivers them with the runner that is used here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from r1zero.config import UserError


class RouteTable:
    """The chosen experts of the tokens in the key-value cache of this rank's engine."""

    def __init__(self) -> None:
        self._capturer: Any = None
        self._chosen_SLK = np.zeros((0, 0, 0), np.uint8)
        """S: slots of the cache. L: layers of the model; those without experts have zeros. K: experts per token."""

    def bind(self, llm: Any) -> None:
        """Let the routers of an engine report their choices. Raises UserError if its kernels do not allow it."""
        from vllm.model_executor.layers.fused_moe import routed_experts_capturer as capture

        config = llm.llm_engine.vllm_config
        try:
            self._capturer = capture.RoutedExpertsCapturer(config.scheduler_config.max_num_batched_tokens, config)
            llm.apply_model(lambda model: capture.bind_routed_experts_capturer(model, self._capturer))
        except ValueError as error:  # vLLM's kernel for experts may choose by itself
            raise UserError(f"train.routing_replay = true, but {error} (vLLM); set it to false") from None

    def store(self, slots_T: list[int], slots: int) -> None:
        """Keep the choices of the forward pass that has just ended.

        slots_T: the slots of its tokens, in their order in it. slots: number of slots of the cache.
        """
        chosen_TLK = self._capturer.snapshot_routing_data(len(slots_T)).cpu().numpy()
        if not len(self._chosen_SLK):
            self._chosen_SLK = np.zeros((slots, *chosen_TLK.shape[1:]), chosen_TLK.dtype)
        self._chosen_SLK[slots_T] = chosen_TLK

    def read(self, slots_T: list[int]) -> np.ndarray:
        """Returns the (T, L, K) choices of the tokens in these slots."""
        return self._chosen_SLK[slots_T]


def as_scheduler(table: RouteTable) -> type:
    """Returns vLLM's scheduler with a step more: it fills the table after each forward pass, and returns the choices of
    all tokens but the last, which was not computed, with the output of a request that ends."""
    from vllm.v1.core.sched.scheduler import Scheduler

    class RouteScheduler(Scheduler):
        def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
            new = scheduler_output.num_scheduled_tokens
            # The blocks of requests that end are given away by the scheduler.
            computed = {name: self._computed(name) for name in model_runner_output.req_ids if name in new}
            if computed:
                slots = [
                    slot
                    for name, (blocks, end) in computed.items()
                    for slot in self._slots(blocks, end - new[name], end)
                ]
                table.store(slots, self.kv_cache_config.num_blocks * self.block_size)
            outputs = super().update_from_output(scheduler_output, model_runner_output)
            for of_client in outputs.values():
                for output in of_client.outputs:
                    if output.finish_reason is not None and output.request_id in computed:
                        blocks, end = computed[output.request_id]
                        output.routed_experts = table.read(self._slots(blocks, 0, end))
            return outputs

        def _computed(self, name: str) -> tuple[Sequence[Any], int]:
            """Returns the blocks of a request, and the number of its tokens that have been computed."""
            (blocks,) = self.kv_cache_manager.get_blocks(name).blocks
            return blocks, self.requests[name].num_computed_tokens

        def _slots(self, blocks: Sequence[Any], first: int, end: int) -> list[int]:
            size = self.block_size
            return [blocks[token // size].block_id * size + token % size for token in range(first, end)]

    return RouteScheduler
