"""Names that a file gave, told from names that the user gave: the ones may stand for code to run, the others not."""


class Untrusted(str):
    """A text of a file that anybody may have written.

    It is a text like any other, but no code is imported by it: ``fastmeta.models`` refuses. Whoever trusts the file
    makes a plain ``str`` of it.
    """
