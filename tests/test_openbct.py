"""OpenBCT: every term in float64 by hand and its gradient, in both parities and for old embeddings
of fewer, as many and more dimensions; the old classifier; ranks; refusals."""

import math

import numpy as np
import pytest
import torch
from easydict import EasyDict
from support.gradients import numeric_gradient
from support.heads import dense_loss, head_with
from support.methods import OldArrays
from support.ranks import run_on_ranks

from backbones import get_model
from bct import distributed
from bct.config import base_config
from bct.data.loader import Batch
from bct.data.sets import SyntheticSet
from bct.errors import BctError
from bct.files import sha256_file, write_json
from bct.keys import plain
from bct.method import load_method
from bct.old_model import OldModel
from bct.stored.artefacts import write_artefact
from methods.OpenBCT import contrastive, pseudo_classifier, triplet

OpenBCT = load_method("OpenBCT")
BATCH, CLASSES, KNOWN, DIM = 10, 5, 3, 6  # KNOWN: classes of the old model
NUMBERS = np.random.default_rng(7)
NEW = NUMBERS.standard_normal((BATCH, 9))
OLD = NUMBERS.standard_normal((BATCH, DIM)).astype(np.float32).astype(float)
LABELS = np.array([3, 0, 1, 3, 3, 2, 0, 4, 1, 3])
WEIGHT = NUMBERS.standard_normal((KNOWN, DIM)).astype(np.float32).astype(float)
BIAS = NUMBERS.standard_normal(KNOWN).astype(np.float32).astype(float)
MAP = np.array([2, -1, 0, 1, -1])  # old label of each new class
SELF = {"positives": "self"}


class Old(OldArrays):
    """An old model in memory."""

    unit = False

    def __init__(self, features=OLD, labels=LABELS, weight=WEIGHT, bias=BIAS, mapped=MAP):
        super().__init__(old_embedding=np.float32(features), old_embedding_label=labels)
        self.dim, self.mapped = features.shape[1], torch.as_tensor(mapped)
        self.own = (
            torch.tensor(weight).float(),
            None if bias is None else torch.tensor(bias).float(),
        )

    def classifier(self):
        return self.own

    def classifies_unit(self):
        return self.unit

    def new_to_old(self):
        return self.mapped


def config(**changes):
    place = {"num_classes": CLASSES, "fill": "off", "name": "x", "scenario": "EXclass"}
    cfg = EasyDict({**base_config(), **plain(OpenBCT.defaults), **place, **changes})
    cfg.head = changes.get("head", "margin" if "cls" in cfg.terms else "none")
    return cfg


def make(*terms, old=None, **changes):
    cfg = config(**{"terms": dict.fromkeys(terms, 1.0), **changes})
    OpenBCT.needs(cfg)
    return OpenBCT(cfg, old or Old())


def losses_of(method, f, labels=LABELS, index=None, head=None):
    index = torch.arange(len(labels)) if index is None else index
    labels = torch.as_tensor(labels)
    batch = Batch(None, labels, index, method.fetch(index, labels, None))
    return method(f, batch, head, None)


