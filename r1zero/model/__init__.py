"""The model: its family as data, the placement of its weights, and its implementation in megatron-core."""
