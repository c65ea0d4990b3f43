"""BCT-RACT: golden values, every head in float64 by hand, who judges, ranks, refusals."""

import json
import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from easydict import EasyDict
from support.gradients import numeric_gradient
from support.heads import dense_loss, head_with, problem
from support.methods import OldArrays
from support.ranks import run_on_ranks

from bct import distributed
from bct.config import base_config
from bct.data.loader import Batch
from bct.errors import BctError
from bct.keys import plain
from bct.method import load_method
from bct.training.heads import NoHead, SoftmaxHead
from bct.training.other_classes import others, others_of
from bct.training.replicas import bare, replicate
from methods.BCT.loss import classifier_influence
from methods.BCTRACT.loss import bct_ract

BCTRACT = load_method("BCTRACT")
GOLDEN = "golden/landmarks_reid/losses"
CLASSES, DIM, SEEN = 11, 6, 5
NEW, CENTRES, LABELS = problem(CLASSES, DIM, batch=12)
MEANS = CENTRES + 0.5
RNG = torch.Generator().manual_seed(4)
WEIGHT = torch.randn(SEEN, DIM, generator=RNG, dtype=torch.float64)
BIAS = torch.randn(SEEN, generator=RNG, dtype=torch.float64)
ROW = torch.tensor([2, -1, 0, 1, -1, -1, 4, -1, -1, 3, -1])  # of each new class


class Old(OldArrays):
    """An old model in memory, with or without a classifier."""

    def __init__(self, means=MEANS, own=(WEIGHT, BIAS), row=ROW, unit=False):
        super().__init__(old_prototype=np.float32(means))
        self.own, self.row, self.unit = own, row, unit

    def classifier(self):
        if self.own is None:
            raise BctError("model.pt holds no classifier", "use class means")
        return tuple(part if part is None else part.float() for part in self.own)

    def new_to_old(self):
        return self.row

    def classifies_unit(self):
        return self.unit


def make(old=None, **changes):
    place = {"num_classes": CLASSES, "embedding_size": DIM, "scenario": "EXclass"}
    cfg = EasyDict({**base_config(), **plain(BCTRACT.defaults), **place, **changes})
    return BCTRACT(cfg, old or Old())


def softmax_head(bias=True):
    head = SoftmaxHead(DIM, CLASSES, bias=bias)
    rng = torch.Generator().manual_seed(9)
    with torch.no_grad():
        head.weight.copy_(torch.randn(CLASSES, DIM, generator=rng))
        if bias:
            head.bias.copy_(torch.randn(CLASSES, generator=rng))
    return head


def of_method(method, head, f=NEW, y=LABELS):
    """(terms, gradient by the embeddings)."""
    f = torch.tensor(np.float32(f), requires_grad=True)
    terms = method(f, Batch(None, y, None, {}), head, None)
    terms["influence"].backward()
    return terms, f.grad


# ---- golden values


@pytest.fixture(scope="module")
def golden(shared):
    arrays = np.load(shared / GOLDEN / "inputs_and_grads.npz")
    return json.loads((shared / GOLDEN / "expected.json").read_text()), arrays


CASES = {  # case -> (labels, old classifier, old classes, margin head)
    "bct_ract/all_in_old/Co=6": ("y_in", "W_o6", 6, False),
    "bct_ract/Co=10": ("y", "W_o10", 10, False),
    "bct_ract/Co=10/arcface": ("y", "W_o10", 10, True),
    "derived/bct_ract/subset/Co=6": ("y", "W_o6", 6, False),
}


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", CASES)
def test_golden(golden, name, dtype, rtol):
    expected, arrays = golden
    which, judge, known, margin = CASES[name]
    f, w = (torch.tensor(arrays[k], dtype=dtype, requires_grad=True) for k in ("f_n", "W_n"))
    y = torch.from_numpy(arrays[which])
    z = f @ torch.tensor(arrays[judge], dtype=dtype).t()
    new = 30 * F.normalize(f) @ F.normalize(w).t() if margin else f @ w.t()
    loss = bct_ract(z, y.where(y < known, -1), others(new, y))
    loss.backward()
    assert loss.item() == pytest.approx(expected[name]["loss"], rel=rtol)
    for got, key in ((f.grad, "grad"), (w.grad, "grad_W_n")):
        want = arrays[f"{name}/{key}"]
        np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize("name", CASES)
