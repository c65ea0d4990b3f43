"""Losses and gradients that are not finite, noticed without waiting for the device at each step."""

from pathlib import Path
from typing import NamedTuple

import torch
from easydict import EasyDict

from bct import distributed
from bct.data.image_set import ImageSet
from bct.errors import BctError
from bct.files import write_json


class Outcome(NamedTuple):
    """What an optimiser step leaves: loss terms, the norm of the body's gradient before clipping
    (None where the loss scaler looks after overflows), int64 (B,) indices of the images."""

    losses: dict[str, torch.Tensor]
    norm: torch.Tensor | None
    index: torch.Tensor


class FiniteCheck:
    """Remembers the latest steps and, when asked, finds the first that was not finite on any rank.

    Args:
        cfg: output (where the batch's images are listed).
        dataset: the data set, to name them.
    """

    def __init__(self, cfg: EasyDict, dataset: ImageSet):
        self.cfg, self.dataset = cfg, dataset
        self.steps: list[tuple[int, float, Outcome, torch.Tensor]] = []

    def note(self, step: int, lr: float, outcome: Outcome) -> None:
        loss = sum(outcome.losses.values())
        gradient = torch.zeros_like(loss) if outcome.norm is None else outcome.norm.to(loss)
        self.steps.append((step, lr, outcome, torch.stack((loss, gradient)).isfinite()))

    def verify(self) -> None:
        """Every rank has to call it. Called before anything is written that must not be lost.

        Raises:
            BctError: on all ranks, naming the first bad step and the ranks whose loss it was (a
                gradient is the same on all); these have written their batch's images to
                nonfinite_rank<r>.json.
        """
        good = torch.stack([ok for *_, ok in self.steps]).tolist() if self.steps else []
        bad = [k for k, (loss, gradient) in enumerate(good) if not (loss and gradient)]
        own = (self.steps[bad[0]][0], good[bad[0]][0]) if bad else None  # (step, is the loss good?)
        gathered = distributed.all_gather_object(own)
        everyone = [(found, rank) for rank, found in enumerate(gathered) if found]
        if not everyone:
            self.steps.clear()
            return
        first = min(found for found, _ in everyone)
        ranks = [rank for found, rank in everyone if found == first]
        if distributed.rank() in ranks:
            self._describe(*self.steps[bad[0]][:3])
        distributed.barrier()
        what = "gradient" if first[1] else "loss"
        lr = next(lr for step, lr, *_ in self.steps if step == first[0])
        raise BctError(
            f"the {what} is not finite at step {first[0]} on rank {', '.join(map(str, ranks))} "
            f"(lr {lr:g}); {self.cfg.output}/nonfinite_rank{ranks[0]}.json lists terms and images",
            "lower lr, add warmup_epoch or use amp=off; resume=True goes on from the last "
            "checkpoint, which is from before",
        )

    def _describe(self, step: int, lr: float, outcome: Outcome) -> None:
        numbers = {name: repr(float(value)) for name, value in outcome.losses.items()}
        if outcome.norm is not None:
            numbers["gradient norm"] = repr(float(outcome.norm))
        write_json(
            Path(self.cfg.output) / f"nonfinite_rank{distributed.rank()}.json",
            {
                "step": step,
                "learning_rate": lr,
                "values": numbers,
                "images": [self.dataset.describe(i) for i in outcome.index.tolist()],
            },
        )
