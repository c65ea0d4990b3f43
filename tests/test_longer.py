"""A run that goes on for more epochs than it was started with."""

import json
import shutil

import pytest
import torch
from support.killed import kills
from support.tiny import assert_same_run, stopping_at

from bct.errors import BctError
from bct.method import Method
from bct.safe.tensors import read_tensors
from bct.train import train
from bct.training.checkpoint import checkpoints
from bct.training.run_folder import prepared_output

CPU = torch.device("cpu")
STEPS = 2  # of an epoch: 20 images, batches of 8


def rates(output):
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}


def said(output):
    log = (output / "training.log").read_text().splitlines()
    return [line.partition("longer: ")[2] for line in log if "longer: " in line]


def record(output):
    return json.loads((output / "run.json").read_text())


def poly(step, epochs):
    return 0.1 * (1 - step / (STEPS * epochs)) ** 2


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_finished_run(job, optimizer):
    lr = [] if optimizer == "sgd" else ["optimizer=adam"]
    train(job("num_epoch=2", *lr), Method, CPU)
    assert train(job("num_epoch=4", "resume=True", *lr), Method, CPU) == 0
    found = rates(job.output)
    assert sorted(found) == list(range(1, 9))
    want = [poly(k, 2) for k in range(4)] + [poly(k, 4) for k in range(4, 8)]
    assert [found[k] for k in range(1, 9)] == pytest.approx(want)
    line = "4 epochs for 2, from step 4 on; learning rate: 0 by the shorter schedule, it is 0.025"
    assert said(job.output) == [f"{line} by the longer one"]
    about = record(job.output)
    assert about["finished"] and about["step"] == 8 and about["identity"]["num_epoch"] == 4
    assert about["longer"] == [{"before": 2, "now": 4, "step": 4}]
    assert json.loads((job.output / "model.json").read_text())["step"] == 8
    assert train(job("num_epoch=4", "resume=True", *lr), Method, CPU) == 0  # it is reused


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("decay_epoch=[1]", "it goes on at 0.01"),
        ("lr_policy=cosine", "0 by the shorter schedule, it is 0.05 by the longer one"),
        ("freeze_statistics_at=0.75", "0 by the shorter schedule, it is 0.025 by the longer one; "
         "batch norms learn their statistics until step 6"),
    ],
)  # fmt: skip
def test_what_schedules_do(job, schedule, after):
    train(job("num_epoch=2", schedule), Method, CPU)
    train(job("num_epoch=4", schedule, "resume=True"), Method, CPU)
    assert said(job.output) == [f"4 epochs for 2, from step 4 on; learning rate: {after}"]


def test_an_unfinished_run(job):
    train(job("num_epoch=2"), stopping_at(Method, 1), CPU)
    train(job("num_epoch=4", "resume=True"), Method, CPU)
    found = rates(job.output)
    want = [poly(0, 2)] + [poly(k, 4) for k in range(1, 8)]
    assert [found[k] for k in range(1, 9)] == pytest.approx(want)
    line = f"{poly(1, 2):g} by the shorter schedule, it is {poly(1, 4):g} by the longer one"
    assert said(job.output) == [f"4 epochs for 2, from step 1 on; learning rate: {line}"]


@pytest.mark.parametrize("lost", [False, True])
def test_stopped_after_it_was_made_longer(job, tmp_path, lost):
    """The same bits as without the stop, run.json lost on the way or not."""
    for output, stop in ((tmp_path / "whole", 0), (tmp_path / "stopped", 2)):
        here = f"output={output}"
        train(job("num_epoch=1", here), Method, CPU)
        method = stopping_at(Method, stop) if stop else Method
        train(job("num_epoch=3", "resume=True", here), method, CPU)
    if lost:
        (output / "run.json").unlink()
    with pytest.raises(BctError):  # nobody has asked to go on
        train(job("num_epoch=3", here), Method, CPU)
    train(job("num_epoch=3", "resume=True", here), Method, CPU)
    assert_same_run(tmp_path / "whole", output)
    assert record(output)["longer"] == [{"before": 1, "now": 3, "step": 2}]
    assert len(said(output)) == 1


