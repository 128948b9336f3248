"""Decides whether an answer is mathematically equal to a label."""
