"""Runs a script of the project as a command, in a process forked from one that has imported torch.

The process, its arguments, output and exit code are real; only the seconds that every start of
Python spends on importing are saved. With several ranks they meet as torchrun's do.
"""

import math
import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from bct.files import ROOT
from support import ranks as _  # noqa: F401  (says what the forked processes have imported)

processes = multiprocessing.get_context("forkserver")


def run_script(
    script: str | Path,
    *arguments: object,
    ranks: int = 1,
    cwd: str | Path = ROOT,
    env: dict[str, str] | None = None,
    seconds: float = math.inf,
    memory: int = resource.RLIM_INFINITY,
) -> subprocess.CompletedProcess:
    """`python script arguments` in the repository's root, as subprocess.run would return it.

    Args:
        ranks: how many processes, as if started by torchrun; the exit code is 1 if any fails.
        env: variables added to the environment.
        seconds: after which it is killed. memory: bytes of address space that it may have.
    """
    command = [str(ROOT / script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **(env or {})}
        if ranks > 1:
            store = dist.TCPStore("localhost", 0, ranks, is_master=True, wait_for_workers=False)
            environment |= {
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "WORLD_SIZE": str(ranks),
            }
        started = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            task = (command, str(cwd), {**environment, **own}, folder)
            started.append(processes.Process(target=_run, args=task))
            started[-1].start()
            resource.prlimit(started[-1].pid, resource.RLIMIT_AS, (memory, memory))
        code = _wait(started, seconds)
        out, err = (Path(folder, name).read_text(errors="replace") for name in ("out", "err"))
    return subprocess.CompletedProcess(command, code, out, err)


def _run(command: list[str], cwd: str, environment: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.executable = environment.get("PYTHON", sys.executable)  # as if that had started it
    become(command, f"{folder}/out", f"{folder}/err")


def become(command: list[str], out: str | Path, err: str | Path) -> None:
    """Turns this forked process into the script command[0], its output appended to the files."""
    for path, descriptor in ((out, 1), (err, 2)):
        with open(path, "a", encoding="utf-8") as file:
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(1)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def _wait(started: list, seconds: float) -> int:
    """The exit code of one process; of several 1 if any fails, which ends the others, too."""
    until = time.monotonic() + seconds
    while any(process.is_alive() for process in started):
        if time.monotonic() > until:
            for process in started:
                process.kill()
        if any(process.exitcode for process in started):
            time.sleep(1)  # the others may have something to say
            for process in started:
                process.kill()
        time.sleep(0.005)
    codes = [process.exitcode for process in started]
    return codes[0] if len(codes) == 1 else int(any(codes))
