"""What is not finite stops a run and is described; broken images are skipped or named."""

import json
import logging

import pytest
import torch
from support.pictures import write_faces
from support.ranks import run_on_ranks
from support.tiny import stopping_at

from bct import distributed
from bct.data.recordio import RecordReader
from bct.data.sets import open_images
from bct.errors import BctError
from bct.method import Method
from bct.safe.tensors import read_tensors
from bct.train import train
from bct.training.checkpoint import checkpoints

CPU = torch.device("cpu")


def spoiling(what: str, step: int, rank: int) -> type[Method]:
    """A method whose loss or gradient is not finite in one step on one rank."""

    class Spoiling(Method):
        calls = 0

        def forward(self, embeddings, *arguments):
            Spoiling.calls += 1
            spoilt = Spoiling.calls == step and distributed.rank() == rank
            if spoilt and what == "gradient":
                embeddings.register_hook(lambda grad: grad * float("inf"))
            losses = super().forward(embeddings, *arguments)
            extra = embeddings.sum() * (float("nan") if spoilt and what == "loss" else 0.0)
            return {**losses, "extra": extra}

    Spoiling.__name__ = "Method"
    return Spoiling


def spoilt_run(job, what):
    overrides = "batch_size=2", "frequent=100", "save_every=2", "num_epoch=2"
    with pytest.raises(BctError) as error:
        train(job(*overrides), spoiling(what, 3, 1), CPU)
    return error.value.what


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_it_names_step_rank_and_images_and_keeps_the_checkpoint(job, what):
    """On rank 1 in step 3, noticed on both when step 4 is about to be saved."""
    for text in run_on_ranks(2, spoilt_run, job, what):
        where = "rank 1" if what == "loss" else "rank 0, 1"  # the gradient is their mean
        assert f"the {what} is not finite at step 3 on {where} (lr 0.064)" in text, text
    assert [f.stem for f in checkpoints(job.output)] == ["step_00000002"]
    found = json.loads((job.output / "nonfinite_rank1.json").read_text())
    assert found["step"] == 3 and (job.output / "nonfinite_rank0.json").exists() == (what != "loss")
    assert set(found["values"]) == {"cls", "extra", "gradient norm"}
    assert found["values"]["extra" if what == "loss" else "gradient norm"] in ("nan", "inf")
    assert len(found["images"]) == 2 and all("train.rec, key " in i for i in found["images"])
    assert (
        train(job("batch_size=4", "save_every=2", "num_epoch=2", "resume=True"), Method, CPU) == 0
    )


def test_a_loss_that_runs_away_stops_the_run(job):
    with pytest.raises(BctError, match="not finite at step"):
        train(job("lr=1e12", "head=softmax", "clip_norm=1e9", "num_epoch=8"), Method, CPU)


def overflowing_run(job):
    overrides = "batch_size=4", "amp=fp16", "num_epoch=3", "lr=0.01", "head=softmax"
    return train(job(*overrides), spoiling("gradient", 2, 1), CPU)


def test_an_overflow_is_skipped_by_all_ranks_and_counted(job):
    assert run_on_ranks(2, overflowing_run, job) == [0, 0]
    lines = [json.loads(line) for line in (job.output / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    counts = [step["overflows"] for step in steps]
    assert counts[1] == counts[0] + 1  # the spoilt step; a scale of 2^16 may be too much by itself
    assert [step["grad_scale"] for step in steps] == [2.0 ** (16 - count) for count in counts]
    assert f"Overflows: {counts[-1]}" in (job.output / "training.log").read_text()
    assert all(v.isfinite().all() for v in read_tensors(job.output / "model.pt").values())


# ---- broken images


def break_images(folder, *keys):
    reader = RecordReader(folder / "train.rec")
    content = bytearray((folder / "train.rec").read_bytes())
    for key in keys:
        at = reader.offset(key) + 60  # into the JPEG's headers
        content[at : at + 200] = bytes(200)
    (folder / "train.rec").write_bytes(content)


def test_a_broken_image_is_an_error_unless_it_is_to_be_skipped(job, tmp_path, caplog):
    break_images(tmp_path, 3, 11)
    with pytest.raises(BctError, match=r"record with key (3|11) at offset \d+ is broken"):
        train(job(), Method, CPU)
    skip = "on_bad_record=skip", "max_bad_rate=1.0", "overwrite=True"
    with caplog.at_level(logging.WARNING):
        assert train(job(*skip, "batch_size=10", "num_epoch=3"), Method, CPU) == 0
    listed = (job.output / "bad_records.txt").read_text().splitlines()
    assert len(listed) == 6 and all(line.startswith("rank 0: ") for line in listed)  # 3 epochs
    assert {line.split("key ")[1].split()[0] for line in listed} == {"3", "11"}
    assert "skipped: " in caplog.text
    log = (job.output / "training.log").read_text()
    assert "BadRecords: 6" in log
    last = json.loads((job.output / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["bad_records"] == 6


def test_more_than_the_rate_stops_the_run(job, tmp_path):
    break_images(tmp_path, *range(1, 13))
    with pytest.raises(BctError, match=r"images could not be read, more than the 0.01"):
        train(job("on_bad_record=skip", "num_epoch=9"), Method, CPU)
    break_images(tmp_path, *range(13, 21))
    with pytest.raises(BctError, match="is broken"):  # nothing to put in their place
        train(job("on_bad_record=skip", "overwrite=True"), Method, CPU)


def skipping_run(job):
    overrides = "on_bad_record=skip", "max_bad_rate=1.0", "batch_size=4", "num_epoch=3"
    assert train(job(*overrides), stopping_at(Method, 4), CPU)
    return train(job(*overrides, "resume=True"), Method, CPU)


def test_ranks_stay_in_step(job, tmp_path):
    """All broken images may fall to one rank; the other's collectives still find it."""
    write_faces(tmp_path / "train.rec", [4, 5, 3, 4, 4])
    break_images(tmp_path, 2, 9, 17)
    assert run_on_ranks(2, skipping_run, job) == [0, 0]
    lines = (tmp_path / "run" / "bad_records.txt").read_text().splitlines()
    assert len(lines) >= 6


def test_the_image_in_its_place_comes_with_its_own_label_and_index(tmp_path):
    from bct.data.loader import Loader

    write_faces(tmp_path / "train.rec", [2, 2, 2])
    break_images(tmp_path, 2, 6)
    problems = []
    loader = Loader(
        open_images(tmp_path), 3, CPU, num_workers=0, train=False,
        broken=lambda _, found: problems.extend(found),
    )  # fmt: skip
    batches = list(loader.epoch())
    assert [b.index.tolist() for b in batches] == [[0, 2, 2], [3, 4, 3]]
    assert [b.labels.tolist() for b in batches] == [[0, 1, 1], [1, 2, 1]]
    assert torch.equal(batches[0].images[1], batches[0].images[2])
    assert len(problems) == 2