def test_golden_by_the_method_and_its_head(golden, name):
    """The margin of the head is nowhere in it."""
    expected, arrays = golden
    which, judge, known, margin = CASES[name]
    classes, dim = arrays["W_n"].shape
    row = torch.arange(classes).where(torch.arange(classes) < known, -1)
    old = Old(arrays["W_o10"], (torch.from_numpy(arrays[judge]), None), row)
    method = make(old, num_classes=classes, embedding_size=dim)
    if margin:
        head = head_with(torch.tensor(arrays["W_n"]).float(), margin=(1, 0.3, 0), scale=30.0)
    else:
        head = SoftmaxHead(dim, classes, bias=False)
        head.weight.data.copy_(torch.from_numpy(arrays["W_n"]))
    terms, grad = of_method(method, head, arrays["f_n"], torch.from_numpy(arrays[which]))
    assert terms["influence"].item() == pytest.approx(expected[name]["loss"], rel=1e-4)
    for got, key in ((grad, "grad"), (head.weight.grad, "grad_W_n")):
        want = arrays[f"{name}/{key}"]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    ("name", "judge", "known"), [("bct/Co=10", "W_o10", 10), ("bct/old_classes_only", "W_o6", 6)]
)
def test_golden_of_bct_alone(golden, name, judge, known, dtype, rtol):
    """Without new classes in the softmax it is BCT's own."""
    expected, arrays = golden
    y, old = torch.from_numpy(arrays["y"]), torch.tensor(arrays[judge], dtype=dtype)
    nothing = torch.full((len(y),), -torch.inf, dtype=dtype)
    known = y.where(y < known, -1)
    for loss_of in (
        lambda f: classifier_influence(f, known, old, None),
        lambda f: bct_ract(f @ old.t(), known, nothing),
    ):
        f = torch.tensor(arrays["f_n"], dtype=dtype, requires_grad=True)
        loss = loss_of(f)
        loss.backward()
        assert loss.item() == pytest.approx(expected[name]["loss"], rel=rtol)
        want = arrays[f"{name}/grad"]
        np.testing.assert_allclose(f.grad, want, rtol=0, atol=rtol * np.abs(want).max())


# ---- by hand


def by_hand(f, head, z_of, row):
    """One image after another: z_of(f_i) are the old half's logits."""
    w = head.weight.detach().double().numpy()
    total, count = 0.0, 0
    for f_i, y in zip(f, LABELS.tolist(), strict=True):
        if row[y] < 0:
            continue
        if isinstance(head, SoftmaxHead):
            new = w @ f_i + head.bias.detach().double().numpy()
        else:
            new = 20.0 * (w @ f_i) / np.sqrt((w * w).sum(1) * (f_i @ f_i))
        z = z_of(f_i)
        noise = sum(math.exp(v) for v in z)
        noise += sum(math.exp(v) for c, v in enumerate(new) if c != y)
        total, count = total - math.log(math.exp(z[row[y]]) / noise), count + 1
    return total / count


def own_logits(f_i):
    return WEIGHT.numpy() @ f_i + BIAS.numpy()


def unit_logits(f_i):
    return own_logits(f_i / math.sqrt(f_i @ f_i))


def mean_logits(f_i, scale=7.0):
    means = MEANS.numpy()
    return scale * (means @ f_i) / np.sqrt((means * means).sum(1) * (f_i @ f_i))


