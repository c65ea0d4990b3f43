"""LCE: goldens of both readings, which rows have a gradient, heads, ranks, what is refused."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from easydict import EasyDict
from support.heads import head_with
from support.methods import OldArrays
from support.old_models import CPU, build, config, tool
from support.ranks import run_on_ranks

from bct import distributed
from bct.data.loader import Batch
from bct.errors import BctError
from bct.keys import plain
from bct.method import load_method
from bct.stored.artefacts import open_artefact, write_artefact
from bct.stored.class_statistics import class_statistics
from bct.train import replicate, train
from bct.training.heads import SoftmaxHead
from bct.training.optimizer import make_optimizer
from methods.LCE.loss import alignment, angle_between, angle_boundary, cosine_boundary, shares

LCE = load_method("LCE")
CLASSES, DIM = 9, 6
LABELS = np.concatenate([np.arange(CLASSES), np.arange(41) % (CLASSES - 1)])  # the last has one
OLD = np.random.default_rng(0).standard_normal((len(LABELS), DIM)).astype(np.float32)
OLD += 2 * np.random.default_rng(1).standard_normal((CLASSES, DIM)).astype(np.float32)[LABELS]
TABLE = class_statistics(OLD, LABELS)
ROWS = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(5))
BOTH = pytest.mark.parametrize("published", [True, False])


# ---- the loss


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden/landmarks_reid/losses"
    with np.load(folder / "inputs_and_grads.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return arrays, json.loads((folder / "expected.json").read_text())


def leaf(array, dtype=torch.float64):
    return array.to(dtype).clone().requires_grad_()


PRECISIONS = pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)]
)


@PRECISIONS
@BOTH
def test_golden_of_advbcts_reading(golden, dtype, rtol, published):
    """Without classes of one image, both parities are the published one."""
    arrays, expected = golden
    case = expected["lce_A"]
    f, w = (leaf(arrays[name], dtype) for name in ("f_a", "W_n"))
    names = "art_center", "art_theta_max", "art_kept_theta"
    centre, theta, kept = (arrays[name].nan_to_num().to(dtype) for name in names)
    centre, y = F.normalize(centre), arrays[case["labels"]]
    chosen = (kept > 1)[y]
    assert chosen.sum() == case["valid"]
    boundary = angle_boundary(f, y, centre, theta, chosen, published)
    align = alignment(w[y], centre[y], shares(chosen, published))
    (boundary + align).backward()
    assert boundary.item() == pytest.approx(case["boundary"], rel=rtol)
    assert align.item() == pytest.approx(case["alignment"], rel=rtol)
    for got, name in ((f.grad, "lce_A/grad"), (w.grad, "lce_A/grad_W_n")):
        want = arrays[name].to(dtype)
        torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * want.abs().max().item())


@PRECISIONS
@pytest.mark.parametrize("kind", ["unit", "raw", "raw_x45"])
def test_golden_of_its_own_code(golden, dtype, rtol, kind):
    """Of what its network puts out the published boundary is 0; of unit features it is not."""
    arrays, expected = golden
    case = expected[f"lce_IrvingMeng/{kind}"]
    x = leaf(arrays[f"lce_IrvingMeng/{kind}/x"], dtype)
    w = leaf(arrays["W_n"], dtype)
    centre, cosine = F.normalize(arrays["lce_center"].to(dtype)), arrays["lce_cos"].to(dtype)
    y, everyone = arrays[case["labels"]], torch.ones(len(x), dtype=torch.bool)
    boundary = cosine_boundary(x, y, centre, cosine, everyone, True)
    weight = torch.full((len(w),), 2 / w.numel(), dtype=torch.float64)
    align = alignment(w, centre, weight)
    (100 * align + boundary).backward()
    assert align.item() == pytest.approx(case["align"], rel=rtol)
    assert boundary.item() == pytest.approx(case["boundary"], rel=rtol, abs=1e-6)
    for got, name in ((x.grad, "grad"), (w.grad, "grad_W_n")):
        want = arrays[f"lce_IrvingMeng/{kind}/{name}"].to(dtype)
        scale = max(want.abs().max().item(), 1e-6)
        torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * scale)
    assert (x.grad != 0).any(1).sum() == case["rows_with_gradient"]


def test_corrected_boundary_does_not_depend_on_the_length(golden):
    arrays, expected = golden
    centre, cosine = F.normalize(arrays["lce_center"]), arrays["lce_cos"]
    y, everyone = arrays["y"], torch.ones(16, dtype=torch.bool)
    want = expected["lce_IrvingMeng/unit"]["boundary"]
    for kind in ("unit", "raw", "raw_x45"):
        x = leaf(arrays[f"lce_IrvingMeng/{kind}/x"])
        loss = cosine_boundary(x, y, centre, cosine, everyone)
        loss.backward()
        assert loss.item() == pytest.approx(want, rel=1e-9)
        rows = expected["lce_IrvingMeng/unit"]["rows_with_gradient"]
        assert (x.grad != 0).any(1).sum() == rows


def test_an_angle_has_a_gradient_wherever_it_is():
    """arccos has none where u = v, and in float32 the cosine may be above 1."""
    u = F.normalize(torch.randn(4096, 33, generator=torch.Generator().manual_seed(0)))
    assert (torch.acos((u * u).sum(1)) == 0).sum() < 4096 and torch.acos(
        (u * u).sum(1)
    ).isnan().any()
    same = u.clone().requires_grad_()
    angles = angle_between(same, u)
    angles.sum().backward()
    assert (angles == 0).all() and same.grad.isfinite().all()
    opposite = u.clone().requires_grad_()
    angles = angle_between(opposite, -u)
    angles.sum().backward()
    torch.testing.assert_close(angles, torch.full((4096,), math.pi))
    assert opposite.grad.isfinite().all()
    turn = torch.tensor([1e-6, 1e-3, 0.3, 1.5, 3.1])
    rows = torch.stack((turn.cos(), turn.sin()), 1)
    torch.testing.assert_close(angle_between(rows, torch.tensor([[1.0, 0.0]])), turn)


# ---- the method


def make(reading="advbct", parity="corrected", table=TABLE, absent=0, **more):
    cfg = {**plain(LCE.defaults), "reading": reading, "parity": parity, "head": "margin"}
    cfg |= {"num_classes": CLASSES, "embedding_size": DIM, **more}
    return LCE(EasyDict(cfg), OldArrays(absent, class_statistics=table))


def head_of(kind, w=ROWS, **options):
    if kind == "margin":
        return head_with(w, **options)
    head = SoftmaxHead(DIM, CLASSES)
    head.weight.data.copy_(w)
    return head


def problem(rows=24, seed=3):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (rows,), generator=rng)
    labels[:2] = CLASSES - 1  # of one image
    return 4 * torch.randn(rows, DIM, generator=rng), labels


def dense(f, y, reading, parity="corrected", table=TABLE):
    """The docstring's formulas in float64, image by image: the terms and their gradients by the
    embeddings and the classifier's rows, without the weights."""
    f, w = f.double().requires_grad_(), ROWS.double().requires_grad_()
    published, bounds, aligned = parity == "published", [], []
    for row, label in zip(f, y.tolist(), strict=True):
        ball = table[label]
        mu = torch.from_numpy(ball["centre"]).double()
        mu = mu / mu.norm()
        unit, centre_of_new = row / row.norm(), w[label] / w[label].norm()
        if reading == "advbct":
            if ball["kept_angles"] > 1:
                bounds.append((torch.acos(unit @ mu) - float(ball["angle"])).clamp_min(0))
            if ball["kept_angles"] > 1 or (not published and ball["count"] > 0):
                aligned.append(1 - centre_of_new @ mu)
        else:
            cosine = (row if published else unit) @ mu
            bounds.append((float(ball["cosine"]) - cosine.clamp(-1, 1)).clamp_min(0))
    if reading == "lce":
        mu = F.normalize(torch.from_numpy(np.array(table["centre"])).double())
        aligned = [(F.normalize(w) - mu).square().mean()]
    terms = sum(bounds) / len(bounds), sum(aligned) / len(aligned)
    by_f, by_w = torch.autograd.grad(sum(terms), (f, w))
    return [t.item() for t in terms], by_f, by_w


