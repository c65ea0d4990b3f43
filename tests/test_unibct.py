"""UniBCT: prototypes against a full inverse in float64, when they are made and used, ranks."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from easydict import EasyDict
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gradients import assert_influence, influence_of, mean_cross_entropy
from support.heads import head_with
from support.methods import OldArrays
from support.ranks import run_on_ranks
from torch import nn

from bct import distributed
from bct.amp import make_scaler
from bct.data.loader import Batch
from bct.errors import BctError
from bct.keys import plain
from bct.method import load_method
from bct.stored.class_statistics import class_means, class_statistics
from bct.training.checkpoint import load_checkpoint, save_checkpoint
from bct.training.heads import PartialFC
from bct.training.optimizer import make_optimizer
from bct.training.run_record import RunRecord, read_record
from methods.UniBCT import loss

UniBCT = load_method("UniBCT")
SIZES = [3, 1, 7, 2, 3, 1, 3, 2, 7, 1, 1]  # three classes of 3: a stack of systems that is a cube


def config(classes, dim=4, **changes):
    base = {"num_classes": classes, "embedding_size": dim, "parity": "corrected", "num_epoch": 35}
    train = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    train["backbone_lr_factor"] = 1.0
    return EasyDict({**base, **train, **plain(UniBCT.defaults), **changes})


def images(sizes=SIZES, dim=4, seed=0):
    """New and old embeddings and labels of as many images per class, in no order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    new, old = rng.standard_normal((2, len(labels), dim)).astype(np.float32)
    return 3 * new, old + 0.5, labels


def make(old, labels, **changes):
    arrays = OldArrays(old_embedding=old, old_embedding_label=labels)
    return UniBCT(config(labels.max() + 1, old.shape[1], **changes), arrays), arrays


def refreshed(new, old, labels, **changes):
    method, _ = make(old, labels, **changes)
    method.begin_epoch(10, lambda indices: new[indices])
    return method


def naive_prototypes(new, old, labels, lam=0.9, t=0.05):
    """n(mean of the rows of (1 - lam) (I - lam A)^-1 O), class after class."""
    out = []
    for c in range(labels.max() + 1):
        v, o = (x[labels == c].astype(np.float64) for x in (new, old))
        n = len(v)
        a = np.ones((1, 1)) if n == 1 else np.zeros((n, n))  # an only image: its own neighbour
        for i in range(n):
            for j in set(range(n)) - {i}:
                cosine = v[i] @ v[j] / math.sqrt((v[i] @ v[i]) * (v[j] @ v[j]))
                a[i, j] = math.exp(cosine / t)
        a /= a.sum(1, keepdims=True)
        p = ((1 - lam) * np.linalg.inv(np.eye(n) - lam * a) @ o).mean(0)
        out.append(p / math.sqrt(p @ p))
    return np.array(out)


# ---- prototypes


def test_golden(shared):
    """As published, the graph has no effect: the prototypes are the plain means."""
    data = np.load(shared / "golden/artefacts/artefacts.npz")
    new, old, labels = data["unibct_new_features"], data["features"], data["labels"]
    golden = data["unibct_prototypes_as_published"]
    published = refreshed(new, old, labels, parity="published").prototypes.numpy()
    np.testing.assert_allclose(published, golden, atol=1e-5 * np.abs(golden).max())
    means = [old[labels == c].mean(0) for c in range(len(golden))]
    np.testing.assert_allclose(published, means, atol=1e-5 * np.abs(golden).max())

    corrected = refreshed(new, old, labels).prototypes.numpy()
    np.testing.assert_allclose(corrected, naive_prototypes(new, old, labels), atol=1e-4)
    moved = np.linalg.norm(corrected - class_means(old, labels), axis=1)
    assert (moved[np.bincount(labels) > 2] > 1e-3).all()


@settings(max_examples=30)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 3, 7]), min_size=1, max_size=9),
    lam=st.sampled_from([0.0, 0.5, 0.9]),
    t=st.sampled_from([0.05, 1.0]),
    seed=st.integers(0, 99),
)
def test_prototypes_match_the_full_inverse(sizes, lam, t, seed):
    new, old, labels = images(sizes, seed=seed)
    method = refreshed(new, old + 1, labels, propagation=lam, temperature=t)
    want = naive_prototypes(new, old + 1, labels, lam, t)
    np.testing.assert_allclose(method.prototypes, want, atol=1e-4)
    plain = refreshed(new, old, labels, parity="published", propagation=lam, temperature=t)
    means = [old[labels == c].mean(0) for c in range(len(sizes))]
    np.testing.assert_allclose(plain.prototypes, means, atol=1e-4)


