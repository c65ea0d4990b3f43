"""python in_turn.py script arguments ";" script arguments ...: one process each, imported once.

For tests of what a process is given at its start, as its locale is: the forked ones inherit it, and
the seconds of importing torch are spent once. The first that fails ends it.
"""

import os
import runpy
import sys

import torch._dynamo  # noqa: F401

import bct.report.page
import bct.train  # noqa: F401
import tools.ijbc.report  # noqa: F401

arguments = sys.argv[1:]
while arguments:
    end = arguments.index(";") if ";" in arguments else len(arguments)
    command, arguments = arguments[:end], arguments[end + 1 :]
    child = os.fork()
    if child == 0:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
        sys.exit()
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{command[0]} failed")
