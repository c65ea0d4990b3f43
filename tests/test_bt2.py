"""BT²: its network by hand in float64, rotations, widths, export, the loss, teachers, a chain."""

import inspect
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from easydict import EasyDict
from support.gradients import numeric_gradient
from support.old_models import CPU, tool
from support.pictures import write_faces
from support.ranks import run_on_ranks
from support.searches import two_sets

from backbones import get_model
from backbones.basis import BasisNetwork, Features, check, from_state
from bct.config import base_config, load_config
from bct.data.loader import Batch
from bct.data.sets import SyntheticSet
from bct.data.views import View
from bct.errors import BctError
from bct.files import sha256_file, write_json
from bct.keys import plain
from bct.method import Method, load_method
from bct.models.weights import load_backbone
from bct.old_model import OldModel
from bct.stored.artefacts import write_artefact
from bct.stored.class_statistics import class_means, class_statistics
from bct.train import train
from bct.training.heads import SoftmaxHead
from bct.training.optimizer import make_optimizer

BT2 = load_method("BT2")
D, D_OLD, A, C = 6, 5, 3, 1.7


def network(d=D, d_old=D_OLD, a=A, rotation="cayley", turned=True):
    """On images of 2 x 2, so small that float64 by hand is the rest of the work."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, d + d_old))
    model = BasisNetwork(body, d, d_old, a, C, rotation)
    for layer in (model.P, model.Q):
        if turned:  # away from where it begins
            with torch.no_grad():
                layer.parametrizations.weight.original.add_(torch.randn(layer.weight.shape))
    return model


def images(count, size=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def numbers(tensor):
    return np.float64(tensor.detach().numpy())


# ---- the network


@pytest.mark.parametrize("rotation", ["cayley", "matrix_exp"])
def test_the_network_is_its_formula(rotation):
    model, x = network(rotation=rotation), images(7)
    h = numbers(model.body(x))
    W, b = numbers(model.old_branch.weight), numbers(model.old_branch.bias)
    P, Q = numbers(model.P.weight), numbers(model.Q.weight)
    for got, h_i in zip(zip(*model(x), strict=True), h, strict=True):
        f = unit(h_i[:D])
        u = np.concatenate([unit(W @ np.maximum(h_i, 0) + b), P @ (C * f)])
        c = Q @ u[:D_OLD]
        for tensor, want in zip(got, (np.concatenate([c, u[D_OLD:]]), f, c), strict=True):
            np.testing.assert_allclose(numbers(tensor), want, atol=1e-5)


def test_the_published_rows_below_the_cut_change_nothing():
    """There the old branch has d_old rows, is normalised, cut to the first a, normalised again."""
    model, x = network().double(), images(7).double()
    below = torch.randn(D_OLD - A, D + D_OLD + 1, dtype=torch.float64, requires_grad=True)
    W = torch.cat((model.old_branch.weight, below[:, :-1]))
    b = torch.cat((model.old_branch.bias, below[:, -1]))
    h = model.body(x)
    g = F.normalize(F.normalize(F.linear(h.relu(), W, b))[:, :A])
    u = torch.cat((g, model.P(model.C * F.normalize(h[:, :D]))), 1)
    compatible = model.Q(u[:, :D_OLD])
    torch.testing.assert_close(compatible, model(x).compatible)
    by_below, by_kept = torch.autograd.grad(
        compatible.pow(3).sum(), (below, model.old_branch.weight)
    )
    assert by_below.abs().max() < 1e-12 < 1e-3 < by_kept.abs().max()


def test_gram_identity():
    """<n(x), n(y)> = <g(x), g(y)> + C^2 <f(x), f(y)>, so |n|^2 = 1 + C^2."""
    model, x = network().double(), images(9).double()
    n, f, _ = (t.detach().numpy() for t in model(x))
    h = model.body(x)
    g = unit(model.old_branch(h.relu()).detach().numpy())
    np.testing.assert_allclose(n @ n.T, g @ g.T + float(C) ** 2 * f @ f.T, atol=1e-6)
    np.testing.assert_allclose((n * n).sum(1), 1 + C**2, rtol=1e-6)


@pytest.mark.parametrize("rotation,within", [("cayley", 2e-6), ("matrix_exp", 5e-5)])
def test_rotations_stay_rotations_while_they_are_trained(rotation, within):
    model, x = network(48, 40, 12, rotation, turned=False), images(32)
    before = model.P.weight.detach().clone(), model.Q.weight.detach().clone()
    target = F.normalize(torch.randn(32, 40))
    cfg = EasyDict(optimizer="adam", lr=1e-2, weight_decay=0.1, backbone_lr_factor=1)
    nothing = torch.nn.Linear(1, 1)
    optimizer = make_optimizer(cfg, model, Method(cfg, None), nothing)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    rotations = [id(p) for name, p in model.named_parameters() if ".parametrizations." in name]
    assert [decay[i] for i in rotations] == [0.0, 0.0] and len(rotations) == 2
    assert decay[id(model.old_branch.weight)] == 0.1
    for _ in range(100):
        loss = (1 - (F.normalize(model(x).compatible) * target).sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for layer, began in zip((model.P, model.Q), before, strict=True):
        weight = layer.weight.detach()
        assert (weight - began).norm() > 0.5
        error = numbers(weight.t()) @ numbers(weight) - np.eye(len(weight))
        assert np.abs(error).max() < within


def test_a_chain_of_widths():
    """Each embedding is longer than the one before, whose place is its beginning."""
    d_old = 128
    for a, width in ((32, 160), (64, 192), (96, 224)):
        model = network(128, d_old, a, turned=False)
        for count in (1, 2, 3, 4):  # also a last batch as small as some count of outputs
            n, f, c = model(images(count))
            assert (n.shape, f.shape) == ((count, width), (count, 128))
            assert c.shape == (count, d_old) and torch.equal(n[:, :d_old], c)
        assert model.embedding_size == width
        d_old = width


@pytest.mark.parametrize(
    ("d", "d_old", "a", "hint"),
    [
        (128, 160, 32, "from 33 to 159"),  # published, u[-0:] makes this 320 wide
        (128, 160, 16, "from 33 to 159"),
        (128, 128, 0, "from 1 to 127"),
        (128, 128, 128, "from 1 to 127"),  # nothing of f would be among the old coordinates
        (1, 4, 2, "larger embedding_size"),
    ],
)
def test_widths_that_do_not_fit(d, d_old, a, hint):
    with pytest.raises(BctError, match=hint) as info:
        network(d, d_old, a)
    assert len(str(info.value).splitlines()) == 2
    if "from" in hint:
        low, high = (int(word) for word in hint.split()[1::2])
        check(d, d_old, low)
        check(d, d_old, high)


# ---- what is deployed


def real(d=D, d_old=D_OLD, a=A, rotation="cayley"):
    """With a body that from_state can build, and batch statistics of its own."""
    torch.manual_seed(3)
    model = BasisNetwork(get_model("conv4_w32", d + d_old), d, d_old, a, C, rotation)
    for layer in (model.P, model.Q):
        torch.nn.init.normal_(layer.parametrizations.weight.original)
    model(images(16, 28))
    return model.eval()


@pytest.mark.parametrize("rotation,within", [("cayley", 1e-6), ("matrix_exp", 1e-5)])
def test_the_deployed_network_is_the_trained_one(tmp_path, rotation, within):
    model, x = real(rotation=rotation), images(5, 28)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    suffix, state = model.exported()
    assert suffix == "+basis" and not any("parametrizations" in key for key in state)
    assert all(not value.requires_grad for value in state.values())
    for name in ("P.weight", "Q.weight"):
        turn = numbers(state[name])
        np.testing.assert_allclose(turn.T @ turn, np.eye(len(turn)), atol=5e-7)
    with torch.no_grad():
        want = model(x).embedding
        deployed = from_state("conv4_w32", state)
        assert not deployed.training and deployed.embedding_size == want.shape[1] == A + D
        torch.testing.assert_close(deployed(x), want, rtol=0, atol=within)
        for count in (1, 2, 3, 4):
            torch.testing.assert_close(deployed(x[:count]), deployed(x)[:count])
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in after)


def test_weights_that_are_no_such_network():
    _, state = real().exported()
    without = {key: value for key, value in state.items() if key != "Q.weight"}
    for weights, word in ((without, "not those of"), ({**state, "x": state["C"]}, "do not fit")):
        with pytest.raises(BctError, match=word) as info:
            from_state("conv4_w32", weights)
        assert len(str(info.value).splitlines()) == 2
    with pytest.raises(BctError, match="do not fit"):
        from_state("conv4_w64", state)


def test_a_gallery_cut_to_the_old_width_is_scored_by_cosine():
    """Old queries meet the first coordinates of new items, whose length differs by item."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        gallery = real(16, 12, 4)(images(40, 28)).embedding.numpy()[:, :12]
    labels = np.arange(40) % 8
    query = (gallery + 0.8 * gallery.std() * rng.standard_normal(gallery.shape)).astype(np.float32)
    lengths = np.linalg.norm(gallery, axis=1)
    assert lengths.max() > 1.1 * lengths.min()
    cosine = unit(np.float64(query)) @ unit(np.float64(gallery)).T

    def ranks(scores):  # of the first item with the query's label
        best = np.where(labels[:, None] == labels, scores, -np.inf).max(1)
        return (scores >= best[:, None]).sum(1)

    found = two_sets(query, labels, gallery, labels).rank
    np.testing.assert_array_equal(found, ranks(cosine))
    assert (ranks(cosine) != ranks(np.float64(query) @ gallery.T)).any()  # as published


