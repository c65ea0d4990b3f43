"""Batches of a data set on a device.

The path of a batch: worker processes decode JPEGs into a ring of shared uint8 buffers; the main
process copies a buffer to the device, where it is mirrored, normalised and laid out channels_last.
Images of any size are cropped and resized by the workers, see bct/data/views.py. How the image of
an index is cropped follows from seed and epoch, whatever the number of ranks and workers. Stored
vectors take the same path as float32 rows.
"""

import gc
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, get_worker_info

from bct import distributed
from bct.data.image_set import ImageSet
from bct.data.images import shape_of, to_network
from bct.data.samplers import ClassBatches
from bct.data.views import PIXELS, View, resized, transform
from bct.errors import BctError
from bct.signals import leave_to_parent
from bct.streams import generator, seed_of


@dataclass
class Batch:
    """One batch on the device. images float32 (B, 3, H, W), labels and index int64 (B,).
    The "images" of a set of vectors are its rows, float32 (B, W).

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
        dataset: the data set.
        batch_size: per rank.
        device: where the batches go.
        seed: with the epoch it determines the order and, with the rank, which images are mirrored.
        num_workers: decoding processes; 0 decodes in the main process.
        num_classes: labels must lie below it; None: not checked.
        train: True shuffles over all ranks and drops the last partial batch. False gives this rank
            a contiguous run of indices, in order, all of it.
        indices: with train=False: the images this rank gets instead.
        mirror: mirror a random half of the images; default: in training, if the view does.
        view: how the network sees the images.
        images_per_class: with train=True: batches of so many images of each of their classes, see
            bct/data/samplers.py; None: of any images.
        broken: called for every batch with the number of its images and the problems of those that
            could not be read. Each of these is replaced by the next good one of its batch, so that
            all ranks go on with batches of one size. None: a broken image is an error.
    """

    def __init__(
        self,
        dataset: ImageSet,
        batch_size: int,
        device: torch.device,
        *,
        seed: int = 0,
        num_workers: int = 2,
        num_classes: int | None = None,
        train: bool = True,
        mirror: bool | None = None,
        view: View = View(),  # noqa: B008 - a constant
        indices: Sequence[int] | None = None,
        images_per_class: int | None = None,
        broken: Callable[[int, list[str]], None] | None = None,
    ):
        self.device, self.seed, self.train, self.broken = device, seed, train, broken
        self.view = view
        self.mirror = (train and view.mirror) if mirror is None else mirror
        rank, world_size = distributed.rank(), distributed.world_size()
        chosen = dataset.chosen if train else None
        if train:
            drawn = dataset if chosen is None else chosen
            if images_per_class:
                labels = dataset.labels if chosen is None else dataset.labels[chosen]
                sampler = ClassBatches(labels, batch_size, images_per_class, world_size, rank, seed)
            else:
                sampler = DistributedSampler(drawn, world_size, rank, shuffle=True, seed=seed)
        elif indices is not None:
            sampler = indices
        else:
            start, length = distributed.contiguous_share(len(dataset), rank, world_size)
            sampler = range(start, start + length)
        self.decoder = _Decoder(
            dataset, batch_size, num_workers, num_classes, view, train, seed, broken is not None
        )
        self.batch_size, self.sampler = batch_size, _Rest(sampler, len(dataset), chosen)
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
                f"{len(drawn)} images on {world_size} rank(s) do not fill a batch of {batch_size}",
                "lower batch_size",
            )

    def __len__(self) -> int:
        return len(self.loader)

    def blank(self, images: int) -> torch.Tensor:
        """What a network gets for so many images, all zeros: (B, 3, H, W), or (B, W) of vectors."""
        shape = self.decoder.shape if self.decoder.vectors else (3, *self.view.shape)
        return torch.zeros(images, *shape, device=self.device)

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
        self.sampler.start, self.sampler.epoch = start * self.batch_size, epoch
        side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        for number, packet in enumerate(self._packets(), start):
            if isinstance(packet, BctError):
                try:
                    raise packet
                finally:
                    del packet  # its traceback holds this frame: a circle would keep the workers
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

    def _packets(self) -> Iterator["_Packet | BctError"]:
        if self.loader.num_workers:
            # a worker's collector would free what the main process has left to its own; an
            # onnxruntime session then waits for ever, for threads that no forked process has
            gc.collect()
        try:
            yield from self.loader
        except RuntimeError as error:  # torch has no class of its own for it
            if "DataLoader worker" not in str(error):
                raise
            raise BctError(
                f"a process that reads {self.decoder.dataset.path} has died "
                f"({str(error).splitlines()[0]})",
                "look for the kernel's out-of-memory killer, and whether a file was cut while it "
                "was read; then go on with resume=True",
            ) from None

    def _to_device(self, packet: "_Packet", key: tuple[int, ...], fetch: Fetch | None) -> Batch:
        items = self.decoder.items(packet.where).to(self.device)
        labels = torch.from_numpy(packet.labels).to(self.device)
        index = torch.from_numpy(packet.index).to(self.device)
        flip = None
        if self.mirror and not self.decoder.vectors:
            rng = generator("cpu", self.seed, "flip", *key)
            flip = torch.rand(len(index), generator=rng).lt(0.5).to(self.device)
        old = {}
        if fetch is not None:
            old = fetch(index, labels, generator(self.device, self.seed, "old", *key))
        _, epoch, number = key
        if self.decoder.vectors:
            images = items.clone() if items.device.type == "cpu" else items
        else:
            images = to_network(resized(items, self.view.shape), flip, *PIXELS[self.view.pixels])
        return Batch(images, labels, index, old, epoch + number / len(self))


