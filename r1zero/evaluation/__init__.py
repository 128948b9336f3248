"""Evaluation of a model on prompt sets, on the engines of a run. It has no effect on training."""
