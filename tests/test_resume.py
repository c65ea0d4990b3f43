"""A run that is stopped, damaged or out of space goes on to the very same result."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import torch
from support.pictures import write_faces
from support.ranks import run_on_ranks
from support.script import run_script
from support.tiny import TINY, Job, assert_same_run, differences, family, stopping_at

from bct import distributed
from bct.errors import BctError
from bct.files import ROOT
from bct.method import Method
from bct.safe.tensors import read_tensors
from bct.train import train
from bct.training.checkpoint import checkpoints

CPU = torch.device("cpu")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def command(job, output, *overrides, script=ROOT / "train_old.py"):
    return [str(script), str(job.path), *TINY, f"output={output}", *overrides]


def steps_of(output):
    lines = (output / "metrics.jsonl").read_text().split("\n")[:-1]  # the last may be half a line
    return [entry["step"] for entry in map(json.loads, lines) if "loss" in entry]


# ---- stopping on request


def whole_and_stopped(job, folder, overrides, step):
    """The same run at one go, and stopped by a signal in a step, then resumed."""
    assert train(job(f"output={folder / 'whole'}", *overrides), Method, CPU) == 0
    stopped = job(f"output={folder / 'stopped'}", *overrides)
    assert train(stopped, stopping_at(Method, step, signal.SIGUSR1), CPU) == 128 + signal.SIGUSR1
    assert train(job(f"output={folder / 'stopped'}", *overrides, "resume=True"), Method, CPU) == 0


RUNS = {
    "margin": (["num_epoch=5"], 3),
    "softmax-adamw": (["head=softmax", "optimizer=adamw", "num_epoch=5"], 3),
    "sampled-accumulated": (["sample_rate=0.4", "gradient_acc=2", "num_epoch=6"], 3),
    "drop-path": (["network=vit_t_dp005_mask0", "num_epoch=3"], 2),
}
LONG = {
    ("drop-path", 2): pytest.mark.slow,
    ("sampled-accumulated", 4): pytest.mark.slow,
    ("drop-path", 1): pytest.mark.faults,
    ("drop-path", 4): pytest.mark.faults,
    ("margin", 4): pytest.mark.faults,
    ("softmax-adamw", 4): pytest.mark.faults,
}


@pytest.mark.parametrize(
    ("name", "world_size"),
    [pytest.param(*case, marks=LONG.get(case, ())) for case in product(RUNS, (1, 2, 4))],
)
def test_it_goes_on_bit_by_bit(job, tmp_path, name, world_size):
    overrides, step = RUNS[name]
    batch = 2 if "gradient_acc=2" in overrides else 8 // max(world_size, 2)
    overrides = [*overrides, f"batch_size={batch}"]
    run_on_ranks(world_size, whole_and_stopped, job, tmp_path, overrides, step)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert steps_of(tmp_path / "whole") == steps_of(tmp_path / "stopped")


def test_on_another_number_of_ranks_it_continues_and_says_so(job, tmp_path, capfd):
    run_on_ranks(2, stopped_only, job, "batch_size=4", "num_epoch=4", "save_every=3")
    progress = read_tensors(checkpoints(job.output)[0])["progress"]
    # 4 ranks of 2 and 2 of 4 make the same steps: 2 per epoch of 20 images
    assert (progress["step"], progress["world_size"]) == (4, 2)
    assert train(job("batch_size=8", "num_epoch=4", "resume=True"), Method, CPU) == 0
    assert "as {'world_size': 1, 'batch_size': 8" in capfd.readouterr().out
    assert steps_of(job.output) == list(range(1, 9))
    with pytest.raises(BctError, match="batch_size 8 -> 4"):  # on as many ranks it is a change
        train(job("batch_size=4", "num_epoch=4", "resume=True"), Method, CPU)


def stopped_only(job, *overrides):
    assert train(job(*overrides), stopping_at(Method, 3), CPU) == 128 + signal.SIGTERM


# ---- checkpoints


def test_which_checkpoints_are_kept(job):
    train(job("num_epoch=3", "save_every=3", "batch_size=4", "keep_checkpoints=3"), Method, CPU)
    assert [f.stem for f in checkpoints(job.output)] == [f"step_{k:08}" for k in (15, 12, 10)]
    train(job("num_epoch=3", "save_every=3", "batch_size=4", "overwrite=True"), Method, CPU)
    assert [f.stem for f in checkpoints(job.output)] == [f"step_{k:08}" for k in (15, 12)]


def damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "cut":
        del content[len(content) // 2 :]
    elif how == "a bit":
        content[len(content) // 2] ^= 4
    elif how == "foreign":
        torch.save({"weight": torch.zeros(3)}, file)
        return
    elif how == "zeros":
        content[: len(content) // 3] = bytes(len(content) // 3)
    else:
        content.clear()
    file.write_bytes(content)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole run and the same stopped in its fifth step, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("trained")
    write_faces(folder / "train.rec", [4, 5, 3, 4, 4])
    job = Job(folder)
    train(job(f"output={folder / 'whole'}", "num_epoch=4"), Method, CPU)
    assert train(job("num_epoch=4", "save_every=1"), stopping_at(Method, 5), CPU)
    return job


@pytest.mark.parametrize("how", ["cut", "a bit", "zeros", "empty", "foreign"])
def test_a_damaged_checkpoint_is_passed_over(trained, tmp_path, how, caplog):
    output = shutil.copytree(trained.output, tmp_path / "run")
    last, before = checkpoints(output)
    damage(last, how)
    resumed = f"output={output}", "num_epoch=4", "resume=True"
    assert train(trained(*resumed, "save_every=1"), Method, CPU) == 0
    assert "trying the one before" in caplog.text
    assert_same_run(trained.output.parent / "whole", output)
    for file in checkpoints(output):
        damage(file, how)
    run = output / "run.json"
    run.write_text(run.read_text().replace('"finished": true', '"finished": false'))
    with pytest.raises(BctError, match=r"is damaged|can't be read|is not a checkpoint"):
        train(trained(*resumed), Method, CPU)
    assert len(checkpoints(output)) == 2 and before.stem == "step_00000004"


def test_mutated_checkpoints_are_read_correctly_or_refused(job, tmp_path):
    train(job("num_epoch=1", "network=demo_w16"), Method, CPU)
    (file,) = checkpoints(job.output)
    whole, content, rng = read_tensors(file), file.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        mutated = bytearray(content)
        # headers and directory are a small part of the file: aim at its ends as well
        last = len(content) - 1
        at = rng.choice([rng.integers(last), rng.integers(3000), last - rng.integers(9000)])
        mutated[int(at)] ^= 1 << int(rng.integers(8))
        (tmp_path / "mutated.pt").write_bytes(mutated)
        try:
            read = read_tensors(tmp_path / "mutated.pt")
        except BctError as error:
            refused += "mutated.pt" in error.what
        else:
            assert not list(differences(whole, read)), at
    assert refused > 100


def test_a_full_disk_leaves_the_last_checkpoint(job, tmp_path):
    """A file size limit stands for the full disk: writes fail in the middle of the file."""
    assert train(job("save_every=1"), stopping_at(Method, 2), CPU)
    files = checkpoints(job.output)
    before = [f.read_bytes() for f in files]
    size = files[0].stat().st_size // 2
    script, *arguments = command(job, job.output, "save_every=1", "resume=True")
    (tmp_path / "limited.py").write_text(
        "import resource, runpy\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        f"runpy.run_path({script!r}, run_name='__main__')\n"
    )
    done = run_script(tmp_path / "limited.py", *arguments)
    assert done.returncode == 1 and "can't be written" in done.stderr, done.stderr
    assert f"{files[0]} is intact" in done.stderr and len(done.stderr.strip().splitlines()) == 2
    assert [f.read_bytes() for f in checkpoints(job.output)] == before
    assert not [f for f in files[0].parent.iterdir() if f not in files]
    assert train(job("save_every=1", "resume=True"), Method, CPU) == 0


def test_a_crash_while_an_old_run_is_cleared_away(job):
    train(job("num_epoch=1"), Method, CPU)
    (job.output / "model.json").unlink()  # the first that _clear deletes; run.json is the last
    assert train(job("num_epoch=1", "overwrite=True"), Method, CPU) == 0


# ---- processes


@pytest.fixture
def start():
    """Starts processes; those that still run at the end are killed, with all of theirs."""
    started = []

    def begin(command, **options):
        options = {"stderr": subprocess.PIPE, "text": True, **options}
        started.append(subprocess.Popen(command, **options))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            for pid in family(process.pid):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "launcher",
    [[sys.executable], pytest.param(TORCHRUN, marks=pytest.mark.slow)],
    ids=["python", "torchrun"],
)
def test_sigterm_saves_and_ends(job, start, launcher):
    command_line = command(job, job.output, "num_epoch=300", "batch_size=4")
    process = start([*launcher, *command_line], stdout=subprocess.DEVNULL)
    wait_for(lambda: (job.output / "metrics.jsonl").is_file() and len(steps_of(job.output)) > 2)
    for pid in [*family(process.pid)[:-1], process.pid]:  # as a scheduler does, workers and all
        os.kill(pid, signal.SIGTERM)
    process.wait(300)
    assert process.returncode == (143 if launcher != TORCHRUN else 1)
    step = read_tensors(checkpoints(job.output)[0])["progress"]["step"]
    assert f"stopped by SIGTERM after step {step}" in (job.output / "training.log").read_text()


@pytest.mark.slow
def test_torchrun_restarts_after_a_killed_rank(job, start, tmp_path):
    overrides = ["num_epoch=12", "batch_size=4", "save_every=1"]
    whole = run_script(*command(job, tmp_path / "whole", *overrides), ranks=2)
    assert whole.returncode == 0, whole.stderr
    restarting = [*TORCHRUN, "--max-restarts=3", *command(job, job.output, *overrides)]
    process = start(restarting, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(checkpoints(job.output)) == 2)
    os.kill(family(process.pid)[-2], signal.SIGKILL)
    assert process.wait(300) == 0, process.stderr.read()
    assert_same_run(tmp_path / "whole", job.output)


SCRIPT = """
import sys, time
from bct import distributed
from bct.method import Method
from bct.train import main

