"""The one error a user is meant to see: a line on what is wrong, a line on what to do."""


class BctError(Exception):
    """A problem the user can mend.

    Args:
        what: one line, what is wrong (names the file, key or value).
        do: one line, what to do about it.
    """

    def __init__(self, what: str, do: str):
        super().__init__(what, do)  # both in args, so that it survives pickling between processes
        self.what, self.do = what, do

    def __str__(self) -> str:
        return f"{self.what}\n{self.do}"


def printable(text: object, keep: str = "") -> str:
    """Text that breaks no line and moves no cursor: what has no picture is written as an escape.

    Names of files, classes and models may hold newlines, control codes, right-to-left marks and
    bytes that are no text. keep: characters that stay as they are.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )
