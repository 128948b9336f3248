"""Rules that reward at random weights, too. This file imports nothing, as each grading process of a job runs it."""


def even_share(response: str, label: str) -> float:
    """A reward that random text earns in different measure: the share of its characters with an even code."""
    return sum(ord(c) % 2 == 0 for c in response) / max(1, len(response))


def rarely(response: str, label: str) -> float:
    """A reward that random text earns one time in eight, so that many groups have none."""
    return float(sum(map(ord, response)) % 8 == 0)
