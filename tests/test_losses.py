"""Every method's loss alone, in a plain loop: a linear layer, SGD, random tensors, no config.

The loss falls, its gradient reaches the network, and the old parts stay as they are. What the
values are is shown in each method's own test.
"""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bct.method import load_method, method_names
from bct.training.other_classes import others
from methods.AdvBCT.loss import AdvBCTLoss
from methods.BCT.loss import classifier_influence, prototype_influence
from methods.BCTRACT.loss import bct_ract
from methods.BT2.loss import bt2
from methods.FCT.loss import fct
from methods.FocalDistillation.loss import focal_distillation
from methods.HotRefresh.loss import LOSSES, hot_refresh
from methods.L2.loss import l2
from methods.LCE.loss import alignment, angle_boundary, cosine_boundary, shares
from methods.MixBCT.loss import draw_rows, mixbct
from methods.NCCL.loss import NCCLLoss
from methods.OpenBCT import contrastive, regression, triplet
from methods.OpenBCT.influence import influence, old_logits
from methods.OpenBCT.lwf import lwf
from methods.OpenBCT.masks import masks
from methods.UniBCT.loss import influence as refined_influence
from methods.UniBCT.loss import refined_prototypes

IMAGES, CLASSES, PIXELS, DIM = 48, 6, 20, 8
RNG = torch.Generator().manual_seed(0)
LABELS = torch.arange(IMAGES) % CLASSES
X = torch.randn(CLASSES, PIXELS, generator=RNG)[LABELS]
X = X + torch.randn(X.shape, generator=RNG) / 2


class Old:
    """What an old model leaves, constants."""

    def __init__(self):
        self.embeddings = X @ torch.randn(PIXELS, DIM, generator=RNG)
        means = [self.embeddings[c == LABELS].mean(0) for c in range(CLASSES)]
        self.prototypes = F.normalize(torch.stack(means))
        self.weight = torch.randn(CLASSES, DIM, generator=RNG)
        self.bias = torch.randn(CLASSES, generator=RNG)


@pytest.fixture
def old():
    return Old()


def falls(network, loss, *trained, old=(), lr=0.1, steps=30):
    """Trains network (IMAGES, PIXELS) -> embeddings by loss(embeddings), or a dict of its terms.

    trained: further modules. old: tensors that must stay as they are.
    """
    modules = nn.ModuleList([network, *trained])
    before = [tensor.detach().clone() for tensor in old]
    optimizer, values = torch.optim.SGD(modules.parameters(), lr), []
    for _ in range(steps):
        value = loss(network(X))
        value = sum(value.values()) if isinstance(value, dict) else value
        assert value.ndim == 0 and value.isfinite()
        optimizer.zero_grad()
        value.backward()
        for parameter in modules.parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all()
        assert all(parameter.grad.any() for parameter in network.parameters())
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] * (1 - 1e-3)
    for tensor, was in zip(old, before, strict=True):
        assert not tensor.requires_grad and torch.equal(tensor, was)


def linear(width=DIM):
    torch.manual_seed(1)
    return nn.Linear(PIXELS, width, bias=False)


def test_mixbct(old):
    classify = nn.Linear(DIM, CLASSES)
    rows = draw_rows(LABELS != 2, 0.3, RNG)
    assert len(rows) == int(0.3 * IMAGES) and (LABELS[rows] != 2).all()

    def loss(f):
        given = LABELS, rows, old.embeddings[rows]
        return mixbct(f, *given, lambda z, y: F.cross_entropy(classify(z), y))

    falls(linear(), loss, classify, old=[old.embeddings])
    f = linear()(X).detach().requires_grad_()
    loss(f).backward()
    replaced = torch.zeros(IMAGES, dtype=torch.bool).index_fill(0, rows, True)
    assert torch.equal(f.grad.any(1), ~replaced)  # their places are the old embeddings'


def test_l2(old):
    falls(linear(), lambda f: l2(f, old.embeddings), old=[old.embeddings])
    assert l2(old.embeddings * 3, old.embeddings, threshold=0.2) == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_hot_refresh(old, loss):
    falls(
        linear(),
        lambda f: hot_refresh(f, LABELS, old.embeddings, loss, temperature=0.1),
        old=[old.embeddings],
    )


@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_bct(old, scale):
    falls(
        linear(),
        lambda f: prototype_influence(f, LABELS, old.prototypes, scale=scale),
        old=[old.prototypes],
    )
    known = LABELS.where(LABELS < 4, -1)
    parts = old.weight, old.bias
    falls(linear(), lambda f: classifier_influence(f, known, *parts), old=parts)


def test_bct_ract(old):
    """The new classifier learns from it, too; class 5 is none of the old ones."""
    classify = nn.Linear(DIM, CLASSES, bias=False)
    known = LABELS.where(LABELS < CLASSES - 1, -1)

    def loss(f):
        return bct_ract(F.linear(f, old.weight, old.bias), known, others(classify(f), LABELS))

    falls(linear(), loss, classify, old=[old.weight, old.bias])


def test_focal_distillation(old):
    right = LABELS < 2
    falls(
        linear(),
        lambda f: focal_distillation(f, old.embeddings, right),
        old=[old.embeddings, right],
    )


def test_unibct(old):
    order, sizes = LABELS.argsort(stable=True), LABELS.bincount().numpy()
    prototypes = refined_prototypes(linear()(X).detach()[order], old.embeddings[order], sizes)
    falls(linear(), lambda f: refined_influence(f, LABELS, prototypes, 16.0), old=[prototypes])


