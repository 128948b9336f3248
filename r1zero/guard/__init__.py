"""What stops or warns of a run that goes wrong: engines that disagree, numbers that are none, figures that turn."""
