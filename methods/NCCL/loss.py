"""NCCL: every new embedding agrees with the old embeddings of its class in a long queue.

    loss = alpha C(a) + beta C(b)
    C(s) = -mean_i 1/P_i sum_j m_ij w_ij log softmax_j(s_ij)
    a_ij = n(f_i) . q_j / t           q_j  the j-th old embedding of the queue, unit length
    b_ij = p(f_i) . p_j / t           p_j  its class probabilities when it came in
    m_ij = [y_i = y_j],  P_i = sum_j m_ij,  w_ij = (1 + n(o_i) . q_j) / 2

f_i is the new embedding of an image, o_i the old one, a constant; p(x) = softmax_c(s cos(x, W_c))
is the new classifier's opinion. The current batch is in the queue. The training adds a
classification loss to it.

Paper: Wu et al., Neighborhood Consensus Contrastive Learning for Backward-Compatible
Representation, AAAI 2022.
Differs from the published code, which with published = True is computed as it is:
- b compares class probabilities and has a gradient; published, it compares the logits, with margin
  and scale and cut to [-1, 1], of which it sees copies without gradient: a constant;
- a's gradient is that of the mean over all ranks; published, it is world_size times as large;
- slots not yet filled are left out; published, they are zeros within the softmax;
- a rank keeps the probabilities of its own classes, bfloat16 (C / R, Q); published, float32 (Q, C).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from bct.distributed import all_gather, all_gather_shares, gather_rows, mean_of_chosen, rank
from bct.training.class_shards import class_share
from bct.training.class_similarity import class_probabilities, class_similarity

Classify = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class NCCLLoss(nn.Module):
    """The two terms, and the queue. It has no parameters.

    Args:
        num_classes: C, over all ranks; width: D.
        queue_size: Q, at least the global batch.
        temperature: t.

    Attributes:
        class_sharded: the buffers of which a rank has its own classes' rows only.
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        queue_size: int = 8192,
        temperature: float = 1.0,
        published: bool = False,
    ):
        super().__init__()
        self.num_classes, self.temperature, self.published = num_classes, temperature, published
        _, classes = class_share(num_classes)
        form = (num_classes, torch.float32) if published else (classes, torch.bfloat16)
        self.class_sharded = () if published else ("opinions",)
        self.register_buffer("opinions", torch.zeros(form[0], queue_size, dtype=form[1]))
        self.register_buffer("queue", torch.zeros(queue_size, width))
        self.register_buffer("queue_labels", torch.full((queue_size,), -1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        old: torch.Tensor,
        classify: Classify,
        credible: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The terms C(a), "feature", and C(b), "class", of which the first has taken the batch in.

        Args:
            embeddings: float32 (B, D), new; labels: int64 (B,); old: (B, D), of the same images.
            classify: the new classifier: unit rows (N, D) of all ranks' images, their labels (N,)
                -> s cos(x, W_c), (N, C); on several ranks (N, n), this rank's classes.
            credible: bool (B,), which old embeddings may be anybody's positive; None: all.
            present: bool (B,), which old embeddings there are; the others come into no queue, and
                the terms are means over the images that have one. None: all. Not published.
        """
        old = F.normalize(old)
        with torch.no_grad():
            stored = labels if credible is None else labels.where(credible, -1)
            everything, everyone = all_gather(old), all_gather(labels)
            given, whose, stored = everything, everyone, all_gather(stored)
            if present is not None:
                there = all_gather(present)
                given, whose, stored = given[there], whose[there], stored[there]
            if len(given):
                self.push(given, self.opinion(classify, given, whose), stored)
        f = gather_rows(F.normalize(embeddings.float()))  # (N, D)
        mine = slice(rank() * len(labels), (rank() + 1) * len(labels))
        if self.published:
            local = f[mine]  # through the gather, whose backward multiplies by world_size
            with torch.no_grad():
                b = self.opinion(classify, f, everyone)[:, mine].t() @ self.opinions  # (B, Q)
        else:
            local = F.normalize(embeddings.float())
            b = class_similarity(classify(f, everyone), self.opinions)
        weight = (1 + old @ self.queue.t()) / 2
        positive = labels[:, None] == self.queue_labels
        a = local @ self.queue.t()
        return {
            "feature": self.consensus(a / self.temperature, weight, positive, present),
            "class": self.consensus(b / self.temperature, weight, positive, present),
        }

    def consensus(
        self,
        similarity: torch.Tensor,
        weight: torch.Tensor,
        positive: torch.Tensor,
        present: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """C(s): similarity, weight float (B, Q), positive bool (B, Q), present bool (B,)."""
        if not self.published:
            similarity = similarity.masked_fill(self.queue_labels < 0, -1e9)
        each = torch.where(positive, weight * similarity.log_softmax(1), 0).sum(1)
        each = -each / positive.sum(1).clamp_min(1)
        return each.mean() if present is None else mean_of_chosen(each, present)

    def opinion(self, classify: Classify, e: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What the classifier says of unit rows (N, D), as the queue stores it: (n, N)."""
        logits = classify(e, labels)
        if self.published:
            return all_gather_shares(logits.t(), self.num_classes).clamp(-1, 1)
        return class_probabilities(logits).t()

    def push(self, old: torch.Tensor, opinions: torch.Tensor, labels: torch.Tensor) -> None:
        """Writes (N, D), (n, N), (N,) over the oldest slots, in one or two slices."""
        start, size = int(self.position), len(self.queue)
        split = min(len(old), size - start)
        for source, slots in (
            (slice(0, split), slice(start, start + split)),
            (slice(split, None), slice(0, len(old) - split)),
        ):
            self.queue[slots] = old[source]
            self.queue_labels[slots] = labels[source]
            self.opinions[:, slots] = opinions[:, source].to(self.opinions.dtype)
        self.position.fill_((start + len(old)) % size)
