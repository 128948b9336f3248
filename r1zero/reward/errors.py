"""What is raised for the user to read."""


class RewardError(Exception):
    """A sentence: what is wrong with the rules, the data or the run, and the cure."""
