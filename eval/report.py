"""May the new model be deployed against the old gallery? One page with the answer.

    python eval/report.py -m new.pt -m_old old.pt -d /data/ijb -o report/
    python eval/report.py -m new.pt -m_old old.pt -m_independent alone.pt -d /data/ijb -o report/ \\
        --gallery-size 40000000 --price-per-hour 2.50
    python eval/report.py -m new.pt -m_old old.pt --images val -o report/       # other than faces

Writes report.html (one file, opens from disk, loads nothing), report.md and report.json: a verdict,
the matrix of queries and galleries, gains with intervals, what happens at the deployed threshold,
decisions that change, and what backfilling brings. Models are whatever eval/ijbc.py takes, with
--images whatever eval/retrieval.py takes; bct/report/image_protocol.py says who is searched for.
Thumbnails of changed pairs may be personal data: they are in the page only with --thumbnails.
"""

import argparse
import datetime
import time
from pathlib import Path

import numpy as np
import torch
from easydict import EasyDict

from bct import distributed
from bct.amp import amp_dtype
from bct.command import run_cli
from bct.data.images import SIZE
from bct.data.sets import ImageSet, open_images
from bct.errors import BctError
from bct.files import ROOT, model_name, read_json, sha256_file
from bct.metrics.scores import FARS, rate_name
from bct.models.about import view_of_model
from bct.models.weights import load_backbone
from bct.protocols.image_search import same_width
from bct.protocols.items import embed, open_model
from bct.report import page
from bct.report.analysis import Study, analyse
from bct.report.image_protocol import Thumbnails, image_protocol
from bct.stored.vector_files import is_stored
from tools.ijbc.features import LooseCrops, image_features
from tools.ijbc.protocol import Protocol, read_galleries, read_protocol
from tools.ijbc.scoring import template_features


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-m", "--model_file", required=True, metavar="NEW", help="new model")
    add("-net", "--network", help="its network, e.g. r50")
    add("-m_old", "--model_file_old", required=True, metavar="OLD", help="old model")
    add("-old_net", "--network_old", help="its network")
    alone = "the new network trained without compatibility: what the price is measured by"
    add("-m_independent", "--model_file_independent", metavar="ALONE", help=alone)
    add("-independent_net", "--network_independent", help="its network")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("-d", "--data_path", help="the folder that contains IJBC/ (or IJBB/)")
    data.add_argument("--images", metavar="SET", help="an image set: a folder, a list, ...")
    widths = "with --images: leading cuts all embeddings to the narrowest ones' width"
    add("--dimensions", choices=("equal", "leading"), default="equal", help=widths)
    add("-s", "--subset", default="IJBC", choices=("IJBC", "IJBB"))
    add("-b", "--batch_size", type=int, default=128)
    add("--far", type=float, default=1e-4, help="FAR that the deployed threshold was set for")
    add("--resamples", type=int, default=1000, help="of the bootstrap")
    add("--thumbnails", action="store_true", help="show the faces of changed pairs")
    add("--images-per-second", type=float, help="of re-extraction; default: measured here")
    add("--gallery-size", type=int, help="images in your gallery, for the time of a backfill")
    add("--price-per-hour", type=float, help="of the machine that re-extracts")
    add("--amp", choices=("bf16", "fp16", "off"), help="precision; default: as in training")
    add("-o", "--output", type=Path, default=Path("report"), help="folder for the report")
    add("--overwrite", action="store_true", help="replace a report on other models or data")
    add("--cache", type=Path, default=ROOT / "work_dirs" / "ijbc_cache")
    add("-j", "--num_workers", type=int, default=2)
    args = parser.parse_args()
    if args.data_path and args.dimensions != "equal":
        parser.error("--dimensions is for --images")
    if args.far not in FARS:
        raise BctError(
            f"--far {args.far:g} is not a FAR of the tables",
            f"choose from {', '.join(map(rate_name, FARS))}",
        )
    for name in ("images_per_second", "gallery_size", "price_per_hour", "resamples"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise BctError(f"--{name.replace('_', '-')} is {value}", "give a number above 0")
    return args


def main() -> None:
    args = arguments()
    device = distributed.setup()
    report(args, device)
    distributed.shutdown()


def report(args: argparse.Namespace, device: torch.device) -> None:
    files = {"old": (args.model_file_old, args.network_old), "new": (args.model_file, args.network)}
    if args.model_file_independent:
        files["independent"] = (args.model_file_independent, args.network_independent)
    for file, _ in files.values():
        if not Path(file).is_file():
            raise BctError(f"model {file} does not exist", "check the path, or train it first")
    dataset = open_images(args.images) if args.images else None
    if dataset is None:
        protocol = read_protocol(args.data_path, args.subset)
        galleries, probes = read_galleries(protocol)
    else:
        protocol, galleries, probes = image_protocol(dataset)
    impostors = int((~protocol.genuine).sum())
    if args.far * impostors < 1:
        raise BctError(
            f"--far {rate_name(args.far)} allows no false accept among {impostors} impostor pairs",
            "give a larger one, or a larger protocol",
        )
    models = {
        label: {"name": model_name(file), "file": str(file), "sha256": sha256_file(file)}
        for label, (file, _) in files.items()
    }
    if not args.overwrite:
        refuse_to_replace(args.output / "report.json", models, protocol.fingerprint)
    dtype = amp_dtype(EasyDict(amp=args.amp, fp16=None), device)
    features = embeddings(args, dataset, protocol, files, device, dtype)
    if not distributed.is_main():
        return
    templates = {label: template_features(f, protocol) for label, f in features.items()}
    study = Study(protocol, galleries, probes, features, templates)
    found, drawings = analyse(study, args.far, args.resamples)
    whole = {
        "models": models,
        "data": protocol.fingerprint,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "resamples": args.resamples,
        **found,
        "cost": cost(args, device, dtype),
    }
    crops = LooseCrops(protocol) if dataset is None else Thumbnails(dataset)
    pictures = page.thumbnails(crops, protocol.templates, whole) if args.thumbnails else None
    page.write(args.output, whole, drawings, protocol.genuine, pictures)
    verdict = whole["verdict"]
    print("\n".join([f"\n{verdict['headline']}", *(f"- {line}" for line in verdict["reasons"])]))
    print(f"\nwritten to {args.output}/report.html, .md, .json")


def embeddings(
    args: argparse.Namespace,
    dataset: ImageSet | None,
    protocol: Protocol,
    files: dict[str, tuple[str, str | None]],
    device: torch.device,
    dtype: torch.dtype | None,
) -> dict[str, np.ndarray]:
    """Label -> embeddings (N, D) of all images; dataset: the image set, None for IJB."""
    loading = args.batch_size, args.num_workers
    if dataset is None:
        return {
            label: image_features(protocol, *file, args.cache, device, dtype, *loading)
            for label, file in files.items()
        }
    models = [open_model(label, *file) for label, file in files.items()]
    sides = embed(models, [dataset], device, dtype, *loading)
    rows = same_width(args.dimensions, *(sides[label].gallery for label in files))
    return dict(zip(files, rows, strict=True))


def refuse_to_replace(path: Path, models: dict, data: str) -> None:
    """Raises BctError if there is a report on other models or data."""
    if not path.is_file():
        return
    there = read_json(path)
    hashes = [
        {label: m["sha256"] for label, m in which.items()} for which in (there["models"], models)
    ]
    if hashes[0] != hashes[1] or there["data"] != data:
        raise BctError(
            f"{path.parent} holds the report on other models or data",
            "give another folder, -o, or --overwrite",
        )


def cost(args: argparse.Namespace, device: torch.device, dtype: torch.dtype | None) -> dict:
    """Time and price of re-extracting the whole gallery, as far as they can be known."""
    speed, measured = args.images_per_second, False
    if speed is None and not is_stored(args.model_file):
        backbone = load_backbone(args.model_file, args.network, dtype, fold=True).to(device)
        size = view_of_model(args.model_file).size if args.images else SIZE
        speed = images_per_second(backbone, args.batch_size, device, size, not args.images)
        measured = True
    hours = args.gallery_size / speed / 3600 if args.gallery_size and speed else None
    price = hours * args.price_per_hour if hours and args.price_per_hour else None
    return {
        "images_per_second": speed,
        "measured": measured,
        "gallery_size": args.gallery_size,
        "price_per_hour": args.price_per_hour,
        "hours": hours,
        "price": price,
    }


@torch.inference_mode()
def images_per_second(
    backbone: torch.nn.Module,
    batch_size: int,
    device: torch.device,
    size: int = SIZE,
    mirror: bool = True,
    seconds: float = 2.0,
) -> float:
    """Images that the network embeds per second, with their mirror images if asked, after a
    warm-up."""
    images = torch.zeros(batch_size, 3, size, size, device=device)

    def once() -> None:
        sum(backbone(x) for x in (images, images.flip(3))[: 1 + mirror]).cpu()  # waits for it

    once()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        once()
        count += batch_size
    return float(np.round(count / (time.perf_counter() - started), 1))


if __name__ == "__main__":
    run_cli(main)
