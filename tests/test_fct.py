"""FCT and FastFill: h and the losses in float64 by hand, the data set of vectors, whole runs."""

import json

import numpy as np
import pytest
import torch
from easydict import EasyDict
from support.gradients import numeric_gradient
from support.methods import OldArrays
from support.networks import randomly
from support.old_models import CPU
from support.ranks import run_on_ranks
from support.stored_vectors import CLASSES, D_NEW, D_OLD, D_SIDE, FCT, IMAGES, VectorJob

from backbones.fct import Transformation, Transformed, from_state
from bct import distributed
from bct.config import load_config
from bct.data.loader import Batch
from bct.errors import BctError
from bct.files import sha256_file
from bct.keys import plain
from bct.models.weights import load_backbone
from bct.stored.vector_set import Vectors
from bct.train import train
from methods.FCT.loss import fct

FASTFILL = ("uncertainty=True", "classification=1.0", "label_smoothing=0.1")


@pytest.fixture
def house(tmp_path):
    return VectorJob(tmp_path)


def float64(state):
    return {key: value.double().numpy() for key, value in state.items()}


def by_hand(w, x, widths, statistics=None):
    """h and s of rows x in NumPy. statistics: of the rows themselves where it is "batch"."""

    def layer(x, name):
        x = x @ w[f"{name}.0.weight"].T
        mean, var = w[f"{name}.1.running_mean"], w[f"{name}.1.running_var"]
        if statistics == "batch":
            mean, var = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
        x = (x - mean) / np.sqrt(var + 1e-5)
        return np.maximum(x * w[f"{name}.1.weight"] + w[f"{name}.1.bias"], 0)

    parts = [layer(layer(x[:, : widths[0]], "old.0"), "old.1")]
    if widths[1]:
        parts.append(layer(layer(x[:, widths[0] :], "side.0"), "side.1"))
    mixed = layer(layer(np.concatenate(parts, 1), "mixer.0"), "mixer.1")
    h = mixed @ w["mixer.2.weight"].T + w["mixer.2.bias"]
    if "uncertainty.weight" not in w:
        return h, None
    return h, h @ w["uncertainty.weight"][0] + w["uncertainty.bias"]


# ---- h


def test_the_published_size():
    count = sum(p.numel() for p in Transformation(128, 128, 128).parameters())
    assert count == 5_712_000
    uncertain = Transformation(128, 128, 128, uncertainty=True)
    assert sum(p.numel() for p in uncertain.parameters()) == count + 129


@pytest.mark.parametrize("statistics", [None, "batch"])
@pytest.mark.parametrize("d_side", [0, D_SIDE])
@pytest.mark.parametrize("uncertainty", [False, True])
def test_h_is_the_formula(d_side, uncertainty, statistics):
    model = randomly(Transformation(D_OLD, D_NEW, d_side, 7, uncertainty))
    x = np.random.default_rng(1).standard_normal((9, D_OLD + d_side))
    w = float64(model.state_dict())
    model.train(statistics == "batch")
    got = model(torch.from_numpy(x))
    h, s = by_hand(w, x, (D_OLD, d_side), statistics)
    np.testing.assert_allclose(got.embedding.detach(), h, rtol=1e-4, atol=1e-5)
    assert got.embedding.dtype == torch.float32 and got.embedding.shape == (9, D_NEW)
    if uncertainty:
        np.testing.assert_allclose(got.log_variance.detach(), s, rtol=1e-4, atol=1e-5)
    else:
        assert got.log_variance is None


def published(state):
    """The same weights as the published code names and shapes them: 1x1 convolutions."""
    out = {}
    for key, value in state.items():
        part, *rest = key.split(".")
        if part == "uncertainty":
            out[f"uncertainty_head.{rest[-1]}"] = value
            continue
        part = {"old": "p1", "side": "p2", "mixer": "mixer"}[part]
        block = "normalizer" if len(rest) > 2 and rest[1] == "1" else "conv"
        is_conv = block == "conv" and rest[-1] == "weight"
        out[f"{part}.{rest[0]}.{block}.{rest[-1]}"] = value[..., None, None] if is_conv else value
    return out