@pytest.mark.parametrize("block", [1, 9, 20, 99])
def test_blocks_change_nothing(monkeypatch, block):
    want = refreshed(*images()).prototypes
    monkeypatch.setattr(loss, "_BLOCK", block)
    torch.testing.assert_close(refreshed(*images()).prototypes, want, rtol=1e-5, atol=1e-6)


def test_weights_are_a_mean_that_passes_over_outliers():
    """With one old direction per image, a prototype shows the weights, up to its length."""
    new = np.array([[1, 0, 0.1, 0], [1, 0.1, 0, 0], [1, 0, 0, 0], [-1, 1, 0, 0]], np.float32)
    labels, one_each = np.zeros(4, np.int64), np.eye(4, dtype=np.float32)
    weights = refreshed(new, one_each, labels).prototypes[0]
    assert (weights > 0).all() and weights[3] < 0.5 * weights[:3].min()
    published = refreshed(new, one_each, labels, parity="published").prototypes[0]
    torch.testing.assert_close(published, torch.full((4,), 0.25))  # they sum to 1
    same = np.tile(np.float32([3, 0, 4, 0]), (4, 1))
    torch.testing.assert_close(
        refreshed(new, same, labels).prototypes[0], torch.tensor(same[0]) / 5
    )


@pytest.mark.parametrize("missing", [0, 2, 4])
def test_a_class_without_old_embedding_is_refused(missing):
    old, labels = np.ones((10, 4), np.float32), np.arange(10) % 5
    kept = labels != missing
    arrays = OldArrays(old_embedding=old[kept], old_embedding_label=labels[kept])
    with pytest.raises(BctError, match=f"class {missing} has no old embedding"):
        UniBCT(config(5), arrays)


# ---- epochs and loss


def test_prototypes_are_made_at_the_refresh_epochs_and_used_from_the_first_on():
    new, old, labels = images()
    method, arrays = make(old, labels, refresh_epochs=[6, 3])
    asked, made = [], []

    def embed(indices):
        asked.append(indices)
        return new[indices] * np.float32([1, 1, 1, len(asked)])  # another network every time

    for epoch in range(8):
        method.begin_epoch(epoch, embed)
        made.append(method.prototypes.clone())
        for at in (epoch, epoch + 0.9):
            batch = Batch(None, torch.from_numpy(labels), None, {}, at)
            losses = method(torch.from_numpy(new), batch, head_with(torch.eye(4)), None)
            assert losses.keys() == ({"cls"} if epoch < 3 else {"cls", "influence"})
    assert [k for k in range(1, 8) if not torch.equal(made[k], made[k - 1])] == [3, 6]
    assert len(asked) == 2
    later = naive_prototypes(new * np.float32([1, 1, 1, 2]), old, labels)
    np.testing.assert_allclose(method.prototypes, later, atol=1e-4)
    for indices, (kind, rows) in zip(asked, arrays.read, strict=True):
        assert sorted(indices) == list(range(len(labels))) and kind == "old_embedding"
        assert rows == indices.tolist()


@pytest.mark.parametrize("parity", ["corrected", "published"])
def test_influence_and_gradient_match_float64_by_hand(parity):
    """-log softmax_y( s cos(f, p_c) ); as published p_c is a plain mean, whose length is s."""
    new, old, labels = images()
    method = refreshed(new, old, labels, parity=parity, influence_scale=9.0, influence_weight=0.7)
    if parity == "corrected":
        p = 9.0 * naive_prototypes(new, old, labels)
    else:
        p = np.array([old[labels == c].mean(0, dtype=np.float64) for c in range(len(SIZES))])
    f, y = new[:8].astype(np.float64), labels[:8]

    def by_hand(x):
        return 0.7 * mean_cross_entropy([p @ x_i / math.sqrt(x_i @ x_i) for x_i in x], y)

    assert_influence(method, by_hand, f, y)


def test_the_old_side_and_the_prototypes_are_constant():
    new, old, labels = images()
    before = old.copy(), labels.copy()
    method = refreshed(new, old, labels)
    prototypes = method.prototypes.clone()
    _, grad = influence_of(method, new, labels)
    assert np.abs(grad).max() > 0 and list(method.parameters()) == []
    assert method.prototypes.grad is None and not method.prototypes.requires_grad
    assert torch.equal(method.prototypes, prototypes)
    np.testing.assert_array_equal(old, before[0])
    np.testing.assert_array_equal(labels, before[1])