class Failing(Method):
    calls = 0

    def forward(self, *arguments):
        Failing.calls += 1
        if Failing.calls == 2 and distributed.rank() == 1:
            {what}
        return super().forward(*arguments)

main(Failing)
"""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("raise ValueError('of my own')", ["rank 1: Traceback", "ValueError: of my own"]),
        ("time.sleep(600)", ["rank 0: error: another rank has died or does not answer"]),
    ],
    ids=["raises", "hangs"],
)
def test_the_first_rank_to_fail_says_why_and_the_job_ends(job, tmp_path, what, words):
    (tmp_path / "failing.py").write_text(SCRIPT.format(what=what))
    script, *arguments = command(
        job, job.output, "batch_size=4", "timeout=0.05", script=tmp_path / "failing.py"
    )
    done = run_script(script, *arguments, ranks=2)
    assert done.returncode == 1
    for word in words:
        assert word in done.stderr, done.stderr
    reports = [line for line in done.stderr.splitlines() if line.startswith("rank ")]
    assert len(reports) == 1


def disagreeing(job, *overrides):
    with pytest.raises(BctError) as error:
        train(job(overrides[distributed.rank()]), Method, CPU)
    return str(error.value)


def test_ranks_that_disagree_find_out_before_the_first_step(job, tmp_path):
    other = tmp_path / "other"
    write_faces(other / "train.rec", [4, 5, 3, 4, 5])
    for given, word in (
        (("lr=0.1", "lr=0.2"), "ranks 0 and 1 differ in lr: 0.1 and 0.2"),
        (("frequent=1", "frequent=2"), "differ in frequent"),
        (("lr=0.1", f"rec={other}"), "differ in num_image"),
    ):
        for text in run_on_ranks(2, disagreeing, job, *given):
            assert word in text, text
        assert not job.output.exists()


def test_ranks_of_different_world_sizes(job):
    """Started by hand: rank 1 believes in three ranks."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    by_hand = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "LOCAL_RANK": "0"}
    command_line = command(job, job.output, "batch_size=4", "timeout=0.05")
    with ThreadPoolExecutor() as pool:
        ranks = [
            pool.submit(run_script, *command_line, env={**by_hand, "RANK": rank, "WORLD_SIZE": n})
            for rank, n in (("0", "2"), ("1", "3"))
        ]
    first, second = (rank.result() for rank in ranks)
    assert "rank 1 was started for 3 ranks, rank 0 for 2" in second.stderr
    assert first.returncode == second.returncode == 1
    assert not job.output.exists()
