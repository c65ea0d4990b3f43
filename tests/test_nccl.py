"""NCCL: golden values, a dense float64 re-derivation, the queue, any number of ranks."""

import json
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from easydict import EasyDict
from hypothesis import given, settings
from hypothesis import strategies as st
from support.heads import head_with
from support.nccl import CLASSES, CREDIBLE, NCCL, OLD, SLOTS, TAU, WEIGHTS, make, problem, step
from support.ranks import run_on_ranks
from support.tiny import small_cfg

from bct import distributed
from bct.amp import make_scaler
from bct.errors import BctError
from bct.training import class_similarity
from bct.training.checkpoint import load_checkpoint, save_checkpoint
from bct.training.optimizer import make_optimizer
from bct.training.run_record import RunRecord, read_record


def terms(parts, w, scale=8.0, exact=True, options=None):
    """[{term: (value, gradient by f after DDP's mean, gradient by w)}] of batch after batch, and
    the bytes of the stored opinions. exact: they are kept in float32."""
    method, head, out = make(**(options or {})), head_with(w, scale=scale), []
    stored = method.loss.opinions.nbytes
    if exact:
        method.loss.opinions = method.loss.opinions.float()
    for part in parts:
        losses, f = step(method, head, *part)
        out.append({})
        for name in WEIGHTS:
            by_f = by_w = None
            if losses[name].requires_grad:
                by_f, by_w = torch.autograd.grad(
                    losses[name], (f, head.weight), retain_graph=True, materialize_grads=True
                )
                by_f = by_f / distributed.world_size()
            out[-1][name] = losses[name].item(), by_f, by_w
    assert list(method.parameters()) == []  # the old side is constant
    assert not any(buffer.requires_grad for buffer in method.buffers())
    return out, stored


def terms_on_ranks(world_size, *args):
    """terms() put together from all ranks."""
    results, whole = run_on_ranks(world_size, terms, *args), []
    for ranks in zip(*(r[0] for r in results), strict=True):
        whole.append({})
        for name in WEIGHTS:
            value, *grads = zip(*(rank[name] for rank in ranks), strict=True)
            grads = [None if g[0] is None else torch.cat(g) for g in grads]
            whole[-1][name] = np.mean(value), *grads
    return whole, [r[1] for r in results]


def dense(parts, w, scale=8.0, credible=None):
    """The docstring's formulas in float64 over all classes at once; the queue is a deque."""
    queue, out = deque(maxlen=SLOTS), []
    for f, y, index in parts:
        f, w = f.double().requires_grad_(), w.detach().double().requires_grad_()
        old, new = F.normalize(torch.from_numpy(OLD[index.numpy()]).double()), F.normalize(f)
        p_old, p_new = ((scale * x @ F.normalize(w).T).softmax(1) for x in (old, new))
        for i in range(len(y)):
            kept = credible is None or credible[int(index[i])]
            queue.append((old[i], p_old[i].detach(), y[i]) if kept else None)
        q, p, labels = (torch.stack([slot[k] for slot in queue if slot]) for k in range(3))
        m = (y[:, None] == labels).double()
        weighted = m * (1 + old @ q.T) / 2 / m.sum(1, keepdim=True).clamp_min(1)
        out.append({})
        for name, s in (("feature", new @ q.T), ("class", p_new @ p.T)):
            loss = -WEIGHTS[name] * (weighted * (s / TAU).log_softmax(1)).sum(1).mean()
            grads = torch.autograd.grad(loss, (f, w), retain_graph=True, materialize_grads=True)
            out[-1][name] = loss.item(), *grads
    return out


def assert_equal(got, want, rtol=1e-4):
    """Values within rtol, gradients within rtol of their length."""
    for g, w in zip(got, want, strict=True):
        for name in WEIGHTS:
            assert g[name][0] == pytest.approx(w[name][0], rel=rtol)
            for a, b in zip(g[name][1:], w[name][1:], strict=True):
                error = (a.double() - b).norm().item()
                assert error <= rtol * b.norm().item() + 1e-8


