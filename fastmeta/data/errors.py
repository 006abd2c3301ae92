"""The one error for what a user gave: the command line prints it in one line and leaves with exit code 2."""


class InputError(ValueError):
    """An option, a file or an array of the user is wrong; the message says what, what was wanted, how to mend it."""
