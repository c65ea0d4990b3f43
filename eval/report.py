"""May the new model be deployed against the old gallery? One page with the answer.

    python eval/report.py -m new.pt -m_old old.pt -d /data/ijb -o report/
    python eval/report.py -m new.pt -m_old old.pt -m_alone alone.pt -d /data/ijb -o report/ \\
        --gallery-size 40000000 --price-per-hour 2.50
    python eval/report.py -m new.pt -m_old old.pt --images val -o report/       # other than faces
    python eval/report.py -m new.pt -m_old old.pt --set lfw.bin -o report/      # pairs of faces

Writes report.html (one file, opens from disk, loads nothing), report.md and report.json: a verdict,
the matrix of queries and galleries, gains with intervals, what happens at the deployed threshold,
decisions that change, and what backfilling brings. Models are whatever eval/ijbc.py takes, with
--images whatever eval/retrieval.py takes; bct/protocols/class_templates.py says who asks whom. A
verification set (--set) has pairs alone, so its page has no 1:N figures.
Thumbnails of changed pairs may be personal data: they are in the page only with --thumbnails.
"""

import argparse
import datetime

import torch

from bct import distributed
from bct.amp import amp_dtype
from bct.command import evaluation_options, refuse_to_replace, run_cli
from bct.data.sets import open_images
from bct.errors import BctError
from bct.files import model_name
from bct.metrics.scores import check_far, rate_name
from bct.models.embed import embed_models
from bct.models.model import Model, described, open_models
from bct.models.speed import images_per_second
from bct.models.widths import same_width
from bct.protocols.class_templates import class_templates
from bct.protocols.pairs import open_bin
from bct.protocols.protocol import Protocol
from bct.report import page
from bct.report.analysis import analyse, study
from tools.ijbc.protocol import read_protocol


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
    add("-m_alone", "-m_independent", "--model_file_alone", metavar="ALONE", help=alone)
    add("-alone_net", "-independent_net", "--network_alone", help="its network")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("-d", "--data_path", help="the folder that contains IJBC/ (or IJBB/)")
    data.add_argument("--images", metavar="SET", help="an image set: a folder, a list, ...")
    data.add_argument("--set", metavar="LFW.bin", help="a verification set")
    widths = "with --images: leading cuts all embeddings to the narrowest ones' width"
    add("--dimensions", choices=("equal", "leading"), default="equal", help=widths)
    add("-s", "--subset", default="IJBC", choices=("IJBC", "IJBB"))
    add("--far", type=float, default=1e-4, help="FAR that the deployed threshold was set for")
    add("--resamples", type=int, default=1000, help="of the bootstrap")
    add("--thumbnails", action="store_true", help="show the faces of changed pairs")
    add("--images-per-second", type=float, help="of re-extraction; default: measured here")
    add("--gallery-size", type=int, help="images in your gallery, for the time of a backfill")
    add("--price-per-hour", type=float, help="of the machine that re-extracts")
    evaluation_options(parser, output="report")
    args = parser.parse_args()
    if not args.images and args.dimensions != "equal":
        parser.error("--dimensions is for --images")
    check_far(args.far)
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
    files = [("old", args.model_file_old, args.network_old), ("new", args.model_file, args.network)]
    if args.model_file_alone:
        files.append(("alone", args.model_file_alone, args.network_alone))
    models = open_models(files, amp_dtype(args.amp, device))
    protocol = open_protocol(args)
    impostors = int((~protocol.pairs.genuine).sum())
    if args.far * impostors < 1:
        raise BctError(
            f"--far {rate_name(args.far)} allows no false accept among {impostors} impostor pairs",
            "give a larger one, or a larger protocol",
        )
    about = {
        role: {"name": model_name(model["file"]), **model}
        for role, model in described(models).items()
    }
    if not args.overwrite:
        made_from = {"models": about, "data": protocol.fingerprint}
        refuse_to_replace(args.output / "report", made_from)
    embeddings = embed_models(
        models, protocol.images, args.cache, device=device,
        batch_size=args.batch_size, num_workers=args.num_workers,
    )  # fmt: skip
    if not distributed.is_main():
        return
    rows = dict(zip(models, same_width(args.dimensions, *embeddings.values()), strict=True))
    found, drawings = analyse(study(protocol, rows), args.far, args.resamples)
    whole = {
        "models": about,
        "data": protocol.fingerprint,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "resamples": args.resamples,
        **found,
        "cost": cost(args, images_per_second_of(args, models["new"], protocol, device)),
    }
    pictures = page.thumbnails(protocol, whole) if args.thumbnails else None
    page.write(args.output, whole, drawings, protocol.pairs.genuine, pictures)
    verdict = whole["verdict"]
    print("\n".join([f"\n{verdict['headline']}", *(f"- {line}" for line in verdict["reasons"])]))
    print(f"\nwritten to {args.output}/report.html, .md, .json")


def open_protocol(args: argparse.Namespace) -> Protocol:
    if args.images:
        return class_templates(open_images(args.images))
    return open_bin(args.set) if args.set else read_protocol(args.data_path, args.subset)


def images_per_second_of(
    args: argparse.Namespace, model: Model, protocol: Protocol, device: torch.device
) -> tuple[float | None, bool]:
    """How fast the new model embeds, and whether that was measured here; None if it can't be."""
    if args.images_per_second is not None or model.view is None:
        return args.images_per_second, False
    size = (protocol.images.view or model.view).size
    batch = args.batch_size
    return images_per_second(
        model.backbone.to(device), batch, device, size, protocol.images.mirror
    ), True


def cost(args: argparse.Namespace, speed: tuple[float | None, bool]) -> dict:
    """Time and price of re-extracting the whole gallery, as far as they can be known."""
    rate, measured = speed
    hours = args.gallery_size / rate / 3600 if args.gallery_size and rate else None
    price = hours * args.price_per_hour if hours and args.price_per_hour else None
    return {
        "images_per_second": rate,
        "measured": measured,
        "gallery_size": args.gallery_size,
        "price_per_hour": args.price_per_hour,
        "hours": hours,
        "price": price,
    }


if __name__ == "__main__":
    run_cli(main)
