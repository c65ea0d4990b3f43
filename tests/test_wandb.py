"""Weights & Biases: what an offline run of the real client holds, and that it never ends a training
or gives its key away."""

import json
import os
import struct
import sys

import pytest
import torch
from support.ranks import run_on_ranks
from support.script import run_script
from support.tiny import TINY, stopping_at

from bct.config import load_config
from bct.errors import BctError
from bct.method import Method
from bct.train import train
from bct.wandb_run import WandbRun

CPU = torch.device("cpu")
KEY = "wandb_v1_0123456789abcdef0123456789abcdef01234567"
ON = ["using_wandb=True", f"wandb_key={KEY}", "wandb_project=faces", "num_epoch=1"]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The environment of a client that sends nothing and writes nothing at home."""
    pytest.importorskip("wandb")
    names = ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "HOME")
    env = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    env |= {name: str(tmp_path / "home" / name) for name in names}
    for folder in (env[name] for name in names):
        os.makedirs(folder)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return env


def records(output):
    """Those of the only run of wandb in an output: blocks of 32 KiB, in them crc, length, type."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = output.glob("wandb/offline-run-*/*.wandb")
    data, at, found, parts = file.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind:
            parts += data[at + 7 : at + 7 + length]
            at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            found.append(Record.FromString(parts))
            parts = b""
        if not kind or 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
    return found


def history(output):
    """The logged values, one dict per step."""
    rows = []
    for record in records(output):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return rows


def test_what_wandb_gets(job, offline):
    """By the command, with its key on the command line."""
    more = ["suffix_run_name=try", "notes=a first try", "save_artifacts=True", "wandb_entity=us"]
    done = run_script("train_old.py", job.path, *TINY, *ON, *more, "num_epoch=2", env=offline)
    assert done.returncode == 0, done.stderr
    rows = history(job.output)
    lines = [json.loads(line) for line in (job.output / "metrics.jsonl").open()]
    want = {}
    for line in lines:
        want.setdefault(line["step"], {}).update(line)
    assert len(want) == 4
    for row, line in zip(rows, want.values(), strict=True):
        assert {key: row[key] for key in line if key != "step"} == {
            key: value for key, value in line.items() if key != "step"
        }
        assert (row["_step"], row["Process/Step"]) == (line["step"], line["step"])
        assert (row["Loss/Train Loss"], row["Process/Epoch"]) == (line["loss"], line["epoch"])
    kinds = {}
    for record in records(job.output):
        kinds.setdefault(record.WhichOneof("record_type"), []).append(record)
    run = kinds["run"][0].run
    assert (run.entity, run.project, run.notes) == ("us", "faces", "a first try")
    assert run.display_name.endswith("_GPU0_try")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["lr"] == 0.1 and "wandb_key" not in config
    names = [record.artifact.name for record in kinds["artifact"]]
    assert [name.rpartition("_")[2] for name in names] == ["E0", "E1", "Final"]
    assert all(len(record.artifact.manifest.contents) == 1 for record in kinds["artifact"])


def test_the_key_is_in_no_file(job, offline, tmp_path):
    done = run_script("train_old.py", job.path, *TINY, *ON, env=offline)
    assert done.returncode == 0 and KEY not in done.stdout + done.stderr
    assert list(job.output.glob("wandb/offline-run-*/*.wandb"))
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 15
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []
    assert load_config(job.output / "config.py").using_wandb is True


def test_verification_sets_under_insightfaces_name(job, offline, shared):
    (job.output.parent / "toy.bin").write_bytes((shared / "cases/3/float_flags.bin").read_bytes())
    train(job(*ON, "val_targets=['toy.bin']"), Method, CPU)
    row = history(job.output)[-1]
    assert row["Acc/val-Acc2 toy"] == row["toy"] == row["mean"]


def train_on_ranks(path, overrides, env):
    os.environ.update(env)  # forked from a process that has another
    return train(load_config(path, [*TINY, *overrides]), Method, CPU)


def test_rank_0_alone_or_all(job, offline):
    run_on_ranks(2, train_on_ranks, job.path, ["batch_size=4", *ON], offline)
    assert len(list(job.output.glob("wandb/offline-run-*"))) == 1
    every = ["batch_size=4", *ON, "overwrite=True", "wandb_log_all=True"]
    run_on_ranks(2, train_on_ranks, job.path, every, offline)
    assert len(list(job.output.glob("wandb/offline-run-*"))) == 3


def test_a_resumed_training_goes_on_in_its_run(job, offline):
    assert train(job(*ON, "wandb_resume=True"), stopping_at(Method, 1), CPU)
    train(job(*ON, "wandb_resume=True", "resume=True"), Method, CPU)
    runs = sorted(job.output.glob("wandb/offline-run-*/*.wandb"))
    own = json.loads((job.output / "run.json").read_text())["run"]
    assert [file.name for file in runs] == [f"run-{own}-0.wandb"] * len(runs)


class Fails(Method):
    """Its run of wandb is ended in the first step, by somebody else."""

    def forward(self, *arguments):
        import wandb

        if wandb.run is not None:
            wandb.run.finish()
        return super().forward(*arguments)


def test_a_failure_does_not_end_the_training(job, offline):
    assert train(job(*ON), Fails, CPU) == 0
    log = (job.output / "training.log").read_text()
    assert log.count("Weights & Biases fails") == 1 and "goes on without it" in log
    assert (job.output / "model.pt").exists()


def test_a_failure_that_quotes_the_key(job, caplog):
    class Refused:
        def log(self, values, step):
            raise ValueError(f"{'x' * 180} invalid key {KEY}")

    run = WandbRun(Refused(), job(*ON), "x")
    run.log(1, {"loss": 1.0})
    assert "goes on without it" in caplog.text and KEY[9:15] not in caplog.text


def test_one_that_does_not_start_is_said_in_two_lines(job, offline):
    env = {**offline, "WANDB_MODE": "nonsense"}
    done = run_script("train_old.py", job.path, *TINY, *ON, env=env)
    assert done.returncode == 1 and KEY not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("wandb:")]
    assert "does not start" in lines[0] and len(lines) == 2


def test_without_the_package(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what `import wandb` then meets
    with pytest.raises(BctError, match="wandb is not installed") as caught:
        train(job("using_wandb=True"), Method, CPU)
    assert "[wandb]" in caught.value.do
    assert not job.output.exists()
    train(job("wandb_project=faces", "num_epoch=1"), Method, CPU)  # using_wandb=False
