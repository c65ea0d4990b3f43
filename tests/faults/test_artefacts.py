"""Extraction and the IJB cache, killed at random moments and run twice at once."""

import contextlib
import os
import signal
import time

import numpy as np
import pytest
import torch
from support.pictures import write_faces
from support.script import become, processes

from backbones import get_model
from bct.errors import BctError
from bct.files import ROOT, sha256_file
from bct.stored.artefacts import is_valid, open_artefact

KILLS = int(os.environ.get("BCT_KILLS", 3)) * 8 // 3  # `make faults` sets it to 9: 24 kills
SD = "old_class70"


def _script(log, script, arguments):
    os.setsid()  # so that a kill can take its workers along
    become([str(ROOT / script), *arguments], log, log)


class Job:
    """A script that writes `arrays`, one after another, into `folder`."""

    def __init__(self, log, folder, arrays, script, *arguments):
        self.log, self.folder, self.arrays = log, folder, arrays
        self.command = (log, script, [str(a) for a in arguments])

    def start(self):
        process = processes.Process(target=_script, args=self.command)
        process.start()
        return process

    def run(self):
        process = self.start()
        process.join()
        assert process.exitcode == 0, self.log.read_text()

    def leftovers(self):
        return list(self.folder.glob(".*.tmp"))

    def start_and_wait(self):
        """A process that has begun to write."""
        before = set(self.leftovers())
        process = self.start()
        while set(self.leftovers()) <= before:
            assert process.is_alive(), self.log.read_text()
            time.sleep(0.002)
        return process

    def paths(self):
        return sorted(self.folder.glob("*.npy"))


@pytest.fixture
def extraction(tmp_path):
    write_faces(tmp_path / "train_part_70_class.rec", [12] * 20)
    (tmp_path / "old").mkdir()
    torch.save(get_model("demo_w16", 16).state_dict(), tmp_path / "old" / "model.pt")
    config = tmp_path / "old_class30.py"
    config.write_text(
        "from easydict import EasyDict\nconfig = EasyDict(embedding_size=16, num_workers=1, "
        f"network='demo_w16', amp='off', rec={str(tmp_path)!r}, output={str(tmp_path / 'old')!r}, "
        f"feature_save={str(tmp_path / 'features')!r})\n"
    )
    return Job(tmp_path / "log", tmp_path / "features" / "OPclass", 2,
               "tools/extract_features.py", config, "--SD", SD, "--batch-size", "8")  # fmt: skip


@pytest.fixture
def cache(ijb, weights, tmp_path):
    return Job(tmp_path / "log", tmp_path / "cache", 1, "eval/ijbc.py", "-m", weights[1], "-net",
               "demo_w16", "-d", ijb.parent, "--far", "1e-1", "--amp", "off", "-j", "1", "-b", "4",
               "-o", tmp_path / "out", "--cache", tmp_path / "cache")  # fmt: skip


@pytest.fixture(params=["extraction", "cache"])
def job(request):
    return request.getfixturevalue(request.param)


@pytest.mark.slow
def test_killed_at_random_moments(job):
    """Whatever passes for complete is; the next run ends the work and clears up."""
    rng = np.random.default_rng(0)
    job.folder.mkdir(parents=True)
    process = job.start_and_wait()
    began = time.perf_counter()
    while len(list(job.folder.glob("*.json"))) < job.arrays:
        assert process.is_alive(), job.log.read_text()
        time.sleep(0.002)
    span = time.perf_counter() - began
    process.join()
    want = {path: np.array(open_artefact(path)[0]) for path in job.paths()}
    assert len(want) == job.arrays
    killed, whole = 0, 0
    while killed < KILLS:
        for path in job.folder.iterdir():
            if path.suffix != ".tmp":  # what a kill left stays for the next run to clear up
                path.unlink()
        process = job.start_and_wait()
        # half of the kills at any moment, half near the end, where files get their names
        time.sleep(span * rng.uniform(*((0, 1) if killed % 2 else (0.6, 1.05))))
        with contextlib.suppress(ProcessLookupError):  # it was faster
            (os.killpg if killed % 3 else os.kill)(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode != -signal.SIGKILL:
            continue
        killed += 1
        for path in job.paths():
            try:
                found, _ = open_artefact(path)
            except BctError:
                continue
            np.testing.assert_array_equal(found, want[path])
            whole += 1
    assert whole < KILLS * job.arrays  # some kills did hit
    job.run()
    for path, array in want.items():
        np.testing.assert_array_equal(open_artefact(path)[0], array)
    deadline = time.monotonic() + 20  # workers of a killed process notice within seconds
    while job.leftovers() and time.monotonic() < deadline:
        for path in job.paths():
            path.unlink()
        job.run()
    assert not job.leftovers()


@pytest.mark.slow
def test_two_at_once(job):
    for _ in range(max(2, KILLS // 6)):
        both = [job.start(), job.start()]
        for process in both:
            process.join()
        assert [process.exitcode for process in both] == [0, 0], job.log.read_text()
        paths = job.paths()
        assert len(paths) == job.arrays and not job.leftovers()
        for path in paths:
            assert is_valid(path)
            path.unlink()


@pytest.mark.slow
def test_new_weights_while_the_old_ones_are_extracted(extraction, tmp_path):
    """Two old models under one name, at once: what passes for complete is of one of them."""
    weights = tmp_path / "old" / "model.pt"
    other = get_model("demo_w16", 16).state_dict()
    first, hashes = extraction.start_and_wait(), [sha256_file(weights)]
    torch.save(other, weights)
    hashes.append(sha256_file(weights))
    second = extraction.start()
    first.join()
    second.join()
    assert [first.exitcode, second.exitcode] == [0, 0], extraction.log.read_text()
    for path in extraction.paths():
        assert any(is_valid(path, model=model) for model in hashes)
    extraction.run()
    assert all(is_valid(path, model=hashes[1]) for path in extraction.paths())
