"""Extracts the old model's embeddings of the new model's training images.

    python tools/extract_features.py configs/f128_r18_softmax_class30.py \\
        --SD f128_r18_softmax_class70
    python tools/extract_features.py --model work_dirs/prod --rec dataset/train.rec
    torchrun --nproc_per_node=8 tools/extract_features.py ...     # images are shared by the ranks

The config is the old model's; its weights are <output>/model.pt. SD is the config's name with the
shard of the images. Writes feature_save/<scenario>/<SD>_feature.npy, float32 (n, D), the raw output
(not normalised) of every image as it is, and <SD>_label.npy, int64 (n,). With --model the old model
is a folder, a run's or one of tools/import_model.py; what is written lies in its features/. How the
network sees an image is what its model.json says.
"""

import argparse
import contextlib
import time
from pathlib import Path

import torch
from easydict import EasyDict

from bct import distributed
from bct.amp import amp_dtype, dtype_name
from bct.command import (
    ADVICE,
    Parser,
    batch,
    folder_options,
    named_by_folder,
    run_cli,
    some_text,
)
from bct.config import base_config, load_config, require
from bct.data.images import size_in_words
from bct.data.loader import Loader
from bct.data.sets import open_images
from bct.data.views import View
from bct.errors import BctError
from bct.files import sha256_file
from bct.models.about import (
    model_in,
    said_beside,
    view_in_manifest,
    view_of_config,
    view_of_model,
)
from bct.models.embed import embedded, refuse_batch
from bct.models.weights import load_backbone, network_of
from bct.rows import check_rows, zeros_remark
from bct.scenarios import artefact_name, split_name
from bct.stored.artefacts import (
    Place,
    is_valid,
    place_of_model,
    place_of_sd,
    shared_artefact,
)

_HOW = ("amp", "fp16", "num_workers", "parity", "rec_backend", "seed")  # keys for --model
_VIEW = ("image_size", "pixels", "augment")


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("config", nargs="?", type=some_text, help="the old model's config")
    add("overrides", nargs="*", help="key=value, as in training (rec=..., parity=...)")
    add("--SD", type=some_text, help="name of the artefact, e.g. f128_r18_..._class70")
    folder_options(parser)
    add("--batch-size", type=batch, default=256)
    add("--force", action="store_true", help="extract again even if it is valid")
    args = parser.parse_intermixed_args()  # key=value may come before or after --SD
    if named_by_folder(parser, args):
        words = [word for word in (args.config, *args.overrides) if word is not None]
        weights, place = model_in(args.model), place_of_model(args.model, args.rec)
        cfg = base_config(words)
        refuse_settled(words, weights)
        cfg.rec = str(args.rec)
        return run(cfg, weights, network_of(weights), place, args)
    if args.config is None:
        parser.error(f"no config is given{ADVICE}give the old model's, or --model FOLDER --rec SET")
    _, kind, percent = split_name(args.SD)
    shard = f"{kind}{percent}"
    cfg = load_config(args.config, [f"shard={shard}", *args.overrides], lenient=True)
    require(cfg, "rec")
    if artefact_name(cfg.name, shard) != args.SD:
        raise BctError(
            f"--SD {args.SD} does not belong to config {cfg.name}",
            f"call it {artefact_name(cfg.name, shard)}",
        )
    weights = trained_by(cfg)
    network = trained_as(weights, cfg.network)
    run(cfg, weights, network, place_of_sd(args.SD, cfg.feature_save), args)


def run(cfg: EasyDict, weights: Path, network: str, place: Place, args: argparse.Namespace) -> None:
    device = distributed.setup()
    extract(cfg, weights, network, place, device, args.batch_size, args.force)
    distributed.shutdown()


def refuse_settled(words: list[str], weights: Path) -> None:
    """Raises BctError for keys that the model's folder has settled, or that do nothing here."""
    said = "view" in said_beside(weights)
    for key in (word.partition("=")[0] for word in words):
        if key in _HOW or (key in _VIEW and not said):
            continue
        settled = key in _VIEW or key == "network"
        raise BctError(
            f"{key}= has no effect here" + f": {weights.with_suffix('.json')} says it" * settled,
            f"leave it out; with --model these may be given: {', '.join(_HOW)}",
        )


