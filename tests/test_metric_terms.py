"""Triplets and centres beside the classification: against the reference's figures and plain loops;
through heads, optimisers, checkpoints and ranks."""

import json
import math
import re

import numpy as np
import pytest
import torch
from support.pictures import write_faces
from support.ranks import run_on_ranks
from support.tiny import Job, assert_same_run, small_cfg, stopping_at
from torch import nn

from bct import distributed
from bct.amp import make_scaler
from bct.config import load_config
from bct.data.loader import Batch
from bct.errors import BctError
from bct.files import ROOT
from bct.method import Method
from bct.models.classifiers import read_classifier
from bct.models.weights import load_backbone
from bct.train import replicate, train, train_step
from bct.training.checkpoint import checkpoints
from bct.training.heads import PartialFC, SoftmaxHead, make_head
from bct.training.metric_terms import MetricTerms, triplet_loss
from bct.training.optimizer import make_optimizer

CPU = torch.device("cpu")


# ---- triplets


@pytest.mark.parametrize("margin", [None, 0.3])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_the_triplet_loss_is_the_references(shared, margin, dtype, within):
    golden = shared / "golden" / "landmarks_reid" / "losses"
    case = f"reid_triplet/margin={margin}"
    said = json.loads((golden / "expected.json").read_text())[case]
    stored = np.load(golden / "inputs_and_grads.npz")
    rows = torch.tensor(stored[said["features"]], dtype=dtype, requires_grad=True)
    loss = triplet_loss(rows, torch.tensor(stored[said["labels"]]).long(), margin)
    loss.backward()
    assert loss.item() == pytest.approx(said["loss"], rel=within)
    want = torch.tensor(stored[f"{case}/grad"], dtype=dtype)
    torch.testing.assert_close(rows.grad, want, rtol=within, atol=within * want.abs().max().item())


def by_hand(rows, labels, margin):
    """Mean over anchors, distances in float64 by differences, one after the other."""
    losses = []
    for i, own in enumerate(rows):
        apart = [math.dist(own, other) for other in rows]
        farthest = max(d for d, y in zip(apart, labels, strict=True) if y == labels[i])
        others = [d for d, y in zip(apart, labels, strict=True) if y != labels[i]]
        gap = farthest - min(others) if others else -math.inf
        losses.append(math.log1p(math.exp(gap)) if margin is None else max(gap + margin, 0))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("margin", [None, 0.0, 0.5])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 2], [4, 4, 4, 4, 4, 4]])
def test_of_classes_of_any_size(margin, labels):
    rows = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows.requires_grad_()
    loss = triplet_loss(rows, torch.tensor(labels), margin)
    loss.backward()
    want = by_hand(rows.tolist(), labels, margin)
    if len(set(labels)) == 1 and margin is not None:
        want = 0.0
    assert loss.item() == pytest.approx(want, abs=1e-6)  # a row that is its own farthest is at 1e-6
    assert rows.grad.isfinite().all()
    assert bool(rows.grad.any()) == (loss.item() > 0)


def test_the_gradient_is_that_of_the_loss():
    rows = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(8) // 2
    for margin in (None, 5.0):
        assert torch.autograd.gradcheck(
            lambda x, margin=margin: triplet_loss(x, labels, margin), rows.requires_grad_()
        )


def test_equal_rows_have_a_finite_gradient():
    rows = torch.ones(4, 3).requires_grad_()
    triplet_loss(rows, torch.tensor([0, 0, 1, 1])).backward()
    assert rows.grad.isfinite().all()


def cut(published):
    rng = torch.Generator().manual_seed(3)
    x, y = torch.randn(12, 4, generator=rng), torch.arange(12) // 3 % 2
    size, rank = distributed.world_size(), distributed.rank()
    own = x.chunk(size)[rank].clone().requires_grad_()
    term = MetricTerms(1.0, 0.7, 0.3, 0.5, (2, 4), published)
    loss = term(own, y.chunk(size)[rank])
    loss.backward()
    return loss.detach(), own.grad / size, term.centres  # as DDP's mean has it


@pytest.mark.parametrize("ranks", [2, 4])
def test_corrected_a_batch_gives_one_loss_however_it_is_cut(ranks):
    loss, grad, centres = cut(False)
    parts = run_on_ranks(ranks, cut, False)
    torch.testing.assert_close(torch.stack([part[0] for part in parts]).mean(), loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), grad)
    for part in parts:
        torch.testing.assert_close(part[2], centres)
        assert torch.equal(part[2], parts[0][2])


