"""RowSGD against torch's dense SGD, and trainings with sampled centres that use it."""

import copy
import math

import pytest
import torch
from support.ranks import run_on_ranks
from support.tiny import small_cfg
from torch import nn

from bct import distributed
from bct.amp import make_scaler
from bct.data.loader import Batch
from bct.method import Method
from bct.train import replicate, train_step
from bct.training import row_sgd
from bct.training.checkpoint import load_checkpoint, save_checkpoint
from bct.training.heads import PartialFC
from bct.training.optimizer import make_optimizer
from bct.training.row_sgd import RowSGD, products
from bct.training.run_record import RunRecord, read_record

CPU = torch.device("cpu")
ROWS, DIM = 37, 5


def rate_of(step):
    return 0.0 if step == 0 else 0.05 * (1 + math.sin(step))  # a warm-up begins with 0


def both(dtype, momentum, decay):
    """A parameter and its optimiser: ours, and torch's for the dense twin."""
    start = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours, dense = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options = {"momentum": momentum, "weight_decay": decay}
    return ours, RowSGD([ours], 0.1, **options), dense, torch.optim.SGD([dense], 0.1, **options)


def step_both(step, ours, mine, dense, plain, micro=1):
    """A step whose gradient depends on the current rows; ours sees the sampled ones only."""
    rng = torch.Generator().manual_seed(step)
    for optimizer in (mine, plain):
        optimizer.param_groups[0]["lr"] = rate_of(step)
    for _ in range(micro):
        rows = torch.randperm(ROWS, generator=rng)[: 1 + step % 7].sort().values
        target = torch.randn(len(rows), DIM, generator=rng, dtype=ours.dtype)
        (mine.current(ours, rows) - target).square().sum().backward()
        (dense[rows] - target).square().sum().backward()
    assert ours.grad.is_sparse
    for optimizer in (mine, plain):
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize(
    ("momentum", "decay", "micro"),
    [(0.9, 5e-4, 1), (0.9, 5e-4, 3), (0.9, 0.0, 1), (0.5, 0.1, 1), (0.0, 0.01, 1)],
)
def test_equals_dense_sgd_over_hundreds_of_steps(
    dtype, tolerance, momentum, decay, micro, monkeypatch
):
    monkeypatch.setattr(row_sgd, "_FLUSH", 120)  # twice within the run, and not at its end
    monkeypatch.setattr(row_sgd, "_PIECE", 5 * DIM)  # 5 rows at once
    ours, mine, dense, plain = pair = both(dtype, momentum, decay)
    for step in range(300):
        step_both(step, *pair, micro)
        if step % 20 == 0 or step == 299:
            torch.testing.assert_close(mine.current(ours), dense, rtol=tolerance, atol=tolerance)
    state = mine.state[ours]
    assert len(state["rates"]) == 60 and len(state["applied"].unique()) > 3
    if momentum:
        lag = state["applied"].long()
        _, _, c, d = products(state["rates"], momentum, decay)[:, lag, None].to(dtype)
        m = c * ours.detach() + d * state["momentum_buffer"]
        want = plain.state[dense]["momentum_buffer"]
        torch.testing.assert_close(m, want, rtol=tolerance, atol=tolerance)


def test_rows_without_a_gradient_are_not_touched():
    ours, mine, *_ = pair = both(torch.float32, 0.9, 5e-4)
    step_both(1, *pair)
    before, used = ours.detach().clone(), torch.tensor([3, 8])
    mine.current(ours, used).sum().backward()
    assert torch.equal(ours, before)  # reading moves nothing
    mine.step()
    others = torch.ones(ROWS, dtype=bool)
    others[used] = False
    assert torch.equal(ours[others], before[others])
    assert not torch.equal(ours[used], before[used])


def test_a_dense_gradient_in_between():
    ours, mine, dense, plain = pair = both(torch.float64, 0.9, 5e-4)
    for step in range(1, 60):
        if step % 10 == 0:  # as a term on all centres gives, alone or beside sampled ones
            both_sorts = mine.current(ours).cos().sum() + mine.current(ours, torch.arange(4)).sum()
            both_sorts.backward()
            (dense.cos().sum() + dense[:4].sum()).backward()
            mine.step(), plain.step(), mine.zero_grad(), plain.zero_grad()
        step_both(step, *pair)
    torch.testing.assert_close(mine.current(ours), dense, rtol=1e-12, atol=1e-12)