@pytest.mark.parametrize("d_side", [0, D_SIDE])
@pytest.mark.parametrize("names", [dict, published])
def test_all_sizes_are_read_from_the_weights(names, d_side):
    model = randomly(Transformation(D_OLD, D_NEW, d_side, 7, uncertainty=True))
    x = torch.randn(5, D_OLD + d_side)
    again = from_state(names(model.state_dict()), uncertainty=True)
    assert not again.training and again.embedding_size == D_NEW
    for one, other in zip(again(x), model(x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    alone = from_state(names(model.state_dict()))(x)
    assert torch.is_tensor(alone) and torch.equal(alone, model(x).embedding)


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: {},
        lambda s: {k: v for k, v in s.items() if k != "old.1.1.bias"},
        lambda s: {**s, "fc.weight": torch.ones(2, 2)},
        lambda s: {**s, "mixer.1.0.weight": torch.ones(7, 8)},
        lambda s: {**s, "old.0.0.weight": torch.ones(3)},
    ],
)
def test_other_weights_are_refused(damage):
    state = Transformation(D_OLD, D_NEW, 0, 7).state_dict()
    with pytest.raises(BctError, match="no transformation of FCT"):
        from_state(damage(state))


# ---- the losses


def make(house, **changes):
    old = OldArrays(new_embedding=house.new)
    about = {"dim": D_NEW, "parity": "corrected", "weights": str(house.folder / "new/model.pt")}
    old.manifests = {"old_embedding": about, "new_embedding": about}
    old.classifier = lambda kind: tuple(house.classifier.values())
    old.classifies_unit = lambda kind: False
    sizes = {"embedding_size": D_NEW, "num_classes": CLASSES, "label_smoothing": 0.0}
    return FCT(EasyDict({**plain(FCT.defaults), **sizes, "parity": "corrected", **changes}), old)


def test_a_classifier_of_unit_embeddings_sees_such():
    rng = torch.Generator().manual_seed(0)
    mapped, new = torch.randn(2, 9, D_NEW, generator=rng)
    weight, labels = torch.randn(CLASSES, D_NEW, generator=rng), torch.arange(9) % CLASSES
    given = {"labels": labels, "classifier": (weight, None)}
    got = fct(mapped, new, unit_classifier=True, **given)
    want = fct(torch.nn.functional.normalize(mapped), new, **given)
    assert torch.equal(got["cls"], want["cls"])
    assert torch.equal(got["error"], fct(mapped, new)["error"])


def loss_by_hand(h, s, f, y, target, w, classifier, smoothing):
    """The docstring's formula, one image after another."""
    total = 0.0
    for i in range(len(h)):
        if target == "unit":
            gap = f[i] / np.sqrt(f[i] @ f[i]) - h[i] / np.sqrt(h[i] @ h[i])
            each = gap @ gap
        else:
            each = ((f[i] - h[i]) @ (f[i] - h[i])) / len(f[i])
        if w:
            logits = classifier["weight"] @ h[i] + classifier["bias"]
            log_p = logits - np.log(np.exp(logits).sum())
            each += w * -((1 - smoothing) * log_p[y[i]] + smoothing * log_p.mean())
        total += each if s is None else (np.exp(-s[i]) * each + s[i]) / 2
    return total / len(h)