def test_published_triplets_are_those_of_a_ranks_own_rows():
    loss, _, centres = cut(True)
    parts = run_on_ranks(2, cut, True)
    assert not torch.isclose(torch.stack([part[0] for part in parts]).mean(), loss)
    for part in parts:
        torch.testing.assert_close(part[2], centres)  # but the centres are everyone's


# ---- centres


@pytest.mark.parametrize("published", [True, False])
def test_centres_follow_their_rows(published):
    rng = torch.Generator().manual_seed(4)
    x = torch.randn(6, 3, generator=rng, requires_grad=True)
    y = torch.tensor([0, 2, 2, 0, 2, 4])
    term = MetricTerms(0.0, None, 0.1, 0.5, (5, 3), published, seed=7)
    before = term.centres.clone()
    loss = term(x, y)
    loss.backward()
    apart = x.detach() - before[y]
    assert loss.item() == pytest.approx(0.1 * float((apart**2).sum() / 6), rel=1e-6)
    torch.testing.assert_close(x.grad, 0.1 * 2 / 6 * apart)
    moved = before.clone()
    if published:  # a step of SGD on the mean, not weighed
        centres = before.clone().requires_grad_()
        (x.detach() - centres[y]).square().sum(1).mean().backward()
        moved -= 0.5 * centres.grad
    else:
        for k in range(5):
            own = [i for i in range(6) if y[i] == k]
            for i in own:
                moved[k] += 0.5 * apart[i] / (1 + len(own))
    torch.testing.assert_close(term.centres, moved)
    assert torch.equal(term.centres[[1, 3]], before[[1, 3]])
    term.eval()
    kept = term.centres.clone()
    term(x, y)
    assert torch.equal(term.centres, kept)


# ---- as terms of a head

TERMS = ["triplet_weight=0.5", "centre_weight=0.01", "images_per_class=2"]


def settings(*more):
    return load_config(
        ROOT / "configs" / "base.py", ["num_classes=6", "embedding_size=4", *TERMS, *more]
    )


@pytest.mark.parametrize("kind", ["margin", "softmax"])
def test_a_head_adds_them_to_its_loss(kind):
    rng = torch.Generator().manual_seed(5)
    x, y = torch.randn(8, 4, generator=rng), torch.arange(8) // 2
    torch.manual_seed(0)
    head = make_head(settings(f"head={kind}", "triplet_hard_margin=0.3"))
    torch.manual_seed(0)
    plain = make_head(settings(f"head={kind}", "triplet_weight=0", "centre_weight=0"))
    assert type(head) is type(plain) and torch.equal(head.weight, plain.weight)
    apart = (x - head.metric.centres[y]).square().sum(1).mean()
    want = plain(x, y) + 0.5 * triplet_loss(x, y, 0.3) + 0.01 * apart
    torch.testing.assert_close(head(x, y), want)
    assert [n for n, _ in head.named_parameters()] == [n for n, _ in plain.named_parameters()]


def test_parity_says_whose_rows_make_triplets():
    assert make_head(settings("parity=published")).metric.published
    assert not make_head(settings()).metric.published
    assert make_head(settings("triplet_weight=0", "centre_weight=0")).metric is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["images_per_class=none"], "triplet_weight = 0.5 needs several images of each class"),
        (["head=none"], 'triplet_weight = 0.5 is a term of the head, and the config says head="no'),
        (["head=none", "triplet_weight=0"], "centre_weight = 0.01 is a term of the head"),
    ],
)
def test_terms_that_can_not_be_had_are_refused(words, said):
    with pytest.raises(BctError, match=re.escape(said)) as info:
        make_head(settings(*words))
    assert len(str(info.value).splitlines()) == 2


def test_the_classifiers_weights_are_drawn_as_asked_for():
    torch.manual_seed(0)
    cfg = settings("head=softmax", "head_bias=False", "head_init=0.001", "embedding_size=400")
    head = make_head(cfg)
    assert head.bias is None and head.weight.std().item() == pytest.approx(0.001, rel=0.1)
    torch.manual_seed(0)
    cfg.head_init = None
    assert torch.equal(make_head(cfg).weight, _drawn_by_torch(cfg))


