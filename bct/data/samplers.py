"""Batches of P classes with K images each, as losses of pairs within a batch want them."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from bct.errors import BctError
from bct.streams import seed_of


class ClassBatches(Sampler):
    """Indices of batches of P = batch_size / K classes with K images each, a rank's own.

    A class's images are shuffled and taken K at a time; one with fewer than K has K of them, drawn
    with replacement. Each batch draws P of the classes that have K images left. Once there are
    fewer than P, all classes begin anew. An epoch has as many batches as the classes' images fill:
    what is left over, up to K - 1 images of a class, has its chance in the next one.

    All ranks draw one list of batches, of which rank r has every R-th; it follows from the seed and
    the epoch. Source: AdvBCT's sampler for re-identification, which ends the epoch where here the
    classes begin anew, so that nobody knows its length before.

    Args:
        labels: int64 (N,).
        batch_size: per rank.
        images_per_class: K.
        world_size, rank: how many ranks there are, and this one.

    Raises BctError where batches can't be filled so.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        images_per_class: int,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
    ):
        self.each, self.seed, self.turn = images_per_class, seed, 0
        self.world_size, self.rank = world_size, rank
        self.classes, rest = divmod(batch_size, images_per_class)
        if rest:
            raise BctError(
                f"batch_size = {batch_size} is no multiple of images_per_class = {self.each}",
                f"give a batch_size of {max(self.classes, 2) * self.each}, or another "
                "images_per_class",
            )
        if self.classes < 2:
            raise BctError(
                f"batch_size = {batch_size} leaves one class in a batch, of images_per_class = "
                f"{self.each}",
                f"give a batch_size of {2 * self.each} or more: a batch has to have two classes",
            )
        self.order = np.argsort(labels, kind="stable")
        _, self.starts, self.counts = np.unique(
            np.asarray(labels)[self.order], return_index=True, return_counts=True
        )
        if len(self.counts) < self.classes:
            raise BctError(
                f"{len(self.counts)} classes do not fill a batch of {self.classes} classes",
                f"give a batch_size of {len(self.counts) * self.each} or less, or a larger "
                "images_per_class",
            )
        self.visits = np.maximum(self.counts // self.each, 1)
        self.steps = int(self.visits.sum()) // self.classes // world_size

    def set_epoch(self, epoch: int) -> None:
        self.turn = epoch

    def __len__(self) -> int:
        return self.steps * self.classes * self.each

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(seed_of("classes", self.seed, self.turn))
        batches = self._batches(rng)
        for number in range(self.steps * self.world_size):
            batch = next(batches)
            if number % self.world_size == self.rank:
                yield from batch.tolist()

    def _batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Batches without end, int64 (P * K,); a class's images are neighbours."""
        while True:
            left, images = self.visits.copy(), {}
            there = np.arange(len(left))  # classes with visits left, in any order
            count = len(there)
            while count >= self.classes:
                places = rng.choice(count, self.classes, replace=False)
                drawn = there[places]
                yield np.concatenate([self._visit(int(c), left, images, rng) for c in drawn])
                left[drawn] -= 1
                # the last take the places of those that are done, from behind
                for place in sorted(places[left[drawn] == 0].tolist(), reverse=True):
                    count -= 1
                    there[place] = there[count]

    def _visit(
        self, one: int, left: np.ndarray, images: dict[int, np.ndarray], rng: np.random.Generator
    ) -> np.ndarray:
        """K images of a class: those of its next visit. images: the order of each visited one's."""
        if one not in images:
            own = self.order[self.starts[one] : self.starts[one] + self.counts[one]]
            few = self.counts[one] < self.each
            images[one] = rng.choice(own, self.each) if few else rng.permutation(own)
        end = int(left[one]) * self.each
        return images[one][end - self.each : end]