def on_rank(kind, reading, f, y, parity="corrected", **options):
    """The terms, unweighted, their gradient by this rank's embeddings and by all rows, as the
    optimiser gets them."""
    size, rank = distributed.world_size(), distributed.rank()
    mine = slice(rank * len(f) // size, (rank + 1) * len(f) // size)
    method = make(reading, parity, boundary_weight=1.0, align_weight=1.0, head=kind)
    head = head_of(kind, **options)
    wrapped = replicate(head, CPU)
    rows = f[mine].clone().requires_grad_()
    terms = method(rows, Batch(None, y[mine], None, {}, 0.0), wrapped, torch.Generator())
    (terms["cls"] * 0 + terms["boundary"] + terms["align"]).backward()
    grad = head.weight.grad.to_dense() if head.weight.grad.is_sparse else head.weight.grad
    if kind == "margin":
        grad = distributed.all_gather_shares(grad, CLASSES)
    return [terms["boundary"].item(), terms["align"].item()], rows.grad / size, grad


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("reading", ["advbct", "lce"])
@pytest.mark.parametrize("kind", ["margin", "softmax"])
def test_terms_and_gradients_are_those_of_the_whole_batch(kind, reading, world_size):
    """9 classes do not divide by 2 or 4. The rows' gradient is no mean where they are cut."""
    f, y = problem()
    want, by_f, by_w = dense(f, y, reading)
    ranks = run_on_ranks(world_size, on_rank, kind, reading, f, y)
    values, grads, rows = zip(*ranks, strict=True)
    assert np.mean(values, 0) == pytest.approx(want, rel=1e-5)
    torch.testing.assert_close(torch.cat(grads).double(), by_f, rtol=1e-4, atol=1e-6)
    for grad in rows:
        torch.testing.assert_close(grad.double(), by_w, rtol=1e-4, atol=1e-6)
    assert want[0] > 0 and (by_w != 0).any(1).all() == (
        reading == "lce" or len(set(y.tolist())) == 9
    )


@pytest.mark.parametrize("reading", ["advbct", "lce"])
def test_published_ranks_stay_alone(reading):
    f, y = problem(32)
    parts = [
        dense(*part, reading, "published") for part in zip(f.chunk(2), y.chunk(2), strict=True)
    ]
    for kind in ("margin", "softmax"):
        ranks = run_on_ranks(2, on_rank, kind, reading, f, y, "published")
        values = np.mean([rank[0] for rank in ranks], 0)
        assert values == pytest.approx(np.mean([part[0] for part in parts], 0), rel=1e-4, abs=1e-6)
        for rank, part in zip(ranks, parts, strict=True):
            torch.testing.assert_close(rank[1].double() * 2, part[1], rtol=1e-3, atol=1e-5)
        by_w = torch.stack([part[2] for part in parts]).mean(0)
        torch.testing.assert_close(ranks[0][2].double(), by_w, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("reading", "weights"), [("advbct", (1, 1)), ("lce", (1, 100))])
def test_weights_are_the_readings_or_the_configs(reading, weights):
    f, y = problem()
    want, _, _ = dense(f, y, reading)
    for given in ({}, {"boundary_weight": 0.0, "align_weight": 3.0}):
        terms = make(reading, **given)(f, Batch(None, y, None, {}, 0.0), head_of("margin"), None)
        factors = (0.0, 3.0) if given else weights
        assert terms["boundary"].item() == pytest.approx(factors[0] * want[0], rel=1e-5)
        assert terms["align"].item() == pytest.approx(factors[1] * want[1], rel=1e-5)


def test_the_old_side_is_constant():
    method = make()
    assert not list(method.parameters()) and not any(b.requires_grad for b in method.buffers())
    assert not method.state_dict()


@pytest.mark.parametrize("reading", ["advbct", "lce"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_sampled_centres(reading, optimizer):
    """Rows that a step has not sampled are aligned all the same, as they are by now."""
    f, y = problem()
    head = head_of("margin", sample_rate=0.3)
    cfg = EasyDict(optimizer=optimizer, lr=0.1, momentum=0.9, weight_decay=0.1)
    cfg.backbone_lr_factor = 1.0
    method = make(reading, sample_rate=0.3)
    steps = make_optimizer(cfg, torch.nn.Linear(2, 2), method, head)
    for step in range(3):
        now = head.current().detach()
        w = now.double().requires_grad_()
        weight = shares(torch.ones(len(y), dtype=torch.bool))
        if reading == "advbct":
            want = alignment(w[y], method.centres[y].double(), weight)
        else:
            every = torch.full((CLASSES,), 2 / w.numel(), dtype=torch.float64)
            want = 100 * alignment(w, method.centres.double(), every)
        (by_w,) = torch.autograd.grad(want, w)
        rng = torch.Generator().manual_seed(step)
        terms = method(f, Batch(None, y, None, {}, 0.0), head, rng)
        assert terms["align"].item() == pytest.approx(want.item(), rel=1e-5)
        terms["align"].backward(retain_graph=True)
        grad = head.weight.grad
        grad = grad.to_dense() if grad.is_sparse else grad
        torch.testing.assert_close(grad.double(), by_w, rtol=1e-4, atol=1e-6)
        terms["cls"].backward()
        steps.step()
        steps.zero_grad()


def test_classes_of_one_image_and_without_any():
    """One image: a centre and no angle; none: neither. Published, both are left out."""
    table = TABLE.copy()
    table[2] = np.zeros(1, table.dtype)
    f, y = torch.randn(3, DIM), torch.tensor([2, CLASSES - 1, 2])
    for parity in ("corrected", "published"):
        method, head = make(parity=parity, table=table), head_of("margin")
        rows = f.clone().requires_grad_()
        terms = method(rows, Batch(None, y, None, {}, 0.0), head, None)
        assert terms["boundary"] == 0
        (terms["boundary"] + terms["align"]).backward()
        assert (rows.grad == 0).all()
        touched = (head.weight.grad != 0).any(1).nonzero().flatten().tolist()
        assert touched == ([CLASSES - 1] if parity == "corrected" else [])
        assert (terms["align"] > 0) == (parity == "corrected")


def test_what_is_refused():
    with pytest.raises(BctError, match="angles of none of the 9 classes"):
        make(table=class_statistics(OLD[:CLASSES], LABELS[:CLASSES]))
    imported = TABLE.copy()
    imported["cosine"], imported["kept_angles"] = np.nan, 0
    with pytest.raises(BctError, match="angles of none"):
        make(table=imported)
    with pytest.raises(BctError, match="smallest cosines of none"):
        make("lce", table=imported)
    with pytest.raises(BctError, match='head="none"'):
        make(head="none")
    cfg = EasyDict({**plain(LCE.defaults), "reading": "lce", "parity": "published"})
    with pytest.raises(BctError, match="3 images have no old embedding"):
        LCE.check_absent(cfg, 3)


# ---- from records


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return build(tmp_path_factory.mktemp("house"))


@pytest.mark.parametrize("head", ["softmax", "margin"])
@pytest.mark.parametrize("parity", ["corrected", "published"])
@pytest.mark.parametrize("scenario", ["OPclass", "EXclass", "EXdata"])
def test_its_own_reading_trains(house, tmp_path, scenario, parity, head):
    more = f"parity={parity}", f"head={head}", "reading=lce", "num_epoch=1"
    assert train(config(house, "LCE", tmp_path, *more, scenario=scenario), LCE, CPU) == 0


def test_unseen_classes_may_stay_out(house, tmp_path):
    class Watching(LCE):
        def begin_epoch(self, epoch, embed):
            assert self.aligned.tolist() == [True] * 3 + [False] * 7
            assert not self.bounded[3:].any()

    more = "unseen=ignore", "num_epoch=1"
    train(config(house, "LCE", tmp_path / "a", *more, scenario="EXclass"), Watching, CPU)
    with pytest.raises(BctError, match='unseen="synthesise"'):
        train(config(house, "LCE", tmp_path / "b", *more, scenario="OPclass"), LCE, CPU)


def test_statistics_of_an_older_version_are_made_anew(house, tmp_path, capsys):
    """What AdvBCT needs they still have; LCE names the command, which then does not reuse them."""
    path = house / "features" / "OPclass" / "old_class70_class_statistics.npy"
    table, said = open_artefact(path)
    table, own = np.array(table), {key: said[key] for key in said if key != "digest"}
    older = [name for name in table.dtype.names if name not in ("cosine", "kept_angles")]
    before = np.array(table[older].tolist(), [(name, table.dtype[name]) for name in older])
    for key in ("rows", "dtype", "date"):
        own.pop(key)
    with write_artefact(path, before.shape, before.dtype, **own) as out:
        out[:] = before
    assert train(config(house, "AdvBCT", tmp_path / "adv", "num_epoch=1"),
                 load_method("AdvBCT"), CPU) == 0  # fmt: skip
    with pytest.raises(BctError, match="has no column 'cosine'") as info:
        train(config(house, "LCE", tmp_path / "lce", "num_epoch=1"), LCE, CPU)
    assert "python tools/class_statistics.py --SD old_class70" in info.value.do
    tool("class_statistics", "--SD", "old_class70", "--feature-save", house / "features")
    assert "up to date" not in capsys.readouterr().out
    np.testing.assert_array_equal(open_artefact(path)[0], table)
    assert train(config(house, "LCE", tmp_path / "lce", "num_epoch=1"), LCE, CPU) == 0
