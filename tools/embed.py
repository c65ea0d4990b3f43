"""Embeds images with a model, whoever trained it, into a file.

    python tools/embed.py -m work_dirs/r50/model.pt photos/ -o out.npy
    python tools/embed.py -m model.onnx a.jpg b.jpg faces/train.rec -o out.npy
    torchrun --nproc_per_node=8 tools/embed.py -m work_dirs/r50 photos/ -o out.npy --resume

Images: a folder, of class folders or of any depth; image files; a list (.txt, .lst), a record file,
CIFAR, Tiny-ImageNet, a .bin of pairs. The model: what the evaluations take, or a folder with a
model.pt or model.onnx. Writes

    out.npy            float32 (N, D), the raw output; with --normalise of length 1
    out.json           its manifest: model, images, view, settings, the command, a fingerprint
    out_names.txt      the images' names, a row's in its line; record files' keys; in names \\ and
                       line breaks are written as \\\\ and \\n
    out_labels.npy     int64 (N,), where one set with labels is given
    out_left_out.txt   images that --on-bad-image skip has left out, and why

bct.search.gallery.Gallery.load("out.npy") is the gallery of these rows. A run that is stopped goes
on with --resume, with any number of ranks, and embeds no finished row again; with --overwrite, too,
where it is to replace what another run has finished.

Faces have to be aligned, 112 x 112. Others need --landmarks FILE with a line for each image: <name>
x1 y1 ... x5 y5 [score], as IJB's; they are aligned as IJB's are.
"""

import argparse
import mmap
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bct import distributed
from bct.amp import amp_dtype
from bct.command import Parser, batch, file_path, pixels_option, run_cli, some_text, takes, workers
from bct.data import views
from bct.data.image_set import ImageSet
from bct.data.images import ALIGN, SIZE, shape_of
from bct.data.loader import Loader
from bct.data.sources import Source, open_sources
from bct.errors import BctError
from bct.files import read_json
from bct.keys import image_size, number
from bct.models.embed import embedded, made_from, refuse_batch
from bct.models.model import Model, open_model, refuse_other_view, refuse_unsaid_view
from bct.outputs import check_outputs
from bct.protocols.pairs import load_bin
from bct.rows import check_rows, unit_rows, zeros_remark
from bct.stored.artefacts import (
    adopt_artefact,
    is_valid,
    manifest_path,
    refuse_to_replace,
    write_artefact,
)
from bct.stored.names import write_names
from bct.stored.unfinished import (
    DONE,
    LEFT_OUT,
    WAITING,
    Unfinished,
    begin,
    finished,
    part_folder,
    remove,
)
from bct.stored.vector_files import save_rows
from tools.ijbc.landmarks import aligned

_LANDMARKS = (
    "give five points of each image, --landmarks FILE, or faces that are aligned; of a network for "
    "other images say --size, --crop, --pixels"
)
_COPIED = 1 << 13  # rows at a time
_SIZE, _SECONDS = image_size(None), number(10.0, least=0)


def arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("images", nargs="+", type=file_path, help="folders, image files, lists, sets")
    add("-m", "--model", required=True, type=file_path, help="weights, or a model's folder")
    add("-net", "--network", type=some_text, help="its network, where no model.json says it")
    add("-o", "--out", required=True, type=file_path, help="where the rows go, .npy")
    add("--mirror", action="store_true", help="add the mirror image's embedding, as evaluations do")
    add("--normalise", action="store_true", help="rows of length 1")
    add("--landmarks", type=file_path, metavar="FILE", help="five points of each image")
    skip = "skip: leave out what can't be read, and list it"
    add("--on-bad-image", choices=("error", "skip"), default="error", help=skip)
    add("--resume", action="store_true", help="go on where a run was stopped")
    add("--overwrite", action="store_true", help="replace embeddings of another model or images")
    add("--save-every", type=takes(_SECONDS), default=10.0, help="seconds between two saves")
    add("-b", "--batch_size", type=batch, default=128)
    add("-j", "--num_workers", type=workers, default=2)
    add("--amp", choices=("bf16", "fp16", "off"), help="precision; default: as in training")
    add("--size", type=takes(_SIZE), help="pixels of the input, where no model.json says")
    add("--crop", choices=views.CROPS, help="likewise; resized: the centre of 256/224 of it")
    pixels_option(parser)
    args = parser.parse_intermixed_args()
    if args.out.suffix != ".npy" or args.out.stem in ("", "."):
        raise BctError(f"-o {args.out} is no file of rows", "give it a name that ends in .npy")
    return args


