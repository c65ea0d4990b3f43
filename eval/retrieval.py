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
all dimensions of its model; --dimensions says how two widths meet.

A model is whatever eval/ijbc.py takes; an .npy or .npz has a row per image of the set, and for two
sets there are two files, queries.npy,gallery.npy. A model.json says how its network sees an image;
--size, --crop and --pixels say it for a network that has none.
"""

import argparse
from pathlib import Path

import torch

from bct import distributed
from bct.amp import amp_dtype
from bct.command import (
    evaluation_options,
    model_parser,
    refuse_to_replace,
    results_name,
    run_cli,
    some_text,
    write_results,
)
from bct.errors import BctError
from bct.models.embed import embed_models
from bct.models.model import open_models
from bct.outputs import check_outputs, results_files
from bct.protocols.image_search import old_classes, open_search
from bct.protocols.roles import roles_and_files
from bct.protocols.search_backfill import read_orders
from bct.protocols.search_study import (
    Wanted,
    embedding_files,
    made_from,
    save_embeddings,
    search_options,
    study,
)
from bct.protocols.search_tests import How
from bct.stored.vector_files import is_stored


def arguments() -> argparse.Namespace:
    parser = model_parser(__doc__, alone=True)
    add = parser.add_argument
    versions = "instead of -m: versions of a model, oldest first, each against every one's gallery"
    add("--matrix", nargs="+", type=some_text, default=[], metavar="V1", help=versions)
    add(
        "--data",
        type=some_text,
        required=True,
        metavar="SET",
        help="the queries: a folder, list, file, ...",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--gallery", type=some_text, metavar="SET", help="what they are searched in")
    own = "each image of --data is searched among all the others"
    where.add_argument("--leave-one-out", action="store_true", help=own)
    instead = "embeddings (.npy) to search in place of the old model's gallery, e.g. FCT's"
    add("--old-gallery", "--old_gallery", type=some_text, metavar="FILE", help=instead)
    search_options(parser)
    add("-E", "--save_embeddings", action="store_true", help="write them as .npy, too")
    add("--name", type=some_text, help="of the results; default: models and sets")
    evaluation_options(parser, output="work_dirs/retrieval")
    args = parser.parse_args()
    if bool(args.model_file) == bool(args.matrix):
        parser.error("give new models to test, -m, or the versions of a chain, --matrix")
    if args.matrix and (len(args.matrix) < 2 or args.model_file_old or args.model_file_alone):
        parser.error("--matrix wants two versions or more, and neither -m_old nor -m_alone")
    if (args.old_gallery or args.backfill) and not args.model_file_old:
        parser.error("--old-gallery and --backfill need the old model, -m_old")
    if args.name is not None and Path(args.name).name in ("", ".."):
        raise BctError(f"--name {args.name!r} is no name", "give one, such as new_vs_old")
    if args.old_gallery and not is_stored(args.old_gallery):
        raise BctError(
            f"--old-gallery {args.old_gallery} is no .npy", "make one: tools/transform_gallery.py"
        )
    args.model_file = args.model_file or args.matrix
    return args


def main() -> None:
    args = arguments()
    device = distributed.setup()
    evaluate(args, device)
    distributed.shutdown()


def evaluate(args: argparse.Namespace, device: torch.device) -> None:
    roles, files = roles_and_files(args)
    dtype = amp_dtype(args.amp, device)
    models = open_models(files, dtype, size=args.size, crop=args.crop, pixels=args.pixels)
    protocol = open_search(args.data, args.gallery)
    how = How(args.metric, args.dimensions, tuple(sorted(set(args.ks))))
    oldest = args.model_file_old or (args.matrix or [None])[0]
    old, why_not = old_classes(protocol, args.old_classes, oldest)
    orders = read_orders(args.backfill, len(protocol.search.gallery))
    rest = ["matrix"] * roles.chain + [how.metric] * (how.metric != "cosine")
    rest += [how.dimensions] * (how.dimensions != "equal") + ["backfill"] * bool(args.backfill)
    target = args.output / (args.name or results_name(args, protocol.name, *rest))
    files = embedding_files(target, protocol, models) if args.save_embeddings else {}
    summary = made_from(protocol, models, how)
    if not args.overwrite:
        refuse_to_replace(target, summary)
    check_outputs(*results_files(target), *(file for two in files.values() for file in two))
    embeddings = embed_models(
        {label: model for label, model in models.items() if label != roles.mapped},
        protocol.images, args.cache, device=device,
        batch_size=args.batch_size, num_workers=args.num_workers, remarks=protocol.remarks,
    )  # fmt: skip
    if not distributed.is_main():
        return
    save_embeddings(files, protocol, embeddings)
    wanted = Wanted(old, orders, args.resamples, args.per_class)
    found, text, remarks = study(protocol, models, embeddings, roles, how, wanted)
    remarks = [*why_not, *remarks]
    about = {"files": {label: model.file for label, model in models.items()}, "remarks": remarks}
    said = {**summary, **found, "roles": roles._asdict(), **about}
    write_results(target, said, "\n\n".join([*text, *remarks]))


if __name__ == "__main__":
    run_cli(main)
