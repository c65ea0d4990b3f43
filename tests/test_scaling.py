"""tools/scaling.py against figures worked out by hand, real tensors and real collectives."""

import math
import re
import sys
from collections import Counter
from functools import cache

import pytest
import torch
import torch.distributed as dist
from easydict import EasyDict
from support.nccl import make, problem, step
from support.ranks import run_on_ranks
from torch import nn

from backbones import get_model
from bct import distributed
from bct.errors import BctError
from bct.files import ROOT
from bct.method import Method
from bct.streams import generator
from bct.train import replicate
from bct.training.heads import PartialFC
from bct.training.margin_softmax import prototype_softmax
from bct.training.optimizer import make_optimizer
from benchmarks.scaling import MARGIN, SCALE, bytes_sent, classic_loss, counted
from tools import scaling
from tools.scaling import Job, Message, Network

CLASSES, DIM, BATCH, RATE = 45, 6, 8, 0.5  # 45 classes do not divide by 2 or 4


def on_a_rank():
    """What this rank holds, hands to collectives and sends."""
    ranks, rank = distributed.world_size(), distributed.rank()
    rng = generator("cpu", "batch", rank)
    e = torch.randn(BATCH, DIM, generator=rng)
    y = torch.randint(0, CLASSES, (BATCH,), generator=rng)
    head = PartialFC(DIM, CLASSES, margin=MARGIN, scale=SCALE)
    out = {"rank": rank, "calls": {}, "results": {}}

    def gradients(loss_of):
        x, head.weight.grad = e.clone().requires_grad_(), None
        loss = loss_of(x)
        loss.backward()
        return loss.detach(), x.grad, head.weight.grad

    with counted() as out["calls"]["ours"]:
        out["results"]["ours"] = gradients(lambda x: head(x, y))
    optimizer = torch.optim.SGD(head.parameters(), 0.1, 0.9)
    optimizer.step()
    held = (head.weight, head.weight.grad, optimizer.state[head.weight]["momentum_buffer"])
    out["centres"] = sum(tensor.nbytes for tensor in held)

    sampled, cfg = PartialFC(DIM, CLASSES, sample_rate=RATE), EasyDict(optimizer="sgd", lr=0.1)
    cfg.update(momentum=0.9, weight_decay=5e-4, backbone_lr_factor=1.0)
    optimizer = make_optimizer(cfg, nn.Linear(1, 1), Method(cfg, None), sampled)
    with counted() as out["calls"]["sampled"]:
        sampled(e.clone().requires_grad_(), y, rng).backward()
    optimizer.step()
    out["sampled"] = len(sampled.sampled), len(sampled.weight)
    grad = sampled.weight.grad.coalesce()
    state = [x for x in optimizer.state[sampled.weight].values() if torch.is_tensor(x)]
    held = (sampled.weight, *state, grad.indices(), grad.values())
    out["sampled centres"] = sum(tensor.nbytes for tensor in held)

    x = e.clone().requires_grad_()
    with counted() as out["calls"]["prototypes"]:
        prototype_softmax(x, y, head.weight.detach(), head.start).backward()

    method, (parts, _) = make(), problem(batches=1)
    queue_head = PartialFC(method.cfg.embedding_size, method.cfg.num_classes)
    with counted() as out["calls"]["queue"]:
        sum(step(method, queue_head, *parts[0])[0].values()).backward()
    out["queue"] = method.cfg.queue_size, method.cfg.num_classes
    kept = (method.loss.opinions, method.loss.queue, method.loss.queue_labels)
    out["queue bytes"] = sum(tensor.nbytes for tensor in kept)

    if ranks > 1:
        head.weight.data.copy_(PartialFC(DIM, CLASSES).weight)  # undoes the optimiser's step
        with counted() as out["calls"]["classic"]:
            out["results"]["classic"] = gradients(
                lambda x: classic_loss(x, y, head.weight, head.start)
            )
        out["gradient"], out["parameters"] = ddp_bytes()
        out["sent"] = {kind: sent_by_gloo(kind) for kind in KINDS}
    return out


