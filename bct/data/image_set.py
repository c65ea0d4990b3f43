"""What a data set is: the contract that the loader and the embedding loop hold it to."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bct.files import sha256


class ImageSet:
    """Maps an index 0..N-1 to an image and a label; row i of every artefact belongs to index i.

    A subclass sets path and labels and defines __len__, fingerprint (a string that changes when the
    images do), describe(index) for messages, and

        load(index, out) -> label    decodes into out, uint8 (H, W, 3), an image of exactly its size
        image(index) -> array        uint8 (H, W, 3), of the image's own size, if `resizable`

    Attributes:
        path: what was opened.
        labels: int64 (N,), below num_classes.
        class_names: one per label, or None.
        native: the height and width that all images have; the device then resizes them. None: the
            workers do.
        resizable: whether it has `image`; otherwise views can't crop or resize.
        mirror: whether an embedding is that of the image plus that of its mirror image, as
            evaluations of faces have it.
        recipe: how its pixels are made of the files, where that is ours to change; part of the key
            under which embeddings are kept.
        vectors: whether its items are float32 rows that `vector(index)` gives; then it has a
            `width` and no images, see bct.stored.vector_set.
        chosen: the items that a training takes, int64 (k,); None: all.
        listed: (n, rows) where it was made of a list of n items, of which those rows, int64 (N,),
            are left: stored embeddings may be those of the whole list. None: of all.
    """

    path: Path
    labels: np.ndarray
    class_names: list[str] | None = None
    native: int | None = None
    resizable = True
    mirror = False
    recipe = ""
    vectors = False
    chosen: np.ndarray | None = None
    listed: tuple[int, np.ndarray] | None = None

    @property
    def name(self) -> str:
        """A short name, for files and progress bars."""
        return Path(self.path).stem


class Joined(ImageSet):
    """Several sets one behind the other, as one; labels are those of their own sets.

    Its images are resized by the workers, unless all sets have one native size.
    """

    def __init__(self, sets: Sequence[ImageSet]):
        self.sets = list(sets)
        self.path = Path("+".join(images.name for images in self.sets))
        self.labels = np.concatenate([images.labels for images in self.sets])
        sizes = {images.native for images in self.sets}
        self.native = sizes.pop() if len(sizes) == 1 else None
        self.starts = np.cumsum([0, *map(len, self.sets)])
        self.fingerprint = sha256(*(images.fingerprint for images in self.sets))
        self.listed = self._listed()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _listed(self) -> tuple[int, np.ndarray] | None:
        if all(images.listed is None for images in self.sets):
            return None
        total, parts = 0, []
        for images in self.sets:
            number, rows = images.listed or (len(images), np.arange(len(images)))
            parts.append(rows + total)
            total += number
        return total, np.concatenate(parts)

    def _of(self, index: int) -> tuple[ImageSet, int]:
        at = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.sets[at], index - int(self.starts[at])

    def load(self, index: int, out: np.ndarray) -> int:
        images, own = self._of(index)
        return images.load(own, out)

    def image(self, index: int) -> np.ndarray:
        images, own = self._of(index)
        return images.image(own)

    def describe(self, index: int) -> str:
        images, own = self._of(index)
        return images.describe(own)