def test_golden(shared):
    """Published mode, two batches through a queue of both; only the first term has a gradient."""
    data = np.load(shared / "golden/methods/inputs_and_grads.npz")
    want = json.loads((shared / "golden/methods/expected.json").read_text())
    classes, batch = len(data["W"]), len(data["labels"])
    sizes = {"num_classes": classes, "batch_size": batch, "queue_size": 2 * batch}
    published = {"alpha": 1, "beta": 1, "temperature": 1, "parity": "published"}
    method = make(data["f_old"], **published, **sizes)
    head = head_with(torch.from_numpy(data["W"]), margin=(1, 0, 0), scale=1.0)
    orders = torch.arange(batch), torch.from_numpy(data["nccl_perm"])
    for tag, index in zip(("first", "second"), orders, strict=True):
        f, y = (torch.from_numpy(data[key])[index] for key in ("f_new", "labels"))
        losses, f = step(method, head, f, y, index)
        losses["feature"].backward()
        golden = data[f"nccl_l1_grad_{tag}"]
        assert losses["feature"].item() == pytest.approx(want[f"nccl_l1_{tag}"], rel=1e-6)
        assert losses["class"].item() == pytest.approx(want[f"nccl_l2_{tag}"], rel=1e-6)
        np.testing.assert_allclose(f.grad.numpy(), golden, atol=1e-5 * np.abs(golden).max())
        assert not losses["class"].requires_grad


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_terms_and_gradients_match_float64_on_any_number_of_ranks(world_size):
    """Unfilled slots do not count, then the ring wraps. A rank stores its own classes alone."""
    parts, w = problem(4)
    got, stored = terms_on_ranks(world_size, parts, w)
    assert_equal(got, dense(parts, w))
    assert all(batch["class"][k].norm() > 1e-4 for batch in got for k in (1, 2))
    classes = {1: [11], 2: [6, 5], 4: [3, 3, 3, 2]}[world_size]
    assert stored == [count * SLOTS * 2 for count in classes]


@pytest.mark.parametrize(("pull", "scale"), [(0, 8.0), (4, 64.0)])
def test_bfloat16_opinions_cost_one_percent(pull, scale):
    """Also where the classifier is sure, so that the gradient is a difference of near equals."""
    parts, w = problem(4, pull=pull)
    assert_equal(terms(parts, w, scale, False)[0], dense(parts, w, scale), rtol=1e-2)


def test_not_credible_old_embeddings_never_enter_the_queue():
    parts, w = problem(4)
    got, _ = terms(parts, w, options={"credible": True})
    assert_equal(got, dense(parts, w, credible=CREDIBLE))
    assert NCCL.needs(EasyDict(credible=True)) == ("old_embedding", "credible_by_entropy")


def test_published_gradient_is_as_many_times_too_large_as_there_are_ranks():
    parts, w = problem()
    args = parts, w, 8.0, False, {"parity": "published"}
    for a, b in zip(terms_on_ranks(1, *args)[0], terms_on_ranks(2, *args)[0], strict=True):
        assert all(b[name][0] == pytest.approx(a[name][0], rel=1e-5) for name in WEIGHTS)
        torch.testing.assert_close(b["feature"][1], 2 * a["feature"][1], rtol=1e-4, atol=1e-7)
        assert a["class"][1] is None and b["class"][1] is None


# ---- the queue


