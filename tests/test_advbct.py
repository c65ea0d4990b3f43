"""AdvBCT: elastic balls, what the discriminator can learn, the reversal, any number of ranks."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from easydict import EasyDict
from support.heads import head_with
from support.methods import OldArrays
from support.ranks import run_on_ranks
from support.tiny import small_cfg
from torch import nn

from bct import distributed
from bct.data.loader import Batch
from bct.errors import BctError
from bct.keys import plain
from bct.method import load_method
from bct.stored.class_statistics import class_statistics
from bct.train import replicate
from bct.training.optimizer import make_optimizer
from methods.AdvBCT.loss import AdvBCTLoss

AdvBCT = load_method("AdvBCT")
CLASSES, DIM, EPOCHS, THRESHOLD, WEIGHT = 7, 6, 10, 0.9, 3.0
LABELS = np.concatenate([np.arange(CLASSES), np.arange(33) % (CLASSES - 1)])  # the last has one
OLD = np.random.default_rng(0).standard_normal((len(LABELS), DIM)).astype(np.float32)
TABLE = class_statistics(OLD, LABELS)


def make(parity="corrected", table=TABLE, **more):
    cfg = {"threshold": THRESHOLD, "adv_weight": WEIGHT, "hidden": 5, "num_classes": CLASSES}
    cfg |= {"embedding_size": DIM, "num_epoch": EPOCHS, "parity": parity}
    torch.manual_seed(1)
    arrays = OldArrays(old_embedding=OLD, class_statistics=table)
    return AdvBCT(EasyDict({**plain(AdvBCT.defaults), **cfg, **more}), arrays)


def problem(rows=16):
    """New embeddings, labels and images of a global batch."""
    rng = torch.Generator().manual_seed(3)
    index = torch.randint(0, len(LABELS), (rows,), generator=rng)
    return torch.randn(rows, DIM, generator=rng), torch.from_numpy(LABELS)[index], index


def own(*tensors):
    """This rank's rows."""
    parts = (t.chunk(distributed.world_size())[distributed.rank()] for t in tensors)
    return [part.clone().requires_grad_(part.is_floating_point()) for part in parts]


def terms(method, f, y, index, epoch=0.0, trained=None):
    """The method's terms; trained: the method as DDP wraps it."""
    fetched = method.fetch(index, y, None)
    assert not fetched["features"].requires_grad  # the old side is constant
    batch = Batch(None, y, index, fetched, epoch)
    return (trained or method)(f, batch, head_with(torch.eye(CLASSES, DIM)), None)


def dense(f, y, index, epoch, joint=True):
    """(p2s, adv), then their summed gradient by f and by each parameter: the docstring's formulas
    in float64, image by image. joint: old and new are normalised together."""
    p = {k: v.detach().double().requires_grad_() for k, v in make().loss.named_parameters()}
    f = f.double().requires_grad_()
    new, old = F.normalize(f), F.normalize(torch.from_numpy(OLD[index.numpy()]).double())
    excess = []
    for row, label in zip(new, y.tolist(), strict=True):
        ball, share = TABLE[label], p["boundary"][label].sigmoid()
        limit = float(ball["radius"]) + (THRESHOLD - float(ball["radius"])) * share
        distance = (row - torch.from_numpy(ball["centre"]).double()).norm()
        if ball["kept"] > 1 and distance > limit:
            excess.append(distance - limit)
    assert 0 < len(excess) < len(f)
    p2s = WEIGHT * sum(excess) / len(excess)

    def log_probabilities(x):
        x = F.linear(x, p["discriminator.0.weight"], p["discriminator.0.bias"])
        norm = p["discriminator.1.weight"], p["discriminator.1.bias"]
        x = F.batch_norm(x, None, None, *norm, training=True).relu()
        x = F.linear(x, p["discriminator.3.weight"], p["discriminator.3.bias"])
        return x.log_softmax(1)

    n = len(f)
    if joint:
        of_new, of_old = log_probabilities(torch.cat((new, old))).split(n)
    else:
        of_new, of_old = log_probabilities(new), log_probabilities(old)
    adv = -(of_new[:, 0].mean() + of_old[:, 1].mean())
    adv = WEIGHT * (EPOCHS - int(epoch) + 1) / EPOCHS * adv
    strength = 2 / (1 + math.exp(-10 * epoch / EPOCHS)) - 1
    leaves = [f, *p.values()]
    by_p2s = torch.autograd.grad(p2s, leaves, retain_graph=True, materialize_grads=True)
    by_adv = torch.autograd.grad(adv, leaves, materialize_grads=True)
    signs = [-strength] + [1] * len(p)
    grads = [a + sign * b for a, b, sign in zip(by_p2s, by_adv, signs, strict=True)]
    return (p2s.item(), adv.item()), grads