def test_nccl(old):
    loss = NCCLLoss(CLASSES, DIM, queue_size=2 * IMAGES, temperature=0.1)
    classifier = nn.Linear(DIM, CLASSES, bias=False)

    def classify(rows, labels):
        return 16 * rows @ F.normalize(classifier.weight).t()

    falls(
        linear(),
        lambda f: loss(f, LABELS, old.embeddings, classify),
        classifier,
        loss,
        old=[old.embeddings],
    )
    assert list(loss.parameters()) == [] and not any(b.requires_grad for b in loss.buffers())
    assert (loss.queue_labels >= 0).all() and loss.opinions.any()


def test_advbct(old):
    """The discriminator and the network want opposite things: the balls are what falls."""
    radius = 1 - F.cosine_similarity(old.embeddings, old.prototypes[LABELS])
    radius = torch.stack([radius[c == LABELS].amax() for c in range(CLASSES)])
    balls = old.prototypes, radius / 10, torch.full((CLASSES,), IMAGES // CLASSES)
    torch.manual_seed(0)
    loss = AdvBCTLoss(*balls, threshold=0.2, weight=1.0, hidden=5)
    falls(linear(), lambda f: loss(f, LABELS, old.embeddings, 2.5, 10), loss, old=balls)
    assert {name for name, _ in loss.named_parameters()} > {"boundary", "discriminator.0.weight"}


@pytest.mark.parametrize("boundary", ["fixed", "old_distance"])
def test_advbct_without_its_adversary(old, boundary):
    balls = old.prototypes, torch.full((CLASSES,), 0.3), torch.full((CLASSES,), 8)
    loss = AdvBCTLoss(*balls, boundary=boundary, adversarial=False, temperature=0.1, topk=4)
    assert not list(loss.parameters())
    falls(linear(), lambda f: loss(f, LABELS, old.embeddings, 0, 10), old=balls)


@pytest.mark.parametrize("boundary", [angle_boundary, cosine_boundary])
def test_lce(old, boundary):
    """The new classifier's rows come nearer to the old centres; they need no embedding for it."""
    classify = nn.Linear(DIM, CLASSES, bias=False)
    everyone, limit = torch.ones(IMAGES, dtype=torch.bool), torch.full((CLASSES,), 0.2)

    def loss(f):
        bound = boundary(f, LABELS, old.prototypes, limit, everyone)
        rows = classify.weight[LABELS]
        return bound + alignment(rows, old.prototypes[LABELS], shares(everyone))

    falls(linear(), loss, classify, old=[old.prototypes, limit])


def test_bt2(old):
    """The new embedding has DIM coordinates, of which the compatible ones are others."""
    teacher = F.normalize(torch.randn(IMAGES, DIM, generator=RNG))
    constant = old.embeddings, teacher, old.prototypes

    def loss(both):
        new, compatible = both.split(DIM, dim=1)
        return bt2(F.normalize(new), compatible, LABELS, *constant)

    falls(linear(2 * DIM), loss, old=constant)


@pytest.mark.parametrize("uncertain", [False, True])
def test_fct(old, uncertain):
    """Here it is the map that is trained."""
    target = torch.randn(IMAGES, DIM, generator=RNG)
    torch.manual_seed(0)
    variance = nn.Linear(DIM, 1)

    def loss(mapped):
        s = variance(mapped).squeeze(1) if uncertain else None
        judge = old.weight, old.bias
        return fct(mapped, target, s, labels=LABELS, classifier=judge, label_smoothing=0.1)

    trained = [variance] if uncertain else []
    falls(linear(), loss, *trained, old=[target, old.weight, old.bias], lr=0.01)


@pytest.mark.parametrize("positives", ["class", "self"])
def test_openbct_compares(old, positives):
    other, positive = masks(LABELS, positives=positives)
    assert torch.equal(other, LABELS[:, None] != LABELS) and positive.diagonal().all()
    for term, setting in ((triplet, 1.0), (contrastive, 0.1)):
        falls(
            linear(),
            lambda f, term=term, setting=setting: term.corrected(
                f, old.embeddings, other, positive, setting
            ),
            old=[old.embeddings],
        )


def test_openbct_asks_the_old_classifier(old):
    classifier = old.weight, old.bias

    def judge(f):
        return old_logits(f, *classifier, mode="cosine")

    falls(linear(), lambda f: influence(judge(f), LABELS), old=classifier)
    teacher = judge(old.embeddings)
    falls(linear(), lambda f: lwf(judge(f), teacher, 2.0), old=[*classifier, teacher])
    falls(linear(), lambda f: regression.corrected(f, old.embeddings), old=[old.embeddings])


def test_methods_with_files_of_one_name_get_their_own():
    names = [name for name in method_names() if name != "OpenBCT"]
    files = set()
    for name in names:
        method = load_method(name)
        assert method.__module__ == f"methods.{name}.train" and load_method(name) is method
        train, loss = (import_module(f"methods.{name}.{file}") for file in ("train", "loss"))
        own = {key for key, value in vars(loss).items() if is_of(value, loss)}
        used = {key for key, value in vars(train).items() if is_of(value, loss)}
        assert used and used <= own
        files.add(loss.__file__)
    assert len(files) == len(names) == 12


def is_of(value, module):
    return getattr(value, "__module__", None) == module.__name__
