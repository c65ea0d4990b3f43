"""May the new model be deployed against the old gallery? One page with the answer.

    python eval/report.py -m new.pt -m_old old.pt -d /data/ijb -o report/
    python eval/report.py -m new.pt -m_old old.pt -m_alone alone.pt -d /data/ijb -o report/ \\
        --gallery-size 40000000 --price-per-hour 2.50
    python eval/report.py -m new.pt -m_old old.pt --images val -o report/       # other than faces
    python eval/report.py -m new.pt -m_old old.pt --search val -o report/       # image search
    python eval/report.py -m new.pt -m_old old.pt --set lfw.bin --far 1e-3      # pairs of faces
    python eval/report.py -m new.pt -m_old old.pt --landmarks roxford5k /data/ROxfordParis
    python eval/report.py -m new.pt -m_old old.pt --reid /data/Market-1501

Writes report.html (one file, opens from disk, loads nothing), report.md and report.json: a verdict,
the matrix of queries and galleries, gains with intervals, what happens at the deployed threshold,
decisions that change, and what backfilling brings. Models are whatever eval/ijbc.py takes, with
--images and --search whatever eval/retrieval.py takes, with --landmarks and --reid
queries.npy,gallery.npy, too.

With --images half of each class is enrolled, see bct/protocols/class_templates.py. With --search
each image is searched among all the others, or in --gallery, and models are judged by mAP, without
a threshold; so with --landmarks, by the medium reading, and --reid. A verification set (--set) has
pairs alone, so its page has no 1:N figures.
Pictures of what changed may be personal data: they are in the page only with --thumbnails.
"""

import argparse

import torch

from bct import distributed
from bct.amp import amp_dtype
from bct.command import (
    evaluation_options,
    model_parser,
    pixels_option,
    positive,
    rate,
    run_cli,
    some_text,
    takes,
)
from bct.data.sets import open_images
from bct.keys import number, whole
from bct.models.model import open_models
from bct.models.widths import POLICIES
from bct.protocols.class_templates import class_templates
from bct.protocols.image_search import open_search
from bct.protocols.landmarks import open_landmarks
from bct.protocols.market import open_market
from bct.protocols.pairs import open_bin
from bct.protocols.protocol import Protocol
from bct.protocols.roles import roles_and_files
from bct.report.cost import Cost
from bct.report.write import write_report
from tools.ijbc.protocol import read_protocol


def arguments() -> argparse.Namespace:
    parser = model_parser(__doc__, several=False, alone=True)
    add = parser.add_argument
    above_0 = takes(number(None, above=0))
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "-d", "--data_path", type=some_text, help="the folder that contains IJBC/ (or IJBB/)"
    )
    data.add_argument(
        "--images", type=some_text, metavar="SET", help="an image set: a folder, a list, ..."
    )
    data.add_argument("--search", type=some_text, metavar="SET", help="an image set, searched")
    landmarks = "roxford5k, rparis6k, gldv2, ..., and its folder: see eval/landmarks.py"
    names = ("NAME", "ROOT")
    data.add_argument("--landmarks", type=some_text, nargs=2, metavar=names, help=landmarks)
    data.add_argument("--reid", type=some_text, metavar="ROOT", help="Market-1501")
    data.add_argument("--set", type=some_text, metavar="LFW.bin", help="a verification set")
    where = "with --search: what its images are searched in; default: each among all the others"
    add("--gallery", type=some_text, metavar="SET", help=where)
    widths = "how two widths meet: leading dimensions of the wider, or the narrower with zeros"
    add("--dimensions", choices=POLICIES, default="equal", help=widths)
    add("-s", "--subset", choices=("IJBC", "IJBB"), help="with -d; default: IJBC")
    far = "of pairs: what the threshold was set for; default: 1e-4"
    add("--far", type=rate, help=far)
    add("--resamples", type=positive, default=1000, help="of the bootstrap")
    add("--thumbnails", action="store_true", help="show pictures of what changed")
    add("--images-per-second", type=above_0, help="of re-extraction; default: measured here")
    add(
        "--gallery-size",
        type=takes(whole(None, least=1, most=10**15)),
        help="images in your gallery, for the time of a backfill",
    )
    add("--price-per-hour", type=above_0, help="of the machine that re-extracts")
    pixels_option(parser)
    evaluation_options(parser, output="report")
    args = parser.parse_args()
    if not args.model_file_old:
        parser.error("a report compares two models: give the old one, -m_old")
    if args.gallery and not args.search:
        parser.error("--gallery is for --search")
    if args.far and (args.search or args.landmarks or args.reid):
        parser.error("--far is for pairs: image search has no threshold")
    if args.subset and not args.data_path:
        parser.error("--subset is for -d")
    args.far, args.subset = args.far or 1e-4, args.subset or "IJBC"
    return args


def main() -> None:
    args = arguments()
    device = distributed.setup()
    report(args, device)
    distributed.shutdown()


def report(args: argparse.Namespace, device: torch.device) -> None:
    files = roles_and_files(args)[1]
    models = open_models(files, amp_dtype(args.amp, device), pixels=args.pixels)
    protocol = open_protocol(args, all(model.view is None for model in models.values()))
    made = write_report(
        args.output, protocol, models, far=args.far, resamples=args.resamples,
        cost=Cost(args.images_per_second, args.gallery_size, args.price_per_hour),
        thumbnails=args.thumbnails, cache=args.cache, device=device, dimensions=args.dimensions,
        batch_size=args.batch_size, num_workers=args.num_workers,
        overwrite=args.overwrite,
    )  # fmt: skip
    if made:
        reasons = [f"- {line}" for line in made["verdict"]["reasons"]]
        print("\n".join(["\n" + made["verdict"]["headline"], *reasons]))
        print(f"\nwritten to {args.output}/report.html, .md, .json")


def open_protocol(args: argparse.Namespace, stored: bool) -> Protocol:
    """Args: stored: whether all models are embeddings, so that no image is needed."""
    if args.search:
        return open_search(args.search, args.gallery)
    if args.landmarks:
        name, root = args.landmarks
        return open_landmarks(root, name, stored=stored)
    if args.reid:
        return open_market(args.reid, stored)
    if args.images:
        return class_templates(open_images(args.images))
    return open_bin(args.set) if args.set else read_protocol(args.data_path, args.subset)


if __name__ == "__main__":
    run_cli(main)