def assert_equal(method, term, function, f=NEW[:, :DIM], labels=LABELS):
    """The term and its gradient are those of a float64 function of the embeddings."""
    f32 = torch.tensor(f, dtype=torch.float32, requires_grad=True)
    loss = losses_of(method, f32, labels)[term]
    loss.backward()
    f = np.float64(np.float32(f))
    assert loss.item() == pytest.approx(function(f), rel=1e-5, abs=1e-6)
    want = numeric_gradient(function, f)
    np.testing.assert_allclose(f32.grad, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def unit(v):
    return v / math.sqrt(v @ v)


def logits(v, weight, bias, scale=None):
    bias = np.zeros(len(weight)) if bias is None else bias
    if scale:
        return [scale * (unit(w) @ unit(v)) for w in weight]
    return [w @ v + b for w, b in zip(weight, bias, strict=True)]


def log_softmax(row):
    top = max(row)
    return [z - top - math.log(sum(math.exp(x - top) for x in row)) for z in row]


def mean(values):
    return sum(values) / len(values)


# ---- the terms by hand: functions of new embeddings of the old width


def influence(f, scale=None, bias=BIAS):
    return mean([-log_softmax(logits(v, WEIGHT, bias, scale))[MAP[y]]
                 for v, y in zip(f, LABELS, strict=True) if MAP[y] >= 0])  # fmt: skip


def lwf(f, temperature=1.0, scale=None, published=False):
    total = 0.0
    for v, o in zip(f, OLD, strict=True):
        teacher = logits(unit(o) if published else o, WEIGHT, BIAS, scale)
        teacher = np.exp(log_softmax([z / temperature for z in teacher]))
        student = log_softmax([z / temperature for z in logits(v, WEIGHT, BIAS, scale)])
        total -= temperature**2 * sum(p * q for p, q in zip(teacher, student, strict=True))
    return total / len(f)


def l2(f):
    return mean([((unit(v) - unit(o)) ** 2).sum() for v, o in zip(f, OLD, strict=True)])


def l2_published(f):
    """Of embeddings of any width: the longer is cut, and only the new one is of length 1 again."""
    total = []
    for v, o in zip(f, OLD, strict=True):
        width = min(len(v), len(o))
        total += list((unit(v[:width]) - unit(o)[:width]) ** 2)
    return mean(total)


def positives_of(i, how):
    return [i] if how == "self" else [j for j in range(BATCH) if LABELS[j] == LABELS[i]]


def others_of(i):
    return [j for j in range(BATCH) if LABELS[j] != LABELS[i]]


def gap(a, b, eps=0.0):
    return math.sqrt(((a - b + eps) ** 2).sum())


def triplets(f, how="class", margin=1.0):
    total = 0.0
    for i, v in enumerate(f):
        far = min(gap(unit(v), unit(OLD[j])) for j in others_of(i))
        near = [gap(unit(v), unit(OLD[p])) for p in positives_of(i, how)]
        total += mean([max(d - far + margin, 0.0) for d in near])
    return total / len(f)


def triplets_published(f, margin=1.0):
    total = 0.0
    for i, v in enumerate(f):
        row = [gap(v, unit(OLD[j])) for j in others_of(i)]
        negative = unit(OLD[row.index(min(row))])  # a place in the row, taken for one in the batch
        total += max(gap(v, unit(OLD[i]), 1e-6) - gap(v, negative, 1e-6) + margin, 0.0)
    return total / len(f)


def supcon(f, how="class", t=0.05):
    total = 0.0
    for i, v in enumerate(f):
        s = [unit(v) @ unit(o) / t for o in OLD]
        noise = sum(math.exp(s[j]) for j in others_of(i))
        ps = positives_of(i, how)
        total -= mean([math.log(math.exp(s[p]) / (math.exp(s[p]) + noise)) for p in ps])
    return total / len(f)


def supcon_published(f, t=0.05):
    """One softmax over the row [positives, negatives], of which the first is the target."""
    total = 0.0
    for i, v in enumerate(f):
        row = [unit(v) @ unit(OLD[j]) / t for j in positives_of(i, "class") + others_of(i)]
        total -= log_softmax(row)[0]
    return total / len(f)


PUBLISHED = {"parity": "published"}
CASES = [
    ("influence", {}, influence),
    ("influence", PUBLISHED, influence),
    ("influence", {"logits": "cosine", "influence_scale": 9.0}, lambda f: influence(f, 9.0)),
    ("lwf", {}, lwf),
    ("lwf", {"lwf_temperature": 3.0}, lambda f: lwf(f, 3.0)),
    ("lwf", {"logits": "cosine"}, lambda f: lwf(f, scale=16.0)),
    ("lwf", PUBLISHED, lambda f: lwf(f, published=True)),
    ("l2", {}, l2),
    ("triplet", {}, triplets),
    ("triplet", {"triplet_margin": 0.2}, lambda f: triplets(f, margin=0.2)),
    ("triplet", SELF, lambda f: triplets(f, "self")),
    ("triplet", SELF | PUBLISHED, triplets_published),
    ("contrastive", {}, supcon),
    ("contrastive", {"contrastive_temperature": 0.5}, lambda f: supcon(f, t=0.5)),
    ("contrastive", SELF, lambda f: supcon(f, "self")),
    ("contrastive", PUBLISHED, supcon_published),
    ("contrastive", SELF | PUBLISHED, lambda f: supcon(f, "self")),
]
WIDTHS = {"leading": 9, "equal": DIM, "zero_pad": 4}
each_case = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case[0]}-{list(case[1].values())}"
)


