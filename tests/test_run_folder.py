"""Starts in an output that are killed or that meet each other: nothing is lost or mixed."""

import builtins
import io
import json
import multiprocessing
import os
import random
import shutil
import time

import pytest
import torch
from support.killed import kills
from support.tiny import assert_same_run, stopping_at

from bct.config import load_config
from bct.errors import BctError
from bct.files import write_json
from bct.method import Method
from bct.train import train
from bct.training.run_folder import prepared_output

CPU = torch.device("cpu")
fork = multiprocessing.get_context("fork")
FOREIGN = ("notes.txt", "checkpoints.old/step_00000001.pt", "run.json.bak", ".model.pt.tmp")


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def add_foreign(output):
    for name in FOREIGN:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("precious")


def assert_foreign(output):
    assert [(output / name).read_text() for name in FOREIGN] == ["precious"] * len(FOREIGN)


def start(cfg, identity):
    """Begins and ends a run: how it has started."""
    with prepared_output(cfg, identity) as (how, _):
        return how


# ---- kills before every change of the disk


def test_a_start_on_an_empty_folder_is_killed(job, capfd):
    killed = 0
    add_foreign(job.output)
    for _ in kills(lambda: start(job(), {"a": 1})):
        killed += 1
        for leave in ([], ["resume=True"], ["overwrite=True"]):  # whichever way it is given again
            try:
                assert start(job(*leave), {"a": 1}) == "fresh"
            except BctError as refusal:
                assert not leave and "pass resume=True" in refusal.do
        assert_foreign(job.output)
        ours = contents(job.output).keys() - FOREIGN
        assert ours == {"run.json", "config.py"}, "something half-written has stayed"
        shutil.rmtree(job.output)
        add_foreign(job.output)
    assert killed > 20
    print(f"{killed} kills")


def test_an_overwrite_is_killed(job, tmp_path, capfd):
    """What is left of the old run is replaced by the next start, or resume refuses it."""
    train(job("save_every=1"), Method, CPU)
    add_foreign(job.output)
    old, killed = tmp_path / "old", 0
    job.output.rename(old)
    identity = json.loads((old / "run.json").read_text())["identity"]
    shutil.copytree(old, job.output)
    for _ in kills(lambda: start(job("overwrite=True"), {"a": 1})):
        killed += 1
        assert_foreign(job.output)
        left = tmp_path / "left"
        shutil.copytree(job.output, left)
        try:  # back to the old run, whose files go one by one
            how = start(job("resume=True", f"output={left}"), identity)
            assert how != "finished" or (left / "model.pt").is_file()
        except BctError as refusal:
            assert "overwrite=True" in refusal.do or "its checkpoints are gone" in refusal.what
        shutil.rmtree(left)
        assert start(job("overwrite=True"), {"a": 1}) == "fresh"
        assert_foreign(job.output)
        assert contents(job.output).keys() - FOREIGN == {"run.json", "config.py"}
        shutil.rmtree(job.output)
        shutil.copytree(old, job.output)
    assert killed > 25
    print(f"{killed} kills")


@pytest.mark.parametrize(
    "record", ["whole", "damaged", pytest.param("gone", marks=pytest.mark.slow)]
)
def test_a_resume_is_killed(job, tmp_path, capfd, record):
    train(job(f"output={tmp_path / 'whole'}"), Method, CPU)
    train(job("save_every=1"), stopping_at(Method, 3), CPU)
    identity = json.loads((job.output / "run.json").read_text())["identity"]
    if record == "damaged":
        (job.output / "run.json").write_text("{")
    if record == "gone":
        (job.output / "run.json").unlink()
    add_foreign(job.output)
    old, killed = tmp_path / "old", 0
    shutil.copytree(job.output, old)
    kept = {n: data for n, data in contents(old).items() if n not in ("run.json", "config.py")}
    for _ in kills(lambda: start(job("resume=True"), identity)):
        killed += 1
        assert kept.items() <= contents(job.output).items()
        assert start(job("resume=True"), identity) == "resume"
        assert kept.items() <= contents(job.output).items()
        shutil.rmtree(job.output)
        shutil.copytree(old, job.output)
    assert killed > 20
    print(f"{killed} kills")
    assert train(job("resume=True"), Method, CPU) == 0
    assert_foreign(job.output)
    assert_same_run(job.output, tmp_path / "whole")


def test_checkpoints_that_are_gone_are_not_trained_again(job, tmp_path):
    """As on a disk that is not mounted: resume=True would have removed model.pt and begun anew."""
    train(job("num_epoch=3"), stopping_at(Method, 5), CPU)
    (job.output / "checkpoints").rename(tmp_path / "elsewhere")
    before = contents(job.output)
    for empty in (False, True):
        if empty:
            (job.output / "checkpoints").mkdir()
        with pytest.raises(BctError, match="a run of 5 steps, but its checkpoints are gone"):
            train(job("num_epoch=3", "resume=True"), Method, CPU)
        assert contents(job.output) == before
    (job.output / "checkpoints").rmdir()
    (tmp_path / "elsewhere").rename(job.output / "checkpoints")
    assert train(job("num_epoch=3", "resume=True"), Method, CPU) == 0


def test_a_half_written_checkpoint_is_cleared_by_resume(job):
    train(job(), stopping_at(Method, 3), CPU)  # the run goes on without another step 3
    half = job.output / "checkpoints" / ".step_00000003.pt.0123abcd.tmp"
    half.write_bytes(b"x" * 100)
    identity = json.loads((job.output / "run.json").read_text())["identity"]
    assert start(job("resume=True"), identity) == "resume"
    assert not half.exists()


