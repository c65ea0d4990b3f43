"""Focal distillation: golden values of both gates, the gates themselves, ranks, refusals."""

import json

import numpy as np
import pytest
import torch
from easydict import EasyDict
from support.heads import dense_loss, head_with, problem
from support.methods import OldArrays
from support.ranks import run_on_ranks

from bct import distributed
from bct.config import base_config
from bct.data.loader import Batch
from bct.errors import BctError
from bct.keys import plain
from bct.method import load_method
from bct.training.classified import names_the_class
from bct.training.heads import SoftmaxHead
from methods.FocalDistillation.loss import focal_distillation
from methods.OpenBCT.lwf import lwf

FocalDistillation = load_method("FocalDistillation")
GOLDEN = "golden/landmarks_reid/losses"
CLASSES, DIM, SEEN = 7, 5, 3
NEW, CENTRES, LABELS = (x if x.dtype == torch.int64 else x.float() for x in problem(CLASSES, DIM))
RNG = torch.Generator().manual_seed(6)
OLD = CENTRES[LABELS] + 2 * torch.randn(len(LABELS), DIM, generator=RNG)
WEIGHT, BIAS = torch.randn(SEEN, DIM, generator=RNG), torch.randn(SEEN, generator=RNG)
ROW = torch.tensor([-1, 2, -1, 0, 1, -1, -1])


class Old(OldArrays):
    """An old model in memory, with or without a classifier."""

    def __init__(self, features=OLD, means=CENTRES, own=(WEIGHT, BIAS), row=ROW):
        super().__init__(old_embedding=np.float32(features), old_prototype=np.float32(means))
        self.own, self.row = own, row

    def classifier(self):
        if self.own is None:
            raise BctError("model.pt holds no classifier", "use class means")
        return self.own

    def new_to_old(self):
        return self.row

    def classifies_unit(self):
        return False


def make(old=None, **changes):
    place = {"num_classes": CLASSES, "embedding_size": DIM, "scenario": "EXclass"}
    cfg = EasyDict({**base_config(), **plain(FocalDistillation.defaults), **place, **changes})
    return FocalDistillation(cfg, old or Old())


def of_method(method, head, f=NEW, y=LABELS):
    """(terms, gradient by the embeddings)."""
    f, index = f.clone().requires_grad_(), torch.arange(len(y))
    terms = method(f, Batch(None, y, index, method.fetch(index, y, None)), head, None)
    terms["distance"].backward()
    return terms, f.grad


