"""SIGKILLs at random moments of training runs: each goes on to the same bits.

`make faults` has 54 of them, `make test-slow` 3 for each of two runs. Half of the kills wait for a
checkpoint that is being written, which its temporary name tells, and come at that moment.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.old_models import SMALL, build
from support.tiny import assert_same_run, family

from bct.files import ROOT
from bct.safe.tensors import read_tensors
from bct.training.checkpoint import checkpoints

KILLS = int(os.environ.get("BCT_KILLS", 3))  # of each run; `make faults` sets it to 9
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return build(tmp_path_factory.mktemp("house"))


def old_model(folder: Path) -> list[str]:
    """A run whose checkpoints take a while to write: 20,000 classes."""
    (folder / "job.py").write_text(
        "from easydict import EasyDict\nconfig = EasyDict(rec='synthetic', num_image=2000, "
        "num_classes=20000, network='demo_w32', embedding_size=64, lr=0.01, "
        f"num_epoch={1 if KILLS < 4 else 2})\n"
    )
    return ["train_old.py", str(folder / "job.py")]


def new_model(house: Path, name: str) -> list[str]:
    epochs = [f"num_epoch={30 if KILLS < 4 else 60}", "lr=0.01"]
    given = [f"{house / 'new.py'}", "scenario=OPclass", "old_config=old_class30"]
    return [f"methods/{name}/train.py", *given, *epochs, *SMALL.get(name, ())]


def wait_until(condition, process: subprocess.Popen) -> bool:
    """False if the process has ended first."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    return True


def steps_logged(output: Path) -> int:
    try:
        return (output / "metrics.jsonl").read_text().count('"loss"')
    except FileNotFoundError:  # not begun; one that starts afresh clears the last one's away
        return 0


def everything_is_whole(output: Path) -> None:
    for file in [*checkpoints(output), *output.glob("*.pt")]:
        read_tensors(file)


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        pytest.param("train_old", 1, marks=pytest.mark.slow),
        pytest.param("train_old", 2, marks=pytest.mark.faults),
        pytest.param("MixBCT", 1, marks=pytest.mark.faults),
        pytest.param("MixBCT", 2, marks=pytest.mark.faults),
        pytest.param("NCCL", 1, marks=pytest.mark.faults),
        pytest.param("NCCL", 2, marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_like_the_whole_one(house, tmp_path, name, ranks, record_property):
    script, *arguments = old_model(tmp_path) if name == "train_old" else new_model(house, name)
    common = ["batch_size=8", "frequent=1", "num_workers=1", "amp=off", "save_every=3"]
    launcher = [sys.executable, *(TORCHRUN if ranks == 2 else [])]

    def start(output: Path, *more: str) -> subprocess.Popen:
        command = [*launcher, str(ROOT / script), *arguments, *common, f"output={output}", *more]
        with open(tmp_path / "log", "a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", np.random.default_rng(ranks)
    assert start(whole).wait() == 0, (tmp_path / "log").read_text()
    kills, folder = 0, killed / "checkpoints"
    while kills < KILLS:
        process, before = start(killed, "resume=True"), steps_logged(killed)
        begun = wait_until(lambda n=before: steps_logged(killed) not in (0, n), process)
        if begun and kills % 2:
            begun = wait_until(lambda: list(folder.glob(".*.tmp")), process)
            time.sleep(rng.uniform(0, 0.004))
        elif begun:
            time.sleep(rng.uniform(0, 0.3))
        if not begun or process.poll() is not None:
            break  # it has finished
        victims = family(process.pid)
        if ranks == 2 and kills % 3 == 0:
            victims = victims[-2:-1]  # one rank; torchrun ends the other
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        kills += 1
        everything_is_whole(killed)
        for leftover in folder.glob(".*.tmp"):
            record_property("half-written", leftover.name)
            leftover.unlink()
    record_property("kills", kills)
    assert kills == KILLS, f"the run ended after {kills} kills: make it longer"
    assert start(killed, "resume=True").wait() == 0, (tmp_path / "log").read_text()
    assert_same_run(whole, killed)
