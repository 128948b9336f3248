"""Errors whose text is shown to the user without a traceback.

The text is one sentence that names the field or line, the value that was found, the allowed value and the fix.
"""

import time


class UserError(Exception):
    """An error that the user can fix. Its text is one sentence, as described above."""


class CollectiveError(UserError):
    """A UserError that all ranks of a world raise together. Only one rank prints it."""


class RewardError(Exception):
    """An error in the reward rules, the data or the run, as one sentence with the fix."""


ERROR_WAIT_S = 3.0
"""Seconds that the other ranks wait for the rank that prints an error, because the first exit may end the job."""


def shared_error(text: str, speaker: bool) -> UserError:
    """Returns the error for a problem that every rank finds by itself, before the ranks can communicate.

    The speaker gets a UserError at once and prints it. The others wait ERROR_WAIT_S and get a CollectiveError.
    """
    if speaker:
        return UserError(text)
    time.sleep(ERROR_WAIT_S)
    return CollectiveError(text)