# ---- ranks and checkpoints


def on_ranks(folder, new, old, labels, f, y):
    """Per parity: makes the prototypes and saves them, or loads them if there is a checkpoint.
    Returns what it asked the network for, its prototypes, and the loss and its gradient by the
    embeddings, after DDP's mean."""
    size, rank = distributed.world_size(), distributed.rank()
    mine = slice(rank * len(f) // size, (rank + 1) * len(f) // size)
    out = []
    for parity in ("corrected", "published"):
        method, _ = make(old, labels, parity=parity)
        backbone, head = nn.Linear(2, 2), PartialFC(4, len(SIZES))
        optimizer = make_optimizer(method.cfg, backbone, method, head)
        parts = backbone, method, head, optimizer, make_scaler(None, torch.device("cpu"))
        asked, path = [], folder / parity
        if path.is_dir():
            load_checkpoint(read_record(path), *parts)
        else:
            method.begin_epoch(
                10, lambda indices, asked=asked: asked.extend(indices) or new[indices]
            )
            save_checkpoint(RunRecord(path, {}, 1), {"step": 0}, *parts)
        loss, grad = influence_of(method, f[mine], y[mine])
        out.append(
            (asked, method.prototypes, torch.tensor([loss / size]), torch.from_numpy(grad) / size)
        )
    return out


def test_any_number_of_ranks_makes_and_loads_the_same_prototypes(tmp_path):
    """11 classes do not divide by 2 or 4. Those made on 2 ranks are loaded on 4 and 1."""
    new, old, labels = images()
    rng = torch.Generator().manual_seed(2)
    f, y = torch.randn(16, 4, generator=rng), torch.randint(0, len(SIZES), (16,), generator=rng)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = on_ranks(tmp_path / "one", new, old, labels, f, y)
    for world_size in (2, 4, 1):
        ranks = run_on_ranks(world_size, on_ranks, tmp_path / "two", new, old, labels, f, y)
        for case, (_, prototypes, *want) in enumerate(one):
            shares, *got = ([rank[case][k] for rank in ranks] for k in (1, 2, 3))
            loss, grad = map(torch.cat, got)
            if case == 0:  # corrected: each has its classes' rows
                shares = [torch.cat(shares)]
            for share in shares:
                torch.testing.assert_close(share, prototypes, rtol=1e-4, atol=1e-6)
            for x, value in zip((loss.sum()[None], grad), want, strict=True):
                torch.testing.assert_close(x, value, rtol=1e-4, atol=1e-6)
            for rank, result in enumerate(ranks):  # each asks for its own classes' images
                start, count = distributed.contiguous_share(len(SIZES), rank, world_size)
                own = np.flatnonzero((labels >= start) & (labels < start + count))
                assert sorted(result[case][0]) == (own.tolist() if world_size == 2 else [])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"refresh_epochs": []}, "never be a prototype"),
        ({"num_epoch": 8}, "never be a prototype"),
    ],
)
def test_settings_that_give_no_prototypes_are_refused(changes, word):
    _, old, labels = images()
    with pytest.raises(BctError, match=word):
        make(old, labels, **changes)


# ---- in AdvBCT's reading


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("published", [True, False])
def test_golden_of_advbcts_reading(shared, dtype, rtol, published):
    folder = shared / "golden/landmarks_reid/losses"
    case = "uni_bct/s=30/m=0.3"
    expected = json.loads((folder / "expected.json").read_text())[case]
    with np.load(folder / "inputs_and_grads.npz") as file:
        f, centres, y, grad = (torch.from_numpy(file[name]) for name in
                               ("f_a", "uni_centers", "y", f"{case}/grad"))  # fmt: skip
    y, f = y.where(y < len(centres), -1), f.to(dtype).requires_grad_()
    if published:
        value = loss.published_arcface(f, y, F.normalize(centres).to(dtype), 30.0, 0.3)
    else:  # computes in float32
        value, rtol = loss.influence(f, y, centres.float(), 30.0, margin=0.3), 1e-4
    value.backward()
    assert value.item() == pytest.approx(expected["loss"], rel=rtol)
    want = grad.to(dtype)
    torch.testing.assert_close(f.grad, want, rtol=rtol, atol=rtol * want.abs().max().item())


