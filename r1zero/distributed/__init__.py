"""Ranks, groups and devices: where everything runs, and samples on their way between grids."""
