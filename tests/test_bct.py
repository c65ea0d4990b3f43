"""BCT: golden values, both influences in float64 by hand, unseen classes, ranks, refusals."""

import json
import math

import numpy as np
import pytest
import torch
from easydict import EasyDict
from support.gradients import assert_influence, influence_of, mean_cross_entropy
from support.heads import dense_loss, head_with, problem
from support.methods import OldArrays
from support.ranks import run_on_ranks

from bct import distributed
from bct.data.loader import Batch
from bct.data.sets import SyntheticSet
from bct.errors import BctError
from bct.files import sha256_file, write_json
from bct.keys import plain
from bct.method import load_method
from bct.old_model import OldModel
from bct.stored.artefacts import write_artefact

BCT = load_method("BCT")
CLASSES, DIM, SEEN = 11, 6, 5  # SEEN: the old model's classes in EXclass, the first ones
NEW, CENTRES, LABELS = problem(CLASSES, DIM, batch=12)  # embeddings near their class
NEW, LABELS = NEW.float().double().numpy(), LABELS.numpy()
PROTOTYPES = torch.nn.functional.normalize(CENTRES).float().double().numpy()


def config(**changes):
    base = {
        "num_classes": CLASSES,
        "embedding_size": DIM,
        "parity": "corrected",
        "T": 0.9,
        "n2o_map": None,
    }
    place = {"scenario": "OPclass", "old_config": "old_class30", "shard": "class70", "rec": "-"}
    return EasyDict({**base, **place, "feature_save": "-", **plain(BCT.defaults), **changes})


def in_memory(prototypes=PROTOTYPES, **changes):
    return BCT(config(**changes), OldArrays(old_prototype=np.float32(prototypes)))


@pytest.fixture
def disk(tmp_path):
    """What old models leave: model.pt, if softmax with the classifier, model.json, class means."""
    rng = torch.Generator().manual_seed(5)
    for name in ("class", "data", "arc", "gone", "lost"):
        seen = CLASSES if name == "data" else SEEN
        folder = tmp_path / name
        folder.mkdir()
        state = {"cls_fc.weight": torch.randn(seen, DIM, generator=rng)}
        state["cls_fc.bias"] = torch.randn(seen, generator=rng)
        torch.save(state if name != "arc" else {"bn.weight": torch.ones(3)}, folder / "model.pt")
        if name != "gone":
            write_json(folder / "model.json", {"num_classes": seen})
        made_from = dict.fromkeys(("data", "data_path"), "synthetic") | {"kind": "old_prototype"}
        made_from["weights"] = str(folder / "model.pt")
        made_from["model"] = sha256_file(folder / "model.pt")
        with write_artefact(folder / "means.npy", (CLASSES, DIM), "float32", **made_from) as out:
            out[:] = PROTOTYPES
    (tmp_path / "lost/model.pt").unlink()
    return tmp_path


def on_disk(disk, model="class", **changes):
    """BCT on the real OldModel."""
    cfg = config(old_prototype=str(disk / model / "means.npy"), **changes)
    return BCT(cfg, OldModel(cfg, SyntheticSet(40, CLASSES), BCT.needs(cfg)))


def by_prototypes(f, scale=1.0, margin=(1.0, 0.0, 0.0), chosen=slice(None)):
    """-log softmax_y( s cos(f, p_c) ), the target's cosine with its margin, averaged."""
    m1, m2, m3 = margin
    rows = []
    for f_i, y in zip(f[chosen], LABELS[chosen], strict=True):
        row = [f_i @ p / math.sqrt((f_i @ f_i) * (p @ p)) for p in PROTOTYPES]
        angle = m1 * math.acos(row[y]) + m2
        assert angle < math.pi  # beyond, the margin continues otherwise
        row[y] = math.cos(angle) - m3
        rows.append([scale * cosine for cosine in row])
    return mean_cross_entropy(rows, LABELS[chosen])