def gradients(f, y, index, epoch, parity):
    """What dense() gives, of this rank before DDP's mean."""
    method = make(parity)
    f, y, index = own(f, y, index)
    losses = terms(method, f, y, index, epoch)
    (losses["p2s"] + losses["adv"]).backward()
    values = losses["p2s"].item(), losses["adv"].item()
    return values, [f.grad, *(p.grad for p in method.parameters())]


def assert_equal(got, want):
    assert got[0] == pytest.approx(want[0], rel=1e-5)
    for a, b in zip(got[1], want[1], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_terms_and_gradients_match_float64_on_any_number_of_ranks(world_size):
    problem_ = problem()
    results = run_on_ranks(world_size, gradients, *problem_, 3.7, "corrected")
    values, grads = zip(*results, strict=True)
    by_f, *by_parameter = zip(*grads, strict=True)
    mean = [torch.stack(g).mean(0) for g in by_parameter]
    got = tuple(np.mean(values, 0)), [torch.cat(by_f) / world_size, *mean]
    assert_equal(got, dense(*problem_, 3.7))


def test_published_ranks_and_domains_stay_alone():
    """Each rank averages over its own offenders, D normalises old and new separately."""
    parts = [x.chunk(2) for x in problem(32)]
    for rank, got in enumerate(run_on_ranks(2, gradients, *problem(32), 3.7, "published")):
        assert_equal(got, dense(*(x[rank] for x in parts), 3.7, joint=False))


# ---- point to set


@pytest.mark.parametrize(("u", "share"), [(-50.0, 0.0), (0.0, 0.5), (50.0, 1.0)])
def test_limit_goes_from_the_largest_radius_to_the_threshold(u, share):
    method, (f, y, _) = make(), problem()
    method.loss.boundary.data.fill_(u)
    radius = TABLE["radius"][y]
    limit = (1 - share) * radius + share * THRESHOLD
    excess = np.linalg.norm(F.normalize(f).numpy() - TABLE["centre"][y], axis=1) - limit
    want = excess[(excess > 0) & (TABLE["kept"][y] > 1)].mean()
    assert method.loss.point_to_set(F.normalize(f), y).item() == pytest.approx(want, rel=1e-5)


def steps_with_few_offenders(parity):
    """p2s and u's gradient under DDP of a step where just rank 1 has offenders, and of one where
    nobody has."""
    method, y, out = make(parity, threshold=1.05), torch.arange(CLASSES - 1), []
    method.loss.boundary.data.fill_(3.0)  # limits near the threshold
    trained = replicate(method, torch.device("cpu"))
    for towards in (1 - 2 * distributed.rank(), 1):
        method.zero_grad()
        f = (towards * method.loss.centre[y]).requires_grad_()
        losses = terms(method, f, y, y, trained=trained)  # image c has label c
        sum(losses.values()).backward()
        out.append((losses["p2s"].item(), method.loss.boundary.grad.clone()))
    return out


@pytest.mark.parametrize("parity", ["published", "corrected"])
def test_ranks_without_offenders_keep_in_step(parity):
    """Loss and gradient of u are zero, not absent: DDP waits for nothing."""
    ranks = run_on_ranks(2, steps_with_few_offenders, parity)
    ((quiet, a), (loud, b)), last = zip(*ranks, strict=True)
    assert quiet == 0 < loud and torch.equal(a, b) and (a[:-1] != 0).all()
    assert all(value == 0 and (grad == 0).all() for value, grad in last)
    ((_, alone), _) = steps_with_few_offenders(parity)
    assert (alone == 0).all()


def test_classes_with_one_image_have_no_ball(capsys):
    method = make()
    assert f"1 of {CLASSES} classes have one image or none" in capsys.readouterr().out
    f, y = -method.loss.centre[[CLASSES - 1]].clone().requires_grad_(), torch.tensor([CLASSES - 1])
    loss = method.loss.point_to_set(f, y)
    by_f, by_u = torch.autograd.grad(loss, (f, method.loss.boundary))
    assert loss == 0 and (by_f == 0).all() and (by_u == 0).all()
    with pytest.raises(BctError, match="no class has two images"):
        make(table=class_statistics(OLD[:CLASSES], LABELS[:CLASSES]))


def test_u_is_kept_from_weight_decay():
    """A step without gradient leaves u alone and shrinks the rest; published, u shrinks as well."""
    for parity, kept in (("corrected", True), ("published", False)):
        method, head = make(parity), head_with(torch.eye(CLASSES, DIM))
        optimizer = make_optimizer(small_cfg(), nn.Linear(2, 2), method, head)
        decays = [g["weight_decay"] for g in optimizer.param_groups for p in g["params"]
                  if p is method.loss.boundary]  # fmt: skip
        assert decays == [0.0 if kept else 5e-4]
        before = {name: p.detach().clone() for name, p in method.loss.named_parameters()}
        for p in method.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert torch.equal(method.loss.boundary, before["boundary"]) == kept
        assert not torch.equal(
            method.loss.discriminator[0].weight, before["discriminator.0.weight"]
        )


# ---- old against new


@pytest.fixture
def one_thread():
    """Two threads of small work wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("shift", "spread"), [(1.0, 1.0), (0.0, 3.0)])
def test_what_the_discriminator_can_learn(shift, spread):
    """A shift or another scale of all old embeddings: nothing as published, all corrected."""
    wide = class_statistics(np.ones((len(LABELS), 32), np.float32), LABELS)
    for parity, low, high in (("published", 1.3, 1.5), ("corrected", 0.0, 0.1)):
        method, losses = make(parity, wide, hidden=100), []
        optimizer = torch.optim.Adam(method.loss.discriminator.parameters(), 1e-2)
        for _ in range(150):
            new, old = torch.randn(2, 64, 32)
            loss = method.loss.adversary(new, shift + spread * old)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] > 1.2
        assert low <= np.mean(losses[-20:]) < high


@pytest.mark.parametrize(
    ("epoch", "strength", "weight"),
    [(0.0, 0.0, 1.1), (0.5, 0.245, 1.1), (1.0, 0.462, 1.0), (2.0, 0.762, 0.9), (9.99, 1.0, 0.2)],
)
def test_reversal(epoch, strength, weight):
    """D learns with weight (E - e + 1) / E, embeddings get -strength times that."""
    method, (f, y, index) = make(), problem()
    f.requires_grad_()
    leaves = f, *method.loss.discriminator.parameters()
    old = F.normalize(method.fetch(index, y, None)["features"])
    plain = torch.autograd.grad(method.loss.adversary(F.normalize(f), old), leaves)
    got = torch.autograd.grad(terms(method, f, y, index, epoch)["adv"], leaves)
    factors = [-strength] + [1] * (len(leaves) - 1)
    for a, b, factor in zip(got, plain, factors, strict=True):
        want = WEIGHT * weight * factor * b
        torch.testing.assert_close(a, want, rtol=2e-3, atol=1e-6)  # strengths have three digits


def norm_on_ranks(joint, x, g):
    """Output, gradient by x after DDP's mean, and by weight and bias before it."""
    norm = nn.BatchNorm1d(5) if not joint else make().loss.discriminator[1]
    for p, value in zip(norm.parameters(), (1.5, -0.3), strict=True):
        p.data = value + torch.arange(5) / 10
    x, g = own(x, g)
    out = norm(x)
    (out * g).sum(1).mean().backward()
    return out.detach(), x.grad / distributed.world_size(), norm.weight.grad, norm.bias.grad


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_joint_norm_is_batch_norm_of_the_whole_batch(world_size):
    rng = torch.Generator().manual_seed(4)
    x, g = 3 * torch.randn(24, 5, generator=rng) + 10, torch.randn(24, 5, generator=rng)
    out, by_x, *by_parameter = zip(
        *run_on_ranks(world_size, norm_on_ranks, True, x, g), strict=True
    )
    got = torch.cat(out), torch.cat(by_x), *(torch.stack(p).mean(0) for p in by_parameter)
    for a, b in zip(got, norm_on_ranks(False, x, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# ---- AdvBCT's own code


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden/landmarks_reid/losses"
    with np.load(folder / "inputs_and_grads.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return arrays, json.loads((folder / "expected.json").read_text())


PRECISIONS = pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)]
)


def published_loss(arrays, dtype, threshold=1.0, **more):
    names = "art_center", "art_rmax", "art_kept_radius", "art_rmin"
    centre, radius, kept, smallest = (arrays[name].nan_to_num() for name in names)
    more = {"adversarial": False, "raw": True, "smallest": smallest} | more
    loss = AdvBCTLoss(centre, radius, kept, threshold, 1.0, 100, True, **more).to(dtype)
    if hasattr(loss, "boundary"):
        loss.boundary.data.copy_(arrays["w_eb"])
    return loss


def held_against(golden, name, terms, loss, f, rtol):
    """The sum of the terms, and its gradients by f and by all parameters."""
    arrays, expected = golden
    total = sum(terms.values())
    parts = {"fc1": "0", "bn1": "1", "fc2": "3"}
    wanted = {f"discriminator.{at}.{kind}": f"grad_d_{part}_{kind}"
              for part, at in parts.items() for kind in ("weight", "bias")}  # fmt: skip
    wanted["boundary"] = "grad_w"
    leaves = {"f": f, **dict(loss.named_parameters())}
    grads = torch.autograd.grad(total, list(leaves.values()))
    assert total.item() == pytest.approx(expected[name]["loss"], rel=rtol)
    wants = [arrays[f"{name}/{wanted.get(key, 'grad')}"].to(f) for key in leaves]
    largest = max(want.abs().max().item() for want in wants)  # some are 0 but for rounding
    for grad, want in zip(grads, wants, strict=True):
        torch.testing.assert_close(grad, want, rtol=rtol, atol=rtol * largest)


@PRECISIONS
@pytest.mark.parametrize("case", ["fixed", "elastic=True/T=1.0", "elastic=True/T=0.5",
                                  "elastic=True/T=0.2"])  # fmt: skip
def test_golden_balls(golden, dtype, rtol, case):
    arrays, expected = golden
    said = expected[f"p2s/{case}"]
    more = {} if said["threshold"] else {"boundary": "fixed"}
    loss = published_loss(arrays, dtype, said["threshold"] or 1.0, **more)
    f, old = (arrays[name].to(dtype).clone() for name in ("f_a", "f_o"))
    terms = loss(f.requires_grad_(), arrays[said["labels"]], old, 0.0, 30)
    assert terms.keys() == {"p2s"}
    held_against(golden, f"p2s/{case}", terms, loss, f, rtol)


@PRECISIONS
@pytest.mark.parametrize("epoch", [0, 3, 15])
@pytest.mark.parametrize("kind", ["p2s+adv", "cls+p2s+adv"])
def test_golden_adversary(golden, dtype, rtol, kind, epoch):
    """And the statistics of a batch norm that has seen new embeddings and then old ones."""
    arrays, _ = golden
    loss = published_loss(arrays, dtype, adversarial=True)
    name = f"advbct/{kind}/epoch={epoch}/E=30"
    layers = {"fc1": "0", "bn1": "1", "fc2": "3"}
    given = {key: value for key, value in arrays.items() if key.startswith("disc/d_")}
    state = {}
    for key, value in given.items():
        layer, part = key.removeprefix("disc/d_").split(".")
        state[f"{layers[layer]}.{part}"] = value
    loss.discriminator.load_state_dict(state)
    f, old = (arrays[name].to(dtype).clone() for name in ("f_a", "f_o"))
    terms = loss(f.requires_grad_(), arrays["y"], old, float(epoch), 30)
    if kind.startswith("cls"):
        terms["cls"] = F.cross_entropy(f @ arrays["W_n"].to(dtype).t(), arrays["y"])
    held_against(golden, name, terms, loss, f, rtol)
    for buffer in ("running_mean", "running_var"):
        got = getattr(loss.discriminator[1], buffer)
        want = arrays[f"{name}/after_{buffer}"].to(dtype)
        torch.testing.assert_close(got, want, rtol=rtol, atol=rtol)


@PRECISIONS
def test_golden_old_distances(golden, dtype, rtol):
    arrays, expected = golden
    (name,) = (key for key in expected if key.startswith("bct_limit_no_s2c"))
    more = {"boundary": "old_distance", "temperature": 0.1, "topk": 10}
    loss = published_loss(arrays, dtype, **more)
    f, old = (arrays[name].to(dtype).clone() for name in ("f_a", "f_o"))
    terms = loss(f.requires_grad_(), arrays["y"], old, 0.0, 30)
    assert terms.keys() == {"p2s", "pairs"}
    held_against(golden, name, terms, loss, f, rtol)


@pytest.mark.parametrize(("reading", "threshold", "weight"), [("mixbct", 0.4, 4), ("advbct", 1, 1)])
def test_threshold_and_weight_are_the_readings_or_the_configs(reading, threshold, weight):
    for parity in ("corrected", "published"):
        nothing = {"threshold": None, "adv_weight": None}
        loss = make(parity, reading=reading, **nothing).loss
        assert (loss.threshold, loss.weight) == (threshold, weight)
        assert loss.raw == (reading == "advbct" and parity == "published")
    loss = make(reading=reading).loss
    assert (loss.threshold, loss.weight) == (THRESHOLD, WEIGHT)


def test_published_the_discriminator_sees_lengths():
    """In AdvBCT's own code; in MixBCT's port, and corrected, unit embeddings."""
    f, y, index = problem()
    for reading in ("mixbct", "advbct"):
        for parity in ("corrected", "published"):
            values = [terms(make(parity, reading=reading), k * f, y, index, 2.0)["adv"].item()
                      for k in (1, torch.linspace(1, 9, len(f))[:, None])]  # fmt: skip
            alike = values[0] == pytest.approx(values[1], rel=1e-4)
            assert alike != (reading == "advbct" and parity == "published")


@pytest.mark.parametrize("parity", ["corrected", "published"])
def test_the_fixed_ball_is_the_largest_radius(parity):
    """Published, the smallest, so that old embeddings lie outside of it."""
    method = make(parity, boundary="fixed", adversarial=False)
    assert not list(method.parameters()) and method.undecayed() == []
    assert method.needs(method.cfg) == ("class_statistics",)
    assert method.fetch(torch.arange(3), torch.arange(3), None) == {}
    f, y, _ = problem()
    unit = F.normalize(f).numpy()
    excess = np.linalg.norm(unit - TABLE["centre"][y], axis=1)
    excess -= TABLE["radius" if parity == "corrected" else "smallest_radius"][y]
    want = excess[(excess > 0) & (TABLE["kept"][y] > 1)].mean()
    batch = Batch(None, y, None, {}, 0.0)
    got = method(f, batch, head_with(torch.eye(CLASSES, DIM)), None)
    assert got.keys() == {"cls", "p2s"}
    assert got["p2s"].item() == pytest.approx(WEIGHT * want, rel=1e-5)
    old = OLD / np.linalg.norm(OLD, axis=1, keepdims=True)
    distance = np.linalg.norm(old - TABLE["centre"][LABELS], axis=1)
    share = (distance > method.loss.radius.numpy()[LABELS] + 1e-5).mean()
    assert share < 0.1 if parity == "corrected" else share > 0.6


def distances(f, y, index, published=False):
    """old_distance's terms and their gradient by f, image by image in float64."""
    f = f.double().requires_grad_()
    new, old = F.normalize(f), F.normalize(torch.from_numpy(OLD[index.numpy()]).double())
    excess, pairs = [], []
    for i, label in enumerate(y.tolist()):
        mu = torch.from_numpy(TABLE[label]["centre"]).double()
        mu = mu / mu.norm()
        far = (new[i] - mu).norm() - (old[i] - mu).norm()
        excess += [far] if far > 0 else []
        others = [j for j in range(len(y)) if y[j] != y[i]]
        negatives = sorted((new[i] @ old[j] for j in others), reverse=True)[:3]
        negatives += sorted((new[i] @ new[j] for j in others), reverse=True)[:3]
        logits = torch.stack([new[i] @ old[i], *negatives]) / 0.2
        pairs.append(logits.logsumexp(0) - logits[0])
    terms_ = WEIGHT * sum(excess) / len(excess), sum(pairs) / len(pairs)
    (grad,) = torch.autograd.grad(sum(terms_), f)
    return [t.item() for t in terms_], grad


def old_distances(f, y, index):
    method = make(boundary="old_distance", adversarial=False, temperature=0.2, topk=3)
    f, y, index = own(f, y, index)
    got = terms(method, f, y, index)
    (got["p2s"] + got["pairs"]).backward()
    return [got["p2s"].item(), got["pairs"].item()], f.grad / distributed.world_size()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_old_distances_on_any_number_of_ranks(world_size):
    """The class of one image takes part: it needs no radius."""
    f, y, index = problem()
    index[0], y[0] = CLASSES - 1, CLASSES - 1
    want, by_f = distances(f, y, index)
    values, grads = zip(*run_on_ranks(world_size, old_distances, f, y, index), strict=True)
    assert np.mean(values, 0) == pytest.approx(want, rel=1e-5)
    torch.testing.assert_close(torch.cat(grads).double(), by_f, rtol=1e-4, atol=1e-6)


def test_without_the_adversary_no_old_embedding_is_read():
    method = make(adversarial=False)
    assert [name for name, _ in method.named_parameters()] == ["loss.boundary"]
    assert method.takes_a_part(EasyDict(method.cfg | {"parity": "published"}))
    assert not AdvBCT.takes_a_part(make("published").cfg)


def test_more_negatives_than_images_are_refused_before_the_training_as_published():
    settings = {"boundary": "old_distance", "topk": 13, "batch_size": 12}
    make(**settings)
    with pytest.raises(BctError, match="topk = 13, and the batch of all ranks has 12 images"):
        make("published", **settings)
    make("published", **settings | {"boundary": "fixed"})
