"""Hot refresh: golden values of both parities, the negatives one by one, ranks, refusals."""

import json
import math

import numpy as np
import pytest
import torch
from easydict import EasyDict
from support.gradients import numeric_gradient
from support.heads import dense_loss, head_with
from support.methods import OldArrays
from support.ranks import run_on_ranks

from bct import distributed
from bct.data.loader import Batch
from bct.errors import BctError
from bct.keys import plain
from bct.method import load_method
from methods.HotRefresh.loss import LOSSES, hot_refresh
from methods.OpenBCT import regression

HotRefresh = load_method("HotRefresh")
GOLDEN = "golden/landmarks_reid/losses"
RNG = np.random.default_rng(3)
IMAGES, DIM = 12, 5
LABELS = RNG.integers(0, 4, IMAGES)
OLD = RNG.standard_normal((IMAGES, DIM))
NEW = OLD + 0.7 * RNG.standard_normal((IMAGES, DIM))


@pytest.fixture(scope="module")
def golden(shared):
    arrays = np.load(shared / GOLDEN / "inputs_and_grads.npz")
    return json.loads((shared / GOLDEN / "expected.json").read_text()), arrays


def value_and_gradient(function, f, dtype=torch.float64):
    f = torch.tensor(f, dtype=dtype, requires_grad=True)
    loss = function(f)
    loss.backward()
    return loss.item(), f.grad.double().numpy()


def settings_of(case):
    found = {"loss": case["loss_type"], "topk": case.get("topk_neg", -1)}
    return found | {ours: case[name] for ours, name in
                    (("temperature", "temp"), ("margin", "margin")) if name in case}  # fmt: skip


def of_golden(arrays, case, dtype, published):
    labels = torch.from_numpy(arrays[case["labels"]])
    old, weight = torch.tensor(arrays["f_o"], dtype=dtype), case.get("loss_weight", 1.0)
    settings = settings_of(case)
    return value_and_gradient(
        lambda f: weight * hot_refresh(f, labels, old, published=published, **settings),
        arrays["f_n"],
        dtype,
    )


def assert_close(got, want, rtol):
    np.testing.assert_allclose(got[0], want[0], rtol=rtol, atol=rtol * 1e-3)
    np.testing.assert_allclose(got[1], want[1], atol=rtol * max(np.abs(want[1]).max(), 1e-3))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_golden(golden, dtype, rtol):
    """Published as it is; corrected, the gathered rows have a gradient, too, and a triplet's mean
    is over what there is."""
    expected, arrays = golden
    seen = set()
    for name, case in expected.items():
        if not name.startswith("pair/") or case["loss_type"] == "l2":
            continue
        seen.add(case["loss_type"])
        want = case["loss"], arrays[f"{name}/grad"]
        assert_close(of_golden(arrays, case, dtype, published=True), want, rtol)
        labels = arrays[case["labels"]]
        there, factor = (labels[:, None] != labels).sum(1), 1.0
        if name.startswith("pair/triplet"):
            factor = len(labels) * case["topk_neg"] / max(there.clip(max=case["topk_neg"]).sum(), 1)
        want = factor * case["loss"], factor * arrays[f"{name}/grad_local"]
        assert_close(of_golden(arrays, case, dtype, published=False), want, rtol)
    assert seen == set(LOSSES)


def test_golden_of_all_negatives(golden):
    """Its gradient leaves out what comes through gathered rows, as the published one does."""
    expected, arrays = golden
    for loss in ("triplet", "triplet_ract"):
        name, whole = (
            f"{kind}/margin=0.8" for kind in (f"derived/{loss}/all_negatives", f"pair/{loss}")
        )
        whole += "/topk_neg=16"
        case, pairs = expected[name], len(arrays["y"]) ** 2
        got = of_golden(arrays, case, torch.float64, published=False)
        factor = pairs / case["pairs"]
        assert_close(got, (case["loss"], factor * arrays[f"{whole}/grad_local"]), 1e-9)
        loss_, grad = of_golden(arrays, expected[whole], torch.float64, published=True)
        assert_close((factor * loss_, factor * grad), (case["loss"], arrays[f"{name}/grad"]), 1e-9)


