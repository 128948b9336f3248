"""Faces of the model: its family as data, its weights on disk, and its form in megatron-core."""