@each_case
def test_terms_and_gradients_match_float64_by_hand(case):
    term, changes, by_hand = case
    assert_equal(make(term, **changes), term, by_hand)


@each_case
def test_embeddings_of_another_width_are_cut_or_padded_with_zeros(case):
    """Only the coordinates that meet an old one have a gradient."""
    term, changes, _ = case
    for policy in ("leading", "zero_pad"):
        f = torch.tensor(NEW[:, : WIDTHS[policy]]).float().requires_grad_()
        method = make(term, dimensions=policy, embedding_size=f.shape[1], **changes)
        OpenBCT.check_dimensions(method.cfg, DIM)
        loss = losses_of(method, f)[term]
        loss.backward()
        same = f.detach().numpy()[:, :DIM]
        same = np.pad(same, ((0, 0), (0, DIM - same.shape[1])))
        same = torch.tensor(same).requires_grad_()
        want = losses_of(make(term, **changes), same)[term]
        want.backward()
        assert loss.item() == pytest.approx(want.item(), rel=1e-5)
        shared = min(DIM, f.shape[1])
        torch.testing.assert_close(f.grad[:, :shared], same.grad[:, :shared], rtol=1e-4, atol=1e-6)
        assert (f.grad[:, :shared] != 0).any(0).all() and (f.grad[:, shared:] == 0).all()


@pytest.mark.parametrize("policy", WIDTHS)
def test_published_l2_cuts_old_embeddings_that_are_longer(policy):
    method = make("l2", dimensions=policy, **PUBLISHED)
    assert_equal(method, "l2", l2_published, NEW[:, : WIDTHS[policy]])


@pytest.mark.parametrize(("policy", "width"), [("equal", 9), ("leading", 4), ("zero_pad", 9)])
def test_widths_that_do_not_fit(policy, width):
    with pytest.raises(BctError, match="dimensions"):
        OpenBCT.check_dimensions(config(dimensions=policy, embedding_size=width), DIM)


def test_the_loss_is_the_chosen_terms_with_their_weights():
    weights = {"cls": 0.5, "influence": 2.0, "lwf": 3.0, "l2": 4.0, "triplet": 5, "contrastive": 6}
    by_hand = {"influence": influence, "lwf": lwf, "l2": l2, "triplet": triplets}
    by_hand["contrastive"] = supcon
    w = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
    head, f = head_with(w, margin=(1, 0.3, 0), scale=20.0), torch.tensor(NEW[:, :DIM]).float()
    losses = losses_of(make(terms=weights), f, head=head)
    assert list(losses) == list(weights)
    y = torch.tensor(LABELS)
    cls = dense_loss(f.double(), w.double(), y, (1, 0.3, 0), 20.0).item()
    assert losses["cls"].item() == pytest.approx(0.5 * cls, rel=1e-4)
    for name, function in by_hand.items():
        want = weights[name] * function(f.double().numpy())
        assert losses[name].item() == pytest.approx(want, rel=1e-4), name


def test_the_old_side_is_constant_and_only_the_batch_is_read():
    old = Old()
    method = make("influence", "lwf", "l2", "triplet", "contrastive", old=old, fill="missing")
    before = [buffer.clone() for buffer in method.buffers()]
    old.read.clear()
    index = torch.tensor([9, 2, 2, 5])
    f = torch.tensor(NEW[:4, :DIM]).float().requires_grad_()
    sum(losses_of(method, f, LABELS[index], index).values()).backward()
    assert old.read == [("old_embedding", [9, 2, 2, 5])]
    assert f.grad.abs().sum(1).min() > 0
    assert list(method.parameters()) == [] and method.state_dict() == {}
    for buffer, value in zip(method.buffers(), before, strict=True):
        assert torch.equal(buffer, value) and not buffer.requires_grad
    make("cls", "influence").fetch(index, None, None)
    np.testing.assert_array_equal(old.arrays["old_embedding"], np.float32(OLD))


# ---- negatives and positives


def test_hardest_negatives_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(10):
        a, o = rng.standard_normal((2, 30, 4))
        o /= np.linalg.norm(o, axis=1, keepdims=True)
        y = rng.integers(0, 6, 30)
        got = triplet.hardest(*map(torch.from_numpy, (a, o, y[:, None] != y)))
        for i in range(30):
            candidates = [(gap(a[i], o[j]), j) for j in range(30) if y[j] != y[i]]
            assert got[i] == min(candidates)[1]


