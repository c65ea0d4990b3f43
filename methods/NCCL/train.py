"""NCCL: every new embedding agrees with the old embeddings of its class in a long queue.

    loss = ArcFace(W; f, y) + alpha C(a) + beta C(b)
    C(s) = -mean_i 1/P_i sum_j m_ij w_ij log softmax_j(s_ij)
    a_ij = n(f_i) . q_j / t           q_j  the j-th old embedding of the queue, unit length
    b_ij = p(f_i) . p_j / t           p_j  its class probabilities when it came in
    m_ij = [y_i = y_j],  P_i = sum_j m_ij,  w_ij = (1 + n(o_i) . q_j) / 2

p(x) = softmax_c(s cos(x, W_c)) is the new classifier's opinion. The current batch is in the queue.

Paper: Wu et al., Neighborhood Consensus Contrastive Learning for Backward-Compatible
Representation, AAAI 2022.
Needs of the old model: its embeddings of the new model's training set, with credible = True also
the mask of tools/denoise.py --by entropy (the others then never enter the queue).
Differs from the published code, which with parity = "published" is computed as it is:
- b compares class probabilities and has a gradient; published, it compares the logits, with margin
  and scale and cut to [-1, 1], of which it sees copies without gradient: a constant;
- a's gradient is that of the mean over all ranks; published, it is world_size times as large;
- slots not yet filled are left out; published, they are zeros within the softmax;
- a rank keeps the probabilities of its own classes, bfloat16 (C / R, Q); published, float32 (Q, C).
"""

import torch
import torch.nn.functional as F

from bct.distributed import all_gather, all_gather_shares, gather_rows, rank, world_size
from bct.errors import BctError
from bct.method import Method
from bct.train import main
from bct.training.class_shards import class_share
from bct.training.class_similarity import class_probabilities, class_similarity
from bct.training.heads import PartialFC


class NCCL(Method):
    defaults = {  # noqa: RUF012
        "alpha": 1.0,
        "beta": 0.01,
        "temperature": 1.0,
        "queue_size": 8192,
        "credible": False,  # leave out old embeddings that the old space can't place
        "T": 0.5,  # which: entropy above T ln C
        "old_embedding": None,  # paths; None: they follow from scenario and old_config
        "credible_by_entropy": None,
    }

    @classmethod
    def needs(cls, cfg):
        return ("old_embedding", "credible_by_entropy") if cfg.credible else ("old_embedding",)

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        self.published = cfg.parity == "published"
        if cfg.queue_size < cfg.batch_size * world_size():
            raise BctError(
                f"queue_size = {cfg.queue_size} does not hold one batch of {world_size()} ranks "
                f"x {cfg.batch_size}",
                f"give at least queue_size={cfg.batch_size * world_size()}",
            )
        if cfg.head != "margin" or cfg.sample_rate < 1:
            raise BctError(
                "NCCL compares the opinions of a whole margin classifier",
                'use head="margin" and sample_rate=1.0',
            )
        if cfg.credible and self.published:
            raise BctError(
                "the published training does not use its filter", "leave credible=True out"
            )
        size, (_, classes), dtype = cfg.queue_size, class_share(cfg.num_classes), torch.bfloat16
        if self.published:
            classes, dtype = cfg.num_classes, torch.float32
        self.class_sharded = () if self.published else ("opinions",)
        self.register_buffer("opinions", torch.zeros(classes, size, dtype=dtype))
        self.register_buffer("queue", torch.zeros(size, cfg.embedding_size))
        self.register_buffer("queue_labels", torch.full((size,), -1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))
        mask = old.whole("credible_by_entropy") if cfg.credible else None
        if mask is not None and not mask.any():
            raise BctError(
                f"no old embedding is credible at T = {cfg.T}",
                "raise T, or leave credible=True out",
            )
        self.register_buffer("credible", mask, persistent=False)

    def fetch(self, index, labels, rng):
        old = {"features": F.normalize(self.old.rows("old_embedding", index))}
        if self.cfg.credible:
            old["credible"] = self.credible[index]
        return old

    def forward(self, embeddings, batch, head, rng):
        classification = head(embeddings, batch.labels, rng)
        labels, old, tau = batch.labels, batch.old["features"], self.cfg.temperature
        with torch.no_grad():
            stored = labels.where(batch.old["credible"], -1) if self.cfg.credible else labels
            everything, everyone = all_gather(old), all_gather(labels)
            self.push(everything, self.opinion(head, everything, everyone), all_gather(stored))
        f = gather_rows(F.normalize(embeddings.float()))  # (N, D)
        mine = slice(rank() * len(labels), (rank() + 1) * len(labels))
        if self.published:
            local = f[mine]  # through the gather, whose backward multiplies by world_size
            with torch.no_grad():
                b = self.opinion(head, f, everyone)[:, mine].t() @ self.opinions  # (B, Q)
        else:
            local = F.normalize(embeddings.float())
            b = class_similarity(head.scale * head.cosines(f), self.opinions)
        weight = (1 + old @ self.queue.t()) / 2
        positive = labels[:, None] == self.queue_labels
        feature = self.consensus(local @ self.queue.t() / tau, weight, positive)
        opinion = self.consensus(b / tau, weight, positive)
        return {
            "cls": classification,
            "feature": self.cfg.alpha * feature,
            "class": self.cfg.beta * opinion,
        }

    def consensus(
        self, similarity: torch.Tensor, weight: torch.Tensor, positive: torch.Tensor
    ) -> torch.Tensor:
        """C(s): similarity, weight float (B, Q), positive bool (B, Q)."""
        if not self.published:
            similarity = similarity.masked_fill(self.queue_labels < 0, -1e9)
        each = torch.where(positive, weight * similarity.log_softmax(1), 0).sum(1)
        return -(each / positive.sum(1).clamp_min(1)).mean()

    def opinion(self, head: PartialFC, e: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What the classifier says of unit rows (N, D), as the queue stores it: (n, N)."""
        if self.published:
            return all_gather_shares(head.logits(e, labels).t(), head.num_classes).clamp(-1, 1)
        return class_probabilities(head.scale * head.cosines(e)).t()

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


if __name__ == "__main__":
    main(NCCL, "configs/demo.py")