def test_golden(shared):
    data = np.load(shared / "golden/methods/inputs_and_grads.npz")
    want = json.loads((shared / "golden/methods/expected.json").read_text())["bct_loss"]
    prototypes = data["bct_prototypes"]
    method = in_memory(prototypes, num_classes=len(prototypes), parity="published")
    loss, grad = influence_of(method, data["f_new"], data["labels"])
    assert loss == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(grad, data["bct_grad"], atol=1e-5 * np.abs(data["bct_grad"]).max())


@pytest.mark.parametrize("margin", [(1.0, 0.0, 0.0), (1.0, 0.3, 0.0), (1.1, 0.2, 0.1)])
@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_prototypes_influence(scale, margin):
    changes = {"influence_scale": scale, "influence_margin": margin, "influence_weight": 0.7}
    assert_influence(
        in_memory(**changes), lambda f: 0.7 * by_prototypes(f, scale, margin), NEW, LABELS
    )


def test_published_logits_are_bare_cosines():
    assert_influence(
        in_memory(parity="published", influence_weight=2.0),
        lambda f: 2 * by_prototypes(f),
        NEW,
        LABELS,
    )


def test_the_classification_is_the_heads():
    f, y = torch.from_numpy(NEW), torch.from_numpy(LABELS)
    head = head_with(CENTRES.float(), margin=(1, 0.3, 0), scale=20.0)
    losses = in_memory()(f.float(), Batch(None, y, None, {}), head, None)
    assert losses.keys() == {"cls", "influence"}
    want = dense_loss(f, CENTRES, y, (1, 0.3, 0), 20.0).item()
    assert losses["cls"].item() == pytest.approx(want, rel=1e-4)


# ---- what the old model has seen


def test_images_of_ignored_classes_have_no_influence(disk):
    """All classes stay in the softmax. In OPdata the old model has seen all of them."""
    seen = LABELS < SEEN
    assert 0 < seen.sum() < len(seen)
    changes = {"unseen": "ignore", "influence_scale": 9.0}
    method = on_disk(disk, scenario="EXclass", **changes)
    assert_influence(method, lambda f: by_prototypes(f, 9.0, chosen=seen), NEW, LABELS)
    np.testing.assert_array_equal(influence_of(method, NEW, LABELS)[1].any(1), seen)
    assert_influence(
        on_disk(disk, "data", scenario="OPdata", **changes),
        lambda f: by_prototypes(f, 9),
        NEW,
        LABELS,
    )


def test_the_published_code_ignores_no_class(disk):
    with pytest.raises(BctError, match="ignores no class"):
        on_disk(disk, scenario="EXclass", unseen="ignore", parity="published")


@pytest.mark.parametrize("parity", ["corrected", "published"])
@pytest.mark.parametrize("scenario,model", [("EXclass", "class"), ("EXdata", "data")])
def test_the_old_classifiers_influence(disk, parity, scenario, model):
    """-log softmax_y( V f + b ), averaged over the images of the classes that V knows."""
    state = torch.load(disk / model / "model.pt", weights_only=True)
    weight, bias = (state[f"cls_fc.{key}"].double().numpy() for key in ("weight", "bias"))
    seen = np.less(LABELS, len(weight))

    def by_hand(f):
        rows = [[v @ f_i + b for v, b in zip(weight, bias, strict=True)] for f_i in f[seen]]
        return 0.5 * mean_cross_entropy(rows, LABELS[seen])

    changes = {"influence": "old_classifier", "influence_weight": 0.5, "parity": parity}
    method = on_disk(disk, model, scenario=scenario, **changes)
    assert_influence(method, by_hand, NEW, LABELS)
    np.testing.assert_array_equal(influence_of(method, NEW, LABELS)[1].any(1), seen)


def test_an_old_classifier_of_unit_embeddings_gets_such(disk):
    state = torch.load(disk / "class" / "model.pt", weights_only=True)
    weight, bias = (state[f"cls_fc.{key}"].double().numpy() for key in ("weight", "bias"))
    seen = np.less(LABELS, SEEN)
    write_json(disk / "class" / "model.json", {"num_classes": SEEN, "head_unit": True})

    def by_hand(f):
        rows = [weight @ (f_i / math.sqrt(f_i @ f_i)) + bias for f_i in f[seen]]
        return mean_cross_entropy(rows, LABELS[seen])

    assert_influence(
        on_disk(disk, scenario="EXclass", influence="old_classifier"), by_hand, NEW, LABELS
    )