def _drawn_by_torch(cfg):
    torch.manual_seed(0)
    return nn.Linear(cfg.embedding_size, cfg.num_classes, bias=False).weight


def steps_on_ranks(kind, batch_size):
    """Three optimiser steps over the same 12 rows of 4 classes, however they are cut."""
    torch.manual_seed(0)
    cfg = small_cfg()
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    head = PartialFC(4, 6, seed=1) if kind == "margin" else SoftmaxHead(4, 6)
    if kind == "margin":
        head.weight.data.mul_(40)
    head.metric = MetricTerms(0.5, None, 0.1, 0.5, (6, 4))
    method = Method(cfg, None)
    optim, scaler = make_optimizer(cfg, backbone, method, head), make_scaler(None, CPU)
    trained = [replicate(m, CPU) for m in (backbone, method, head)]
    rng = torch.Generator().manual_seed(3)
    x, y = torch.randn(3, 12, 3, 2, 2, generator=rng), torch.arange(12).expand(3, 12) % 4
    first = distributed.rank() * batch_size
    for step in range(3):
        mine = slice(first, first + batch_size)
        batch = Batch(x[step, mine], y[step, mine], torch.arange(0), {})
        train_step(cfg, iter([batch]), trained, optim, scaler, 0.1, step)
    return [p.detach() for p in backbone.parameters()], head.weight.detach(), head.metric.centres


@pytest.mark.parametrize("kind", ["margin", "softmax"])
def test_ranks_take_the_step_of_the_whole_batch(kind):
    whole = steps_on_ranks(kind, 12)
    two = run_on_ranks(2, steps_on_ranks, kind, 6)
    for part in two:
        for a, b in zip(part[0], whole[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(part[2], whole[2], rtol=1e-4, atol=1e-6)
    weight = torch.cat([part[1] for part in two]) if kind == "margin" else two[0][1]
    torch.testing.assert_close(weight, whole[1], rtol=1e-4, atol=1e-6)


# ---- whole runs


@pytest.fixture
def job(tmp_path):
    write_faces(tmp_path / "train.rec", [6, 3, 4, 1, 5, 4])
    return Job(tmp_path)


RUN = [*TERMS, "num_epoch=3", "seed=5"]


@pytest.mark.parametrize("kind", ["margin", "softmax"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(job, kind):
    words = [*RUN, f"head={kind}", "bias_lr_factor=2", "bias_weight_decay=0"]
    assert train(job(*words, f"output={job.output}-whole"), Method, CPU) == 0
    assert train(job(*words), stopping_at(Method, 3), CPU) != 0
    assert train(job(*words, "resume=True"), Method, CPU) == 0
    assert_same_run(job.output, job.output.with_name("run-whole"))
    saved = torch.load(checkpoints(job.output)[0], weights_only=True)
    assert saved["head"]["metric.centres"].shape == (6, 16)
    load_backbone(job.output / "model.pt", "demo_w32")
    keys = torch.load(job.output / "model.pt", weights_only=True).keys()
    assert not [key for key in keys if "metric" in key or "centres" in key]
    classifier = read_classifier([checkpoints(job.output)[0]])
    assert classifier.weight.shape == (6, 16)


def on_ranks(path, output, *more):
    torch.manual_seed(0)
    cfg = load_config(path, [*RUN, "network=demo_w32", "embedding_size=16", "batch_size=4",
                             "num_workers=0", "amp=off", f"output={output}", *more])  # fmt: skip
    assert train(cfg, Method, CPU) == 0


@pytest.mark.parametrize("kind", ["margin", "softmax"])
def test_a_checkpoint_of_two_ranks_is_continued_by_one(job, kind):
    """Centres of the loss are whole on every rank, class centres of PartialFC are not."""
    run_on_ranks(2, on_ranks, job.path, job.output, f"head={kind}", "num_epoch=1")
    saved = torch.load(checkpoints(job.output)[0], weights_only=True)
    assert saved["head"]["metric.centres"].shape == saved["head"]["weight"].shape == (6, 16)
    on_ranks(job.path, job.output, f"head={kind}", "num_epoch=2", "resume=True")
    after = torch.load(checkpoints(job.output)[0], weights_only=True)
    moved = (after["head"]["metric.centres"] - saved["head"]["metric.centres"]).abs().sum(1)
    assert (moved < 100).all() and moved.any()
