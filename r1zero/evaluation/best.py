"""The best evaluation of a run so far, by the metric that evaluation.best names."""

from collections.abc import Mapping
from math import isnan


class Best:
    """Remembers the iteration with the highest value of one metric, and the earliest of several with that value."""

    def __init__(self, metric: str):
        self.metric = metric
        """Name of the metric, such as eval/math500/pass@1. Empty: no iteration is remembered."""
        self.iteration, self.value = 0, float("-inf")

    def see(self, iteration: int, values: Mapping[str, float]) -> bool:
        """Returns whether this evaluation is better than all earlier ones, and remembers it if it is.

        values: the metrics of the evaluation. Iteration 0 never counts, because the untrained model has no checkpoint.
        """
        if not iteration or not values.get(self.metric, float("-inf")) > self.value:  # a NaN is not greater
            return False
        self.iteration, self.value = iteration, values[self.metric]
        return True

    def state(self) -> dict[str, tuple[int, float]]:
        """Returns what a checkpoint stores: the best iteration and its value, or nothing if there is none yet."""
        return {"best": (self.iteration, self.value)} if self.iteration else {}

    def load(self, state: Mapping[str, object]) -> None:
        """Restore what `state` returned."""
        best = state.get("best")
        if self.metric and isinstance(best, list | tuple) and not isnan(best[1]):
            self.iteration, self.value = best