def test_goes_on_from_its_state_bit_by_bit(monkeypatch):
    monkeypatch.setattr(row_sgd, "_FLUSH", 30)
    whole, resumed = both(torch.float32, 0.9, 5e-4), both(torch.float32, 0.9, 5e-4)
    for step in range(50):
        step_both(step, *whole)
        if step == 40:
            resumed[0].data.copy_(whole[0])
            resumed[2].data.copy_(whole[2])
            resumed[1].load_state_dict(copy.deepcopy(whole[1].state_dict()))
            resumed[3].load_state_dict(copy.deepcopy(whole[3].state_dict()))
        if step > 40:
            step_both(step, *resumed)
    assert torch.equal(resumed[0], whole[0])
    one, other = (pair[1].state[pair[0]] for pair in (whole, resumed))
    assert one["rates"] == other["rates"] and len(one["rates"]) == 20
    for key in ("applied", "momentum_buffer"):
        assert torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype


# ---- in training

CLASSES, SIZE = 23, 6
SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def trained(world_batch, steps, *, lazy=True, accumulate=1, fp16=False, path=None, load=False):
    """Trains on rows drawn by step, with sampled centres; returns centres, backbone and losses.

    lazy=False gives the same samples a dense gradient and torch's own SGD. The scaler of fp16 runs
    over after step 3. path: where a checkpoint is saved after step 6, or read before it.
    """
    cfg = small_cfg(gradient_acc=accumulate, **SGD)
    torch.manual_seed(0)
    backbone, method = nn.Sequential(nn.Flatten(), nn.Linear(12, SIZE)), Method(cfg, None)
    head = PartialFC(SIZE, CLASSES, sample_rate=0.3, seed=1)
    head.weight.data.mul_(40)
    optimizer = make_optimizer(cfg, backbone, method, head, fused=not fp16)
    assert isinstance(optimizer, RowSGD)
    if not lazy:
        groups, head.row_sgd = (("body", backbone), ("head", head)), None
        groups = [{"name": name, "params": list(m.parameters())} for name, m in groups]
        optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9, weight_decay=0.01)
    scaler = make_scaler(torch.float16 if fp16 else None, CPU)
    whole = backbone, method, head, optimizer, scaler
    wrapped = [replicate(module, CPU) for module in (backbone, method, head)]
    first = load_checkpoint(read_record(path), *whole)["step"] if load else 0
    rank, size = distributed.rank(), distributed.world_size()
    part, losses = world_batch // size // accumulate, []
    for step in range(first, steps):
        rng = torch.Generator().manual_seed(step)
        x = torch.randn(world_batch, 3, 2, 2, generator=rng)
        y = torch.randint(0, CLASSES, (world_batch,), generator=rng)
        if fp16 and step == 3 and rank == size - 1:
            x[-1] = torch.inf
        starts = range(rank * part, world_batch, size * part)
        batches = iter(
            [Batch(x[s : s + part], y[s : s + part], torch.arange(0), {}) for s in starts]
        )
        before = head.current().detach().clone()
        outcome = train_step(cfg, batches, wrapped, optimizer, scaler, rate_of(step), step)
        losses.append(outcome.losses["cls"])
        if fp16 and step == 3:
            assert torch.equal(head.current(), before)
        if path and not load and step == 5:
            save_checkpoint(RunRecord(path, {}, 1), {"step": 6}, *whole)
    return head.current().detach(), backbone[1].weight.detach(), torch.stack(losses)


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_training_equals_dense_sgd_with_the_same_samples(world_size):
    for cases in run_on_ranks(world_size, trained_both_ways):
        for ours, dense in cases:
            for a, b in zip(ours, dense, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)


def trained_both_ways():
    cases = ({}, {"accumulate": 2}, {"fp16": True})
    return [[trained(16, 12, lazy=lazy, **case) for lazy in (True, False)] for case in cases]


def test_resumes_bit_by_bit_and_on_another_number_of_ranks(tmp_path):
    for world_size in (1, 2):
        path = tmp_path / str(world_size)
        ranks = run_on_ranks(world_size, stopped_and_resumed, path)
        for whole, again, _ in ranks:
            assert torch.equal(whole[0], again[0]) and torch.equal(whole[1], again[1])
            assert torch.equal(whole[2][6:], again[2])
    # the state of 2 ranks on 1 and 4: the centres as they are, whatever each row lacked
    saved = torch.cat([rank[2] for rank in ranks])
    for world_size in (1, 4):
        assert torch.equal(torch.cat(run_on_ranks(world_size, reading, path)), saved)


def stopped_and_resumed(path):
    whole = trained(16, 12, path=path)
    return whole, trained(16, 12, path=path, load=True), reading(path)


def reading(path):
    cfg = small_cfg(**SGD)
    backbone, method = nn.Sequential(nn.Flatten(), nn.Linear(12, SIZE)), Method(cfg, None)
    head = PartialFC(SIZE, CLASSES, sample_rate=0.3)
    optimizer = make_optimizer(cfg, backbone, method, head)
    load_checkpoint(read_record(path), backbone, method, head, optimizer, make_scaler(None, CPU))
    assert not torch.equal(head.current(), head.weight)  # some rows do lack steps
    return head.current().detach()