# ---- the loss

CLASSES, IMAGES = 4, 10
LABELS = SyntheticSet(IMAGES, CLASSES).labels


def config(**changes):
    place = {"scenario": "EXclass", "old_config": "old_class50", "new_config": "alone_class100"}
    small = {"embedding_size": D, "extra_dim": A, "num_classes": CLASSES, "amp": "off"}
    view = {"image_size": 28, "pixels": "imagenet", "network": "conv4_w32"}
    place |= {"name": "job", "shard": "class100"}
    return EasyDict({**base_config(), **plain(BT2.defaults), **place, **small, **view, **changes})


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """An old network and one trained alone, and what the tools would make of them."""
    folder = tmp_path_factory.mktemp("bt2")
    torch.manual_seed(0)
    rng, made = np.random.default_rng(0), {}
    for name, dim in (("old", D_OLD), ("new", D), ("wide", D + 1)):
        (folder / name).mkdir()
        model = get_model("conv4_w32", dim)
        model(images(16, 28))  # batch statistics of its own
        weights = folder / name / "model.pt"
        torch.save(model.state_dict(), weights)
        view = View(28, pixels="imagenet")._asdict()
        write_json(
            weights.with_suffix(".json"),
            {"network": "conv4_w32", "num_classes": CLASSES, "view": view},
        )
        about = {"data": "synthetic", "data_path": "-", "model": sha256_file(weights)}
        features = rng.standard_normal((IMAGES, dim)).astype(np.float32) + 0.5
        kinds = {"old_embedding": features, "old_prototype": class_means(features, LABELS)}
        kinds["class_statistics"] = class_statistics(features, LABELS)
        for kind, array in kinds.items():
            path = folder / name / f"{kind}.npy"
            manifest = {**about, "kind": kind, "weights": str(weights), "dim": dim}
            with write_artefact(path, array.shape, array.dtype, **manifest) as out:
                out[:] = array
            made[name, kind] = path, array
    return made


