"""Files and artefacts that survive: kills between any two steps, several writers at once, umask."""

import fcntl
import itertools
import multiprocessing
import os
import stat
import threading

import numpy as np
import pytest
from support.killed import kills

from bct.errors import BctError
from bct.files import atomic
from bct.stored.artefacts import is_valid, open_artefact, write_artefact

VALUES = {"old": 1.0, "new": 2.0}
fork = multiprocessing.get_context("fork").Process


def write(path, model, value=None):
    with write_artefact(path, (500, 16), "float32", model=model) as out:
        out[:] = VALUES[model] if value is None else value


def used(path):
    """The model whose artefact this passes for, None if it is refused."""
    for model, value in VALUES.items():
        if is_valid(path, model=model):
            assert (open_artefact(path)[0] == value).all()
            return model
    with pytest.raises(BctError):
        open_artefact(path)
    return None


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_killed_between_any_two_steps(tmp_path):
    path, seen = tmp_path / "a.npy", []
    write(path, "old")
    for _ in kills(lambda: write(path, "new")):
        seen.append(used(path))
        write(path, "new")
        assert used(path) == "new" and names(tmp_path) == ["a.json", "a.npy"]
        write(path, "old")
    seen.append(used(path))
    assert len(seen) > 10
    # first the old one, then neither, and the new one from the last rename on
    assert [model for model, _ in itertools.groupby(seen)] == ["old", None, "new"]


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("AABB"))), ids="".join)
@pytest.mark.parametrize("equal", [True, False])
def test_two_writers_in_every_order(tmp_path, monkeypatch, order, equal):
    """Each renames its array, then its manifest: what does not belong together is refused."""
    path, turns, turn, rename = tmp_path / "a.npy", list(order), threading.Condition(), os.replace

    def in_turn(source, target):
        with turn:
            mine = threading.current_thread().name
            assert turn.wait_for(lambda: turns[0] == mine, timeout=30)
            rename(source, target)
            turns.pop(0)
            turn.notify_all()

    monkeypatch.setattr(os, "replace", in_turn)
    models = {"A": "old", "B": "old" if equal else "new"}
    threads = [threading.Thread(target=write, args=(path, models[n]), name=n) for n in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not turns and names(tmp_path) == ["a.json", "a.npy"]
    array, manifest = max("AB", key=order.index), order[-1]  # whose are there in the end
    assert used(path) == (models[manifest] if models[array] == models[manifest] else None)
    monkeypatch.undo()
    write(path, "new")
    assert used(path) == "new"


def test_a_manifest_of_other_bits_of_the_same_model_is_refused(tmp_path):
    """Two runs of one model whose sums were taken in another order."""
    write(tmp_path / "a.npy", "old")
    write(tmp_path / "b.npy", "old", np.nextafter(np.float32(1), 2, dtype=np.float32))
    os.replace(tmp_path / "b.npy", tmp_path / "a.npy")
    assert not is_valid(tmp_path / "a.npy", model="old")
    with pytest.raises(BctError, match="is not the array its manifest was written for"):
        open_artefact(tmp_path / "a.npy")


def test_a_digest_of_a_large_array_looks_at_all_parts_of_it(tmp_path):
    path = tmp_path / "a.npy"
    with write_artefact(path, (3000, 4096), "float32", model="old") as out:
        out[:] = 1
    array = np.lib.format.open_memmap(path)
    for start in (0, 1, 1500, 2988):
        array[start : start + 12] += 1  # a 256th of the rows
        assert not is_valid(path)
        array[start : start + 12] -= 1
        assert is_valid(path)


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    path = tmp_path / "a[1].txt"
    others = [".a[1].txt.12345.tmp", ".b.txt.0123abcd.tmp", ".a1.txt.0123abcd.tmp", "a[1].txt.tmp"]
    for name in [*others, ".a[1].txt.0123abcd.tmp"]:
        (tmp_path / name).touch()
    begun, go = os.pipe(), os.pipe()  # an Event could be left locked by the process that is killed

    def slow():
        with atomic(path) as temporary:
            temporary.write_text("slow")
            os.write(begun[1], b".")
            os.read(go[0], 1)

    living, dead = fork(target=slow), fork(target=slow)
    dead.start()
    os.read(begun[0], 1)
    dead.kill()
    dead.join()
    living.start()
    os.read(begun[0], 1)
    with atomic(path) as temporary:
        temporary.write_text("fast")
    assert path.read_text() == "fast"
    assert len(names(tmp_path)) == len(others) + 2 and set(others) < set(names(tmp_path))
    os.write(go[1], b".")
    living.join()
    assert living.exitcode == 0 and path.read_text() == "slow"
    assert names(tmp_path) == sorted([*others, path.name])


def test_a_file_taken_for_a_leftover_before_its_lock(tmp_path, monkeypatch):
    lock, taken = fcntl.flock, []

    def late(descriptor, how):
        if not taken:
            taken.extend(tmp_path.glob(".*.tmp"))
            taken[0].unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with atomic(tmp_path / "a.txt") as temporary:
        assert temporary.exists()
        temporary.write_text("there")
    assert taken and (tmp_path / "a.txt").read_text() == "there"
    assert names(tmp_path) == ["a.txt"]


def test_without_locks_files_are_still_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".a.txt.0123abcd.tmp").touch()  # can't be told from one at work: it stays
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("there")
    assert names(tmp_path) == [".a.txt.0123abcd.tmp", "a.txt"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_private_until_finished(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic(tmp_path / "a.txt") as temporary:
            temporary.write_text("secret")
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask


def test_on_the_disk_before_its_name_and_the_name_too(tmp_path, monkeypatch):
    calls, sync, rename = [], os.fsync, os.replace

    def fsync(descriptor):
        calls.append(("sync", os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        sync(descriptor)

    def replace(source, target):
        calls.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("12345")
        inode = temporary.stat().st_ino
    assert calls[:2] == [("sync", inode, 5), "rename"]
    assert calls[2][:2] == ("sync", tmp_path.stat().st_ino) and len(calls) == 3


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(KeyError), atomic(path) as temporary:
        temporary.write_text("after")
        raise KeyError
    assert path.read_text() == "before" and names(tmp_path) == ["a.txt"]
