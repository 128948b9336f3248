"""How well a model answers prompt sets: what is measured, on the engines of a run, without any effect on training."""