def method(disk, new="new", **changes):
    kinds = ("old_embedding", "old_prototype", "class_statistics")
    paths = {kind: str(disk["old", kind][0]) for kind in kinds}
    paths["new_embedding"] = str(disk[new, "old_embedding"][0])
    cfg = config(**paths, **changes)
    return BT2(cfg, OldModel(cfg, SyntheticSet(IMAGES, CLASSES), BT2.needs(cfg)))


def by_hand(disk, published, f, c, W, index, weights, s):
    """The four terms, image by image."""
    _, old = disk["old", "old_embedding"]
    _, alone = disk["new", "old_embedding"]
    old, alone = np.float64(old), np.float64(alone)
    members = unit(old) if published else old
    prototypes = np.stack([members[k == LABELS].mean(0) for k in range(CLASSES)])
    if not published:
        prototypes = unit(prototypes)

    def cross_entropy(logits, y):
        return math.log(np.exp(logits).sum()) - logits[y]

    terms = np.zeros(4)
    for f_i, c_i, i in zip(f, c, index, strict=True):
        y = LABELS[i]
        terms += (
            cross_entropy(W @ f_i, y),
            weights[0] * (1 - unit(alone[i]) @ f_i),
            weights[2] * (1 - unit(old[i]) @ unit(c_i)),
            weights[1] * cross_entropy((1 if published else s) * prototypes @ unit(c_i), y),
        )
    return terms / len(index)


