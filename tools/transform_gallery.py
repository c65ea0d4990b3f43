"""Maps a gallery of old embeddings into the new model's space with an adapter, e.g. FCT's.

    python tools/transform_gallery.py old.npy mapped.npy -m work_dirs/cifar100_r50_FCT/model.pt
    python tools/transform_gallery.py old.npy mapped.npy -m ... --side side.npy --uncertainty u.npy
    python tools/transform_gallery.py old.npy mapped.npy -m procrustes.npz

old.npy: float (n, d_o), stored embeddings in any order; side.npy: float (n, d_z), the side
information of the same items. Writes mapped.npy, float32 (n, d_n), and with --uncertainty the
predicted log-variance of each, float32 (n,): backfill the items with the largest first, as
bct.search.orders.order_by_distance sorts them. No images are needed, and the memory needed does
not depend on n. A transformation of FCT trained with parity=published and no side information
takes the old embeddings as such: --side old.npy.

Both files get a manifest: what that of old.npy says of the data, and what they were made from.
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from bct import distributed
from bct.adapters.base import Adapter, load_adapter
from bct.command import Parser, file_path, positive, run_cli
from bct.errors import BctError
from bct.files import sha256_file
from bct.log import progress
from bct.rows import single_rows, zeros_remark
from bct.stored.artefacts import is_valid, write_artefact
from bct.stored.vector_files import open_vectors
from bct.stored.vector_set import open_side

_OF_THE_DATA = ("data", "data_path", "parity", "view")  # entries that stay true of mapped rows


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("old", type=file_path, help="the old embeddings, .npy")
    parser.add_argument("out", type=file_path, help="where the mapped ones go, .npy")
    parser.add_argument(
        "-m",
        "--model",
        required=True,
        type=file_path,
        help="an adapter: model.pt of methods/FCT, or what a save wrote",
    )
    parser.add_argument("--side", type=file_path, help="side information, .npy")
    parser.add_argument("--uncertainty", type=file_path, help="where the log-variances go, .npy")
    parser.add_argument("--batch-size", type=positive, default=8192)
    parser.add_argument("--overwrite", action="store_true", help="replace other files of that name")
    args = parser.parse_args()
    adapter = load_adapter(args.model)
    old, manifest = open_vectors(args.old, finite=False)
    parts, files = [old], [path for path in (args.old, args.side) if path]
    if args.side:
        parts.append(open_side(args.side, args.old, len(old), manifest))
    check(args, adapter, parts)

    made_from = {key: manifest[key] for key in _OF_THE_DATA if key in manifest}
    made_from |= {"model": sha256_file(args.model), "old": sha256_file(args.old)}
    made_from |= {"side": sha256_file(args.side) if args.side else None}
    outputs = {"mapped_embedding": args.out}
    if args.uncertainty:
        outputs["log_variance"] = args.uncertainty
    if all(is_valid(path, kind=kind, **made_from) for kind, path in outputs.items()):
        return print(f"{args.out} is up to date: reusing it")
    refuse_others(args, outputs, made_from)
    about = {"weights": str(args.model.absolute()), "old_model": manifest.get("model")}
    device = distributed.setup()
    said = {**about, **made_from}
    zeros = transform(adapter.to(device), parts, files, outputs, args.batch_size, said)
    print(f"{args.out}: {len(old)} x {adapter.target_width}")
    if len(zeros):
        print(zeros_remark(str(args.old), zeros, len(old), so="stay zeros"))


def check(args: argparse.Namespace, adapter: Adapter, parts: list[np.ndarray]) -> None:
    """Raises BctError for embeddings that the adapter was not made for."""
    width, taken = parts[0].shape[1], adapter.source_width
    if width != taken:
        raise BctError(
            f"{args.old} holds {width}-d embeddings, {args.model} takes {taken}-d ones",
            "give the embeddings of the old model that it was made with",
        )
    d_side, found = adapter.side_width, parts[1].shape[1] if args.side else 0
    if found != d_side:
        raise BctError(
            f"{args.model} takes {d_side or 'no'} dimensions of side information, there are "
            f"{found or 'none'}",
            "give --side the file" if d_side else "leave --side out",
        )
    if args.uncertainty and not adapter.predicts_variance:
        raise BctError(
            f"{args.model} predicts no uncertainty",
            "leave --uncertainty out, or give a transformation of FastFill: methods/FCT, trained "
            "with uncertainty=True",
        )


def refuse_others(
    args: argparse.Namespace, outputs: dict[str, Path], made_from: dict[str, Any]
) -> None:
    """Raises BctError where an input or another result would be replaced, or no .npy is named."""
    inputs = [path.resolve() for path in (args.old, args.side, args.model) if path]
    paths = [path.resolve() for path in outputs.values()]
    if len({*inputs, *paths}) < len({*inputs}) + len(paths):
        raise BctError(
            "an output has the name of an input or of the other output", "give each another name"
        )
    for kind, path in outputs.items():
        if path.suffix != ".npy":
            raise BctError(f"{path} is to hold an array", "give it a name that ends in .npy")
        if path.exists() and not args.overwrite and not is_valid(path, kind=kind, **made_from):
            raise BctError(
                f"{path} exists and was made from something else",
                "give another name, or --overwrite to replace it",
            )


def transform(
    adapter: Adapter,
    parts: list[np.ndarray],
    files: list[Path],
    outputs: dict[str, Path],
    batch_size: int,
    manifest: dict[str, Any],
) -> np.ndarray:
    """Writes h(old, side) and, if it is among the outputs, its log-variance, block by block.

    Args:
        parts: old and, if there is any, side; files: their names.

    Returns:
        Which old rows are zeros, (k,). They stay zeros, and none has a higher log-variance.

    Raises BctError for a row that is not finite, and if all old ones are zeros.
    """
    n, zeros = len(parts[0]), []
    shapes = {"mapped_embedding": (n, adapter.target_width), "log_variance": (n,)}
    with contextlib.ExitStack() as stack:
        arrays = {
            kind: stack.enter_context(
                write_artefact(path, shapes[kind], "float32", kind=kind, **manifest)
            )
            for kind, path in outputs.items()
        }
        starts = range(0, n, batch_size)
        for start in progress(starts, "transform", len(starts), "batch"):
            rows = slice(start, start + batch_size)
            blocks = [
                single_rows(part[rows], str(file), lambda row, start=start: start + row)
                for part, file in zip(parts, files, strict=True)
            ]
            zeros.append(start + np.flatnonzero(~blocks[0].any(axis=1)))
            block = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
            mapped, variance = adapter.transform_with_variance(block)
            arrays["mapped_embedding"][rows] = mapped
            if "log_variance" in arrays:
                arrays["log_variance"][rows] = variance
        zeros = np.concatenate(zeros)
        if len(zeros) == n:
            raise BctError(f"{files[0]}: all {n} rows are zeros", "extract the embeddings again")
        if "log_variance" in arrays and len(zeros):
            arrays["log_variance"][zeros] = arrays["log_variance"].max()
    return zeros


if __name__ == "__main__":
    run_cli(main)
