"""The images that the lists of a protocol name: in a folder, or nowhere, where descriptors are
stored."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from bct.data.image_files import ImageFiles, as_text, leads_out
from bct.errors import BctError, printable
from bct.files import sha256

NAMED = 10  # missing images that a message names


class ListedImages(ImageFiles):
    """Images of a list, all of which have to be there.

    Args:
        path: the list, for messages.
        root: the folder that names are relative to; None: there are no images, and loading one
            raises BctError.
        names: of all n images of the list.
        kept: int64 (k,), ascending, those that are meant; None: all.
        lacking: images may be missing; they are left out, see `remark`.

    Attributes:
        listed: (n, rows): the rows of the list that are in the set.
        remark: a sentence about the missing images, "" if there are none.

    Raises BctError: a name that leads out of the root; missing images, up to ten of which it
    names.
    """

    def __init__(
        self,
        path: Path,
        root: Path | None,
        names: Sequence[bytes],
        kept: np.ndarray | None = None,
        lacking: bool = False,
    ):
        outside = next((name for name in names if leads_out(name) or b"\0" in name), None)
        if outside is not None:
            raise BctError(
                f"{path} names {as_text(outside)!r}, which is not below the folder of its images",
                "write names without .. that start in that folder",
            )
        rows = np.arange(len(names)) if kept is None else kept
        chosen = names if kept is None else [names[row] for row in rows.tolist()]
        self.remark, self.sizes = "", None
        if root is not None:
            self.sizes = _sizes(root, chosen)
            there = self.sizes >= 0
            if not there.all():
                self.remark = _missing(
                    path, root, [chosen[k] for k in np.flatnonzero(~there)], there
                )
                if not lacking or not there.any():
                    raise BctError(
                        self.remark.removesuffix("."),
                        "bring them back; or leave them out (--lacking): figures of a part are not "
                        "the protocol's",
                    )
                chosen = [chosen[k] for k in np.flatnonzero(there)]
                rows, self.sizes = rows[there], self.sizes[there]
        labels = np.full(len(chosen), -1)
        super().__init__(path, root or Path(), chosen, labels, None, 0)
        self.listed = None if len(rows) == len(names) else (len(names), rows)
        self.rows, self.anywhere = rows, root is not None

    def payload(self, index: int) -> tuple[bytes, int]:
        if not self.anywhere:
            raise BctError(
                f"{self.path} names {self.describe(index)}, but no folder of its images was found",
                "put the images where the protocol has them, or give stored descriptors "
                "(queries.npy,gallery.npy) in place of a network",
            )
        return super().payload(index)

    def describe(self, index: int) -> str:
        return super().describe(index) if self.anywhere else printable(as_text(self.names[index]))

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a name, a file's size or a label does, and where there are no images."""
        sizes = b"no images" if self.sizes is None else self.sizes.tobytes()
        return sha256(b"\n".join(self.names.tolist()), sizes, self.labels.tobytes())


def _sizes(root: Path, names: Sequence[bytes]) -> np.ndarray:
    """Bytes of each file, int64 (n,); -1 for one that is not there."""
    start = os.path.join(os.fsencode(root), b"")
    out = np.full(len(names), -1)
    for k, name in enumerate(names):
        try:
            out[k] = os.stat(start + name).st_size
        except OSError:
            continue
    return out


def _missing(path: Path, root: Path, missing: list[bytes], there: np.ndarray) -> str:
    named = ", ".join(printable(as_text(name)) for name in missing[:NAMED])
    more = " and others" if len(missing) > NAMED else ""
    return (
        f"{len(missing):,} of the {len(there):,} images that {path} names are not in {root}: "
        f"{named}{more}."
    )