def test_golden_of_the_l2_between_embeddings(golden):
    """The same term is OpenBCT's: published, a mean over coordinates, corrected, over images."""
    expected, arrays = golden
    old, width = torch.from_numpy(arrays["f_o"]), arrays["f_o"].shape[1]
    want = expected["pair/l2"]["loss"], arrays["pair/l2/grad"]
    for term, factor in ((regression.published, 1), (regression.corrected, width)):
        got = value_and_gradient(lambda f, term=term: term(f, old), arrays["f_n"])
        assert_close(got, (factor * want[0], factor * want[1]), 1e-9)


# ---- on ranks


def on_ranks(f, labels, old, cases):
    """Per case: the loss and the gradient by this rank's embeddings of the mean over ranks."""
    size, rank = distributed.world_size(), distributed.rank()
    mine = slice(rank * len(f) // size, (rank + 1) * len(f) // size)
    out = []
    for settings in cases:
        local = f[mine].clone().requires_grad_()
        given = dict(settings)
        if "present" in given:
            given["present"] = given["present"][mine]
        loss = hot_refresh(local, labels[mine], old[mine], **given)
        loss.backward()
        out.append((loss.item(), local.grad / size))
    return out


def test_golden_of_two_ranks(golden):
    expected, arrays = golden
    names = [name for name in expected if name.startswith("two_ranks/")]
    one = [expected[expected[name]["one_process"]] for name in names]
    parts = (torch.from_numpy(arrays[key]) for key in ("f_n", "y", "f_o"))
    many = run_on_ranks(2, on_ranks, *parts, [settings_of(c) | {"published": True} for c in one])
    assert len(names) == 6
    for number, name in enumerate(names):
        losses = [rank[number][0] for rank in many]
        np.testing.assert_allclose(losses, expected[name]["loss_per_rank"], rtol=1e-9)
        grad = torch.cat([rank[number][1] for rank in many]) * 2
        np.testing.assert_allclose(grad, arrays[f"{name}/grad"], rtol=1e-7, atol=1e-12)


CASES = [{"loss": loss, "temperature": 0.1, "topk": k, "margin": 0.5}
         for loss in LOSSES for k in (3, -1, 50)]  # fmt: skip
HALF = torch.arange(IMAGES) % 3 != 1
CASES += [{"loss": loss, "temperature": 0.1, "topk": -1, "present": HALF} for loss in LOSSES]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_give_the_value_and_gradient_of_the_whole_batch(world_size):
    given = torch.tensor(NEW), torch.tensor(LABELS), torch.tensor(OLD), CASES
    one, many = on_ranks(*given), run_on_ranks(world_size, on_ranks, *given)
    for number, (loss, grad) in enumerate(one):
        assert np.mean([rank[number][0] for rank in many]) == pytest.approx(loss, rel=1e-6)
        got = torch.cat([rank[number][1] for rank in many])
        torch.testing.assert_close(got, grad, rtol=1e-6, atol=1e-9)


# ---- by hand


def by_hand(f, loss, t, topk, margin, present=None):
    """One image after another, its negatives sorted."""
    present = [True] * len(f) if present is None else present
    new = f / np.sqrt((f * f).sum(1))[:, None]
    old = OLD / np.sqrt((OLD * OLD).sum(1))[:, None]
    contrasts, sums = [], [[], []]
    for i in range(len(f)):
        if not present[i]:
            continue
        others = [j for j in range(len(f)) if LABELS[j] != LABELS[i]]
        families = [sorted((new[i] @ old[j] for j in others if present[j]), reverse=True)]
        if loss.endswith("ract"):
            families.append(sorted((new[i] @ new[j] for j in others), reverse=True))
        families = [family[: topk if topk > 0 else None] for family in families]
        own = new[i] @ old[i]
        noise = sum(math.exp(c / t) for family in families for c in family)
        contrasts.append(-math.log(math.exp(own / t) / (math.exp(own / t) + noise)))
        for family, kept in zip(families, sums, strict=False):
            for c in family:
                gap = math.sqrt(2 - 2 * own) - math.sqrt(2 - 2 * c)
                kept.append(max(gap + margin, 0.0))
    if loss.startswith("contra"):
        return sum(contrasts) / len(contrasts)
    return sum(sum(kept) / len(kept) for kept in sums if kept)


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_losses_and_gradients_match_float64_by_hand(settings):
    settings = dict(settings)
    present = settings.get("present")
    plainly = settings["loss"], settings["temperature"], settings["topk"]
    plainly += settings.get("margin", 0.8), None if present is None else present.tolist()
    got = value_and_gradient(
        lambda f: hot_refresh(f, torch.tensor(LABELS), torch.tensor(OLD), **settings), NEW
    )
    assert got[0] == pytest.approx(by_hand(NEW, *plainly), rel=1e-9)
    want = numeric_gradient(lambda f: by_hand(f, *plainly), NEW)
    np.testing.assert_allclose(got[1], want, atol=1e-5 * np.abs(want).max())
    if present is not None and not settings["loss"].endswith("ract"):
        np.testing.assert_array_equal(got[1].any(1) & ~present.numpy(), False)


def test_one_class_or_identical_embeddings_give_no_nan():
    same = torch.zeros(IMAGES, dtype=torch.long)
    for loss in LOSSES:
        for labels, f in ((same, NEW), (torch.tensor(LABELS), OLD)):
            loss_, grad = value_and_gradient(
                lambda f, y=labels, loss=loss: hot_refresh(f, y, torch.tensor(OLD), loss=loss), f
            )
            assert np.isfinite(loss_) and np.isfinite(grad).all()
            assert labels is not same or (loss_ == 0 and not grad.any())


# ---- the method


def make(old=OLD, **changes):
    cfg = {"parity": "corrected", "batch_size": IMAGES, **plain(HotRefresh.defaults), **changes}
    return HotRefresh(EasyDict(cfg), OldArrays(old_embedding=np.float32(old)))


def test_the_loss_is_the_heads_and_the_weighted_pairs():
    """Only the batch's rows are read, and the old side is constant."""
    method = make(weight=2.5, loss="triplet_ract", margin=0.3, topk=4)
    index = torch.tensor([7, 1, 1, 5, 0, 11])
    y, f = torch.tensor(LABELS)[index], torch.tensor(NEW[index]).float().requires_grad_()
    fetched = method.fetch(index, y, None)
    assert method.old.read == [("old_embedding", index.tolist())] and fetched.keys() == {"features"}
    w = torch.randn(4, DIM, generator=torch.Generator().manual_seed(1))
    head = head_with(w, margin=(1, 0.3, 0), scale=20.0)
    losses = method(f, Batch(None, y, index, fetched), head, None)
    assert losses.keys() == {"cls", "pairs"}
    cls = dense_loss(f.detach().double(), w.double(), y, (1, 0.3, 0), 20.0)
    assert losses["cls"].item() == pytest.approx(cls.item(), rel=1e-5)
    want = hot_refresh(f, y, torch.tensor(OLD[index]).float(), "triplet_ract", topk=4, margin=0.3)
    assert losses["pairs"].item() == pytest.approx(2.5 * want.item(), rel=1e-6)
    sum(losses.values()).backward()
    assert f.grad.any(1).all() and not fetched["features"].requires_grad
    assert list(method.parameters()) == [] and method.state_dict() == {}


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("the batch of all ranks has 12 images", {"topk": 13}),
        ("need the number of negatives", {"loss": "triplet", "topk": -1}),
        ("need the number of negatives", {"loss": "triplet_ract", "topk": 0}),
    ],
)
def test_what_the_published_code_ends_with_is_refused(word, changes):
    make(**changes)
    with pytest.raises(BctError, match=word) as info:
        make(parity="published", **changes)
    assert len(str(info.value).splitlines()) == 2


def test_a_smaller_last_batch_is_refused_as_published():
    parts = torch.tensor(NEW), torch.tensor(LABELS), torch.tensor(OLD)
    with pytest.raises(BctError, match="topk = 13"):
        hot_refresh(*parts, topk=13, published=True)


def test_images_without_an_old_embedding_are_left_out_unless_published():
    old = OLD.copy()
    old[~HALF.numpy()] = 0
    method = make(old, temperature=0.1)
    method.old.absent = int((~HALF).sum())
    index, y = torch.arange(IMAGES), torch.tensor(LABELS)
    batch = Batch(None, y, index, method.fetch(index, y, None))
    got = method(torch.tensor(NEW).float(), batch, head_with(torch.eye(DIM)), None)["pairs"]
    want = by_hand(NEW, "contra_ract", 0.1, 10, 0.8, HALF.tolist())
    assert got.item() == pytest.approx(want, rel=1e-5)
    assert HotRefresh.takes_a_part(method.cfg)
    assert not HotRefresh.takes_a_part(EasyDict(parity="published"))