def test_the_published_negative_is_mostly_another_image_and_may_be_of_the_anchors_class():
    """Which one it is can be seen from where the gradient of the old side goes."""
    rng = torch.Generator().manual_seed(0)
    a, o = torch.nn.functional.normalize(torch.randn(2, 64, 16, generator=rng), dim=2)
    y = torch.randint(0, 8, (64,), generator=rng)
    other, used = y[:, None] != y, []
    for i in range(64):
        x, own = o.clone().requires_grad_(), torch.arange(64) == i
        one = a[[i]], x, other[[i]], own[None], 9.0
        triplet.published(*one).backward()
        (negative,) = (x.grad.any(1) & ~own).nonzero().ravel().tolist() or [i]
        used.append(negative)
    right = triplet.hardest(a, o, other)
    assert (y[right] != y).all()
    assert (torch.tensor(used) != right).float().mean() > 0.5 and (y[used] == y).any()


@pytest.mark.parametrize("parity", ["corrected", "published"])
def test_a_batch_of_one_class_has_no_negatives(parity):
    f = torch.tensor(NEW[:4, :DIM]).float().requires_grad_()
    method = make("triplet", "contrastive", parity=parity, **SELF)
    losses = losses_of(method, f, [3, 3, 3, 3])
    sum(losses.values()).backward()
    assert losses["triplet"] == 0 and losses["contrastive"].item() == pytest.approx(0, abs=1e-6)
    assert (f.grad == 0).all()


def test_an_embedding_on_its_positive_has_a_gradient():
    """Where the distance has no derivative."""
    f = torch.tensor(OLD).float().requires_grad_()
    losses_of(make("triplet", "l2", **SELF), f)["triplet"].backward()
    assert f.grad.isfinite().all() and f.grad.abs().sum() > 0


def test_contrastive_is_exact_at_any_temperature():
    f = torch.tensor(NEW[:, :DIM]).requires_grad_()
    same = torch.tensor(LABELS)[:, None] == torch.tensor(LABELS)
    loss = contrastive.corrected(f, torch.tensor(OLD), ~same, same, 1e-3)
    loss.backward()
    s = (
        torch.nn.functional.normalize(f) @ torch.nn.functional.normalize(torch.tensor(OLD)).T
    ) / 1e-3
    by_row = [mean([torch.logaddexp(s[i, p], s[i, ~same[i]].logsumexp(0)) - s[i, p]
                    for p in positives_of(i, "class")]) for i in range(BATCH)]  # fmt: skip
    assert loss.item() == pytest.approx(mean(by_row).item(), rel=1e-12) and loss > 100
    assert f.grad.isfinite().all()


# ---- the old classifier


@pytest.mark.parametrize("parity", ["corrected", "published"])
def test_images_without_an_old_label_have_no_influence(parity):
    method, f = make("influence", parity=parity), torch.tensor(NEW[:, :DIM]).float()
    losses_of(method, f.requires_grad_())["influence"].backward()
    np.testing.assert_array_equal(f.grad.numpy().any(1), MAP[LABELS] >= 0)
    f.grad = None
    loss = losses_of(method, f[:4], [1, 4, 4, 1])["influence"]
    loss.backward()
    assert loss == 0 and (f.grad == 0).all()


def mean_of_unit(c):
    return np.mean([unit(o) for o, y in zip(OLD, LABELS, strict=True) if y == c], axis=0)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("fill", ["all", "missing"])