def ddp_bytes():
    """Bytes of the gradients that DDP reduces in a step, and the parameters of the network."""
    network = replicate(get_model("demo_w16", DIM), torch.device("cpu"))
    seen = []

    def hook(_, bucket):
        seen.append(bucket.buffer().nbytes)
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(
            lambda done: done.value()[0]
        )  # fmt: skip

    network.register_comm_hook(None, hook)
    network(torch.randn(2, 3, 112, 112)).sum().backward()
    return sum(seen), sum(p.numel() for p in network.parameters() if p.requires_grad)


def gather(x):
    distributed.all_gather(x)


def scatter(x):
    distributed.reduce_scatter(x)


def reduces(x):
    for root, chunk in enumerate(x.chunk(distributed.world_size())):
        dist.reduce(chunk, root)


KINDS = {
    "all_gather": gather,
    "all_reduce": distributed.all_reduce,
    "reduce_scatter": scatter,
    "reduce": reduces,
}
HANDED_OVER = 1 << 20  # bytes; headers are 48


def sent_by_gloo(kind):
    x = torch.ones(HANDED_OVER // 4)
    distributed.barrier()
    before = bytes_sent()
    KINDS[kind](x)
    distributed.barrier()
    return bytes_sent() - before


@cache
def results(ranks):
    return run_on_ranks(ranks, on_a_rank)


def payloads(messages):
    """{(kind, bytes of one): how many}."""
    out = Counter()
    for message in messages:
        out[message.kind] += message.nbytes
    return out


def handed_over(calls):
    out = Counter()
    for kind, nbytes in calls:
        out[kind] += nbytes
    return out


# ---- the formulas against a run of this code


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_centres_take_what_the_formula_says(ranks):
    job = Job(ranks, CLASSES, DIM, BATCH)
    assert max(r["centres"] for r in results(ranks)) == scaling.memory(job)["centres"]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_queue_takes_what_the_formula_says(ranks):
    queue, classes = results(ranks)[0]["queue"]
    job = Job(ranks, classes, DIM, 16 // ranks, queue=queue)
    assert max(r["queue bytes"] for r in results(ranks)) == scaling.memory(job)["old side"]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_bytes_handed_to_collectives_are_the_formulas(ranks):
    queue, classes = results(ranks)[0]["queue"]
    softmax = scaling.softmax_messages(Job(ranks, CLASSES, DIM, BATCH))
    wanted = {
        "ours": softmax,
        "sampled": softmax,
        "prototypes": softmax,
        "classic": scaling.classic_messages(Job(ranks, CLASSES, DIM, BATCH)),
        "queue": [
            *scaling.softmax_messages(Job(ranks, classes, DIM, 16 // ranks)),
            *scaling.queue_messages(Job(ranks, classes, DIM, 16 // ranks, queue=queue)),
        ],
    }
    for result in results(ranks):
        for name, calls in result["calls"].items():
            if ranks == 1:
                assert calls == []
            else:
                assert handed_over(calls) == payloads(wanted[name]), name
                assert len(calls) == sum(m.count for m in wanted[name]), name


def test_collectives_do_not_depend_on_the_number_of_ranks_as_the_classic_ones_do():
    counts = {ranks: {k: len(v) for k, v in results(ranks)[0]["calls"].items()} for ranks in (2, 4)}
    classic = {ranks: count.pop("classic") for ranks, count in counts.items()}
    assert counts[2] == counts[4] and counts[2]["ours"] == 5
    assert classic == {2: 5 + 2, 4: 5 + 4}


@pytest.mark.parametrize("ranks", [2, 4])
def test_classic_way_has_the_same_result(ranks):
    for result in results(ranks):
        for ours, classic in zip(*(result["results"][k] for k in ("ours", "classic")), strict=True):
            torch.testing.assert_close(ours, classic, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ddp_sends_four_bytes_per_trainable_parameter(ranks):
    for result in results(ranks):
        assert result["gradient"] == 4 * result["parameters"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's counters")
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_gloo_sends_what_the_formula_says(ranks, kind):
    measured = sum(result["sent"][kind] for result in results(ranks)) / ranks
    formula = scaling.sent(Message("", kind, HANDED_OVER), ranks, "gloo")
    assert measured == pytest.approx(formula, rel=0.02)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_sampled_classes(ranks):
    job = Job(ranks, CLASSES, DIM, BATCH, RATE)
    used, rows = max((r["sampled"] for r in results(ranks)), key=lambda pair: pair[1])
    assert rows == job.rows and used == pytest.approx(job.used, abs=2)  # labels are drawn
    for result in results(ranks):
        used, rows = result["sampled"]
        job = Job(1, rows, DIM, 1, used / rows)  # one whose m is this rank's
        assert job.used == used
        copy = 4 * DIM * used  # of the sampled rows: it is gone after the step
        assert scaling.memory(job)["centres"] == result["sampled centres"] + copy


def test_a_batch_has_as_many_classes_as_expected():
    job = Job(1, 1000, 4, 700, sample_rate=0.01)
    rng = torch.Generator().manual_seed(0)
    counts = [len(torch.randint(0, 1000, (700,), generator=rng).unique()) for _ in range(200)]
    assert job.used == pytest.approx(sum(counts) / 200, abs=3)


# ---- by hand


def test_memory_by_hand():
    network = Network(parameters=100, per_image=7, per_step=5)
    whole = scaling.memory(Job(2, 11, dim=4, batch=3, network=network))
    assert whole == {
        "network": 100 * 4 * 3,
        "activations": 3 * 7 + 5,
        "centres": 6 * 4 * 4 * 3,
        "logits": 6 * 6 * 4,
        "embeddings": 6 * 4 * 4 * 2,
        "old side": 0,
    }
    assert scaling.memory(Job(2, 11, 4, 3, states=2))["centres"] == 6 * 4 * 4 * 4
    assert scaling.memory(Job(2, 11, 4, 3, block=10))["logits"] == 40
    assert scaling.memory(Job(2, 11, 4, 3, queue=9))["old side"] == 9 * (2 * 6 + 4 * 4 + 8)
    assert scaling.memory(Job(2, 11, 4, 3, prototypes=True))["old side"] == 6 * 4 * 4
    # a tenth of 1000 rows: weights, momentum and age of all; copy, gradient and indices of 100
    sampled = Job(1, 1000, 4, 3, 0.1)
    assert scaling.memory(sampled)["centres"] == 1000 * (2 * 16 + 4) + 100 * (2 * 16 + 8)
    assert scaling.memory(sampled)["logits"] == 3 * 100 * 4
    # AdamW's gradient is whole, and so are its two states
    adam = Job(1, 1000, 4, 3, 0.1, states=2)
    assert scaling.memory(adam)["centres"] == 1000 * 4 * 16 + 100 * 2 * 16


def test_bytes_sent_by_hand():
    def sent(kind, library):
        return scaling.sent(Message("", kind, 1000), 4, library)

    assert sent("all_gather", "ring") == sent("all_gather", "gloo") == 3000
    assert sent("all_reduce", "ring") == sent("all_reduce", "gloo") == 1500
    assert sent("reduce_scatter", "ring") == sent("reduce_scatter", "gloo") == 750
    assert (sent("reduce", "ring"), sent("reduce", "gloo")) == (750, 937.5)


def test_time_by_hand():
    given = [Message("", "all_gather", 1000), Message("", "all_reduce", 800, 2)]
    # 7000 and 1400 bytes at 100 bytes/s; 3 hops, and 2 x 2 x 3; on a ring 7, and 2 x 2 x 7
    assert scaling.seconds(given, 8, 100, 0.5) == pytest.approx(70 + 14 + 0.5 * 3 + 0.5 * 12)
    on_ring = scaling.seconds(given, 8, 100, 0.5, ring=True)
    assert on_ring == pytest.approx(70 + 14 + 0.5 * 7 + 0.5 * 28)


def test_a_step_sends_all_its_parts():
    network = Network(30 << 20)  # 120 MiB of gradients: 1, then 4 x 25 and a rest
    names = [m.name for m in scaling.messages(Job(4, 99, network=network))]
    assert names[5:] == ["gradient of the network", "request to stop"]
    gradient = scaling.messages(Job(4, 99, network=network))[5]
    assert (gradient.nbytes, gradient.count) == (120 << 20, 6)
    both = scaling.messages(Job(4, 99, queue=512, prototypes=True))
    assert len(both) == 5 + 5 + 9 + 1
    assert scaling.messages(Job(1, 99, network=network)) == []


def test_work_of_the_head_does_not_depend_on_the_ranks():
    assert scaling.head_flop(Job(1, 1024, 8, 4)) == scaling.head_flop(Job(4, 1024, 8, 4))
    assert scaling.head_flop(Job(1, 1024, 8, 4)) == 3 * 2 * 4 * 1024 * 8


def test_kept_bytes():
    """Linear keeps its input, ReLU its output, which is the next input; weights are not counted."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert scaling.saved_bytes(model, torch.randn(5, 4)) == 4 * 5 * (4 + 3)


def test_network_is_measured():
    network = scaling.measure("demo_w16", 16, None)
    model = get_model("demo_w16", 16).train()
    assert network.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept = scaling.saved_bytes(model, torch.zeros(5, 3, 112, 112))
    assert kept == network.per_step + 5 * network.per_image
    # at least the input of the stem's and the first block's convolutions and norms
    assert network.per_image > 4 * 16 * 112 * 112


def test_command_line(monkeypatch, capsys):
    arguments = "--network demo_w16 --amp off --ranks 8 64 --classes 93431 1e8 --batch 64"
    monkeypatch.setattr(sys, "argv", ["scaling", *arguments.split()])
    scaling.main()
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith(("| 93,431", "| 100,000,000"))]
    assert len(rows) == 4
    assert "| 100,000,000 | 1 | 8 |" in out
    assert out.splitlines()[-1] == "Does not fit into 80 GB: none."
    monkeypatch.setattr(sys, "argv", ["scaling", *arguments.split(), "--memory", "40"])
    scaling.main()
    assert "Does not fit into 40 GB: 100,000,000 at rate 1 on 8." in capsys.readouterr().out


def test_docs_have_the_table_of_these_formulas():
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    found = re.search(
        r"([\d,]+) parameters; a forward pass keeps ([\d,]+) bytes per image and ([\d,]+)", text
    )
    network = Network(*(int(number.replace(",", "")) for number in found.groups()))
    jobs = [
        Job(ranks, classes, sample_rate=rate, network=network)
        for classes in (93_431, 10**6, 10**7, 10**8)
        for rate in (1, 0.1)
        for ranks in (8, 64, 512)
    ]
    assert scaling.table(jobs, room=80e9, bandwidth=25e9, latency=10e-6) in text


def test_what_no_run_can_have():
    for wrong, what in (
        ({"ranks": 8, "classes": 3}, "3 classes can't be cut over 8 ranks"),
        ({"ranks": 0, "classes": 3}, "ranks = 0"),
        ({"ranks": 1, "classes": 9, "sample_rate": 0.0}, "sample_rate"),
        ({"ranks": 1, "classes": 9, "sample_rate": 0.5, "queue": 8}, "all classes"),
    ):
        with pytest.raises(BctError, match=what):
            Job(**wrong)
    assert math.isfinite(Job(1, 2, sample_rate=0.1).used)