MARGIN = {"head": "margin"}
JUDGES = {
    "own": (Old(), {}, own_logits, ROW),
    "own, of unit embeddings": (Old(unit=True), {}, unit_logits, ROW),
    "means": (
        Old(),
        {"influence": "prototype", "influence_scale": 7.0},
        mean_logits,
        torch.arange(CLASSES),
    ),
    "means, without a classifier": (
        Old(own=None),
        {"influence_scale": 7.0},
        mean_logits,
        torch.arange(CLASSES),
    ),
}


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("margin", [True, False])
def test_influence_and_gradients_match_float64_by_hand(judge, margin):
    old, changes, z_of, row = JUDGES[judge]
    centres = CENTRES.float()
    head = head_with(centres, margin=(1, 0.3, 0), scale=20.0) if margin else softmax_head()
    terms, grad = of_method(make(old, influence_weight=0.7, **changes), head)
    f = NEW.float().double().numpy()
    want = numeric_gradient(lambda x: 0.7 * by_hand(x, head, z_of, row), f)
    assert terms["influence"].item() == pytest.approx(0.7 * by_hand(f, head, z_of, row), rel=1e-4)
    np.testing.assert_allclose(grad, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
    np.testing.assert_array_equal(grad.any(1), row[LABELS] >= 0)
    weight = head.weight.detach().clone().double().numpy()

    def of_weight(w):
        head.weight.data.copy_(torch.from_numpy(w))
        return 0.7 * by_hand(f, head, z_of, row)

    with torch.no_grad():
        head.double()
        want = numeric_gradient(of_weight, weight)
    np.testing.assert_allclose(head.weight.grad, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_the_classification_is_the_heads_and_the_old_side_is_constant():
    method, head = make(), head_with(CENTRES.float(), margin=(1, 0.3, 0), scale=20.0)
    terms, _ = of_method(method, head)
    assert terms.keys() == {"cls", "influence"}
    want = dense_loss(NEW, CENTRES, LABELS, (1, 0.3, 0), 20.0)
    assert terms["cls"].item() == pytest.approx(want.item(), rel=1e-4)
    assert list(method.parameters()) == [] and method.state_dict() == {}
    assert torch.equal(method.judge.weight, WEIGHT.float())
    assert not any(buffer.requires_grad for buffer in method.buffers())


# ---- who judges


def test_class_means_judge_where_no_classifier_knows_a_class(caplog):
    nothing = torch.full((CLASSES,), -1)
    for old in (Old(own=None), Old(row=nothing)):
        with caplog.at_level(logging.INFO):
            judge = make(old).judge
        assert judge.scale == 64.0 and "class means of old embeddings judge" in caplog.text
        caplog.clear()
        torch.testing.assert_close(judge.weight, F.normalize(MEANS.float()))
        assert torch.equal(judge.row, torch.arange(CLASSES))
    assert make().judge.scale is None and not caplog.text


def test_a_class_without_old_embeddings_has_no_influence():
    means = MEANS.clone()
    means[3] = 0
    judge = make(Old(means), influence="prototype").judge
    assert judge.row.tolist() == [0, 1, 2, -1, *range(3, CLASSES - 1)]
    assert len(judge.weight) == CLASSES - 1
    assert BCTRACT.takes_a_part(EasyDict(parity="corrected"))
    assert not BCTRACT.takes_a_part(EasyDict(parity="published"))


@pytest.mark.parametrize("margin", [True, False])
def test_a_batch_of_unknown_classes_has_no_influence(margin):
    head = head_with(CENTRES.float()) if margin else softmax_head()
    y = torch.tensor([1, 4, 5, 7, 8, 10])
    terms, grad = of_method(make(), head, NEW[:6], y)
    assert terms["influence"] == 0 and not grad.any() and not head.weight.grad.any()


@pytest.mark.parametrize(
    ("word", "old", "changes"),
    [
        ("all new classes", Old(), {"sample_rate": 0.5}),
        ("does not know 6 of 11 classes", Old(), {"parity": "published"}),
        ("holds no classifier", Old(own=None), {"influence": "old_classifier"}),
        ("has seen none", Old(row=torch.full((CLASSES,), -1)), {"influence": "old_classifier"}),
        ("is of 6 dimensions", Old(), {"influence": "old_classifier", "embedding_size": 8}),
    ],
)
def test_refusals(word, old, changes):
    with pytest.raises(BctError, match=word) as info:
        make(old, **changes)
    assert len(str(info.value).splitlines()) == 2


def test_published_is_the_same_where_every_class_is_known():
    row = torch.arange(CLASSES) % SEEN
    got = [of_method(make(Old(row=row), parity=parity), softmax_head())
           for parity in ("published", "corrected")]  # fmt: skip
    assert got[0][0]["influence"] == got[1][0]["influence"] and torch.equal(got[0][1], got[1][1])


def test_without_a_head_two_lines_say_so():
    with pytest.raises(BctError, match="has a classification term"):
        of_method(make(head="none"), NoHead())


# ---- ranks


def gradients(f, w, y, row):
    """Per judge: the influence, gradients by the embeddings, after DDP's mean, and by centres."""
    size, rank = distributed.world_size(), distributed.rank()
    mine = slice(rank * len(f) // size, (rank + 1) * len(f) // size)
    out = []
    for changes in ({}, {"influence": "prototype"}):
        local, head = f[mine].clone().requires_grad_(), head_with(w, scale=20.0)
        terms = make(Old(row=row), **changes)(local, Batch(None, y[mine], None, {}), head, None)
        terms["influence"].backward()
        out.append((terms["influence"].detach()[None], local.grad / size, head.weight.grad))
    return out


def test_ranks_give_the_gradient_of_the_whole_batch():
    """11 classes do not divide by 2 or 4, and some ranks have no image of a known class."""
    rng = torch.Generator().manual_seed(2)
    f, w = torch.randn(16, DIM, generator=rng), torch.randn(CLASSES, DIM, generator=rng)
    y = torch.tensor([0, 2, 3, 6, 1, 4, 5, 7, 0, 1, 9, 9, 8, 10, 2, 1])
    one = gradients(f, w, y, ROW)
    for world_size in (2, 4):
        many = run_on_ranks(world_size, gradients, f, w, y, ROW)
        for case, want in enumerate(one):
            loss, by_f, by_w = (torch.cat([rank[case][k] for rank in many]) for k in range(3))
            for got, value in zip((loss.mean()[None], by_f, by_w), want, strict=True):
                torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-6)


def gradients_of_plain_heads(f, y, row):
    """As a training has them: the head is replicated, and asked beside its own loss."""
    size, rank = distributed.world_size(), distributed.rank()
    mine = slice(rank * len(f) // size, (rank + 1) * len(f) // size)
    local, head = f[mine].clone().requires_grad_(), replicate(softmax_head(), torch.device("cpu"))
    terms = make(Old(row=row))(local, Batch(None, y[mine], None, {}), head, None)
    sum(terms.values()).backward()
    return terms["influence"].detach(), local.grad / size, bare(head).weight.grad


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_give_a_plain_head_the_gradient_of_the_whole_batch(world_size):
    y = torch.tensor([0, 2, 3, 6, 1, 4, 5, 7, 0, 1, 9, 9])
    given = NEW.float(), y, ROW
    loss, by_f, by_w = gradients_of_plain_heads(*given)
    many = run_on_ranks(world_size, gradients_of_plain_heads, *given)
    torch.testing.assert_close(sum(rank[0] for rank in many) / world_size, loss)
    torch.testing.assert_close(torch.cat([rank[1] for rank in many]), by_f, rtol=1e-4, atol=1e-6)
    for _, _, grad in many:  # each rank has the mean
        torch.testing.assert_close(grad, by_w, rtol=1e-4, atol=1e-6)


def one_class_each(f, w, y):
    """Two classes on two ranks: every rank has no class but its own images'."""
    rank = distributed.rank()
    local = f[2 * rank : 2 * rank + 2].clone().requires_grad_()
    out = others_of(head_with(w, scale=20.0), local, y[2 * rank : 2 * rank + 2])
    out.mean().backward()
    return out.detach(), local.grad


def test_a_rank_with_no_other_class():
    f, w = torch.randn(4, 3, generator=RNG), torch.randn(2, 3, generator=RNG)
    y = torch.tensor([0, 0, 1, 1])
    many = run_on_ranks(2, one_class_each, f, w, y)
    cosines = 20 * F.normalize(f) @ F.normalize(w).t()
    torch.testing.assert_close(torch.cat([out for out, _ in many]), cosines[torch.arange(4), 1 - y])
    assert all(grad.isfinite().all() for _, grad in many)