def main() -> None:
    args = arguments()
    device = distributed.setup()
    view = {"size": args.size, "crop": args.crop, "pixels": args.pixels}
    model = open_model(args.model, args.network, amp_dtype(args.amp, device), **view)
    refuse_other_view(model.file, **view)
    refuse_unsaid_view(model.file, args.network, args.pixels)
    source = open_sources(args.images, _pairs, lacking=args.on_bad_image == "skip")
    if args.landmarks:
        faces = aligned(source.images, source.name, args.landmarks)
        source = source._replace(images=faces)
    again = "resume" if args.resume else "overwrite" if args.overwrite else None
    embed(
        model, source, args.out, device, replace=args.overwrite,
        mirror=args.mirror, normalise=args.normalise, again=again,
        skip=args.on_bad_image == "skip", every=args.save_every,
        batch_size=args.batch_size, num_workers=args.num_workers,
    )  # fmt: skip
    distributed.shutdown()


def _pairs(path: Path) -> ImageSet | None:
    return load_bin(path) if path.suffix == ".bin" and path.is_file() else None


def embed(
    model: Model,
    source: Source,
    out: Path,
    device: torch.device,
    *,
    mirror: bool = False,
    normalise: bool = False,
    again: str | None = None,
    replace: bool = False,
    skip: bool = False,
    every: float = 10.0,
    batch_size: int = 128,
    num_workers: int = 2,
) -> None:
    """Writes the embeddings of all images, on all ranks together; see the module's docstring.

    Args:
        again: what to do with the rows of a stopped run, see bct.stored.unfinished.begin.
        replace: `out` may be of something else, and is replaced; "overwrite" replaces it, too.
        skip: leave images out that can't be read. every: seconds between two saves.

    Raises BctError: an image that can't be read, files that are not ours, a stopped run.
    """
    images, width = source.images, model.backbone.embedding_size  # a wrong network is refused
    images.labels  # noqa: B018 - so are wrong labels, before the work
    about = {**made_from(model, images, mirror), "normalise": normalise}
    if distributed.writes():
        done = again != "overwrite" and _reused(out, about)
    if distributed.all_gather_object(distributed.writes() and done)[0]:
        return
    lock = None
    if distributed.writes():
        _check_files(out, replace or again == "overwrite")
        lock = begin(out, (len(images), width), about, again)
    distributed.barrier()
    unfinished = Unfinished(part_folder(out), every)
    before, started = int((unfinished.state == DONE).sum()), time.perf_counter()
    try:
        _fill(unfinished, model, images, device, mirror, normalise, skip, batch_size, num_workers)
        distributed.barrier()
        if distributed.writes():
            speed = (len(images) - before) / (time.perf_counter() - started)
            _finish(unfinished, out, model, source, about)
            goes_on = f", {before} of them by the run before" * bool(before)
            print(f"{speed:.0f} images/s{goes_on}")
    except BaseException:
        if distributed.writes() and not unfinished.state.any():
            remove(part_folder(out))  # nothing is lost
        raise
    finally:
        if lock is not None:
            os.close(lock)
    distributed.barrier()


