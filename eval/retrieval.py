"""Retrieval on image sets: each model with itself, and new queries against old galleries.

    python eval/retrieval.py -m new.pt -m_old old.pt --data val --leave-one-out
    python eval/retrieval.py -m a.pt b.pt -m_old old.pt -m_alone alone.pt --data val --leave-one-out
    python eval/retrieval.py -m new.pt -m_old old.pt --data queries --gallery gallery
    python eval/retrieval.py --matrix v1.pt v2.pt v3.pt --data val --leave-one-out    # a chain
    python eval/retrieval.py -m new.pt -m_old old.pt --old-gallery transformed.npy \\
        --backfill random uncertainty.npy --data val --leave-one-out                  # FCT
    torchrun --nproc_per_node=8 eval/retrieval.py ...             # the ranks share the images

q / g is a query by model q against a gallery by model g. With -m_old there are old/old, new/old and
new/new; -m_alone is the new network trained without compatibility, by which a gain is measured.
Top-k and mAP are exact, see bct/metrics/ranking.py. Where the class names of the old model's data
are known, queries of classes it was trained on and of others are given apart, too. A self test uses
all dimensions of its model; how two widths meet is for --dimensions to say.

A model is whatever eval/ijbc.py takes; an .npy or .npz has a row per image of the set, and for two
sets there are two files, queries.npy,gallery.npy. A model.json says how its network sees an image;
of a network that has none it is --size, --crop, --pixels.
"""

import argparse

import torch

from bct import distributed
from bct.amp import amp_dtype
from bct.command import evaluation_options, networks_for, refuse_to_replace, run_cli
from bct.data import views
from bct.errors import BctError
from bct.files import model_name, write_json, write_text
from bct.metrics.retrieval import METRICS
from bct.models.embed import embed_models
from bct.models.model import open_models
from bct.models.widths import POLICIES
from bct.protocols.image_search import old_classes, open_search, sets_of
from bct.protocols.search_backfill import read_orders
from bct.protocols.search_study import Wanted, save_embeddings, study
from bct.protocols.search_tests import How, Roles
from bct.stored.vector_files import is_stored


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-m", "--model_file", nargs="+", default=[], metavar="NEW", help="new model(s)")
    add("-net", "--network", nargs="*", default=[], help="their networks, e.g. resnet50")
    add("-m_old", "--model_file_old", metavar="OLD", help="old model: adds the cross tests")
    add("-old_net", "--network_old", help="its network")
    alone = "the new network trained without compatibility"
    names = ("-m_alone", "--model_file_alone", "-m_free", "--model_file_free")
    add(*names, metavar="ALONE", help=alone)
    add("-alone_net", "--network_alone", "-free_net", "--network_free", help="its network")
    versions = "instead of -m: versions of a model, oldest first, each against every one's gallery"
    add("--matrix", nargs="+", default=[], metavar="V1", help=versions)
    add("--data", required=True, metavar="SET", help="the queries: a folder, list, file, ...")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--gallery", metavar="SET", help="what they are searched in")
    own = "each image of --data is searched among all the others"
    where.add_argument("--leave-one-out", action="store_true", help=own)
    instead = "embeddings (.npy) to search in place of the old model's gallery, e.g. FCT's"
    add("--old-gallery", "--old_gallery", metavar="FILE", help=instead)
    known = "the first N labels, or a .json with class names; default: the old model.json"
    add("--old-classes", metavar="N", help=known)
    add("--metric", choices=METRICS, default="cosine")
    widths = "how two widths meet: leading dimensions of the wider, or the narrower with zeros"
    add("--dimensions", choices=POLICIES, default="equal", help=widths)
    add("--ks", type=int, nargs="+", default=[1, 5], help="which top-k")
    orders = "quality by share of the gallery refreshed: random, distance (from the class's centre)"
    orders += ", or an .npy of uncertainties, the highest of which come first"
    add("--backfill", nargs="+", default=[], metavar="ORDER", help=orders)
    add("--per-class", action="store_true", help="figures of each class, too, in the .json")
    add("--resamples", type=int, default=1000, help="of the bootstrap over classes")
    add("--size", type=int, help="pixels of the input, where no model.json says; default: 112")
    add("--crop", choices=views.CROPS, help="likewise; resized: the centre of 256/224 of it")
    add("--pixels", choices=tuple(views.PIXELS), help="their normalisation, likewise")
    add("-E", "--save_embeddings", action="store_true", help="write them as .npy, too")
    add("--name", help="of the results; default: models and sets")
    evaluation_options(parser, output="work_dirs/retrieval")
    args = parser.parse_args()
    if bool(args.model_file) == bool(args.matrix):
        parser.error("give new models to test, -m, or the versions of a chain, --matrix")
    if args.matrix and (len(args.matrix) < 2 or args.model_file_old or args.model_file_alone):
        parser.error("--matrix wants two versions or more, and neither -m_old nor -m_alone")
    if (args.old_gallery or args.backfill) and not args.model_file_old:
        parser.error("--old-gallery and --backfill need the old model, -m_old")
    if min(args.resamples, *args.ks) < 1:
        raise BctError("--resamples or one of --ks is below 1", "give numbers above 0")
    return args


