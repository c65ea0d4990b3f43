"""The one error a user is meant to see: a line on what is wrong, a line on what to do."""

import sys
from collections.abc import Callable


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


def run_cli(main: Callable[[], None]) -> None:
    """Runs an entry point; a BctError or an OSError ends it with two lines and exit code 1."""
    try:
        main()
    except BctError as error:
        what, do = error.what, error.do
    except OSError as error:
        what, do = str(error), "check that path, its permissions and the free space, then run again"
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        return
    print(f"error: {what}\n  -> {do}", file=sys.stderr, flush=True)
    sys.exit(1)
