"""What the command lines of all scripts share."""

import os
import sys
import traceback
from collections.abc import Callable

from bct.errors import BctError


def run_cli(main: Callable[[], None]) -> None:
    """Runs an entry point; a BctError or an OSError ends it with two lines and exit code 1.

    Of several ranks the first to fail says why, with its traceback if the error is not one of
    these; the others keep quiet.
    """
    try:
        main()
    except BctError as error:
        report = _lines(error.what, error.do)
    except OSError as error:
        report = _lines(
            str(error), "check that path, its permissions and the free space, then run again"
        )
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if "RANK" not in os.environ:
            raise
        from bct import distributed

        report = traceback.format_exc()
        if distributed.is_peer_failure(error):
            report = _lines(
                f"another rank has died or does not answer ({str(error).splitlines()[0][:200]})",
                "look for what it said, or for the kernel's out-of-memory killer, and start again",
            )
    else:
        return
    if "RANK" in os.environ:
        from bct import distributed  # here, so that tools without torch start fast

        distributed.fail(report)
    print(report, file=sys.stderr, flush=True)
    sys.exit(1)


def _lines(what: str, do: str) -> str:
    return f"error: {what}\n  -> {do}"