def _fill(
    unfinished: Unfinished,
    model: Model,
    images: ImageSet,
    device: torch.device,
    mirror: bool,
    normalise: bool,
    skip: bool,
    batch_size: int,
    num_workers: int,
) -> None:
    """Embeds this rank's share of the rows that are to do."""
    todo = np.flatnonzero(unfinished.state == WAITING)
    distributed.barrier()  # all have looked before anyone goes on
    start, length = distributed.contiguous_share(
        len(todo), distributed.rank(), distributed.world_size()
    )
    read = Readable(images) if skip else images
    loader = Loader(
        read, batch_size, device, num_workers=num_workers, train=False,
        view=model.view, indices=todo[start : start + length],
    )  # fmt: skip
    network = model.backbone.to(device)
    try:
        for found, rows in _batches(network, loader, f"embed {images.name}", mirror):
            index = found.index.cpu().numpy()
            if skip:
                bad = read.unreadable[index] > 0
                unfinished.leave_out(index[bad])
                index, rows = index[~bad], rows[~bad]
            refuse_batch(model.file, rows, index, images)
            unfinished.add(index, unit_rows(rows) if normalise else rows)
    finally:
        unfinished.save()


def _batches(
    network: torch.nn.Module, loader: Loader, what: str, mirror: bool
) -> Iterator[tuple[Any, np.ndarray]]:
    """Batches and their rows; an image that is not aligned is answered with what this tool has."""
    try:
        for found, rows in embedded({"x": network}, loader, what, mirror):
            yield found, rows["x"]
    except BctError as error:
        raise BctError(error.what, _LANDMARKS if error.do == ALIGN else error.do) from None


class Readable(ImageSet):
    """A set in which an image that can't be read is black, and is noted.

    Attributes:
        unreadable: uint8 (N,), 1 for each image that could not be read, in memory that forked
            workers share.
    """

    def __init__(self, images: ImageSet):
        self.images, self.path, self.labels = images, images.path, images.labels
        self.native, self.resizable = images.native, images.resizable
        self.unreadable = np.frombuffer(mmap.mmap(-1, max(len(images), 1)), np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int, out: np.ndarray) -> int:
        try:
            return self.images.load(index, out)
        except BctError:
            self.unreadable[index], out[:] = 1, 0
            return 0

    def image(self, index: int) -> np.ndarray:
        try:
            return self.images.image(index)
        except BctError:
            self.unreadable[index] = 1
            return np.zeros((SIZE, SIZE, 3), np.uint8)

    def describe(self, index: int) -> str:
        return self.images.describe(index)


def files_of(out: Path) -> dict[str, Path]:
    """What is written beside the rows: names, labels, left_out."""
    ends = {"names": "_names.txt", "labels": "_labels.npy", "left_out": "_left_out.txt"}
    return {key: out.with_name(f"{out.stem}{end}") for key, end in ends.items()}


def _reused(out: Path, about: dict[str, Any]) -> bool:
    """Whether the very rows are there with all that belongs to them."""
    if not is_valid(out, kind="embeddings", **about):
        return False
    if not all((out.parent / name).is_file() for name in _named(out)):
        return False
    remove(part_folder(out))  # a run that was killed with its last step
    print(f"{out} is up to date: reusing it")
    return True


def _named(out: Path) -> list[str]:
    """The files that our manifest beside `out` names; none if there is no such manifest."""
    try:
        said = read_json(manifest_path(out))
    except BctError:
        return []
    names = said.get("files") if isinstance(said, dict) and said.get("kind") == "embeddings" else []
    ours = {file.name for file in files_of(out).values()}
    return [name for name in names if name in ours] if isinstance(names, list) else []


