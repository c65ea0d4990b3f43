"""Runs that get a signal, whose terminal, reader, disk or torchrun goes: a checkpoint is left."""

import json
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.script import processes
from support.tiny import TINY, assert_same_run, family, stopping_at

from bct.command import run_cli
from bct.files import ROOT
from bct.method import Method
from bct.safe.tensors import read_tensors
from bct.train import train
from bct.training.checkpoint import checkpoints

CPU = torch.device("cpu")
fork = multiprocessing.get_context("fork")


def ended(function):
    """The exit code of a command that calls it, in a process of its own; and its seconds."""

    def run():
        torch.set_num_threads(1)  # those that torch had started are not in a forked process
        signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and `&` ignore these
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        sys.exit(function())

    process, began = fork.Process(target=run_cli, args=(run,)), time.time()
    process.start()
    process.join(60)
    return process.exitcode, time.time() - began


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint(job, tmp_path, number, capfd):
    train(job(f"output={tmp_path / 'whole'}"), Method, CPU)
    assert ended(lambda: train(job(), stopping_at(Method, 3, number), CPU))[0] == 128 + number
    assert read_tensors(checkpoints(job.output)[0])["progress"]["step"] == 3
    assert not (job.output / "run.lock").exists()
    assert train(job("resume=True"), Method, CPU) == 0
    assert_same_run(job.output, tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(job, number, capfd):
    """nohup ignores SIGHUP, a shell SIGINT for what it starts in the background."""

    def run():
        signal.signal(number, signal.SIG_IGN)
        code = train(job(), stopping_at(Method, 2, number), CPU)
        return code or int(signal.getsignal(number) != signal.SIG_IGN)

    assert ended(run)[0] == 0


@pytest.mark.parametrize("between", [[], [signal.SIGTERM], [signal.SIGHUP]], ids=str)
def test_a_second_sigint_ends_at_once(job, between, capfd):
    class Hanging(Method):
        def forward(self, *arguments):
            for number in (signal.SIGINT, *between, signal.SIGINT):
                signal.raise_signal(number)
            time.sleep(30)

    Hanging.__name__ = Method.__name__
    code, seconds = ended(lambda: train(job(), Hanging, CPU))
    assert code == 128 + signal.SIGINT and seconds < 20
    assert not checkpoints(job.output) and not (job.output / "run.lock").exists()
    assert train(job("resume=True"), Method, CPU) == 0


def closing(step, what):
    """The method; `what` is called within a step."""

    class Closing(Method):
        calls = 0

        def forward(self, *arguments):
            Closing.calls += 1
            if Closing.calls == step:
                what()
            return super().forward(*arguments)

    Closing.__name__ = Method.__name__
    return Closing


def under_a_terminal(job):
    """Trains in a terminal that is closed within the third step; ends with the run's exit code.

    To be called in a process without threads: it forks.
    """
    read, write = os.pipe()

    def hang_up():
        os.write(write, b".")
        time.sleep(1)  # until the signal

    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        sys.stdout, sys.stderr = (open(k, "w", closefd=False) for k in (1, 2))  # noqa: SIM115
        code = 1
        try:
            run_cli(lambda: sys.exit(train(job(), closing(3, hang_up), CPU)))
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code)
    os.close(write)
    assert os.read(read, 1), os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def test_a_terminal_that_closes_leaves_a_checkpoint(job):
    """SIGHUP comes, and whatever is printed from then on fails."""
    process = processes.Process(target=under_a_terminal, args=(job,))
    process.start()
    process.join(60)
    assert process.exitcode == 128 + signal.SIGHUP
    assert read_tensors(checkpoints(job.output)[0])["progress"]["step"] == 3
    assert "stopped by SIGHUP after step 3" in (job.output / "training.log").read_text()
    assert train(job("resume=True"), Method, CPU) == 0


def test_a_reader_that_goes_leaves_a_checkpoint(job):
    """`| head`, or a tee that is killed."""

    def run():
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        return train(job("batch_size=4"), Method, CPU)

    assert ended(run)[0] == 128 + signal.SIGPIPE
    assert read_tensors(checkpoints(job.output)[0])["progress"]["step"] < 5
    assert train(job("batch_size=4", "resume=True"), Method, CPU) == 0


def test_logs_that_can_not_be_written_do_not_end_a_run(job, caplog):
    """/dev/full stands for the full disk."""

    def fill():
        full = os.open("/dev/full", os.O_WRONLY)
        for name in os.listdir("/proc/self/fd"):
            try:
                file = os.readlink(f"/proc/self/fd/{name}")
            except OSError:  # of the listing itself
                continue
            if file.startswith(f"{job.output}/") and not file.endswith("run.lock"):
                os.dup2(full, int(name))
        os.close(full)

    assert train(job(), closing(2, fill), CPU) == 0
    for name in ("training.log", "metrics.jsonl"):
        said = [line for line in caplog.messages if f"{name} can't be written any more" in line]
        assert len(said) == 1, caplog.messages
    assert json.loads((job.output / "run.json").read_text())["finished"]
    assert len(checkpoints(job.output)) == 2


# ---- torchrun


@pytest.mark.slow
def test_ranks_end_with_torchrun(job, tmp_path):
    """SIGKILL of torchrun alone: its ranks save, end, and leave the output to a restart."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *torchrun, str(ROOT / "train_old.py"), str(job.path), *TINY]
    command += ["num_epoch=300", "batch_size=4", f"output={job.output}"]
    with open(tmp_path / "log", "w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
    until = time.monotonic() + 120
    while not (job.output / "checkpoints").is_dir() or not checkpoints(job.output):
        assert first.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.05)
    ranks = family(first.pid)[:-1]
    assert len(ranks) >= 2
    first.kill()
    first.wait()
    until = time.monotonic() + 20
    while left := [pid for pid in ranks if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < until, left
        time.sleep(0.05)
    step = read_tensors(checkpoints(job.output)[0])["progress"]["step"]
    # a restart cut short: it goes on from there and ends
    epochs = step // 3 + 2
    again = [*command, "resume=True"]
    second = subprocess.Popen(again, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 120
    while read_tensors(checkpoints(job.output)[0])["progress"]["step"] < 3 * epochs:
        assert second.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    for pid in family(second.pid)[:-1]:
        os.kill(pid, signal.SIGTERM)
    out = second.communicate(timeout=60)[0]
    assert "stopped by SIGTERM" in out, out
    steps = [json.loads(line) for line in (job.output / "metrics.jsonl").read_text().splitlines()]
    steps = [entry["step"] for entry in steps if "loss" in entry]
    assert steps == sorted(set(steps)), "both were at work"
