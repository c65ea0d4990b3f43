"""The GPU benchmark where there is no GPU: its classic way is a fair one, and nothing that fails
or takes too long loses what else was measured."""

import os
import subprocess
import sys
import time
import weakref

import pytest
import torch
import torch.nn.functional as F

from backbones import get_model
from bct.config import load_config
from bct.files import ROOT
from bct.method import Method
from bct.train import make_head, train_step
from bct.training.heads import PartialFC
from bct.training.optimizer import make_optimizer
from benchmarks.classic import (
    ClassicHead,
    ClassicNetwork,
    centres,
    classic_sgd,
    classic_step,
    flops,
)
from benchmarks.common import Row
from benchmarks.gpu import run_parts
from benchmarks.gpu_part import Part, compare
from benchmarks.gpu_training import faces

CPU = torch.device("cpu")


def test_the_classic_network_is_ours():
    torch.manual_seed(0)
    ours = get_model("demo_w16", 16)
    classic = ClassicNetwork(ours)
    images = faces(4, 10, CPU).images
    assert images.is_contiguous(memory_format=torch.channels_last)
    layouts = []
    hook = classic.body.layer4.register_forward_hook(lambda *call: layouts.append(call[2]))
    a, b = ours(images), classic(images)
    hook.remove()
    assert layouts[0].is_contiguous() and all(p.is_contiguous() for p in classic.parameters())
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def heads(margin):
    """Both heads with the same centres, and a batch. In 256 dimensions no cosine is so large that
    the published loss would meet its bound of 69.08."""
    generator = torch.Generator().manual_seed(0)
    ours = PartialFC(256, 50, margin=(1.0, margin, 0.0))
    classic = ClassicHead(centres(50, 256, CPU), margin)
    classic.weight.data.copy_(ours.weight.data)
    e = torch.randn(8, 256, generator=generator)
    return ours, classic, e, torch.randint(0, 50, (8,), generator=generator)


def test_the_classic_head_has_our_loss():
    ours, classic, e, labels = heads(0.5)
    torch.testing.assert_close(classic(e, labels), ours(e, labels), rtol=1e-5, atol=0)


def test_the_classic_head_has_our_gradient_where_there_is_no_margin():
    ours, classic, e, labels = heads(0.0)
    a, b = (e.clone().requires_grad_() for _ in range(2))
    ours(a, labels).backward()
    classic(b, labels).backward()
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(classic.weight.grad, ours.weight.grad, rtol=1e-4, atol=1e-4)


def test_the_classic_gradient_lacks_the_margins_factor():
    """As published: the logits' gradient is scale * (p - one-hot) / B, whatever the margin."""
    _, classic, e, labels = heads(0.5)
    e.requires_grad_()
    classic(e, labels).backward()
    x = e.detach().double().requires_grad_()
    cosines = F.normalize(x) @ F.normalize(classic.weight.detach().double()).t()
    one_hot = F.one_hot(labels, 50).bool()
    moved = torch.where(one_hot, torch.cos(torch.acos(cosines) + 0.5), cosines).detach()
    F.cross_entropy(64 * (cosines + (moved - cosines).detach()), labels).backward()
    torch.testing.assert_close(e.grad.double(), x.grad, rtol=1e-4, atol=1e-5)