@pytest.mark.parametrize("target", ["raw", "unit"])
@pytest.mark.parametrize("w", [0.0, 0.7])
@pytest.mark.parametrize("uncertainty", [False, True])
def test_loss_and_gradients_match_float64_by_hand(house, target, w, uncertainty):
    method = make(
        house, target=target, classification=w, uncertainty=uncertainty, label_smoothing=0.1
    )
    rng = np.random.default_rng(2)
    index = torch.from_numpy(rng.permutation(IMAGES)[:7])
    y = torch.from_numpy(house.labels)[index]
    h = torch.from_numpy(rng.standard_normal((7, D_NEW))).float().requires_grad_()
    s = torch.from_numpy(rng.standard_normal(7)).float().requires_grad_() if uncertainty else None
    batch = Batch(None, y, index, method.fetch(index, y, None))
    losses = method(Transformed(h, s), batch, None, None)
    assert losses.keys() == {"error"} | ({"cls"} if w else set()) | (
        {"variance"} if uncertainty else set()
    )
    sum(losses.values()).backward()

    f64, classifier = house.new[index].astype(np.float64), float64(house.classifier)
    h64 = h.detach().double().numpy()
    s64 = None if s is None else s.detach().double().numpy()

    def of(h, s):
        return loss_by_hand(h, s, f64, y.numpy(), target, w, classifier, 0.1)

    assert sum(losses.values()).item() == pytest.approx(of(h64, s64), rel=1e-5)
    want = numeric_gradient(lambda h: of(h, s64), h64)
    np.testing.assert_allclose(h.grad, want, rtol=1e-3, atol=1e-5)
    if uncertainty:
        want = numeric_gradient(lambda s: of(h64, s), s64)
        np.testing.assert_allclose(s.grad, want, rtol=1e-3, atol=1e-5)
    # the new model is constant: its embeddings and its classifier
    assert not batch.old["new"].requires_grad and list(method.parameters()) == []
    assert method.state_dict() == {} and method.old.read == [("new_embedding", index.tolist())]


# ---- stored embeddings as a data set


def test_vectors_are_the_rows(house):
    alone = Vectors(house.path("old"))
    assert (len(alone), alone.width, alone.num_classes) == (IMAGES, D_OLD, CLASSES)
    assert alone.fingerprint == "these images" and alone.side_digest is None
    np.testing.assert_array_equal(alone.labels, house.labels)
    np.testing.assert_array_equal(alone.vector(11), house.old[11])
    both = Vectors(house.path("old"), house.side)
    side = np.load(house.side)
    np.testing.assert_array_equal(both.vector(63), np.concatenate([house.old[63], side[63]]))
    assert both.vector(0).dtype == np.float32 and both.width == D_OLD + D_SIDE
    assert both.side_digest == sha256_file(house.side)
    artefact = Vectors(house.path("old"), house.path("new"))
    np.testing.assert_array_equal(artefact.vector(5), np.concatenate([house.old[5], house.new[5]]))


def other_images(house):
    house.write("new", house.new, data="other images")
    return house.path("new")


def saved(array):
    def save(house):
        np.save(house.side, array)
        return house.side

    return save


@pytest.mark.parametrize(
    ("side", "word"),
    [
        (saved(np.ones((IMAGES - 1, 3), np.float32)), "63 rows"),
        (saved(np.ones(IMAGES, np.float32)), "not floats"),
        (saved(np.ones((IMAGES, 3), np.int64)), "not floats"),
        (saved(np.array([{}], object)), "can't be read"),
        (lambda house: house.folder / "nothing.npy", "do not exist"),
        (other_images, "other images"),
    ],
)
def test_side_information_of_something_else(house, side, word):
    with pytest.raises(BctError, match=word) as info:
        Vectors(house.path("old"), side(house))
    assert len(str(info.value).splitlines()) == 2


def test_damaged_vectors(house):
    house.old[7, 2] = np.nan
    house.write("old", house.old)
    with pytest.raises(BctError, match=r"row 7 is not finite"):
        Vectors(house.path("old")).vector(7)
    labels = house.path("old", "old_embedding_label").with_suffix(".json")
    labels.write_text(labels.read_text().replace("these images", "others"))
    with pytest.raises(BctError, match="different runs"):
        Vectors(house.path("old"))
    house.path("old", "old_embedding_label").unlink()
    with pytest.raises(BctError, match="does not exist"):
        Vectors(house.path("old"))


# ---- whole runs


@pytest.mark.parametrize("more", [(), FASTFILL, ("parity=published",), ("target=unit",)])
def test_learns_the_map_and_leaves_a_plain_network(house, more):
    before = [sha256_file(house.path(name)) for name in ("old", "new")]
    enough = "hidden_size=64", "batch_size=8", "num_epoch=12", "lr=0.01"
    cfg, steps = house.train(*enough, *more)
    terms = {"error", "cls", "variance"} if more == FASTFILL else set()
    assert {key for step in steps for key in step if key.startswith("loss/")} == {
        f"loss/{term}" for term in terms
    }
    assert [sha256_file(house.path(name)) for name in ("old", "new")] == before
    weights = house.folder / "run" / "model.pt"
    about = json.loads(weights.with_suffix(".json").read_text())
    assert (about["network"], about["embedding_size"], about["head"]) == ("fct", D_NEW, "none")
    x = torch.from_numpy(house.old)
    x = torch.cat([x, x], 1) if cfg.parity == "published" else x
    with torch.no_grad():
        mapped = load_backbone(weights)(x).numpy()
    new = house.new
    if cfg.target == "unit":
        mapped, new = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (mapped, new))
    # better than the best constant by far
    assert np.square(mapped - new).mean() < 0.3 * np.square(new - new.mean(0)).mean()


