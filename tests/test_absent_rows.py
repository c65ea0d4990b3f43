"""Old embeddings of a part of the images: what is absent enters no term, on any number of ranks;
methods that can't do without refuse."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from easydict import EasyDict
from support.gradients import mean_cross_entropy, numeric_gradient
from support.heads import head_with
from support.methods import OldArrays
from support.ranks import run_on_ranks
from support.stored_vectors import IMAGES as PAIRS
from support.stored_vectors import VectorJob

from bct import distributed
from bct.data.loader import Batch
from bct.errors import BctError
from bct.keys import plain
from bct.method import load_method
from bct.stored.class_statistics import (
    class_means,
    class_statistics,
    credible_mask,
    entropy_mask,
)
from bct.streams import generator

IMAGES, CLASSES, DIM = 48, 7, 6
LABELS = np.arange(IMAGES) % CLASSES
RNG = np.random.default_rng(0)
ABSENT = (RNG.random(IMAGES) < 0.4) | (LABELS == 2)  # class 2 wholly
OLD = RNG.standard_normal((IMAGES, DIM)).astype(np.float32)
OLD[ABSENT] = 0
CENTRES = torch.from_numpy(RNG.standard_normal((CLASSES, DIM)).astype(np.float32))
SETTINGS = {
    "L2": {"loss_weight": [0.0, 1.0], "threshold": 0.3},
    "NCCL": {"queue_size": 32, "batch_size": 8, "head": "margin", "sample_rate": 1.0},
    "BCT": {"influence_scale": 9.0},
    "AdvBCT": {"num_epoch": 10, "hidden": 5, "threshold": 0.9},
    "MixBCT": {},
    "HotRefresh": {"temperature": 0.1, "topk": 4},
    "BCTRACT": {"influence": "prototype", "head": "margin", "sample_rate": 1.0},
    "FocalDistillation": {"influence": "prototype"},
    "LCE": {"head": "margin"},
}
OTHERS = ["HotRefresh", "BCTRACT", "FocalDistillation"]


def make(name, old=OLD, labels=LABELS, **changes):
    """A method with these old embeddings and all that is made of them."""
    absent = int((~old.any(1)).sum())
    given = {"old_embedding": old, "old_prototype": class_means(old, labels, None, True)}
    given["class_statistics"] = class_statistics(old, labels, None, True)
    given["credible_old_feature"] = np.ones(len(old), bool)  # a mask from elsewhere, too generous
    torch.manual_seed(1)
    method = load_method(name)
    cfg = {"num_classes": CLASSES, "embedding_size": DIM, "parity": "corrected"}
    cfg |= plain(method.defaults) | SETTINGS.get(name, {}) | changes
    cfg = EasyDict(cfg)
    method.check_absent(cfg, absent)
    return method(cfg, OldArrays(absent, **given))


def old_terms(method, index, f, labels=LABELS, head=None):
    """The terms but for the classification, of this rank's rows of a batch; and its embeddings."""
    size, rank = distributed.world_size(), distributed.rank()
    mine = slice(rank * len(index) // size, (rank + 1) * len(index) // size)
    index, f = index[mine], f[mine].clone().requires_grad_()
    y = torch.from_numpy(labels)[index]
    head = head or head_with(CENTRES, scale=8.0)
    batch = Batch(None, y, index, method.fetch(index, y, generator("cpu", 3)), 4.0)
    terms = method(f, batch, head, generator("cpu", 4))
    return {name: value for name, value in terms.items() if name != "cls"}, f


def batches(number=3, rows=16):
    rng = torch.Generator().manual_seed(2)
    for _ in range(number):
        index = torch.randperm(IMAGES, generator=rng)[:rows]
        yield index, torch.randn(rows, DIM, generator=rng)


# ---- what is made of them


@pytest.mark.parametrize(
    "make_one",
    [class_means, class_statistics, partial(credible_mask, T=0.6), partial(entropy_mask, T=0.6)],
)
def test_artefacts_are_those_of_the_rows_that_are_present(make_one):
    """A class without any has a mean of zeros, no radius and no credible row."""
    present, known = ~ABSENT, np.arange(CLASSES) != 2
    numbered = (np.cumsum(known) - 1)[LABELS[present]]
    want = make_one(OLD[present], numbered)
    zeros = []
    found = make_one(OLD, LABELS, zeros=zeros, partial=True)
    assert zeros == np.flatnonzero(ABSENT).tolist()
    if found.dtype == bool:
        assert found[present].tolist() == want.tolist() and 0 < want.sum() < len(want)
        assert not found[ABSENT].any()
        return
    for name in found.dtype.names or [...]:
        np.testing.assert_allclose(found[name][known], want[name], atol=1e-6)
        assert not np.any(found[name][2])
    with pytest.raises(BctError, match="all rows of class 2 are zeros"):
        make_one(OLD, LABELS)


# ---- the terms


@pytest.mark.parametrize("name", ["L2", "NCCL"])
def test_terms_and_gradients_are_those_of_the_present_images_alone(name):
    """Batch after batch, also through NCCL's queue, which wraps."""
    some, all_there = make(name), make(name, OLD + np.float32(1e-3))  # that one has no zeros
    for index, f in batches(5):
        there = torch.from_numpy(~ABSENT)[index]
        got, f_got = old_terms(some, index, f)
        all_there.old.arrays["old_embedding"] = OLD
        want, f_want = old_terms(all_there, index[there], f[there])
        assert got.keys() == want.keys() and 0 < there.sum() < len(there)
        sum(got.values()).backward()
        sum(want.values()).backward()
        for term in want:
            assert got[term].item() == pytest.approx(want[term].item(), rel=1e-5)
        torch.testing.assert_close(f_got.grad[there], f_want.grad, rtol=1e-4, atol=1e-7)
        assert (f_got.grad[~there] == 0).all() and f_want.grad.any(1).all()


def test_l2_by_hand():
    (index, f), *_ = batches(1)
    chosen = [k for k, i in enumerate(index.tolist()) if not ABSENT[i]]

    def by_hand(x):
        gaps = [
            x[k] / math.sqrt(x[k] @ x[k]) - OLD[i] / math.sqrt(OLD[i] @ OLD[i].astype(float))
            for k, i in enumerate(index.tolist())
            if k in chosen
        ]
        return sum(max(math.sqrt(gap @ gap) - 0.3, 0) for gap in gaps) / len(chosen)

    terms, x = old_terms(make("L2"), index, f)
    terms["l2"].backward()
    assert terms["l2"].item() == pytest.approx(by_hand(f.double().numpy()), rel=1e-5)
    want = numeric_gradient(by_hand, f.double().numpy())
    np.testing.assert_allclose(x.grad, want, rtol=1e-3, atol=1e-5)


def test_bct_knows_no_class_without_an_old_embedding():
    """It is in no softmax, and its images have no influence. By hand in float64."""
    (index, f), *_ = batches(1, rows=24)
    y, known = LABELS[index], [c for c in range(CLASSES) if c != 2]
    means = [OLD[(c == LABELS) & ~ABSENT].astype(float).mean(0) for c in known]
    means = [mean / math.sqrt(mean @ mean) for mean in means]

    def by_hand(x):
        chosen = x[y != 2]
        rows = [[9 * (e @ p) / math.sqrt(e @ e) for p in means] for e in chosen]
        return mean_cross_entropy(rows, [known.index(c) for c in y[y != 2]])

    terms, x = old_terms(make("BCT"), index, f)
    terms["influence"].backward()
    assert (y == 2).any()
    assert terms["influence"].item() == pytest.approx(by_hand(f.double().numpy()), rel=1e-4)
    want = numeric_gradient(by_hand, f.double().numpy())
    np.testing.assert_allclose(x.grad, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_mixbct_replaces_its_share_of_the_rows_that_there_are(ratio):
    """The others of them train the network: else nothing would tie it to the old space."""
    method, index = make("MixBCT", mix_ratio=ratio), torch.arange(IMAGES)
    fetched = method.fetch(index, torch.from_numpy(LABELS), generator("cpu", 1))
    there = np.flatnonzero(~ABSENT).tolist()
    assert set(fetched["rows"].tolist()) <= set(there)
    assert len(fetched["rows"]) == int(ratio * len(there))
    np.testing.assert_array_equal(fetched["features"], OLD[fetched["rows"]])


def test_advbct_shows_its_discriminator_no_absent_row():
    """Its terms are those of two batches, of all new rows and of the present old ones."""
    (index, f), *_ = batches(1)
    method = make("AdvBCT")
    terms, x = old_terms(method, index, f)
    sum(terms.values()).backward()
    there, d = ~ABSENT[index], make("AdvBCT").loss.discriminator.double()
    new = F.normalize(f.double())
    both = torch.cat((new, F.normalize(torch.from_numpy(OLD[index][there]).double())))
    hidden = d[0](both)
    mean, var = hidden.mean(0), hidden.var(0, correction=0)
    hidden = (hidden - mean) / (var + 1e-5).sqrt() * d[1].weight + d[1].bias
    log_p = d[3](hidden.relu()).log_softmax(1)
    want = -log_p[: len(new), 0].mean() - log_p[len(new) :, 1].mean()
    fading = (10 - 4 + 1) / 10
    assert terms["adv"].item() == pytest.approx(4 * fading * want.item(), rel=1e-5)
    assert x.grad.isfinite().all() and not method.loss.valid[2]


@pytest.mark.parametrize("name", ["L2", "NCCL", "BCT", "LCE", "AdvBCT", *OTHERS])
def test_a_batch_of_absent_rows_gives_zero_with_a_graph(name):
    method, index = make(name), torch.from_numpy(np.flatnonzero(LABELS == 2))
    terms, f = old_terms(method, index, torch.randn(len(index), DIM))
    sum(terms.values()).backward()
    assert f.grad.isfinite().all()
    if name == "AdvBCT":  # what is left is the discriminator's opinion of the new rows
        assert terms["p2s"] == 0
    else:
        assert all(value == 0 for value in terms.values()) and not f.grad.any()


def on_rank(name):
    """Each batch's terms, and their gradients by the embeddings, after DDP's mean."""
    method, out = make(name), []
    if name == "NCCL":
        method.loss.opinions = method.loss.opinions.float()  # nothing is rounded
    for index, f in ((i.sort().values, f) for i, f in batches()):  # absent ones unevenly
        terms, x = old_terms(method, index, f)
        sum(terms.values()).backward()
        values = torch.stack([value.detach() for value in terms.values()])
        out.append((values, x.grad / distributed.world_size()))
    return out


@pytest.mark.parametrize("name", ["L2", "NCCL", "BCT", "LCE", "AdvBCT", *OTHERS])
def test_ranks_give_the_gradient_of_the_whole_batch(name):
    one = on_rank(name)
    for world_size in (2, 4) if name == "L2" else (2,):
        many = run_on_ranks(world_size, on_rank, name)
        for k, (values, grad) in enumerate(one):
            got = torch.stack([rank[k][0] for rank in many]).mean(0)
            torch.testing.assert_close(got, values, rtol=1e-4, atol=1e-6)
            by_f = torch.cat([rank[k][1] for rank in many])
            torch.testing.assert_close(by_f, grad, rtol=1e-3, atol=1e-6)


# ---- FCT


@pytest.mark.parametrize("gone", ["old", "new", "both"])
def test_fct_trains_on_the_pairs_that_are_present(tmp_path, gone):
    """Step by step, and in its map, as on a data set of these images alone."""
    folders = [tmp_path / name for name in ("part", "alone")]
    for folder in folders:
        folder.mkdir()
    part, alone = map(VectorJob, folders)
    absent = np.random.default_rng(1).random((2, PAIRS)) < 0.3
    absent &= np.array([[gone != "new"], [gone != "old"]])
    chosen = ~absent.any(0)
    for name, rows, missing in zip(("old", "new"), (part.old, part.new), absent, strict=True):
        more = {"absent": int(missing.sum())} if missing.any() else {}
        part.write(name, np.where(missing[:, None], np.float32(0), rows), **more)
    alone.labels = alone.labels[chosen]
    for name, rows in (("old", alone.old), ("new", alone.new)):
        alone.write(name, rows[chosen])
    few = "batch_size=8", "num_epoch=2", "num_workers=1", "frequent=1"
    (_, got), (_, want) = part.train(*few), alone.train(*few)
    assert len(want) == 2 * (chosen.sum() // 8)
    assert [step["loss"] for step in got] == [step["loss"] for step in want]
    nets = [torch.load(f / "run/model.pt", weights_only=True) for f in folders]
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[1])


# ---- who can't


@pytest.mark.parametrize(
    ("name", "parity"),
    [
        ("UniBCT", "corrected"),
        ("BT2", "corrected"),
        ("OpenBCT", "corrected"),
        ("NCCL", "published"),
        ("BCT", "published"),
        ("AdvBCT", "published"),
        *((name, "published") for name in OTHERS),
    ],
)
def test_methods_that_can_not_do_without_refuse(name, parity):
    with pytest.raises(BctError, match=f"no old embedding, and {name} with") as info:
        make(name, parity=parity)
    assert len(str(info.value).splitlines()) == 2