def trained_by(cfg: EasyDict) -> Path:
    """The weights that a config has trained, which have to be what it says.

    Raises BctError if they have another width or see images in another way.
    """
    weights = Path(cfg.output) / "model.pt"
    said = said_beside(weights)
    if "view" in said:
        ours, its = view_of_config(cfg), view_of_model(weights)
        if its._replace(mirror=ours.mirror) != ours:
            raise BctError(
                f"{weights} was trained on {_words(its)}, config {cfg.name} says {_words(ours)}",
                "give the settings it was trained with: image_size=, pixels=, augment=",
            )
    width = said.get("embedding_size", cfg.embedding_size)
    if width != cfg.embedding_size and said.get("network") == cfg.network:
        raise BctError(
            f"{weights} has {width}-d embeddings, config {cfg.name} says {cfg.embedding_size}",
            "use the config the model was trained with",
        )
    return weights


def _words(view: View) -> str:
    return f"{view.pixels} images of {size_in_words(view.size)} pixels, crop {view.crop}"


def extract(
    cfg: EasyDict,
    weights: Path,
    network: str,
    place: Place,
    device: torch.device,
    batch_size: int,
    force: bool = False,
) -> None:
    """Writes the artefacts old_embedding and old_embedding_label of a model.

    Args:
        cfg: the images and how to read them; the view, if no model.json says it.
            parity="published" mirrors a random half of the images, as the reference does.
        weights, network: the model. place: where the artefacts go.
    """
    dtype = amp_dtype(cfg.amp, device, cfg.fp16)
    view = view_of_model(weights) if "view" in said_beside(weights) else view_of_config(cfg)
    given = network, dtype, True, view.size, view.pixels
    backbone = load_backbone(weights, *given).to(device)
    width = backbone.embedding_size
    dataset = open_images(cfg.rec, cfg.rec_backend)
    paths = [place.path(kind) for kind in ("old_embedding", "old_embedding_label")]
    made_from = {
        "model": sha256_file(weights),
        "data": dataset.fingerprint,
        "parity": cfg.parity,
        "amp": dtype_name(dtype),
        "view": view_in_manifest(view),
    }
    valid = not force and all(is_valid(path, **made_from) for path in paths)
    if all(distributed.all_gather_object(valid)):
        return distributed.say(f"{paths[0]} is up to date: reusing it")

    loader = Loader(
        dataset,
        batch_size,
        device,
        seed=cfg.seed,
        num_workers=cfg.num_workers,
        train=False,
        mirror=cfg.parity == "published",
        view=view,
    )
    manifest = {**made_from, "weights": str(weights), "data_path": str(dataset.path)}
    with contextlib.ExitStack() as stack:
        shapes = ((len(dataset), width), "float32"), ((len(dataset),), "int64")
        features, labels = (
            stack.enter_context(shared_artefact(path, *shape, kind=kind, **manifest))
            for path, shape, kind in zip(paths, shapes, ("old_embedding", "label"), strict=True)
        )
        started = time.perf_counter()
        for batch, rows in embedded({"x": backbone}, loader, f"features {place.name}"):
            index = batch.index.cpu().numpy()
            refuse_batch(str(weights), rows["x"], index, dataset)
            features[index], labels[index] = rows["x"], batch.labels.cpu().numpy()
        distributed.barrier()  # until all ranks have written
        zeros = check_rows(features, str(weights), dataset.describe, alike=False)
    speed = len(dataset) / (time.perf_counter() - started)
    distributed.say(f"{paths[0]}: {len(dataset)} x {width}, {speed:.0f} images/s")
    if len(zeros):
        distributed.say(zeros_remark(str(weights), zeros, len(dataset), dataset.describe))


def trained_as(weights: Path, network: str) -> str:
    """The network's name with the ending that its method gave it, e.g. "resnet50+basis"."""
    if not weights.with_suffix(".json").is_file():
        return network
    name = network_of(weights)
    return name if name.partition("+")[0] == network else network


if __name__ == "__main__":
    run_cli(main)
