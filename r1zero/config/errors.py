"""Errors whose text is for the user: one sentence with the field or line, both values and the cure. No traceback is
shown."""

import time


class UserError(Exception):
    """What the user can mend: one sentence with the field or line, both values and the cure. Never a traceback."""


class CollectiveError(UserError):
    """Found by all ranks of a world together and raised on each of them. One rank prints it."""


class RewardError(Exception):
    """A sentence for the user: what is wrong with the rules, the data or the run, and the cure."""


SPEAKER_S = 3.0
"""Seconds that ranks wait for the one of them that speaks, as the first to leave may end the job."""


def found_alike(text: str, speaker: bool) -> UserError:
    """The error of ranks that find the same before they have met. One of them, the speaker, says it."""
    if speaker:
        return UserError(text)
    time.sleep(SPEAKER_S)
    return CollectiveError(text)
