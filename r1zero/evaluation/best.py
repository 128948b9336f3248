"""The best evaluation of a run so far, by evaluation.best."""

from collections.abc import Mapping


class Best:
    """Remembers the iteration with the highest value of one figure; of equal values the earliest counts."""

    def __init__(self, figure: str):
        self.figure = figure
        """Empty: nothing is remembered."""
        self.iteration, self.value = 0, float("-inf")

    def see(self, iteration: int, values: Mapping[str, float]) -> bool:
        """Whether this iteration is better than all before. The untrained model of iteration 0 has no checkpoint."""
        if not iteration or values.get(self.figure, float("-inf")) <= self.value:
            return False
        self.iteration, self.value = iteration, values[self.figure]
        return True

    def state(self) -> dict[str, tuple[int, float]]:
        """What a checkpoint keeps; nothing before the first evaluation."""
        return {"best": (self.iteration, self.value)} if self.iteration else {}

    def load(self, state: Mapping[str, object]) -> None:
        """Continue from what `state` returned."""
        best = state.get("best")
        if self.figure and isinstance(best, list | tuple):
            self.iteration, self.value = best
