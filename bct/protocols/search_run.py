"""What the commands that search share: their options, and the way from these to results.

eval/retrieval.py, eval/landmarks.py and eval/reid.py differ in the protocol that they open.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from bct import distributed
from bct.amp import amp_dtype
from bct.command import (
    Parser,
    evaluation_options,
    model_parser,
    pixels_option,
    positive,
    refuse_to_replace,
    results_name,
    some_text,
    takes,
    write_results,
)
from bct.data import views
from bct.errors import BctError
from bct.keys import image_size, number
from bct.metrics.retrieval import METRICS
from bct.models.embed import embed_models
from bct.models.model import open_models
from bct.models.whole_images import Whole
from bct.models.widths import POLICIES
from bct.outputs import check_outputs, results_files
from bct.protocols.image_search import old_classes
from bct.protocols.protocol import Protocol
from bct.protocols.refined import Refine, check_refined, fitted, whitening_rows
from bct.protocols.roles import roles_and_files
from bct.protocols.search_backfill import ORDERS, read_orders
from bct.protocols.search_study import (
    Wanted,
    embedding_files,
    made_from,
    save_embeddings,
    study,
)
from bct.protocols.search_tests import How, check_tests
from bct.stored.vector_files import is_stored


def search_parser(about: str, output: str, ks: tuple[int, ...]) -> Parser:
    """A parser of models, and of how they are compared; the caller adds the data.

    Args:
        about: the script's docstring. output: the folder for results. ks: the default of --ks.
    """
    parser = model_parser(about, alone=True)
    add = parser.add_argument
    versions = "instead of -m: versions of a model, oldest first, each against every one's gallery"
    add("--matrix", nargs="+", type=some_text, default=[], metavar="V1", help=versions)
    instead = "embeddings (.npy) to search in place of the old model's gallery, e.g. FCT's"
    add("--old-gallery", "--old_gallery", type=some_text, metavar="FILE", help=instead)
    add("--metric", choices=METRICS, default="cosine")
    widths = "how two widths meet: leading dimensions of the wider, or the narrower with zeros"
    add("--dimensions", choices=POLICIES, default="equal", help=widths)
    add("--ks", type=positive, nargs="+", default=list(ks), help="which top-k")
    orders = f"quality by share of the gallery refreshed: {', '.join(ORDERS)} (the last three of "
    orders += "the old model's classifier), or an .npy of uncertainties, the highest of which come "
    orders += "first"
    add("--backfill", type=some_text, nargs="+", default=[], metavar="ORDER", help=orders)
    amount, at_all = takes(number(None, least=0)), ("ALPHA", "K")
    more = "add to a query its best K items, by their similarity to the power of ALPHA; e.g. 3 10"
    add("--expand", type=amount, nargs=2, metavar=at_all, help=more)
    rows = "whiten by PCA of a training set's embeddings (.npy); a second file is of -m_alone"
    add("--whiten", type=some_text, nargs="+", default=[], metavar="FILE", help=rows)
    again = "k-reciprocal re-ranking, e.g. 20 6 0.3"
    add("--rerank", type=amount, nargs=3, metavar=("K1", "K2", "LAMBDA"), help=again)
    as_was = "published: re-ranking in float16, backfill random by whole batches of 16"
    add("--parity", choices=("corrected", "published"), default="corrected", help=as_was)
    add("--per-class", action="store_true", help="figures of each class, too, in the .json")
    add("--resamples", type=positive, default=1000, help="of the bootstrap")
    pixels = takes(image_size(None))
    add("--size", type=pixels, help="pixels of the input, where no model.json says; default: 112")
    add("--crop", choices=views.CROPS, help="likewise; resized: the centre of 256/224 of it")
    pixels_option(parser)
    add("-E", "--save_embeddings", action="store_true", help="write them as .npy, too")
    add("--name", type=some_text, help="of the results; default: models and sets")
    evaluation_options(parser, output=output)
    return parser


def search_arguments(parser: Parser) -> argparse.Namespace:
    """Reads the command line. Exit code 2, or BctError, for options that do not go together."""
    args = parser.parse_args()
    if bool(args.model_file) == bool(args.matrix):
        parser.error("give new models to test, -m, or the versions of a chain, --matrix")
    if args.matrix and (len(args.matrix) < 2 or args.model_file_old or args.model_file_alone):
        parser.error("--matrix wants two versions or more, and neither -m_old nor -m_alone")
    if (args.old_gallery or args.backfill) and not args.model_file_old:
        parser.error("--old-gallery and --backfill need the old model, -m_old")
    if len(args.whiten) > 1 + bool(args.model_file_alone):
        parser.error("--whiten takes a file, and a second one for -m_alone")
    for option, numbers in (("--expand", args.expand), ("--rerank", args.rerank)):
        whole = (numbers or [])[1:] if option == "--expand" else (numbers or [])[:2]
        if any(value < 1 or value != int(value) for value in whole):
            parser.error(f"{option} takes neighbours as whole numbers from 1")
    if args.rerank and args.rerank[2] > 1:
        parser.error("--rerank takes a LAMBDA from 0 to 1")
    if args.name is not None and Path(args.name).name in ("", ".."):
        raise BctError(f"--name {args.name!r} is no name", "give one, such as new_vs_old")
    if args.old_gallery and not is_stored(args.old_gallery):
        raise BctError(
            f"--old-gallery {args.old_gallery} is no .npy", "make one: tools/transform_gallery.py"
        )
    args.model_file = args.model_file or args.matrix
    return args


Opened = Callable[[bool], Protocol]  # (whether all models are stored embeddings) -> protocol


def run_searches(
    args: argparse.Namespace,
    opened: Opened,
    whole: Whole | None = None,
    words: tuple[str, ...] = (),
) -> None:
    """Opens, embeds, searches and writes <output>/<name>.md and .json; under torchrun on all ranks.

    Args:
        args: what search_arguments has read; `old_classes` is asked for where it is there.
        whole: see bct.models.embed.embed_models. words: for the name of the results, beside those
            of what differs from the defaults.
    """
    device = distributed.setup()
    _evaluate(args, opened, whole, words, device)
    distributed.shutdown()


def _evaluate(
    args: argparse.Namespace,
    opened: Opened,
    whole: Whole | None,
    words: tuple[str, ...],
    device: torch.device,
) -> None:
    roles, files = roles_and_files(args)
    dtype = amp_dtype(args.amp, device)
    models = open_models(files, dtype, size=args.size, crop=args.crop, pixels=args.pixels)
    protocol = opened(all(model.view is None for model in models.values()))
    how = how_of(args, protocol)
    check_refined(how.refine, protocol.search, how.metric)
    old, why_not = None, []
    if "old_classes" in args:
        oldest = args.model_file_old or (args.matrix or [None])[0]
        old, why_not = old_classes(protocol, args.old_classes, oldest)
    orders = read_orders(args.backfill, protocol, models.get(roles.old), args.parity)
    whiten = whitening_rows(args.whiten, models, roles)
    rest = [*words, *["matrix"] * roles.chain, *[how.metric] * (how.metric != "cosine")]
    rest += [how.dimensions] * (how.dimensions != "equal") + ["backfill"] * bool(args.backfill)
    rest += [word for word in ("expand", "whiten", "rerank") if getattr(args, word)]
    rest += [args.parity] * (args.parity != "corrected")
    target = args.output / (args.name or results_name(args, protocol.name, *rest))
    files = embedding_files(target, protocol, models) if args.save_embeddings else {}
    summary = made_from(protocol, models, how, whole)
    if whiten:
        summary["whiten"] = {label: digest for label, (digest, _) in whiten.items()}
    if args.parity != "corrected":
        summary["parity"] = args.parity
    check_tests({label: model.width for label, model in models.items()}, roles, how)
    if not args.overwrite:
        refuse_to_replace(target, summary)
    check_outputs(*results_files(target), *(file for two in files.values() for file in two))
    embeddings = embed_models(
        {label: model for label, model in models.items() if label != roles.mapped},
        protocol.images, args.cache, device=device, batch_size=args.batch_size,
        num_workers=args.num_workers, remarks=protocol.remarks, whole=whole,
    )  # fmt: skip
    if not distributed.is_main():
        return
    save_embeddings(files, protocol, embeddings)
    wanted = Wanted(old, orders, args.resamples, args.per_class, fitted(whiten), whole)
    found, text, remarks = study(protocol, models, embeddings, roles, how, wanted)
    remarks = [*why_not, *remarks]
    about = {"files": {label: model.file for label, model in models.items()}, "remarks": remarks}
    said = {**summary, **found, "roles": roles._asdict(), **about}
    write_results(target, said, "\n\n".join([*text, *remarks]))


def how_of(args: argparse.Namespace, protocol: Protocol) -> How:
    """How searches of this protocol are made."""
    expand = (args.expand[0], int(args.expand[1])) if args.expand else None
    rerank = (int(args.rerank[0]), int(args.rerank[1]), args.rerank[2]) if args.rerank else None
    refine = Refine(expand, rerank, args.parity)
    ks = tuple(sorted(set(args.ks)))
    return How(args.metric, args.dimensions, ks, protocol.search.precision, refine)