def test_a_classic_step_is_a_step_of_ours():
    """Without a margin, where the gradients are the same: weights after two steps."""
    batch = faces(8, 50, CPU)
    given = ["network=demo_w16", "num_classes=50", "embedding_size=16", "amp=off"]
    cfg = load_config("configs/base.py", [*given, "margin_list=(1.0, 0.0, 0.0)"])
    torch.manual_seed(0)
    network, head, method = get_model("demo_w16", 16), make_head(cfg), Method(cfg, None)
    classic = ClassicNetwork(network)
    classic_head = ClassicHead(centres(50, 16, CPU), margin=0.0)
    classic_head.weight.data.copy_(head.weight.data)
    optimizer, sgd = make_optimizer(cfg, network, method, head), classic_sgd(classic, classic_head)
    scalers = [torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu")]
    for step in range(2):
        trained = [network, method, head]
        ours = train_step(cfg, iter([batch]), trained, optimizer, scalers[0], 0.1, step)
        images = batch.images.contiguous()
        loss = classic_step(classic, classic_head, sgd, scalers[1], images, batch.labels)
        assert loss == pytest.approx(ours.losses["cls"].item(), rel=1e-3)
    torch.testing.assert_close(classic_head.weight, head.weight, rtol=1e-2, atol=1e-3)
    for p, q in zip(classic.body.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-3)


def test_flops_are_three_forward_passes():
    """r18 has 2.610 G multiply-adds (insightface's figure); the images need no gradient, which
    saves the first convolution's."""
    forward = 2 * 2.610e9
    first = 2 * 112 * 112 * 64 * 27
    assert flops("r18") == pytest.approx(3 * forward - first, rel=2e-3)


def test_a_part_that_fails_or_takes_too_long_loses_nothing():
    def good(part):
        part.rows.append(Row("good", [1.0]))

    def broken(part):
        for case in part.cases(["a", "b"]):
            if case == "b":
                raise ValueError("it broke\nin two lines")
            part.rows.append(Row(case, [1.0]))

    def endless(part):
        for case in part.cases(["c", "d"]):
            part.rows.append(Row(case, [1.0]))
            while case == "d":
                time.sleep(0.01)

    parts = {"Broken": (broken, 60), "Endless": (endless, 0.2), "Good": (good, 60)}
    done, failed = run_parts(parts, CPU, False, 60)
    assert failed == ["Broken"]
    assert [row.workload for part in done for row in part.rows] == ["a", "c", "d", "good"]
    broken, endless, good = (part.details() for part in done)
    assert "Ended early: ValueError: it broke\n" in broken and "Not measured: b." in broken
    assert "stopped after its 0 s" in endless and "Not measured: d." in endless
    assert "Not measured" not in good and "early" not in good
    late, failed = run_parts({"Late": (pytest.fail, 60)}, CPU, False, 1)
    assert failed == [] and "not begun for lack of time" in late[0].details()


def test_cases_end_where_the_longest_would_not_fit():
    part = Part("x", CPU, True, 0.5)
    for case in part.cases(["a", "b", "c", "d"]):
        time.sleep(0.3 if case == "b" else 0.01)
    assert part.pending == ["c", "d"]
    assert "Not measured for lack of time: c; d." in part.details()


@pytest.mark.parametrize("together", [True, False])
def test_out_of_memory_is_a_result(together):
    def never():
        raise torch.OutOfMemoryError

    def later():
        return never

    calls = []
    builders = {"never": never, "later": later, "ours": lambda: lambda: calls.append(1)}
    times, gib = compare(CPU, builders, 2, together)
    assert times["never"] == times["later"] == [] and len(times["ours"]) == 2
    assert list(gib) == ["ours"] and len(calls) == 1 + 1 + 2


def test_candidates_that_do_not_fit_together_run_alone():
    alive = weakref.WeakSet()

    class Candidate:
        """Fits beside another for its first call, as one does that grows later."""

        def __init__(self):
            self.calls = 0
            alive.add(self)

        def __call__(self):
            self.calls += 1
            if self.calls > 1 and len(alive) > 1:
                raise torch.OutOfMemoryError

    times, _ = compare(CPU, {"a": Candidate, "b": Candidate}, 2)
    assert len(times["a"]) == len(times["b"]) == 2


def dry(*arguments, **environment):
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", "benchmarks/gpu.sh", *arguments], cwd=ROOT, capture_output=True, text=True,
        env=environment, check=False,
    )  # fmt: skip


def test_says_what_is_wrong(tmp_path):
    done = dry("--dri")
    assert done.returncode == 2 and "--dri is not understood" in done.stderr
    done = dry(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and done.stdout == ""
    what, do = done.stderr.strip().split("\n")[-2:]
    assert what == "error: torch sees no GPU on this machine" and "--dry" in do
    bare = tmp_path / "python"  # without site-packages
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    done = dry("--dry", PYTHON=str(bare))
    assert done.returncode == 1 and "has not got torch torchvision numpy" in done.stderr
    assert "pip install -r requirements.txt" in done.stderr


@pytest.mark.slow
def test_dry_run(tmp_path):
    done = dry("--dry")
    assert done.returncode == 0, done.stderr
    for workload in (
        "use of the matrix units", "training, demo_w16, B 8", "training, compiled, demo_w16, B 4",
        "PartialFC step, C 2,000", "JPEG records to batches", "extraction, demo_w16",
        "IJB-C 1:1", "IJB-C 1:N",
    ):  # fmt: skip
        assert f"| {workload}" in done.stdout
    assert "| plain fp32, first weights nudged |" in done.stdout
    assert "| `aten::convolution_backward`" in done.stdout
    for bad in ("Not measured", "Ended early", "Failed", "out of memory"):
        assert bad not in done.stdout
