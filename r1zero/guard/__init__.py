"""Checks that stop a run: engines that disagree with the trainer, and updates that are not finite."""
