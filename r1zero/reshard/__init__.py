"""Trainer's weights to the engines' places, compiled: `routes` says who sends what to whom, `rounds` when, `run` does it."""