def _check_files(out: Path, overwrite: bool) -> None:
    """Raises BctError where something of somebody else's would be replaced, or can't be written."""
    files = files_of(out)
    refuse_to_replace(manifest_path(out))
    check_outputs(out, manifest_path(out), part_folder(out) / "rows.npy", *files.values())
    known = _named(out)
    unfinished = (part_folder(out) / "progress.json").is_file()  # it wrote them, if it is ours
    if os.path.lexists(out) and not (overwrite and out.is_file()):
        goes_on = finished(part_folder(out)) > 0
        raise BctError(
            f"{out} exists and is not of this model, these images and these settings",
            "give another name, -o, or --overwrite to replace it"
            + ", with --resume to go on with what a stopped run has done" * goes_on,
        )
    for file in files.values():
        if os.path.lexists(file) and not unfinished and not (overwrite and file.name in known):
            raise BctError(
                f"{file} exists, and {manifest_path(out).name} does not name it as ours",
                "move it away, or give another name, -o",
            )


def _finish(
    unfinished: Unfinished, out: Path, model: Model, source: Source, about: dict[str, Any]
) -> None:
    """Writes what belongs to the rows, then gives them their name."""
    state, images, files = unfinished.state, source.images, files_of(out)
    view = model.view
    kept, lost = np.flatnonzero(state == DONE), np.flatnonzero(state == LEFT_OUT)
    if len(kept) + len(lost) < len(state):
        raise BctError(f"{len(state) - len(kept) - len(lost)} rows are missing", "give --resume")
    if not len(kept):
        raise BctError(
            f"none of the {len(state)} images could be embedded: {_why(images, view, 0)}",
            "give images that can be read; without --on-bad-image skip the first error is shown",
        )
    _clear(out)
    written = ["names"]
    write_names(files["names"], (source.name(int(index)) for index in kept))
    if source.labelled:
        written.append("labels")
        save_rows(files["labels"], images.labels[kept])
    if len(lost):
        written.append("left_out")
        said = ((source.name(k), os.fsencode(_why(images, view, k))) for k in lost.tolist())
        lines = (name + b"\t" + why for name, why in said)
        write_names(files["left_out"], lines)
    whole = unfinished.rows
    zeros = check_rows(whole, model.file, images.describe, alike=False) if not len(lost) else []
    manifest = {
        "kind": "embeddings", "weights": model.file, **about,
        "data_path": str(images.path), "count": len(kept), "left_out": len(lost),
        "files": [files[key].name for key in written],
        "fingerprint": model.fingerprint.entries(),
        "command": shlex.join(["python", "tools/embed.py", *sys.argv[1:]]),
    }  # fmt: skip
    if len(lost):
        with write_artefact(out, (len(kept), whole.shape[1]), np.float32, **manifest) as rows:
            for start in range(0, len(kept), _COPIED):
                part = slice(start, start + _COPIED)
                rows[part] = whole[kept[part]]
            zeros = check_rows(rows, model.file, lambda k: images.describe(kept[k]), alike=False)
    else:
        adopt_artefact(out, unfinished.folder / "rows.npy", **manifest)
    remove(unfinished.folder)
    print(f"{out}: {len(kept)} x {whole.shape[1]} of {images.path}")
    if len(lost):
        print(f"{len(lost)} images are left out, see {files['left_out']}")
    if len(zeros):
        print(zeros_remark(model.file, zeros, len(kept), so="are no embeddings"))


def _clear(out: Path) -> None:
    """Removes what is replaced before the first of the new files is there: old rows must not lie
    beside new names. The manifest, which names the files, goes last."""
    for name in _named(out):
        (out.parent / name).unlink(missing_ok=True)
    out.unlink(missing_ok=True)
    manifest_path(out).unlink(missing_ok=True)


def _why(images: ImageSet, view: views.View, index: int) -> str:
    """Why an image can't be read, one line."""
    shape = shape_of(images.native) if images.native else view.shape
    try:
        if images.native or view.aligned or not images.resizable:
            images.load(index, np.empty((*shape, 3), np.uint8))
        else:
            images.image(index)
    except BctError as error:
        return error.what
    return "it could not be read then"


if __name__ == "__main__":
    run_cli(main)