_PREFETCH = 2


class _Rest(Sampler):
    """A sampler without its first `start` indices; as long as the whole. If it draws numbers of the
    `chosen` items, int64 (k,), these are the indices.

    To index i it adds epoch * n: workers live for many epochs and have no other news of them.
    """

    def __init__(
        self, everything: Sequence[int] | Sampler, n: int, chosen: np.ndarray | None = None
    ):
        self.all, self.n, self.chosen, self.start, self.epoch = everything, n, chosen, 0, 0

    def __iter__(self) -> Iterator[int]:
        past = self.epoch * self.n
        indices = islice(iter(self.all), self.start, None)
        if self.chosen is not None:
            indices = self.chosen[list(indices)]
        return (int(index) + past for index in indices)

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
        dataset: ImageSet,
        batch_size: int,
        num_workers: int,
        num_classes: int | None,
        view: View,
        train: bool,
        seed: int,
        skip: bool,
    ):
        self.dataset, self.num_classes, self.seed, self.skip = dataset, num_classes, seed, skip
        self.served = 0
        self.vectors = dataset.vectors
        native = dataset.native
        if native and view.crop != "none" and (train or view.crop == "resized"):
            native = None
        height, width = shape_of(native) if native else view.shape
        self.shape = (dataset.width,) if self.vectors else (height, width, 3)
        self.dtype = np.dtype(np.float32 if self.vectors else np.uint8)
        as_they_are = native or view.aligned or not dataset.resizable
        self.transform = None if as_they_are else transform(view, train)
        if num_workers:
            shape = (num_workers, _PREFETCH + 2, batch_size, *self.shape)
            memory = mmap.mmap(-1, int(np.prod(shape)) * self.dtype.itemsize)
            self.ring = np.frombuffer(memory, self.dtype).reshape(shape)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> "_Packet | BctError":
        worker = get_worker_info()
        if worker is None:
            where = out = np.empty((len(indices), *self.shape), self.dtype)
        else:
            slot = self.served % self.ring.shape[1]
            self.served += 1
            where, out = (worker.id, slot, len(indices)), self.ring[worker.id, slot]
        epoch, index = np.divmod(np.array(indices, np.int64), len(self.dataset))
        try:
            return _Packet(where, *self._load(index, epoch, out))
        except BctError as error:
            return error  # raised in the main process, without the worker's traceback

    def _load(
        self, index: np.ndarray, epoch: np.ndarray, out: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Decodes into out (B, H, W, 3); labels, the indices really used, and problems."""
        labels, problems = np.zeros(len(index), np.int64), {}
        for k, i in enumerate(index.tolist()):
            try:
                labels[k] = self._item(i, int(epoch[k]), out[k])
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

    def _item(self, index: int, epoch: int, out: np.ndarray) -> int:
        """Brings one item into `out`; its label."""
        if self.vectors:
            out[:] = self.dataset.vector(index)
        elif self.transform is None:
            return self.dataset.load(index, out)
        else:
            image = self.dataset.image(index)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed_of("crop", self.seed, epoch, index))
                out[:] = self.transform(image)
        return int(self.dataset.labels[index])

    def _check(self, labels: np.ndarray, index: np.ndarray) -> None:
        if self.num_classes is None:
            return
        outside = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
        if len(outside):
            k, last = outside[0], self.num_classes - 1
            raise BctError(
                f"{self.dataset.describe(index[k])} has label {labels[k]}, outside 0..{last}",
                "mend the labels of the data (tools/check_rec.py lists those of a record file)",
            )

    def items(self, where: np.ndarray | tuple[int, int, int]) -> torch.Tensor:
        """The uint8 (B, H, W, 3) or float32 (B, W) tensor a packet points to."""
        if isinstance(where, tuple):
            worker, slot, length = where
            where = self.ring[worker, slot, :length]
        return torch.from_numpy(where)


def _as_it_is(packet):
    return packet