def test_killed_before_its_first_new_checkpoint(job):
    """Whoever starts it next is told again; a run.json that is lost then is made again."""
    train(job("num_epoch=1"), Method, CPU)

    class Killed(Method):
        def forward(self, *arguments):
            raise KeyboardInterrupt

    Killed.__name__ = "Method"
    with pytest.raises(KeyboardInterrupt):
        train(job("num_epoch=2", "resume=True"), Killed, CPU)
    about = record(job.output)
    assert not about["finished"] and about["longer"] == [{"before": 1, "now": 2, "step": 2}]
    with pytest.raises(BctError, match="not 1"):
        train(job("num_epoch=1", "resume=True"), Method, CPU)
    (job.output / "run.json").unlink()
    assert read_tensors(checkpoints(job.output)[0])["record"]["identity"]["num_epoch"] == 1
    train(job("num_epoch=2", "resume=True"), Method, CPU)
    assert record(job.output)["longer"] == [{"before": 1, "now": 2, "step": 2}]
    assert len(said(job.output)) == 2


def test_its_start_is_killed(job, tmp_path, capfd):
    """Before each change of the disk: what the run has stays, the next start makes it longer."""
    for output in (tmp_path / "whole", job.output):
        train(job("num_epoch=1", f"output={output}"), Method, CPU)
    train(job("num_epoch=2", "resume=True", f"output={tmp_path / 'whole'}"), Method, CPU)
    identity = {**record(job.output)["identity"], "num_epoch": 2}
    old, killed = tmp_path / "old", 0
    shutil.copytree(job.output, old)

    def start():
        with prepared_output(job("num_epoch=2", "resume=True"), identity) as (how, found):
            return how, [(said["before"], said["now"]) for said in found.longer]

    for _ in kills(start):
        killed += 1
        for name in ("model.pt", "model.json", f"checkpoints/step_{STEPS:08}.pt"):
            assert (job.output / name).read_bytes() == (old / name).read_bytes()
        assert start() == ("resume", [(1, 2)])
        shutil.rmtree(job.output)
        shutil.copytree(old, job.output)
    assert killed > 10
    assert train(job("num_epoch=2", "resume=True"), Method, CPU) == 0
    assert_same_run(tmp_path / "whole", job.output)


def test_not_unasked(job, monkeypatch):
    train(job("num_epoch=2"), Method, CPU)
    before = (job.output / "model.pt").read_bytes()
    for advice, given in (
        ("pass resume=True to make it longer", ["num_epoch=3"]),
        ("choose another output", ["num_epoch=3", "lr=0.2", "resume=True"]),
    ):
        with pytest.raises(BctError, match="other settings") as refused:
            train(job(*given), Method, CPU)
        assert refused.value.do.startswith(advice)
    with pytest.raises(BctError, match="2 epochs: it can be made longer, not 1"):
        train(job("num_epoch=1", "resume=True"), Method, CPU)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun resumes whatever it restarts
    with pytest.raises(BctError, match="other settings"):
        train(job("num_epoch=3", "resume=True"), Method, CPU)
    monkeypatch.undo()
    assert (job.output / "model.pt").read_bytes() == before
    train(job("num_epoch=3", "resume=True", "overwrite=True"), Method, CPU)  # replaced, as ever
    assert rates(job.output)[1] == poly(0, 3) and len(rates(job.output)) == 6
    assert "longer" not in record(job.output)


def test_on_other_batches(job):
    train(job("num_epoch=2"), Method, CPU)
    with pytest.raises(BctError, match="batch_size 8 -> 4"):
        train(job("num_epoch=4", "batch_size=4", "resume=True"), Method, CPU)


def test_checkpoints_that_are_gone(job):
    train(job("num_epoch=1"), Method, CPU)
    for path in checkpoints(job.output):
        path.unlink()
    with pytest.raises(BctError, match="its checkpoints are gone"):
        train(job("num_epoch=2", "resume=True"), Method, CPU)
    assert (job.output / "model.pt").is_file() and record(job.output)["finished"]


@pytest.mark.parametrize("longer", [3, [3], [{"before": 1, "now": 2}], [{"step": 1.5}]])
def test_a_damaged_record(job, longer):
    train(job("num_epoch=1"), Method, CPU)
    about = record(job.output)
    (job.output / "run.json").write_text(json.dumps({**about, "longer": longer}))
    with pytest.raises(BctError, match="no record of a run"):
        train(job("num_epoch=1"), Method, CPU)
