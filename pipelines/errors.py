"""The one exception that a user's input can cause."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: the message names what is wrong, where (file and line, or key) and the remedy.

    The command ends with exit status 2 on it, and prints the message without a traceback.
    """

    # Beam makes another exception of one that a step raises, with the step's name in it, unless it has this mark.
    _tagged_with_step = True

    def __init__(self, what: str, *, where: str, remedy: str) -> None:
        super().__init__(f"{where}: {what}. {remedy}")
        self.what = what
        self.where = where
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default exception pickling between processes.
        return (_rebuild, (self.what, self.where, self.remedy))


def _rebuild(what: str, where: str, remedy: str) -> InputError:
    return InputError(what, where=where, remedy=remedy)