@pytest.mark.parametrize("parity", ["published", "corrected"])
@pytest.mark.parametrize("weights,scale", [((1.0, 10.0, 5.0), 16.0), ((0.5, 2.0, 0.0), 7.0)])
def test_terms_and_gradients_match_float64_by_hand(disk, parity, weights, scale):
    lambdas = dict(zip(("lambda_1", "lambda_2", "lambda_3"), weights, strict=True))
    job = method(disk, parity=parity, teacher="cached", prototype_scale=scale, **lambdas)
    rng = np.random.default_rng(4)
    index = torch.from_numpy(rng.permutation(IMAGES)[:7])
    labels = torch.from_numpy(LABELS)[index]
    x = torch.from_numpy(rng.uniform(0.3, 2, (7, D + D_OLD)) * rng.choice([-1, 1], (7, D + D_OLD)))
    x[:, :D] = F.normalize(x[:, :D])
    x = x.float().requires_grad_()
    head = SoftmaxHead(D, CLASSES, bias=False)
    batch = Batch(None, labels, index, job.fetch(index, labels, None))
    losses = job(Features(None, x[:, :D], x[:, D:]), batch, head, None)
    assert list(losses) == ["cls", "new", "old", "influence"]
    sum(losses.values()).backward()

    def hand(x):
        W = numbers(head.weight)
        return by_hand(
            disk, parity == "published", x[:, :D], x[:, D:], W, index.tolist(), weights, scale
        )

    x64 = numbers(x)
    got = [value.item() for value in losses.values()]
    np.testing.assert_allclose(got, hand(x64), rtol=1e-4, atol=1e-5)
    want = numeric_gradient(lambda x: hand(x).sum(), x64)
    np.testing.assert_allclose(x.grad, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
    assert (x.grad.abs().sum(0) > 0).all() and head.weight.grad.norm() > 0


def test_published_is_cached_and_corrected_sees_the_batch(disk):
    assert method(disk).teacher == "view"
    assert method(disk, parity="published").teacher == "cached"
    assert method(disk, parity="published", teacher="view").teacher == "view"


def test_teachers_see_the_students_images_and_stay_as_they_are(disk):
    job = method(disk)
    index = torch.tensor([3, 1, 1, 8])
    labels, x = torch.from_numpy(LABELS)[index], images(4, 28).requires_grad_()
    assert job.fetch(index, labels, None) == {}
    batch = Batch(x, labels, index, {})
    job.teachers(batch)
    inside = [inspect.getclosurevars(inspect.unwrap(network)) for network in job.networks]
    frozen = [variables.nonlocals["on"](torch.device("cpu")) for variables in inside]
    before = [{k: v.clone() for k, v in model.state_dict().items()} for model in frozen]
    job.train()  # as the loop may do
    student = real().train()
    losses = job(student(x), batch, SoftmaxHead(D, CLASSES, bias=False), None)
    sum(losses.values()).backward()
    for name, teacher in zip(("old", "new"), job.teachers(batch), strict=True):
        with torch.no_grad():
            alone = load_backbone(disk[name, "old_embedding"][0].with_name("model.pt"))
            want = F.normalize(alone(x))
        torch.testing.assert_close(F.normalize(teacher), want, rtol=1e-4, atol=1e-5)
        assert not teacher.requires_grad
    for model, state in zip(frozen, before, strict=True):
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is not None for p in student.parameters())
    assert list(job.parameters()) == [] and job.state_dict() == {}


@pytest.mark.parametrize(
    ("word", "new", "changes"),
    [
        ("have 7 dimensions", "wide", {}),
        ("come from one model", "old", {"embedding_size": D_OLD}),
    ],
)
def test_refusals(disk, word, new, changes):
    with pytest.raises(BctError, match=word) as info:
        method(disk, new, **changes)
    assert len(str(info.value).splitlines()) == 2