def test_made_rows(fill, normalise, monkeypatch):
    """In pieces of 3 images. Missing: the own rows and biases as they are, then classes 1 and 4."""
    monkeypatch.setattr(pseudo_classifier, "BLOCK", 3)
    method = make("influence", fill=fill, normalise=normalise)
    made = [mean_of_unit(c) for c in (range(CLASSES) if fill == "all" else [1, 4])]
    made = [unit(row) if normalise else row for row in made]
    if fill == "all":
        want, rows = made, [0, 1, 2, 3, 4]
        assert method.bias is None
    else:
        want, rows = [*WEIGHT, *made], [2, 3, 0, 1, 4]
        np.testing.assert_array_equal(method.bias, np.float32([*BIAS, 0, 0]))
    np.testing.assert_allclose(method.weight, want, rtol=1e-6, atol=1e-7)
    assert method.row_of_class.tolist() == rows and method.weight.dtype == torch.float32
    f = torch.tensor(NEW[:, :DIM]).float().requires_grad_()
    losses_of(method, f)["influence"].backward()
    assert f.grad.any(1).all()  # every image has an old label now


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("parity", ["corrected", "published"])
def test_a_class_without_images_is_never_nan(parity, normalise):
    """Label 1 of three is missing: no row, or, as published, one of zeros that the softmax has."""
    labels = np.where(LABELS < 2, 0, 2)
    old, cosine = Old(labels=labels), {"logits": "cosine"} if parity == "corrected" else {}
    changes = {"fill": "all", "normalise": normalise, "parity": parity, "num_classes": 3}
    method = make("influence", old=old, **changes, **cosine)
    f = torch.tensor(NEW[:, :DIM]).float().requires_grad_()
    loss = losses_of(method, f, labels)["influence"]
    loss.backward()
    assert loss.isfinite() and f.grad.isfinite().all()
    assert len(method.weight) == (2 if parity == "corrected" else 3)
    assert method.row_of_class.tolist() == ([0, -1, 1] if parity == "corrected" else [0, 1, 2])
    if parity == "published":
        assert (method.weight[1] == 0).all()
    unknown = losses_of(method, f, np.ones(BATCH, int))["influence"]
    assert (unknown == 0) == (parity == "corrected")


def test_an_old_classifier_without_bias():
    method = make("influence", old=Old(bias=None), fill="missing")
    assert method.bias is None
    assert_equal(
        make("influence", old=Old(bias=None)), "influence", lambda f: influence(f, bias=None)
    )


def test_an_old_classifier_of_unit_embeddings_gets_such():
    """Its own rows; "all" has none of them."""
    old = Old()
    old.unit = True
    assert_equal(make("influence", old=old), "influence", lambda f: influence([unit(v) for v in f]))
    assert_equal(  # published, the teacher sees unit embeddings in any case
        make("lwf", old=old), "lwf", lambda f: lwf([unit(v) for v in f], published=True)
    )
    assert make("influence", old=old, fill="missing").unit
    assert not make("influence", old=old, fill="all").unit


def test_the_normalised_classifier_is_a_head():
    """Cosines times 30, whatever the lengths of embeddings and rows."""
    w = 7 * torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
    head, f = head_with(w, margin=(1, 0, 0), scale=30.0), 50 * torch.tensor(NEW[:, :DIM]).float()
    f[0] = w[0]  # a cosine of 1
    y = torch.tensor(LABELS)
    got = head.logits(torch.nn.functional.normalize(f), y)
    want = [logits(v, w.double().numpy(), None, 30.0) for v in f.double().numpy()]
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert got.abs().max() <= 30 + 1e-4 and got.max() > 29.9
    loss = losses_of(make("cls"), f, head=head)["cls"].item()
    rows = [-log_softmax(row)[c] for row, c in zip(want, LABELS, strict=True)]
    assert loss == pytest.approx(mean(rows), rel=1e-4)


# ---- the old network as a teacher


@pytest.fixture
def disk(tmp_path):
    """A cfg and an OldModel with a network, a classifier and embeddings on disk."""
    network, rng = get_model("demo_w16", DIM), torch.Generator().manual_seed(0)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):  # not those of a batch
            buffer.uniform_(0.5, 2, generator=rng)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    about = {"network": "demo_w16", "embedding_size": DIM, "num_classes": KNOWN}
    write_json(tmp_path / "model.json", about)
    faces = SyntheticSet(BATCH, CLASSES)
    made_from = {"weights": str(tmp_path / "model.pt"), "model": sha256_file(tmp_path / "model.pt")}
    made_from |= {"data": faces.fingerprint, "data_path": "synthetic", "kind": "old_embedding"}
    with write_artefact(tmp_path / "f.npy", (BATCH, DIM), "float32", **made_from) as out:
        out[:] = OLD
    place = {
        "old_embedding": str(tmp_path / "f.npy"),
        "old_config": "old_class30",
        "shard": "class100",
    }
    cfg = config(terms={"l2": 1.0, "contrastive": 1.0}, teacher="view", amp="off", **place)
    return cfg, OldModel(cfg, faces, OpenBCT.needs(cfg)), network.eval()