def centred(table, parity="corrected", **more):
    """A method with class statistics alone, of which class 3 has none."""
    arrays = OldArrays(class_statistics=table)
    arrays.new_to_old = lambda: torch.arange(len(table)).where(torch.arange(len(table)) < 6, -1)
    more = {"reading": "advbct", "influence_scale": 9.0, "influence_weight": 0.7, **more}
    return UniBCT(config(len(table), parity=parity, **more), arrays)


def statistics():
    _, old, labels = images()
    table = class_statistics(old, labels)
    table[3] = np.zeros(1, table.dtype)
    return table


@pytest.mark.parametrize("unseen", ["synthesise", "ignore"])
@pytest.mark.parametrize("parity", ["corrected", "published"])
def test_centres_are_the_prototypes(parity, unseen):
    """From the first step on, without the graph; images of other classes have no influence."""
    table = statistics()
    method = centred(table, parity, unseen=unseen)
    known = [c for c in range(len(table)) if c != 3 and (unseen == "synthesise" or c < 6)]
    p = np.array([table["centre"][c] / np.linalg.norm(table["centre"][c]) for c in known], "f8")
    assert method.begin_epoch(10, None) is None and not method.state_dict()
    rng = np.random.default_rng(7)
    y = np.array([0, 3, 5, 1, 10, 2, 8, 0])
    f, chosen = rng.standard_normal((len(y), 4)) + 3 * table["centre"][y], np.isin(y, known)

    def by_hand(x):
        rows = []
        for x_i, c in zip(x[chosen], y[chosen], strict=True):
            angles = np.arccos(np.clip(p @ x_i / math.sqrt(x_i @ x_i), -1, 1))
            angles[known.index(c)] += 0.3
            rows.append(9.0 * np.cos(angles))
        return 0.7 * mean_cross_entropy(rows, [known.index(c) for c in y[chosen]])

    value, grad = influence_of(method, f, y, epoch=0.0)
    assert value == pytest.approx(by_hand(f), rel=1e-4)
    assert (grad[~chosen] == 0).all() and (grad[chosen] != 0).any(1).all()
    nobody = np.full(4, 3)
    value, grad = influence_of(method, f[:4], nobody, epoch=0.0)
    assert value == 0 and (grad == 0).all()


def centres_on_ranks(table, parity, f, y):
    size, rank = distributed.world_size(), distributed.rank()
    mine = slice(rank * len(f) // size, (rank + 1) * len(f) // size)
    value, grad = influence_of(centred(table, parity), f[mine], y[mine], epoch=0.0)
    return value, torch.from_numpy(grad) / size


def test_any_number_of_ranks_with_centres():
    """Published, each rank has the mean over its own images of old classes."""
    rng = np.random.default_rng(8)
    table, y = statistics(), np.array([3, 3, 3, 1, 5, 9, 2, 8, 0, 10, 4, 6])
    f = rng.standard_normal((len(y), 4))
    value, grad = centres_on_ranks(table, "corrected", f, y)
    for world_size in (2, 4):
        ranks = run_on_ranks(world_size, centres_on_ranks, table, "corrected", f, y)
        values, grads = zip(*ranks, strict=True)
        assert np.mean(values) == pytest.approx(value, rel=1e-5)
        torch.testing.assert_close(torch.cat(grads), grad, rtol=1e-4, atol=1e-6)
    alone = [centres_on_ranks(table, "published", f[part], y[part]) for part in
             (slice(0, 6), slice(6, 12))]  # fmt: skip
    ranks = run_on_ranks(2, centres_on_ranks, table, "published", f, y)
    for got, want in zip(ranks, alone, strict=True):
        assert got[0] == pytest.approx(want[0], rel=1e-5)
        torch.testing.assert_close(2 * got[1], want[1], rtol=1e-4, atol=1e-6)


def test_the_scale_is_the_readings_or_the_configs():
    assert centred(statistics(), influence_scale=None).scale == 30
    assert centred(statistics()).scale == 9
    _, old, labels = images()
    assert make(old, labels)[0].scale == 64
    arrays = OldArrays(class_statistics=statistics())
    arrays.new_to_old = lambda: torch.full((len(SIZES),), -1)
    with pytest.raises(BctError, match="seen none of the new classes"):
        UniBCT(config(len(SIZES), reading="advbct", unseen="ignore"), arrays)
