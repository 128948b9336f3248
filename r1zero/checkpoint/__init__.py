"""Weights and training state on disk: a run's checkpoints, Hugging Face folders, and the way between them."""
