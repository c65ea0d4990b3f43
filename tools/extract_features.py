"""Extracts the old model's embeddings of the new model's training images.

    python tools/extract_features.py configs/f128_r18_softmax_class30.py \\
        --SD f128_r18_softmax_class70
    torchrun --nproc_per_node=8 tools/extract_features.py ...     # images are shared by the ranks

The config is the old model's; its weights are <output>/model.pt. SD is the config's name with the
shard of the images. Writes feature_save/<scenario>/<SD>_feature.npy, float32 (n, D), the raw output
(not normalised) of every image as it is, and <SD>_label.npy, int64 (n,).
"""

import contextlib
import time
from pathlib import Path

import torch
from easydict import EasyDict

from bct import distributed
from bct.amp import amp_dtype, dtype_name
from bct.command import Parser, batch, run_cli, some_text
from bct.config import load_config, require
from bct.data.loader import Loader
from bct.data.sets import open_images
from bct.errors import BctError
from bct.files import sha256_file
from bct.models.about import view_of_config
from bct.models.embed import embedded, refuse_batch
from bct.models.weights import load_backbone, network_of
from bct.rows import check_rows, zeros_remark
from bct.scenarios import artefact_name, scenario_of, split_name
from bct.stored.artefacts import artefact_path, is_valid, shared_artefact


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("config", type=some_text, help="the old model's config")
    parser.add_argument(
        "overrides", nargs="*", help="key=value, as in training (rec=..., parity=...)"
    )
    parser.add_argument(
        "--SD",
        type=some_text,
        required=True,
        help="name of the artefact, e.g. f128_r18_..._class70",
    )
    parser.add_argument("--batch-size", type=batch, default=256)
    parser.add_argument("--force", action="store_true", help="extract again even if it is valid")
    args = parser.parse_intermixed_args()  # key=value may come before or after --SD
    _, kind, percent = split_name(args.SD)
    shard = f"{kind}{percent}"
    cfg = load_config(args.config, [f"shard={shard}", *args.overrides], lenient=True)
    require(cfg, "rec")
    if artefact_name(cfg.name, shard) != args.SD:
        raise BctError(
            f"--SD {args.SD} does not belong to config {cfg.name}",
            f"call it {artefact_name(cfg.name, shard)}",
        )
    device = distributed.setup()
    extract(cfg, args.SD, device, args.batch_size, args.force)
    distributed.shutdown()


def extract(
    cfg: EasyDict, sd: str, device: torch.device, batch_size: int, force: bool = False
) -> None:
    """Writes the artefacts old_embedding and old_embedding_label of cfg's model under the name sd.

    parity="published" mirrors a random half of the images, as the reference does.
    """
    weights = Path(cfg.output) / "model.pt"
    dtype = amp_dtype(cfg.amp, device, cfg.fp16)
    network = trained_as(weights, cfg.network)
    backbone = load_backbone(weights, network, dtype, fold=True).to(device)
    width = backbone.embedding_size
    if width != cfg.embedding_size and network == cfg.network:
        raise BctError(
            f"{weights} has {width}-d embeddings, config {cfg.name} says {cfg.embedding_size}",
            "use the config the model was trained with",
        )
    dataset = open_images(cfg.rec, cfg.rec_backend)
    paths = [
        artefact_path(kind, cfg.feature_save, scenario_of(sd), sd)
        for kind in ("old_embedding", "old_embedding_label")
    ]
    made_from = {
        "model": sha256_file(weights),
        "data": dataset.fingerprint,
        "parity": cfg.parity,
        "amp": dtype_name(dtype),
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
        view=view_of_config(cfg),
    )
    manifest = {**made_from, "weights": str(weights), "data_path": str(dataset.path)}
    with contextlib.ExitStack() as stack:
        shapes = ((len(dataset), width), "float32"), ((len(dataset),), "int64")
        features, labels = (
            stack.enter_context(shared_artefact(path, *shape, kind=kind, **manifest))
            for path, shape, kind in zip(paths, shapes, ("old_embedding", "label"), strict=True)
        )
        started = time.perf_counter()
        for batch, rows in embedded({sd: backbone}, loader, f"features {sd}"):
            index = batch.index.cpu().numpy()
            refuse_batch(str(weights), rows[sd], index, dataset)
            features[index], labels[index] = rows[sd], batch.labels.cpu().numpy()
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
