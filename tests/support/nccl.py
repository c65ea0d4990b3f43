"""An NCCL with old embeddings in memory, batches for it, and a step."""

import numpy as np
import torch
from easydict import EasyDict

from bct import distributed
from bct.data.loader import Batch
from bct.keys import plain
from bct.method import load_method
from support.methods import OldArrays

NCCL = load_method("NCCL")
IMAGES, CLASSES, DIM, SLOTS = 64, 11, 6, 40  # 11 classes do not divide by 2 or 4
WEIGHTS = {"feature": 0.7, "class": 0.3}
TAU = 0.5
OLD = np.random.default_rng(0).standard_normal((IMAGES, DIM)).astype(np.float32)
CREDIBLE = np.random.default_rng(1).random(IMAGES) < 0.6


def make(old=OLD, **more):
    cfg = {"alpha": WEIGHTS["feature"], "beta": WEIGHTS["class"], "temperature": TAU}
    cfg |= {"queue_size": SLOTS, "batch_size": 16 // distributed.world_size(), "head": "margin"}
    cfg |= {"num_classes": CLASSES, "embedding_size": old.shape[1], "sample_rate": 1.0}
    arrays = OldArrays(old_embedding=old, credible_by_entropy=CREDIBLE)
    return NCCL(EasyDict({**plain(NCCL.defaults), **cfg, "parity": "corrected", **more}), arrays)


def problem(batches=3, rows=16, pull=0.0):
    """[(f, y, index)] of successive global batches, and centres; pull: of f to its centre."""
    rng = torch.Generator().manual_seed(3)
    w, parts = torch.randn(CLASSES, DIM, generator=rng), []
    for _ in range(batches):
        y, index = (torch.randint(0, high, (rows,), generator=rng) for high in (CLASSES, IMAGES))
        parts.append((torch.randn(rows, DIM, generator=rng) + pull * w[y], y, index))
    return parts, w


def step(method, head, f, y, index):
    """The terms of this rank's rows of a batch, and the embeddings to differentiate by."""
    n = len(f) // distributed.world_size()
    mine = slice(distributed.rank() * n, (distributed.rank() + 1) * n)
    f = f[mine].clone().requires_grad_()
    fetched = method.fetch(index[mine], y[mine], None)
    return method(f, Batch(None, y[mine], index[mine], fetched), head, None), f