@pytest.mark.parametrize("changes", [{"influence": "old_classifier"}, {"unseen": "ignore"}])
def test_a_batch_without_seen_classes_has_no_influence(disk, changes):
    method = on_disk(disk, scenario="EXclass", **changes)
    loss, grad = influence_of(method, NEW, SEEN + LABELS % (CLASSES - SEEN))
    assert loss == 0 and (grad == 0).all()


@pytest.mark.parametrize("changes", [{}, {"parity": "published"}, {"influence": "old_classifier"}])
def test_the_old_side_is_constant(disk, changes):
    method = on_disk(disk, scenario="EXclass", **changes)
    before = {key: value.clone() for key, value in method.named_buffers()}
    influence_of(method, NEW, LABELS)
    assert before and list(method.parameters()) == []
    for key, value in method.named_buffers():
        assert value.grad is None and not value.requires_grad and torch.equal(value, before[key])
    assert method.state_dict() == {}  # it comes from the artefacts, never from a checkpoint


CLASSIFIER, IGNORE, EX = {"influence": "old_classifier"}, {"unseen": "ignore"}, "EXclass"


@pytest.mark.parametrize(
    ("word", "model", "scenario", "changes"),
    [
        ("seen none of the new classes", "class", "OPclass", IGNORE),
        ("seen none of the new classes", "class", "OPclass", CLASSIFIER),
        ("holds no classifier", "arc", EX, CLASSIFIER),
        ("gone/model.json is not there", "gone", EX, IGNORE),
        ("gone/model.json is not there", "gone", EX, CLASSIFIER),
        ("lost/model.pt", "lost", EX, CLASSIFIER),
    ],
)
def test_refusals(disk, word, model, scenario, changes):
    with pytest.raises(BctError, match=word) as info:
        on_disk(disk, model, scenario=scenario, **changes)
    assert len(str(info.value).splitlines()) == 2


# ---- ranks

CASES = [
    {"influence_margin": (1.0, 0.3, 0.0), "influence_scale": 16.0},
    {"parity": "published"},
    {"scenario": EX, **IGNORE},
    {"scenario": EX, **CLASSIFIER},
]


def gradients(disk, f, w, y):
    """Per case: the influence, gradients by the embeddings, after DDP's mean, and by centres."""
    size, rank = distributed.world_size(), distributed.rank()
    mine = slice(rank * len(f) // size, (rank + 1) * len(f) // size)
    out = []
    for changes in CASES:
        local, head = f[mine].clone().requires_grad_(), head_with(w, scale=20.0)
        losses = on_disk(disk, **changes)(local, Batch(None, y[mine], None, {}), head, None)
        sum(losses.values()).backward()
        out.append((losses["influence"].detach()[None], local.grad / size, head.weight.grad))
    return out


@pytest.mark.parametrize("seen", [[], [0, 3, 4, 1], [0, 3, 4, 1, 9, 9, 2]])
def test_ranks_give_the_gradient_of_the_whole_batch(disk, seen):
    """11 classes do not divide by 2 or 4; images of seen classes: none, on one rank, unevenly."""
    rng = torch.Generator().manual_seed(2)
    f, w = torch.randn(16, DIM, generator=rng), torch.randn(CLASSES, DIM, generator=rng)
    y = torch.randint(SEEN, CLASSES, (16,), generator=rng)
    y[: len(seen)] = torch.tensor(seen, dtype=torch.long)
    one = gradients(disk, f, w, y)
    for world_size in (2, 4):
        many = run_on_ranks(world_size, gradients, disk, f, w, y)
        for case, want in enumerate(one):
            loss, by_f, by_w = (torch.cat([rank[case][k] for rank in many]) for k in range(3))
            for got, value in zip((loss.mean()[None], by_f, by_w), want, strict=True):
                torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-6)
