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