def test_widths_are_refused_before_anything_is_built():
    with pytest.raises(BctError, match="from 35 to 39"):
        BT2.check_dimensions(config(), 40)
    with pytest.raises(BctError, match="choose from leading"):
        BT2.check_dimensions(config(dimensions="zero_pad"), D_OLD)
    BT2.check_dimensions(config(), D_OLD)


# ---- whole trainings


class Chain:
    """v1 on half of the classes, v2 and v3 on all, each with the embedding before as its start."""

    def __init__(self, folder):
        self.folder = folder
        write_faces(folder / "train.rec", [4] * 6)
        tool("split_dataset", folder / "train.rec", "--ratio", 50)

    def config(self, name, keys, overrides=(), defaults=None):
        keys = {"rec": str(self.folder), "output": str(self.folder / name), "network": "conv4_w32",
                "feature_save": str(self.folder / "features"), "embedding_size": 8, **keys,
                "seed": len(name), "batch_size": 8, "num_epoch": 1, "num_workers": 0, "frequent": 1,
                "amp": "off", "lr": 0.01}  # fmt: skip
        lines = [f"config.{key} = {value!r}\n" for key, value in keys.items()]
        head = "from easydict import EasyDict\nconfig = EasyDict()\n"
        (self.folder / f"{name}.py").write_text(head + "".join(lines))
        return load_config(self.folder / f"{name}.py", list(overrides), defaults)

    def alone(self, name, shard):
        train(self.config(name, {"shard": shard, "head": "softmax"}), Method, CPU)
        self.extract(name)

    def extract(self, name):
        sd, saved = name.replace("class50", "class100"), self.folder / "features"
        tool("extract_features", self.folder / f"{name}.py", "--SD", sd, "num_workers=0")
        for kind in ("average_features", "class_statistics"):
            tool(kind, "--SD", sd, "--feature-save", saved)

    def step(self, name, old, extra, *overrides):
        keys = {"scenario": "EXclass", "old_config": old, "new_config": "alone_class100"}
        cfg = self.config(name, keys, [f"extra_dim={extra}", *overrides], BT2.defaults)
        train(cfg, BT2, CPU)
        return cfg


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    made = Chain(tmp_path_factory.mktemp("chain"))
    made.alone("v1_class50", "class50")
    made.alone("alone_class100", "class100")
    return made


def steps_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_a_chain_of_trainings(chain):
    x = torch.randn(2, 3, 112, 112)
    for name, old, extra, width in (
        ("v2_class100", "v1_class50", 3, 11),
        ("v3_class100", "v2_class100", 6, 14),
    ):
        if old != "v1_class50":
            chain.extract(old)
            with pytest.raises(BctError, match="from 4 to 10"):
                chain.step("x_class100", old, 3)
        chain.step(name, old, extra)
        steps = steps_of(chain.folder / name)
        assert len(steps) == 3 and all(np.isfinite(step["loss"]) for step in steps)
        assert {"loss/cls", "loss/new", "loss/old", "loss/influence"} <= steps[0].keys()
        about = json.loads((chain.folder / name / "model.json").read_text())
        assert (about["network"], about["embedding_size"]) == ("conv4_w32+basis", width)
        with torch.no_grad():
            embeddings = load_backbone(chain.folder / name / "model.pt")(x)
        assert embeddings.shape == (2, width)
        torch.testing.assert_close(embeddings.square().sum(1), torch.full((2,), 5.0))


def two_ranks(chain):
    chain.step("ranks_class100", "v1_class50", 3, "batch_size=4", "parity=published")


def test_trains_on_two_ranks(chain):
    run_on_ranks(2, two_ranks, chain)
    steps = steps_of(chain.folder / "ranks_class100")
    assert len(steps) == 3 and all(np.isfinite(step["loss"]) for step in steps)
    state = torch.load(chain.folder / "ranks_class100" / "model.pt", weights_only=True)
    turn = numbers(state["Q.weight"])
    np.testing.assert_allclose(turn.T @ turn, np.eye(8), atol=5e-7)