def test_a_lock_that_is_no_file(job):
    job.output.mkdir()
    os.mkfifo(job.output / "run.lock")
    with pytest.raises(BctError, match="not a lock of this program's"):
        start(job(), {"a": 1})


# ---- two starts at once

LANES, ROUNDS = 16, 13  # 208 interleavings
_CALLS = ("open", "mkdir", "replace", "unlink", "rmdir", "fchmod", "fsync", "ftruncate", "close")


def slow_disk(rng):
    """Now and then a moment passes before a call of the disk."""

    def delayed(real):
        def call(*arguments, **more):
            if rng.random() < 0.4:
                time.sleep(rng.uniform(0, 0.003))
            return real(*arguments, **more)

        return call

    for name in _CALLS:
        setattr(os, name, delayed(getattr(os, name)))
    builtins.open = io.open = delayed(builtins.open)


def take_turns(job, lane, me, meet, results):
    """One of two processes that start a run in the same outputs at the same moments."""
    slow_disk(random.Random(2 * lane + me))  # noqa: S311
    for number in range(ROUNDS):
        output, leave = job.output / f"{lane}-{number}", ["overwrite=True"] * (number % 2)
        cfg = job(f"output={output}", f"lr={0.1 + me}", *leave)
        meet.wait()
        began, what = time.monotonic(), None
        try:
            with prepared_output(cfg, {"lr": cfg.lr}) as (how, record):
                began = time.monotonic()
                for name in ("model.pt", f"checkpoints/step_0000000{me}.pt"):
                    record.name([name])
                    record.write()
                    write_json(output / name, me)
                record.finished = True
                record.write()
                faults = disagreements(output, me)
                ended = time.monotonic()
        except BctError as error:
            how, faults, ended, what = None, [], began, error.what
        except Exception as error:  # to be told, or the other would wait
            how, faults, ended, what = None, [], began, repr(error)
        meet.wait()
        results.put((lane, number, me, how, began, ended, faults, what))


def disagreements(output, who):
    """What in an output is not of the run of this process."""
    said = json.loads((output / "run.json").read_text())
    found = {
        "identity": said["identity"] == {"lr": 0.1 + who},
        "finished": said["finished"],
        "config": load_config(output / "config.py").lr == 0.1 + who,
        "model": (output / "model.pt").read_text() == f"{who}\n",
        "files": os.listdir(output / "checkpoints") == [f"step_0000000{who}.pt"],
        "named": f"checkpoints/step_0000000{who}.pt" in said["files"],
        "others": {p.name for p in output.iterdir()} - {"run.lock"}
        == {"run.json", "config.py", "model.pt", "checkpoints"},
    }
    return [name for name, holds in found.items() if not holds]


def test_two_starts_at_once_never_mix(job):
    results, lanes = fork.Queue(), []
    barriers = [fork.Barrier(2) for _ in range(LANES)]  # one that is dropped lends its memory on
    for lane in range(LANES):
        for me in range(2):
            task = job, lane, me, barriers[lane], results
            lanes.append(fork.Process(target=take_turns, args=task))
            lanes[-1].start()
    told = [results.get(timeout=60) for _ in range(2 * LANES * ROUNDS)]
    for process in lanes:
        process.join()
        assert process.exitcode == 0
    rounds, replaced = {}, 0
    for lane, number, *outcome in told:
        rounds.setdefault((lane, number), []).append(outcome)
    for (lane, number), both in rounds.items():
        winners = sorted((o for o in both if o[1]), key=lambda o: o[2])
        assert all(how == "fresh" and not faults for _, how, _, _, faults, _ in winners), both
        for _, how, _, _, _, what in both:
            assert how or "is training in" in what or "holds" in what, what
        if number % 2:  # with overwrite=True the second may come after the first
            assert 1 <= len(winners) <= 2
            assert len(winners) == 1 or winners[0][3] <= winners[1][2], winners
            replaced += len(winners) == 2
        else:
            assert len(winners) == 1, both
        assert not disagreements(job.output / f"{lane}-{number}", winners[-1][0])
        assert not (job.output / f"{lane}-{number}" / "run.lock").exists()
    assert len(rounds) >= 200
    print(f"{len(rounds)} interleavings, {replaced} replaced")


def test_a_run_from_before_its_config_was_insightfaces(job):
    """What the answer advises goes on with it."""
    plain = job.path.read_text()
    job.path.write_text(plain.replace('config.convention = "bct"\n', ""))
    train(job("num_epoch=1", "convention=bct"), Method, CPU)
    with pytest.raises(BctError, match="seed 666 -> 2048") as refused:
        train(job("num_epoch=1", "resume=True"), Method, CPU)
    assert refused.value.do.startswith("pass convention=bct")
    with pytest.raises(BctError, match="lr ") as refused:
        train(job("num_epoch=1", "resume=True", "lr=1.0"), Method, CPU)
    assert "convention" not in refused.value.do
    with pytest.raises(BctError) as refused:
        train(job("num_epoch=1", "resume=True", "parity=published"), Method, CPU)
    assert "convention" not in refused.value.do  # it is not all that differs
    assert train(job("num_epoch=1", "convention=bct", "resume=True"), Method, CPU) == 0
