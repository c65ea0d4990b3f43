"""Batches of a data set on a device.

The path of a batch: worker processes decode JPEGs into a ring of shared uint8 buffers; the main
process copies a buffer to the device, where it is mirrored, normalised and laid out channels_last.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, get_worker_info

from bct import distributed
from bct.datasets import Faces
from bct.errors import BctError
from bct.images import SIZE, to_network
from bct.signals import leave_to_parent


@dataclass
class Batch:
    """One batch on the device. images float32 (B, 3, H, W) in [-1, 1], labels and index int64 (B,).

    `old` holds what the method asked for of the old model's artefacts for this batch. `epoch` is
    how far the training is: 2.5 in the middle of the third epoch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    old: dict[str, torch.Tensor]
    epoch: float = 0.0

    def tensors(self) -> list[torch.Tensor]:
        return [self.images, self.labels, self.index, *self.old.values()]


Fetch = Callable[[torch.Tensor, torch.Tensor, torch.Generator], dict[str, torch.Tensor]]


class Loader:
    """Batches of a data set for this rank.

    Args:
        faces: the data set.
        batch_size: per rank.
        device: where the batches go.
        seed: with the epoch it determines the order and, with the rank, which images are mirrored.
        num_workers: decoding processes; 0 decodes in the main process.
        num_classes: labels must lie below it; None: not checked.
        train: True shuffles over all ranks and drops the last partial batch. False gives this rank
            a contiguous run of indices, in order, all of it.
        indices: with train=False: the images this rank gets instead.
        mirror: mirror a random half of the images; default as `train`.
        size: height and width of the images.
        broken: called for every batch with the number of its images and the problems of those that
            could not be read. Each of these is replaced by the next good one of its batch, so that
            all ranks go on with batches of one size. None: a broken image is an error.
    """

    def __init__(
        self,
        faces: Faces,
        batch_size: int,
        device: torch.device,
        *,
        seed: int = 0,
        num_workers: int = 2,
        num_classes: int | None = None,
        train: bool = True,
        mirror: bool | None = None,
        size: int = SIZE,
        indices: Sequence[int] | None = None,
        broken: Callable[[int, list[str]], None] | None = None,
    ):
        self.device, self.seed, self.train, self.broken = device, seed, train, broken
        self.mirror = train if mirror is None else mirror
        rank, world_size = distributed.rank(), distributed.world_size()
        if train:
            sampler = DistributedSampler(faces, world_size, rank, shuffle=True, seed=seed)
        elif indices is not None:
            sampler = indices
        else:
            start, length = distributed.contiguous_share(len(faces), rank, world_size)
            sampler = range(start, start + length)
        self.decoder = _Decoder(
            faces, batch_size, num_workers, num_classes, size, skip=broken is not None
        )
        self.batch_size, self.sampler = batch_size, _Rest(sampler)
        self.loader = DataLoader(
            self.decoder,
            batch_size,
            sampler=self.sampler,
            num_workers=num_workers,
            drop_last=train,
            collate_fn=_as_it_is,
            prefetch_factor=_PREFETCH if num_workers else None,
            persistent_workers=num_workers > 0,
            multiprocessing_context="fork" if num_workers else None,
            worker_init_fn=leave_to_parent,
        )
        if train and len(self.loader) == 0:
            raise BctError(
                f"{len(faces)} images on {world_size} rank(s) do not fill a batch of {batch_size}",
                "lower batch_size",
            )

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int = 0, fetch: Fetch | None = None, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch.

        Args:
            start: the batch to begin with; the ones before are not read.
            fetch: optional (index, labels, rng) -> dict of tensors, called for every batch while it
                is being loaded; its result becomes `batch.old`. On a GPU it runs beside the
                previous step, so it may wait for the disk without holding up the compute stream.
        """
        if self.train:
            self.sampler.all.set_epoch(epoch)
        self.sampler.start = start * self.batch_size
        side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        for number, packet in enumerate(self.loader, start):
            if isinstance(packet, BctError):
                raise packet
            if self.broken is not None:
                self.broken(len(packet.index), packet.problems)
            key = (distributed.rank(), epoch, number)
            if side is None:
                yield self._to_device(packet, key, fetch)
                continue
            with torch.cuda.stream(side):
                batch = self._to_device(packet, key, fetch)
            side.synchronize()  # the ring buffer may be overwritten once we ask for more
            for tensor in batch.tensors():
                tensor.record_stream(torch.cuda.current_stream(self.device))
            yield batch

    def _to_device(self, packet: "_Packet", key: tuple[int, ...], fetch: Fetch | None) -> Batch:
        images = self.decoder.images(packet.where).to(self.device)
        labels = torch.from_numpy(packet.labels).to(self.device)
        index = torch.from_numpy(packet.index).to(self.device)
        flip = None
        if self.mirror:
            rng = distributed.generator("cpu", self.seed, "flip", *key)
            flip = torch.rand(len(index), generator=rng).lt(0.5).to(self.device)
        old = {}
        if fetch is not None:
            old = fetch(index, labels, distributed.generator(self.device, self.seed, "old", *key))
        _, epoch, number = key
        return Batch(to_network(images, flip), labels, index, old, epoch + number / len(self))


_PREFETCH = 2


class _Rest(Sampler):
    """A sampler without its first `start` indices; as long as the whole."""

    def __init__(self, everything: Sequence[int] | Sampler):
        self.all, self.start = everything, 0

    def __iter__(self) -> Iterator[int]:
        return islice(iter(self.all), self.start, None)

    def __len__(self) -> int:
        return len(self.all)


class _Packet(NamedTuple):
    """What a worker sends: where the images are, int64 (B,) labels and indices, and what could not
    be read."""

    where: np.ndarray | tuple[int, int, int]
    labels: np.ndarray
    index: np.ndarray
    problems: list[str]


class _Decoder(Dataset):
    """Decodes whole batches into shared memory.

    Each worker owns a ring of buffers and fills them in turn. At most _PREFETCH batches of a worker
    are in flight while the main process copies one more out, so a ring of _PREFETCH + 2 is never
    overwritten too early, without any lock. Nothing but slot numbers travels between processes.
    The memory is an anonymous shared mapping, which forked workers inherit and /dev/shm does not
    limit.
    """

    def __init__(
        self,
        faces: Faces,
        batch_size: int,
        num_workers: int,
        num_classes: int | None,
        size: int,
        skip: bool,
    ):
        self.faces, self.num_classes, self.size, self.skip = faces, num_classes, size, skip
        self.served = 0
        shape = (num_workers, _PREFETCH + 2, batch_size, size, size, 3)
        if num_workers:
            self.ring = np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)

    def __len__(self) -> int:
        return len(self.faces)

    def __getitems__(self, indices: list[int]) -> "_Packet | BctError":
        worker = get_worker_info()
        if worker is None:
            where = out = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        else:
            slot = self.served % self.ring.shape[1]
            self.served += 1
            where, out = (worker.id, slot, len(indices)), self.ring[worker.id, slot]
        try:
            return _Packet(where, *self._load(np.array(indices, np.int64), out))
        except BctError as error:
            return error  # raised in the main process, without the worker's traceback

    def _load(self, index: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Decodes into out (B, H, W, 3); labels, the indices really used, and problems."""
        labels, problems = np.zeros(len(index), np.int64), {}
        for k, i in enumerate(index.tolist()):
            try:
                labels[k] = self.faces.load(i, out[k])
            except BctError as error:
                if not self.skip:
                    raise
                problems[k] = error
        if len(problems) == len(index):
            raise problems[0]
        for k in problems:
            following = (j % len(index) for j in range(k + 1, k + len(index)))
            good = next(j for j in following if j not in problems)
            out[k], labels[k], index[k] = out[good], labels[good], index[good]
        self._check(labels, index)
        return labels, index, [error.what for error in problems.values()]

    def _check(self, labels: np.ndarray, index: np.ndarray) -> None:
        if self.num_classes is None:
            return
        outside = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
        if len(outside):
            k, last = outside[0], self.num_classes - 1
            raise BctError(
                f"{self.faces.describe(index[k])} has label {labels[k]}, outside 0..{last}",
                "leave num_classes out of the config, or mend the labels of the data",
            )

    def images(self, where: np.ndarray | tuple[int, int, int]) -> torch.Tensor:
        """The uint8 (B, H, W, 3) tensor a packet points to."""
        if isinstance(where, tuple):
            worker, slot, length = where
            where = self.ring[worker, slot, :length]
        return torch.from_numpy(where)


def _as_it_is(packet):
    return packet
