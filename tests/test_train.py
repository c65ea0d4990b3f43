"""The training loop: schedule, steps on one and several ranks, resuming, output directories."""

import copy
import json
import re
import subprocess
import sys

import pytest
import torch
from easydict import EasyDict
from support.ranks import run_on_ranks
from support.script import run_script
from support.tiny import TINY, small_cfg
from torch import nn

from bct import distributed
from bct.amp import amp_dtype, make_scaler
from bct.config import load_config
from bct.data.loader import Batch
from bct.errors import BctError
from bct.files import ROOT
from bct.method import Method, load_method
from bct.train import replicate, share_statistics, train, train_step
from bct.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from bct.training.heads import PartialFC, SoftmaxHead
from bct.training.optimizer import lr_at, make_optimizer
from bct.training.run_record import RunRecord, read_record

CPU = torch.device("cpu")


def test_schedule():
    """Values worked out from the reference's formula."""
    assert [lr_at(t, 100, 0, 0.1, 2) for t in (0, 50, 100)] == pytest.approx([0.1, 0.025, 0.0])
    assert lr_at(0, 35, -1, 0.1, 2) == pytest.approx(0.1 * (35 / 36) ** 2)  # warmup_epoch = -1
    assert [lr_at(t, 20, 5, 0.1, 1) for t in (0, 1, 5, 20)] == pytest.approx([0, 0.02, 0.1, 0])
    assert lr_at(101, 100, 0, 0.1, 2) == 0  # never rises again


# ---- single steps, with a network small enough to follow


def step_on_ranks(head_kind, gradient_acc, batch_size, optimizer="sgd"):
    """Three optimiser steps over the same 48 rows, however they are cut; returns all parameters."""
    torch.manual_seed(0)
    cfg = small_cfg(gradient_acc=gradient_acc, optimizer=optimizer)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
    head = PartialFC(6, 10, seed=1) if head_kind == "margin" else SoftmaxHead(6, 10)
    if head_kind == "margin":
        head.weight.data.mul_(40)  # about unit length: short centres magnify rounding by 1 / |w|
    method = Method(cfg, None)
    optim = make_optimizer(cfg, backbone, method, head)
    scaler = make_scaler(None, CPU)
    trained = [replicate(m, CPU) for m in (backbone, method, head)]
    rng = torch.Generator().manual_seed(3)
    x, y = torch.randn(3, 16, 3, 2, 2, generator=rng), torch.randint(0, 10, (3, 16), generator=rng)
    size, rank = distributed.world_size(), distributed.rank()
    losses = []
    for step in range(3):
        starts = range(rank * batch_size, 16, size * batch_size)
        batches = iter(
            Batch(x[step, s : s + batch_size], y[step, s : s + batch_size], torch.arange(0), {})
            for s in starts
        )
        losses.append(
            train_step(cfg, batches, trained, optim, scaler, 0.1, step).losses["cls"].item()
        )
    weight = head.weight.detach()
    return [p.detach() for p in backbone.parameters()], weight, losses