@pytest.fixture(scope="module")
def golden(shared):
    arrays = np.load(shared / GOLDEN / "inputs_and_grads.npz")
    return json.loads((shared / GOLDEN / "expected.json").read_text()), arrays


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    ("name", "judge", "judged"), [("fd", "W_n", "f_n"), ("derived/fd/gate_by_old", "W_o10", "f_o")]
)
def test_golden(golden, name, judge, judged, dtype, rtol):
    expected, arrays = golden
    f, old = (torch.tensor(arrays[key], dtype=dtype) for key in ("f_n", "f_o"))
    right = torch.from_numpy((arrays[judged] @ arrays[judge].T).argmax(1) == arrays["y"])
    assert 0 < right.sum() < len(right) or name == "fd"  # there nothing is right
    loss = focal_distillation(f.requires_grad_(), old, right)
    loss.backward()
    assert loss.item() == pytest.approx(expected[name]["loss"], rel=rtol)
    want = arrays[f"{name}/grad"]
    np.testing.assert_allclose(f.grad, want, rtol=0, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize("parity", ["published", "corrected"])
def test_golden_by_the_method(golden, parity):
    """Published, the new classifier is the gate; corrected, the old model's own."""
    expected, arrays = golden
    classes, dim = arrays["W_n"].shape
    own = torch.tensor(arrays["W_o10"]).float(), None
    old = Old(arrays["f_o"], arrays["W_o10"], own, torch.arange(classes))
    method = make(old, parity=parity, num_classes=classes, embedding_size=dim)
    head = SoftmaxHead(dim, classes, bias=False)
    head.weight.data.copy_(torch.from_numpy(arrays["W_n"]))
    terms, grad = of_method(method, head, torch.tensor(arrays["f_n"]).float(),
                            torch.from_numpy(arrays["y"]))  # fmt: skip
    name = "fd" if parity == "published" else "derived/fd/gate_by_old"
    assert terms["distance"].item() == pytest.approx(expected[name]["loss"], rel=1e-4)
    want = arrays[f"{name}/grad"]
    np.testing.assert_allclose(grad, want, rtol=0, atol=1e-4 * np.abs(want).max())
    assert head.weight.grad is None  # the gate gives none


@pytest.mark.parametrize("temperature", ["0.01", "1.0"])
def test_golden_of_learning_without_forgetting(golden, temperature):
    """The term is OpenBCT's, which has T^2 before it."""
    expected, arrays = golden
    name, t = f"lwf/temp={temperature}", float(temperature)
    f, old, w = (torch.from_numpy(arrays[key]) for key in ("f_n", "f_o", "W_o10"))
    loss = lwf(f.requires_grad_() @ w.t(), old @ w.t(), t) / t**2
    loss.backward()
    assert loss.item() == pytest.approx(expected[name]["loss"], rel=1e-9)
    want = arrays[f"{name}/grad"]
    np.testing.assert_allclose(f.grad, want, rtol=0, atol=1e-9 * np.abs(want).max())


def by_hand(f, right, alpha=1.0, beta=5.0):
    total = 0.0
    for f_i, o_i, r_i in zip(f.double(), OLD.double(), right, strict=True):
        total += (alpha + beta * bool(r_i)) * float(((f_i - o_i) ** 2).sum()) / DIM
    return total / len(f)


def right_of_old():
    found = [int(torch.argmax(WEIGHT @ o + BIAS)) for o in OLD]
    return [best == ROW[y] for best, y in zip(found, LABELS, strict=True)]


def right_of_means():
    found = [max(range(CLASSES), key=lambda c: o @ CENTRES[c] / CENTRES[c].norm()) for o in OLD]
    return [best == y for best, y in zip(found, LABELS, strict=True)]


def right_of_new():
    found = [max(range(CLASSES), key=lambda c: f @ CENTRES[c] / CENTRES[c].norm()) for f in NEW]
    return [best == y for best, y in zip(found, LABELS, strict=True)]


NOTHING = torch.full((CLASSES,), -1)
GATES = {
    "own classifier": (Old(), {}, right_of_old),
    "means asked for": (Old(), {"influence": "prototype"}, right_of_means),
    "means, without a classifier": (Old(own=None), {}, right_of_means),
    "means, of other classes": (Old(row=NOTHING), {}, right_of_means),
    "the old one though published": (Old(), {"parity": "published", "gate": "old"}, right_of_old),
    "the new one": (Old(), {"parity": "published"}, right_of_new),
    "the new one though corrected": (Old(), {"gate": "new"}, right_of_new),
}


@pytest.mark.parametrize("gate", GATES)
def test_gates(gate):
    old, changes, right = GATES[gate]
    right = right()
    assert 0 < sum(map(bool, right)) < len(right)
    head = head_with(CENTRES, margin=(1, 0.3, 0), scale=20.0)
    method = make(old, alpha=0.5, beta=3.0, weight=2.0, **changes)
    terms, _ = of_method(method, head)
    assert terms["distance"].item() == pytest.approx(2 * by_hand(NEW, right, 0.5, 3.0), rel=1e-5)
    want = dense_loss(NEW.double(), CENTRES.double(), LABELS, (1, 0.3, 0), 20.0)
    assert terms["cls"].item() == pytest.approx(want.item(), rel=1e-4)
    assert list(method.parameters()) == [] and method.state_dict() == {}


def test_only_the_old_gate_needs_class_means():
    for gate, parity, kinds in [
        (None, "corrected", 2), (None, "published", 1), ("old", "published", 2),
        ("new", "corrected", 1),
    ]:  # fmt: skip
        needs = FocalDistillation.needs(EasyDict(gate=gate, parity=parity))
        assert needs == ("old_embedding", "old_prototype")[:kinds]


def test_images_without_an_old_embedding_are_left_out():
    features = OLD.clone()
    features[::3] = 0
    old = Old(features, own=None)
    old.absent = len(features[::3])
    terms, grad = of_method(make(old), head_with(CENTRES))
    right, kept = right_of_means(), [i for i in range(len(OLD)) if i % 3]
    each = [(1 + 5 * bool(right[i])) * float((NEW[i] - OLD[i]).square().mean()) for i in kept]
    assert terms["distance"].item() == pytest.approx(sum(each) / len(kept), rel=1e-5)
    assert grad.any(1).tolist() == [i % 3 > 0 for i in range(len(OLD))]


def on_ranks(f, old, y, w):
    """Per gate: the loss, the gradient by the embeddings after DDP's mean, what the head names."""
    size, rank = distributed.world_size(), distributed.rank()
    mine = torch.arange(len(f))[rank * len(f) // size : (rank + 1) * len(f) // size]
    out = []
    for gate in ("old", "new"):
        method, head = make(Old(old, w), gate=gate), head_with(w, scale=20.0)
        local = f[mine].clone().requires_grad_()
        batch = Batch(None, y[mine], mine, method.fetch(mine, y[mine], None))
        loss = method(local, batch, head, None)["distance"]
        loss.backward()
        named = names_the_class(head, f[mine], y[mine])
        out.append((loss.detach()[None], local.grad / size, named))
    return out


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_give_the_gradient_of_the_whole_batch(world_size):
    given = NEW[:16], OLD[:16], LABELS[:16], CENTRES
    one, many = on_ranks(*given), run_on_ranks(world_size, on_ranks, *given)
    for case, want in enumerate(one):
        loss, grad, named = (torch.cat([rank[case][k] for rank in many]) for k in range(3))
        torch.testing.assert_close(loss.mean()[None], want[0])
        torch.testing.assert_close(grad, want[1])
        assert torch.equal(named, want[2]) and 0 < named.sum() < len(named)