def test_the_old_network_sees_the_same_view(disk):
    cfg, old, network = disk
    method = OpenBCT(cfg, old)
    images = torch.randn(BATCH, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    images.requires_grad_()
    y, f = torch.tensor(LABELS), torch.tensor(NEW[:, :DIM]).float().requires_grad_()
    assert method.fetch(torch.arange(BATCH), y, None) == {}
    with torch.no_grad():
        seen = network(images)
    cached = make("l2", "contrastive", old=Old(features=seen.double().numpy()))
    want = losses_of(cached, f)
    method.train()
    for _ in range(2):  # a network in training would have other statistics the second time
        got = method(f, Batch(images, y, None, {}), None, None)
        for name, loss in got.items():
            torch.testing.assert_close(loss, want[name], rtol=1e-3, atol=1e-5)
    sum(got.values()).backward()
    assert f.grad.abs().sum() > 0 and images.grad is None
    assert method.state_dict() == {} and list(method.parameters()) == []


# ---- refusals


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("head = 'none'", {"terms": {"cls": 1.0}, "head": "none"}),
        ("head = 'margin'", {"terms": {"l2": 1.0}, "head": "margin"}),
        ("published logits are raw", {"logits": "cosine", **PUBLISHED}),
        ("published triplet", {"terms": {"triplet": 1.0}, **PUBLISHED}),
    ],
)
def test_terms_and_settings_that_can_not_be(word, changes):
    with pytest.raises(BctError, match=word) as info:
        OpenBCT.needs(config(**changes))
    assert len(str(info.value).splitlines()) == 2


@pytest.mark.parametrize("fill", ["off", "missing"])
@pytest.mark.parametrize(
    "changes",
    [
        {"mapped": np.array([2, -1, 3, 1, -1])},  # to a row that is not there
        {"weight": WEIGHT[:2], "bias": BIAS[:2]},
        {"weight": WEIGHT[:, :4]},
        {"mapped": np.full(CLASSES, -1)},
    ],
)
def test_old_classifiers_that_do_not_fit(changes, fill):
    if fill == "missing" and (changes.get("mapped", MAP) < 0).all():
        assert len(make("influence", old=Old(**changes), fill=fill).weight) == KNOWN + CLASSES
        return
    with pytest.raises(BctError, match="the old classifier is") as info:
        make("influence", old=Old(**changes), fill=fill)
    assert len(str(info.value).splitlines()) == 2


# ---- ranks

RANK_CASES = [
    {"terms": {"influence": 1.0, "lwf": 1.0, "l2": 1.0}},
    {"terms": {"influence": 1.0}, **PUBLISHED},
    {"terms": {"triplet": 1.0}},
    {"terms": {"triplet": 1.0}, **SELF},
    {"terms": {"contrastive": 1.0}},
    {"terms": {"contrastive": 1.0}, **SELF},
]
RANK_LABELS = [  # old labels: on both ranks unevenly, on one of two, nowhere
    [3, 0, 1, 3, 1, 4, 1, 4, 4, 0],
    [1, 4, 4, 1, 1, 0, 2, 4, 3, 1],
    [1, 4, 4, 1, 1, 4, 1, 1, 4, 4],
]


def gradients():
    """Losses, and gradients by this rank's embeddings after DDP's mean, of every case."""
    size, rank = distributed.world_size(), distributed.rank()
    mine, out = torch.arange(BATCH).tensor_split(size)[rank], []
    for labels in RANK_LABELS:
        for changes in RANK_CASES:
            f = torch.tensor(NEW[:, :DIM]).float()[mine].requires_grad_()
            losses = losses_of(make(**changes), f, torch.tensor(labels)[mine], mine)
            sum(losses.values()).backward()
            out.append((torch.stack(list(losses.values())).detach(), f.grad / size))
    return out


def test_ranks_give_the_loss_and_gradient_of_the_whole_batch():
    ranks = run_on_ranks(2, gradients)
    for case, (losses, grad) in enumerate(gradients()):
        both = [rank[case] for rank in ranks]
        mean_loss = torch.stack([loss for loss, _ in both]).mean(0)
        torch.testing.assert_close(mean_loss, losses, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(torch.cat([g for _, g in both]), grad, rtol=1e-4, atol=1e-6)
        if (
            case >= 2 * len(RANK_CASES)
            and "influence" in RANK_CASES[case % len(RANK_CASES)]["terms"]
        ):
            assert losses[0] == 0
