"""The one error for what a user gave: the command line prints it in one line and leaves with exit code 2."""

from fastmeta._text import printable


class InputError(ValueError):
    """An option, a file or an array of the user is wrong; the message says what, what was wanted, how to mend it.

    It is one printable line, whatever names, paths or error messages of others stand in it.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(message))