@settings(max_examples=30)
@given(size=st.integers(1, 12), data=st.data())
def test_queue_is_first_in_first_out(size, data):
    """From `position` on: slots never filled, then the last `size` rows, the oldest first."""
    counts = data.draw(st.lists(st.integers(1, size), min_size=1, max_size=8))
    parts, w = problem(1, sum(counts))
    method, head, want = make(queue_size=size, batch_size=size), head_with(w), deque(maxlen=size)
    for f, y, index in zip(*(x.split(counts) for x in parts[0]), strict=True):
        step(method, head, f, y, index)
        old = F.normalize(torch.from_numpy(OLD[index.numpy()]))
        opinions = (64 * old @ F.normalize(w).T).softmax(1)
        want.extend(zip(old, opinions, y.tolist(), strict=True))
        shift, empty = -int(method.loss.position), size - len(want)
        labels = [label for _, _, label in want]
        assert method.loss.queue_labels.roll(shift).tolist() == [-1] * empty + labels
        features, stored = (torch.stack([row[k] for row in want]) for k in (0, 1))
        assert torch.equal(method.loss.queue.roll(shift, 0)[empty:], features)
        got = method.loss.opinions.roll(shift, 1)[:, empty:].t().float()
        torch.testing.assert_close(got, stored, rtol=1e-2, atol=1e-6)


def checkpoint_on_ranks(path, save):
    """Saves after two batches, or loads; the state and the terms of a third batch."""
    parts, w = problem()
    method, head, backbone = make(), head_with(w, scale=8.0), torch.nn.Linear(2, 2)
    optimizer = make_optimizer(small_cfg(), backbone, method, head)
    rest = backbone, method, head, optimizer, make_scaler(None, torch.device("cpu"))
    if save:
        for part in parts[:2]:
            step(method, head, *part)
        save_checkpoint(RunRecord(path, {}, 1), {"step": 2}, *rest)
    else:
        load_checkpoint(read_record(path), *rest)
    state = {name: buffer.clone() for name, buffer in method.state_dict().items()}
    return state, [loss.item() for loss in step(method, head, *parts[2])[0].values()]


def test_a_checkpoint_keeps_the_queue_on_any_number_of_ranks(tmp_path):
    args = checkpoint_on_ranks, tmp_path
    saved = run_on_ranks(2, *args, True)
    opinions = torch.cat([state["loss.opinions"] for state, _ in saved])
    assert opinions.shape == (CLASSES, SLOTS) and (opinions[:, :32].sum(0) > 0.9).all()
    for world_size in (1, 4):
        loaded = run_on_ranks(world_size, *args, False)
        assert torch.equal(torch.cat([state["loss.opinions"] for state, _ in loaded]), opinions)
        for name in ("loss.queue", "loss.queue_labels", "loss.position"):
            assert all(torch.equal(state[name], saved[0][0][name]) for state, _ in loaded)
        a, b = (np.mean([losses for _, losses in r], 0) for r in (saved, loaded))
        np.testing.assert_allclose(a, b, rtol=1e-4)


def refusal(options):
    with pytest.raises(BctError) as error:
        make(**options)
    return str(error.value)


def test_what_is_refused():
    assert "give at least queue_size=16" in refusal({"queue_size": 15})
    assert "sample_rate=1.0" in refusal({"sample_rate": 0.5})
    assert 'head="margin"' in refusal({"head": "softmax"})
    for text in run_on_ranks(2, refusal, {"queue_size": 15, "batch_size": 8}):
        assert "give at least queue_size=16" in text
    for text in run_on_ranks(2, refusal, {"num_classes": 1}):
        assert "1 classes can't be cut over 2 ranks" in text


def test_products_with_a_bfloat16_queue(monkeypatch):
    """Piece by piece where the CPU has no such products; rounded once, at the end, everywhere."""
    monkeypatch.setattr(class_similarity, "_PIECE", 100)
    draw = torch.Generator().manual_seed(0)
    a, q = torch.rand(6, 40, generator=draw), torch.rand(40, 23, generator=draw).bfloat16()
    for left, right in ((a, q), (torch.rand(6, 23, generator=draw), q.t())):
        got = class_similarity._product(left, right)
        want = left.bfloat16().double() @ right.double()
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), want, rtol=2**-8, atol=0)  # half a unit: rounding