def main() -> None:
    args = arguments()
    device = distributed.setup()
    evaluate(args, device)
    distributed.shutdown()


def evaluate(args: argparse.Namespace, device: torch.device) -> None:
    roles, files = roles_and_files(args)
    view = {"size": args.size, "crop": args.crop, "pixels": args.pixels}
    models = open_models(files, amp_dtype(args.amp, device), **view)
    protocol = open_search(args.data, args.gallery)
    how = How(args.metric, args.dimensions, tuple(sorted(set(args.ks))))
    oldest = args.model_file_old or (args.matrix or [None])[0]
    old, why_not = old_classes(protocol, args.old_classes, oldest)
    orders = read_orders(args.backfill, len(protocol.search.gallery))
    target = args.output / (args.name or result_name(args, protocol.name))
    summary = {
        "models": {
            label: {"sha256": m.sha256, "view": m.view and m.view._asdict()}
            for label, m in models.items()
        },
        "data": [images.fingerprint for images in sets_of(protocol)],
        "metric": how.metric,
        "dimensions": how.dimensions,
    }
    if not args.overwrite:
        refuse_to_replace(target, summary)
    embeddings = embed_models(
        {label: model for label, model in models.items() if label != roles.mapped},
        protocol.images, args.cache, device=device,
        batch_size=args.batch_size, num_workers=args.num_workers,
    )  # fmt: skip
    if not distributed.is_main():
        return
    if args.save_embeddings:
        save_embeddings(target, protocol, models, embeddings)
    wanted = Wanted(old, orders, args.resamples, args.per_class)
    found, text, remarks = study(protocol, models, embeddings, roles, how, wanted)
    page = "\n\n".join([*text, *why_not, *remarks])
    said = {**summary, **found, "roles": roles._asdict()}
    write_json(target.with_name(f"{target.name}.json"), said)
    write_text(target.with_name(f"{target.name}.md"), page + "\n")
    print(f"\n{page}\n\nwritten to {target}.md, .json")


def roles_and_files(args: argparse.Namespace) -> tuple[Roles, list[tuple[str, str, str | None]]]:
    """Who is who, and (label, file, network) of each model, in the tables' order."""
    new = args.model_file or args.matrix
    labels = ["new"] if len(new) == 1 else [model_name(file) for file in new]
    old, mapped, alone = (
        label if file else None
        for label, file in (
            ("old", args.model_file_old),
            ("transformed", args.old_gallery),
            ("alone", args.model_file_alone),
        )
    )
    if mapped and not is_stored(args.old_gallery):
        raise BctError(
            f"--old-gallery {args.old_gallery} is no .npy", "make one: tools/transform_gallery.py"
        )
    files = [
        (old, args.model_file_old, args.network_old),
        (mapped, args.old_gallery, None),
        *zip(labels, new, networks_for(args.network, new), strict=True),
        (alone, args.model_file_alone, args.network_alone),
    ]
    roles = Roles(labels, old, mapped, alone, chain=bool(args.matrix))
    return roles, [file for file in files if file[0]]


def result_name(args: argparse.Namespace, data: str) -> str:
    """The models and the test, so that no test replaces another one's results."""
    new = "+".join(model_name(file) for file in args.model_file or args.matrix)
    old = [model_name(file) for file in (args.old_gallery or args.model_file_old,) if file]
    parts = ["_vs_".join([new, *old]), data, *["matrix"] * bool(args.matrix)]
    parts += [args.metric] * (args.metric != "cosine")
    parts += [args.dimensions] * (args.dimensions != "equal")
    return "_".join(parts + ["backfill"] * bool(args.backfill))


if __name__ == "__main__":
    run_cli(main)