def test_statistics_are_frozen_in_the_second_half(house):
    kept = {}

    class Watching(FCT):
        def begin_epoch(self, epoch, embed):
            if epoch:  # model.pt is what the epoch before has left
                kept[epoch] = torch.load(house.folder / "run/model.pt", weights_only=True)

    house.train(f"side_embedding={house.side}", method=Watching)
    kept[4] = torch.load(house.folder / "run/model.pt", weights_only=True)
    statistics = [key for key in kept[1] if "running" in key]
    assert len(statistics) == 12
    for key, value in kept[1].items():
        moved = [not torch.equal(value, kept[2][key]), not torch.equal(kept[2][key], kept[4][key])]
        counts = key in statistics or key.endswith("num_batches_tracked")
        assert moved == [True, not counts], key


def test_where_the_side_branch_comes_from(house):
    """Without side information there is none; published, it takes the old embedding again."""

    class Old:
        dim = D_OLD

    def widths(*overrides):
        return FCT.backbone(house.config(*overrides), Old, None).widths

    assert widths() == (D_OLD, 0)
    assert widths("parity=published") == (D_OLD, D_OLD)
    assert widths(f"side_embedding={house.side}", "parity=published") == (D_OLD, D_SIDE)


def test_other_side_information_is_another_run(house):
    house.train(f"side_embedding={house.side}", "num_epoch=1")
    np.save(house.side, np.ones((IMAGES, D_SIDE), np.float32))
    with pytest.raises(BctError, match="side_digest"):
        house.train(f"side_embedding={house.side}", "num_epoch=1", "resume=True")


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["embedding_size=7"], "embedding_size"),
        (["target=cosine"], "target"),
        (["network=r18"], "no network"),
        (["new_config=None"], "new_config"),
        (["batch_size=1"], "batch"),
    ],
)
def test_settings_that_do_not_fit(house, overrides, word):
    with pytest.raises(BctError, match=word):
        house.train(*overrides)
    assert not (house.folder / "run").exists()


def test_artefacts_that_do_not_fit(house):
    house.write("new", house.new, parity="published")
    with pytest.raises(BctError, match="other views"):
        house.train()
    house.write("new", house.new, data="other images")
    with pytest.raises(BctError, match="not the data"):
        house.train()
    torch.save({"cls_fc.weight": torch.ones(CLASSES - 1, D_NEW)}, house.folder / "new/model.pt")
    house.write("new", house.new)
    with pytest.raises(BctError, match="has a classifier of 7 rows"):
        house.train("classification=1.0")
    torch.save({"fc.weight": torch.ones(2)}, house.folder / "new/model.pt")
    house.write("new", house.new)
    with pytest.raises(BctError, match="no classifier"):
        house.train("classification=1.0")


def train_here(folder, *overrides):
    cfg = load_config(
        folder / "job.py",
        [f"batch_size={16 // distributed.world_size()}", *FASTFILL, *overrides],
        FCT.defaults,
    )
    assert train(cfg, FCT, CPU) == 0


def test_two_ranks_learn_what_one_does(house):
    """With the statistics frozen from the start, the only thing that ranks have of their own."""
    same = ["optimizer=sgd", "lr=0.05", "num_epoch=2", "freeze_statistics_at=0.0"]
    same.append(f"side_embedding={house.side}")
    for ranks in (1, 2):
        run_on_ranks(ranks, train_here, house.folder, *same, f"output={house.folder / str(ranks)}")
    one, two = (torch.load(house.folder / r / "model.pt", weights_only=True) for r in "12")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(one["mixer.2.bias"], torch.zeros(D_NEW))