@pytest.mark.parametrize("head", ["margin", "softmax"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulation_and_ranks_give_the_step_of_the_whole_batch(head, optimizer):
    whole = step_on_ranks(head, 1, 16, optimizer)
    for result in (
        step_on_ranks(head, 4, 4, optimizer),
        *run_on_ranks(2, step_on_ranks, head, 1, 8, optimizer),
        *run_on_ranks(2, step_on_ranks, head, 2, 4, optimizer),
    ):
        for a, b in zip(result[0], whole[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    two = run_on_ranks(2, step_on_ranks, head, 1, 8, optimizer)
    centres = torch.cat([r[1] for r in two]) if head == "margin" else two[0][1]
    torch.testing.assert_close(centres, whole[1], rtol=1e-4, atol=1e-6)


def test_only_the_backbone_is_clipped():
    torch.manual_seed(0)
    cfg = small_cfg(clip_norm=1e-3, momentum=0.0, weight_decay=0.0)
    backbone, head = nn.Sequential(nn.Flatten(), nn.Linear(12, 6)), SoftmaxHead(6, 10)
    before = copy.deepcopy(backbone), copy.deepcopy(head)
    optim = make_optimizer(cfg, backbone, Method(cfg, None), head)
    batch = Batch(10 * torch.randn(8, 3, 2, 2), torch.randint(0, 10, (8,)), torch.arange(8), {})
    train_step(
        cfg,
        iter([batch]),
        [backbone, Method(cfg, None), head],
        optim,
        make_scaler(None, CPU),
        1.0,
        0,
    )

    def moved(a, b):
        return torch.cat(
            [(p - q).flatten() for p, q in zip(a.parameters(), b.parameters(), strict=True)]
        ).norm()

    assert moved(backbone, before[0]).item() == pytest.approx(1e-3, rel=1e-3)
    assert moved(head, before[1]) > 1e-2


def overflow_on_one_rank():
    torch.manual_seed(0)
    backbone, head = nn.Linear(4, 3), PartialFC(3, 6)
    optim = make_optimizer(small_cfg(), backbone, Method(small_cfg(), None), head)
    scaler = make_scaler(torch.float16, CPU)
    steps = []
    for overflow in (True, False):
        before = backbone.weight.detach().clone()
        scaler.scale(backbone(torch.ones(2, 4)).sum() + head.weight.sum()).backward()
        if overflow and distributed.rank() == 1:
            head.weight.grad[0, 0] = float("inf")
        scaler.unscale_(optim)
        scaler.step(optim)
        scaler.update()
        optim.zero_grad()
        steps.append((not torch.equal(before, backbone.weight), scaler.get_scale()))
    return steps


def test_an_overflow_on_one_rank_makes_all_skip():
    results = run_on_ranks(2, overflow_on_one_rank)
    assert results[0] == results[1]
    (first_moved, first_scale), (second_moved, _) = results[0]
    assert not first_moved and first_scale == 2.0**15 and second_moved


def test_precision_rules():
    def choose(amp=None, fp16=None):
        return amp_dtype(amp, CPU, fp16)

    assert choose("off") is None and choose(None, False) is None
    assert choose("bf16") == torch.bfloat16 and choose("fp16") == torch.float16
    assert choose(None, True) == choose()  # fp16 is for GPUs
    assert choose() in (None, torch.bfloat16)


def statistics_of(parity):
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(distributed.rank())
    norm.num_batches_tracked.fill_(5)
    share_statistics(EasyDict(parity=parity), norm)
    return norm.running_mean, norm.num_batches_tracked


def test_batch_statistics_are_averaged_over_ranks():
    for parity, want in (("corrected", [0.5, 0.5]), ("published", [0.0, 1.0])):
        results = run_on_ranks(2, statistics_of, parity)
        assert [r[0][0].item() for r in results] == want and results[1][1] == 5


# ---- checkpoints


def checkpoint_on_ranks(path, save, optimizer):
    """Saves after one step, or loads; returns this rank's centres, momentum and the network."""
    torch.manual_seed(0)
    cfg = small_cfg(optimizer=optimizer)
    backbone, head = nn.Linear(4, 3), PartialFC(3, 11, seed=5)
    optim = make_optimizer(cfg, backbone, Method(cfg, None), head)
    parts = (backbone, Method(cfg, None), head, optim, make_scaler(None, CPU))
    if save:
        head(backbone(torch.ones(2, 4)), torch.tensor([3, 9])).backward()
        optim.step()
        save_checkpoint(RunRecord(path, {}, 1), {"step": 7, "best": 0.5}, *parts)
    else:
        for p in (*backbone.parameters(), *head.parameters()):
            p.data.zero_()
        assert load_checkpoint(read_record(path), *parts) == {
            "step": 7,
            "best": 0.5,
            "world_size": 2,
        }
    state = optim.state[head.weight]
    moment = state["momentum_buffer" if optimizer == "sgd" else "exp_avg"]
    return head.weight.detach(), moment, backbone.weight.detach()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_checkpoint_loads_on_any_number_of_ranks(tmp_path, optimizer):
    path = tmp_path / "run"
    saved = run_on_ranks(2, checkpoint_on_ranks, path, True, optimizer)
    centres, moments = (torch.cat([r[k] for r in saved]) for k in (0, 1))
    (file,) = checkpoints(path)
    assert torch.equal(torch.load(file, weights_only=True)["head"]["weight"], centres)
    for world_size in (1, 2, 4):
        loaded = run_on_ranks(world_size, checkpoint_on_ranks, path, False, optimizer)
        assert torch.equal(torch.cat([r[0] for r in loaded]), centres)
        assert torch.equal(torch.cat([r[1] for r in loaded]), moments)
        assert all(torch.equal(r[2], saved[0][2]) for r in loaded)


# ---- whole runs


def weights(output):
    return torch.load(output / "model.pt", weights_only=True)


def test_what_a_run_leaves(job):
    cfg = job("val_targets=[]")
    train(cfg, Method, CPU)
    names = {p.name for p in job.output.iterdir()}
    assert names == {
        "config.py", "run.json", "model.pt", "model.json", "checkpoints", "training.log",
        "metrics.jsonl", "tensorboard",
    }  # fmt: skip
    line = re.compile(
        r"Training: [-\d :,]+-Speed [\d.]+ samples/sec   Loss [\d.]+   LearningRate [\d.]+   "
        r"Epoch: \d+   Global Step: \d+   Required: \d+ hours   DataWait: \d+%"
    )
    log = (job.output / "training.log").read_text().splitlines()
    assert sum(bool(line.fullmatch(entry)) for entry in log) == 4
    lines = [json.loads(entry) for entry in (job.output / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in lines if "loss" in entry]
    assert [s["step"] for s in steps] == [1, 2, 3, 4]
    assert [e["step"] for e in lines if "checkpoint_seconds" in e] == [2, 4]
    assert {"loss", "learning_rate", "speed", "data_wait", "epoch"} <= steps[0].keys()
    info = json.loads((job.output / "model.json").read_text())
    assert (info["network"], info["embedding_size"], info["num_classes"]) == ("demo_w32", 16, 5)
    again = load_config(job.output / "config.py")
    assert again.num_classes == 5 and again.num_image == 20


def test_nothing_is_replaced_without_leave(job, capsys):
    train(job("num_epoch=1"), Method, CPU)
    before = (job.output / "model.pt").read_bytes()
    with pytest.raises(BctError, match="already holds this finished run"):
        train(job("num_epoch=1"), Method, CPU)
    with pytest.raises(BctError, match=r"other settings or inputs \(lr 0.1 -> 0.05\)"):
        train(job("num_epoch=1", "lr=0.05", "resume=True"), Method, CPU)
    train(job("num_epoch=1", "resume=True", "frequent=7"), Method, CPU)  # logging is no difference
    assert "reusing it" in capsys.readouterr().out
    assert (job.output / "model.pt").read_bytes() == before
    train(job("num_epoch=1", "lr=0.05", "overwrite=True"), Method, CPU)
    assert (job.output / "model.pt").read_bytes() != before


def test_a_foreign_model_is_not_overwritten(job):
    job.output.mkdir()
    (job.output / "model.pt").write_bytes(b"precious")
    with pytest.raises(BctError, match="not from this program"):
        train(job(), Method, CPU)
    assert (job.output / "model.pt").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("num_classes=4", "num_classes = 4"),
        ("num_image=21", "num_image = 21"),
        ("num_epoch=none", "num_epoch"),
        ("network=r51", "did you mean r50"),
        ("val_targets=['lfw'] strict_val=True", "lfw.bin"),
    ],
)
def test_bad_input_is_named(job, override, word):
    with pytest.raises(BctError, match=re.escape(word)):
        train(job(*override.split()), Method, CPU)
    assert not (job.output / "model.pt").exists()


def test_torchrun_and_plain_python_are_the_same_command(job, tmp_path):
    one, two = (
        [str(ROOT / "train_old.py"), str(job.path), *TINY, "num_epoch=1", f"output={tmp_path / n}"]
        for n in ("one", "two")
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    for done in (
        run_script(*one, cwd=tmp_path),
        subprocess.run([*torchrun, *two], cwd=tmp_path, capture_output=True, text=True),
    ):
        assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "two").keys() == weights(tmp_path / "one").keys()
    centres = torch.load(checkpoints(tmp_path / "two")[0], weights_only=True)["head"]["weight"]
    assert centres.shape == (5, 16)


def test_a_method_that_classifies_is_refused_without_a_head(job):
    with pytest.raises(BctError, match="has a classification term"):
        train(job("head=none"), Method, torch.device("cpu"))
    assert not job.output.exists()
    assert not load_method("FCT").classifies(EasyDict())
    assert not load_method("OpenBCT").classifies(EasyDict(terms=["l2"]))
