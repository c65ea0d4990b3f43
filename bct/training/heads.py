"""Classification heads: PartialFC with an angular margin, and a plain linear layer with bias.

A head is called as head(embeddings, labels, rng) and returns the mean cross-entropy of the global
batch; beside it, if the config asks for them, the terms of bct/training/metric_terms.py, which are
its module `metric`. Both keep working with one process and without a process group.
"""

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import nn

from bct.distributed import all_gather, gather_rows, rank, shares_to_rank0
from bct.errors import BctError
from bct.streams import generator
from bct.training.class_shards import class_share, own_classes, own_columns
from bct.training.margin_softmax import BLOCK, ShardedMarginSoftmax, margin_logit
from bct.training.metric_terms import MetricTerms

METRIC = "metric."  # what the names of a head's tensors begin with that every rank holds whole
_INIT_BLOCK = 4096  # classes per random stream when centres are initialised


class PartialFC(nn.Module):
    """Margin softmax whose class centres are cut over the ranks.

    Rank r holds a contiguous run of classes. Embeddings and labels are gathered, every rank scores
    all of them against its own centres, and two small collectives join the softmax.
    Source: An et al., Killing Two Birds with One Stone, CVPR 2022.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        margin: (m1, m2, m3), see margin_logit.
        scale: s, the logits are s * cosine.
        sample_rate: share of a rank's centres used per step. The centres of the batch's classes are
            always among them, the rest is drawn anew in every step.
        filter_above: negatives with a larger cosine count as cosine 0 without gradient (0: off).
        block: most logits held at once, over the global batch and this rank's classes; where there
            are more, they are computed a second time for the gradient.
        seed: of the centres, N(0, 0.01^2). They depend on the class alone, not on the ranks.

    Attributes:
        weight: Parameter (n, D), this rank's centres. With row_sgd each row is as old as its last
            use: `current` has them all as they are now.
        start: first class of this rank.
        sampled: the classes used in the last step (global, ascending), when sample_rate < 1.
        row_sgd: the optimiser, if it is to move the sampled rows only; set by make_optimizer. None:
            the gradient is dense, as other optimisers need it.

    Deviations from insightface's PartialFC v2: the gradient of the margin is exact, centres differ
    between ranks, the loss is not capped at 69.08, and |cos| = 1 has a finite gradient.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        margin: tuple[float, float, float] = (1.0, 0.5, 0.0),
        scale: float = 64.0,
        sample_rate: float = 1.0,
        filter_above: float = 0.0,
        block: int = BLOCK,
        seed: int = 0,
    ):
        super().__init__()
        if not 0 <= sample_rate <= 1:
            raise BctError(f"sample_rate = {sample_rate}", "give a value from 0 to 1")
        if block < 1:
            raise BctError(f"block = {block}", "give the number of logits to hold, at least 1")
        self.num_classes, self.margin, self.scale = num_classes, tuple(margin), scale
        self.sample_rate, self.filter_above, self.block = sample_rate, filter_above, block
        self.start, count = class_share(num_classes)
        self.weight = nn.Parameter(torch.empty(count, embedding_size))
        self.sampled, self.row_sgd, self.metric = None, None, None
        stop = self.start + count
        for block in range(self.start // _INIT_BLOCK, -(-stop // _INIT_BLOCK)):
            rng = generator("cpu", seed, "centres", block)
            first = block * _INIT_BLOCK
            centres = torch.empty(_INIT_BLOCK, embedding_size).normal_(0, 0.01, generator=rng)
            lo, hi = max(first, self.start), min(first + _INIT_BLOCK, stop)
            self.weight.data[lo - self.start : hi - self.start] = centres[lo - first : hi - first]

    def forward(
        self, embeddings: torch.Tensor, labels: torch.Tensor, rng: torch.Generator | None = None
    ) -> torch.Tensor:
        """Mean loss over the global batch, the same on all ranks.

        Args:
            embeddings: (B, D), this rank's; B is the same on all ranks.
            labels: (B,) int64, global classes.
            rng: this rank's stream for the negatives, needed when sample_rate < 1.
        """
        more = 0.0 if self.metric is None else self.metric(embeddings, labels)
        e = gather_rows(F.normalize(embeddings.float()))  # (N, D)
        target = own_columns(all_gather(labels), self.start, len(self.weight))  # (N,)
        weight = self.weight
        if self.sample_rate < 1:
            mine = target >= 0
            used = self._sample(target[mine], rng)
            self.sampled = used + self.start
            weight = self.current(used)
            target = torch.searchsorted(used, target).where(mine, -1)
        loss = ShardedMarginSoftmax.apply(
            e, weight, target, self.margin, self.scale, self.filter_above, self.block
        )
        return loss + more

    def current(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """These rows (k,) of the centres, or all, as they are now: (k, D), with gradients."""
        if self.row_sgd is not None:
            return self.row_sgd.current(self.weight, rows)
        return self.weight if rows is None else self.weight.index_select(0, rows)

    def cosines(self, e: torch.Tensor) -> torch.Tensor:
        """Cosines of unit rows (N, D) with this rank's centres: (N, n), with gradients."""
        return e @ F.normalize(self.current()).t()

    @torch.no_grad()
    def logits(self, e: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Scaled cosines (N, n) of unit rows (N, D), those of the labels (N,) with the margin."""
        cosines = self.cosines(e)
        target = own_columns(labels, self.start, len(self.weight))
        rows = torch.nonzero(target >= 0).squeeze(1)
        cosines[rows, target[rows]] = margin_logit(cosines[rows, target[rows]], *self.margin)[0]
        return cosines * self.scale

    def to_global(self, rows: torch.Tensor) -> torch.Tensor | None:
        return shares_to_rank0(rows, self.num_classes)

    def to_local(self, rows: torch.Tensor) -> torch.Tensor:
        return own_classes(rows, self.num_classes)

    def _sample(self, positives: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Ascending local indices: all positives, filled up with random negatives."""
        priority = torch.rand(len(self.weight), generator=rng, device=self.weight.device)
        priority[positives] = 2.0
        count = max(int(self.sample_rate * len(self.weight)), int((priority == 2).sum()), 1)
        return priority.topk(count, sorted=False).indices.sort().values


class SoftmaxHead(nn.Linear):
    """Cross-entropy of a linear layer, without margin.

    The head of "softmax" old models: logits = W f + b on the raw embedding (MixBCT reference), or
    with unit on f / |f| (BT-2).
    Returns the mean over this rank's batch; DDP averages over ranks, each of which holds all rows.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        bias: bool = True,
        smoothing: float = 0.0,
        unit: bool = False,
    ):
        super().__init__(dim, num_classes, bias)
        self.smoothing, self.unit, self.metric = smoothing, unit, None

    def to_global(self, rows: torch.Tensor) -> torch.Tensor | None:
        return rows.cpu() if rank() == 0 else None

    def to_local(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def forward(
        self, embeddings: torch.Tensor, labels: torch.Tensor, rng: torch.Generator | None = None
    ) -> torch.Tensor:
        more = 0.0 if self.metric is None else self.metric(embeddings, labels)
        scores = self.scores(embeddings)
        return F.cross_entropy(scores, labels, label_smoothing=self.smoothing) + more

    def scores(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of embeddings (N, D)."""
        embeddings = embeddings.float()
        return super().forward(F.normalize(embeddings) if self.unit else embeddings)


class NoHead(nn.Module):
    """The head of a method that classifies nothing."""

    def to_global(self, rows: torch.Tensor) -> torch.Tensor | None:
        return rows.cpu() if rank() == 0 else None

    def to_local(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor, rng: object = None) -> None:
        raise no_head()


def no_head() -> BctError:
    """The error of a method that classifies without one."""
    return BctError(
        'this method has a classification term, and the config says head="none"',
        'set head="softmax" or head="margin"',
    )


def make_head(cfg: EasyDict) -> nn.Module:
    """The head that a config asks for. BctError for triplets that can't be had."""
    metric = _metric_terms(cfg)
    if cfg.head == "none":
        return NoHead()
    if cfg.head == "softmax":
        options = cfg.head_bias, cfg.label_smoothing, cfg.head_unit
        head = SoftmaxHead(cfg.embedding_size, cfg.num_classes, *options)
        if cfg.head_init is not None:
            nn.init.normal_(head.weight, std=cfg.head_init)
    else:
        head = PartialFC(
            cfg.embedding_size,
            cfg.num_classes,
            margin=cfg.margin_list,
            scale=cfg.scale,
            sample_rate=cfg.sample_rate,
            filter_above=cfg.interclass_filtering_threshold,
            seed=cfg.seed,
        )
    head.metric = metric
    return head


def _metric_terms(cfg: EasyDict) -> MetricTerms | None:
    weights = {key: cfg[key] for key in ("triplet_weight", "centre_weight") if cfg[key]}
    if not weights:
        return None
    key, weight = next(iter(weights.items()))
    if cfg.head == "none":
        raise BctError(
            f'{key} = {weight} is a term of the head, and the config says head="none"',
            f'set head="softmax" or head="margin", or {key}=0',
        )
    if cfg.triplet_weight and not cfg.images_per_class:
        raise BctError(
            f"triplet_weight = {cfg.triplet_weight} needs several images of each class in a batch",
            "set images_per_class=4, or another number of which batch_size is a multiple",
        )
    return MetricTerms(
        cfg.triplet_weight,
        cfg.triplet_hard_margin,
        cfg.centre_weight,
        cfg.centre_rate,
        (cfg.num_classes, cfg.embedding_size),
        cfg.parity == "published",
        cfg.seed,
    )
