"""Retrieval on image sets: each model with itself, and new queries against old galleries.

    python eval/retrieval.py -m new.pt -m_old old.pt --data val --leave-one-out
    python eval/retrieval.py -m a.pt b.pt -m_old old.pt -m_free alone.pt --data val --leave-one-out
    python eval/retrieval.py -m new.pt -m_old old.pt --data queries --gallery gallery
    python eval/retrieval.py --matrix v1.pt v2.pt v3.pt --data val --leave-one-out    # a chain
    python eval/retrieval.py -m new.pt -m_old old.pt --old-gallery transformed.npy \\
        --backfill random uncertainty.npy --data val --leave-one-out                  # FCT
    torchrun --nproc_per_node=8 eval/retrieval.py ...             # the ranks share the images

q / g is a query by model q against a gallery by model g. With -m_old there are old/old, new/old and
new/new; -m_free is the new network trained without compatibility, by which a gain is measured.
Top-k and mAP are exact, see bct/metrics/ranking.py. Where the class names of the old model's data
are known, queries of classes it was trained on and of others are given apart, too. A self test uses
all dimensions of its model; how two widths meet is for --dimensions to say.

A model is whatever eval/ijbc.py takes; an .npy or .npz has a row per image of the set, and for two
sets there are two files, queries.npy,gallery.npy. A model.json says how its network sees an image;
of a network that has none it is --size, --crop, --pixels.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch

from bct import distributed
from bct.amp import amp_dtype
from bct.command import run_cli
from bct.data import views
from bct.errors import BctError
from bct.files import atomic, model_name, read_json, write_json, write_text
from bct.metrics.retrieval import METRICS, Retrieval
from bct.models.widths import POLICIES
from bct.protocols import tables
from bct.protocols.image_search import (
    EVERY,
    NEW,
    OLD,
    How,
    backfilling,
    chain_figures,
    compatible,
    figures,
    parts_of,
    search,
)
from bct.protocols.items import (
    Items,
    Model,
    Sides,
    class_names,
    embed,
    open_items,
    open_model,
    stored,
)
from bct.search.orders import distance_to_centre, order_by_distance, order_random
from bct.stored.vector_files import is_stored

ORDERS = ("random", "distance")
_SEEDS = 3  # random orders that a curve is the mean of


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-m", "--model_file", nargs="+", default=[], metavar="NEW", help="new model(s)")
    add("-net", "--network", nargs="*", default=[], help="their networks, e.g. resnet50")
    add("-m_old", "--model_file_old", metavar="OLD", help="old model: adds the cross tests")
    add("-old_net", "--network_old", help="its network")
    add("-m_free", "--model_file_free", metavar="FREE", help="trained without compatibility")
    add("-free_net", "--network_free", help="its network")
    versions = "instead of -m: versions of a model, oldest first, each against every one's gallery"
    add("--matrix", nargs="+", default=[], metavar="V1", help=versions)
    add(
        "--data", required=True, metavar="SET", help="the queries: a folder, list, record file, ..."
    )
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
    add("-b", "--batch_size", type=int, default=128)
    add("-j", "--num_workers", type=int, default=2)
    add("--amp", choices=("bf16", "fp16", "off"), help="precision; default: as in training")
    add("-E", "--save_embeddings", action="store_true", help="write them as .npy, too")
    add("-o", "--output", type=Path, default=Path("work_dirs/retrieval"), help="folder")
    add("--name", help="of the results; default: models and sets")
    add("--overwrite", action="store_true", help="replace results of other models or data")
    args = parser.parse_args()
    if bool(args.model_file) == bool(args.matrix):
        parser.error("give new models to test, -m, or the versions of a chain, --matrix")
    if args.matrix and (len(args.matrix) < 2 or args.model_file_old or args.model_file_free):
        parser.error("--matrix wants two versions or more, and neither -m_old nor -m_free")
    if (args.old_gallery or args.backfill) and not args.model_file_old:
        parser.error("--old-gallery and --backfill need the old model, -m_old")
    new = args.model_file or args.matrix
    if args.network and len(args.network) != len(new):
        raise BctError(
            f"{len(args.network)} networks for {len(new)} models", "give -net one name per model"
        )
    if min(args.resamples, *args.ks) < 1:
        raise BctError("--resamples or one of --ks is below 1", "give numbers above 0")
    return args


def main() -> None:
    args = arguments()
    device = distributed.setup()
    evaluate(args, device)
    distributed.shutdown()


def evaluate(args: argparse.Namespace, device: torch.device) -> None:
    tested, items = models(args), open_items(args.data, args.gallery)
    how = How(args.metric, args.dimensions, tuple(sorted(set(args.ks))))
    old, remarks = old_classes(args, items)
    parts = parts_of(items, old)
    if old is not None:
        remarks += [f"There are no {part}." for part in (OLD, NEW) if part not in parts]
    given = {name: uncertainties(name, items) for name in args.backfill if name not in ORDERS}
    target = args.output / (args.name or result_name(args))
    summary = {
        "models": {
            m.label: {"sha256": m.sha256, "view": m.view and m.view._asdict()} for m in tested
        },
        "data": [s.fingerprint for s in items.sets],
        "metric": how.metric,
        "dimensions": how.dimensions,
    }
    if not args.overwrite:
        refuse_to_replace(target, summary)
    sides = embeddings(args, tested, items, device)
    if not distributed.is_main():
        return
    if args.save_embeddings:
        save(target, tested, sides)

    new = new_labels(args)
    results, left_out = searches(args, items, sides, new, how)
    tests = {name: figures(items, parts, r, args.per_class) for name, r in results.items()}
    summary["tests"] = tests
    text = [heading(args, tested, items, sides)]
    text += [tables.tests(tests, part, how.qualities) for part in parts]
    if args.matrix:
        summary["chain"] = chain_figures(new, tests, how)
        text.append(tables.chain(new, summary["chain"]))
    if args.model_file_old:
        summary["compatibility"] = {
            label: {
                part: compatible(
                    [results[name] for name in compared(args, label) if name in results],
                    items.query_labels,
                    chosen,
                    how,
                    args.resamples,
                )
                for part, chosen in parts.items()
            }
            for label in new
        }
        text.append(tables.compatibility(summary["compatibility"]))
    if args.backfill:
        stale = sides[stale_side(args)].gallery
        orders = {name: order(name, given, stale, items) for name in args.backfill}
        goals = tests["old / old"][EVERY]
        summary["backfill"] = {
            label: backfilling(items, sides[label], stale, orders, goals, how) for label in new
        }
        text.append(tables.backfill(summary["backfill"]))
        if any(sides[label].gallery.shape[1] != stale.shape[1] for label in new):
            remarks.append("A mixed gallery has one width: 100 % is new / new in that width.")
    page = "\n\n".join([*text, *remarks, *left_out])
    write_json(target.with_name(f"{target.name}.json"), summary)
    write_text(target.with_name(f"{target.name}.md"), page + "\n")
    print(f"\n{page}\n\nwritten to {target}.md, .json")


def new_labels(args: argparse.Namespace) -> list[str]:
    """What the tables call the new models, or the versions of a chain."""
    new = args.model_file or args.matrix
    return ["new"] if len(new) == 1 else [model_name(file) for file in new]


def models(args: argparse.Namespace) -> list[Model]:
    """The models, old ones first."""
    new = args.model_file or args.matrix
    networks = args.network or [None] * len(new)
    files = list(zip(new_labels(args), new, networks, strict=True))
    if args.old_gallery:
        files.insert(0, ("transformed", args.old_gallery, None))
    if args.model_file_old:
        files.insert(0, ("old", args.model_file_old, args.network_old))
    if args.model_file_free:
        files.append(("free", args.model_file_free, args.network_free))
    labels = [label for label, *_ in files]
    if len(set(labels)) < len(labels):
        raise BctError(
            f"the models are called {', '.join(labels)}: two have one name",
            "rename a file or its folder, so that the tables can tell them apart",
        )
    if args.old_gallery and not is_stored(args.old_gallery):
        raise BctError(
            f"--old-gallery {args.old_gallery} is no .npy", "make one: tools/transform_gallery.py"
        )
    view = {"size": args.size, "crop": args.crop, "pixels": args.pixels}
    return [open_model(*file, **view) for file in files]


def old_classes(args: argparse.Namespace, items: Items) -> tuple[np.ndarray | None, list[str]]:
    """Which classes are old, bool (C,), or None and why that is not known."""
    oldest = args.model_file_old or (args.matrix or [""])[0]
    if not args.old_classes and not oldest:
        return None, []
    if args.old_classes and args.old_classes.isdecimal():
        return np.arange(items.query_labels.max() + 1) < int(args.old_classes), []
    source = args.old_classes or Path(oldest).with_suffix(".json")
    names = class_names(source)
    if names is not None and items.names is not None:
        return np.isin(items.names, names), []
    if args.old_classes:
        lacking = args.old_classes if names is None else args.data
        raise BctError(f"--old-classes: {lacking} has no class names", "give a number of labels")
    lacking = source if names is None else args.data
    return None, [f"Old and new classes are not told apart: {lacking} has no class names."]


def result_name(args: argparse.Namespace) -> str:
    """The models and the test, so that no test replaces another one's results."""
    new = "+".join(model_name(file) for file in args.model_file or args.matrix)
    old = [model_name(file) for file in (args.old_gallery or args.model_file_old,) if file]
    sets = [Path(path).resolve().stem for path in (args.data, args.gallery) if path]
    parts = ["_vs_".join([new, *old]), "_in_".join(sets)]
    parts += ["matrix"] * bool(args.matrix) + [args.metric] * (args.metric != "cosine")
    parts += [args.dimensions] * (args.dimensions != "equal")
    return "_".join(parts + ["backfill"] * bool(args.backfill))


def refuse_to_replace(target: Path, made_from: dict) -> None:
    """Raises BctError if there are results of that name of other models, data or settings."""
    path = target.with_name(f"{target.name}.json")
    if path.is_file():
        there = read_json(path)
        if any(there.get(key) != value for key, value in made_from.items()):
            raise BctError(
                f"{path} holds the results of other models, data or settings",
                "give another folder, -o, another --name, or --overwrite",
            )


def embeddings(
    args: argparse.Namespace, tested: list[Model], items: Items, device: torch.device
) -> dict[str, Sides]:
    """Label -> embeddings of both sides; of a transformed gallery its query side is empty."""
    dtype = amp_dtype(args.amp, device)
    sides = {}
    for model in tested:
        if model.label == "transformed":
            gallery = stored(model, items.sets[-1:])[0]
            sides[model.label] = Sides(gallery[:0], gallery)
    whole = [m for m in tested if m.label != "transformed"]
    return sides | embed(whole, items.sets, device, dtype, args.batch_size, args.num_workers)


def save(target: Path, tested: list[Model], sides: dict[str, Sides]) -> None:
    """<target>_<label>.npy; with two sets <target>_<label>_queries.npy and _gallery.npy."""
    for model in tested:
        query, gallery = sides[model.label]
        arrays = {"": query} if query is gallery else {"_queries": query, "_gallery": gallery}
        for end, array in arrays.items() if model.view else ():
            path = target.with_name(f"{target.name}_{model.label}{end}.npy")
            with atomic(path) as temporary, open(temporary, "wb") as file:
                np.save(file, array)


def stale_side(args: argparse.Namespace) -> str:
    """Whose gallery new queries meet before a backfill."""
    return "transformed" if args.old_gallery else "old"


def compared(args: argparse.Namespace, label: str) -> list[str]:
    """The tests that tell whether a new model is compatible: old, cross, self, paragon."""
    return ["old / old", f"{label} / {stale_side(args)}", f"{label} / {label}", "free / free"]


def searches(
    args: argparse.Namespace, items: Items, sides: dict[str, Sides], new: list[str], how: How
) -> tuple[dict[str, Retrieval], list[str]]:
    """Test -> result, in the order of the tables; and which test is left out."""
    if args.matrix:
        names = [f"{q} / {g}" for q, g in itertools.product(new, repeat=2)]
    elif args.model_file_old:
        names = list(dict.fromkeys(name for label in new for name in compared(args, label)[:3]))
        names += ["free / free", "free / old"]
    else:
        names = [*(f"{label} / {label}" for label in new), "free / free"]
    results, left_out = {}, []
    for name in names:
        query, gallery = name.split(" / ")
        if query not in sides:
            continue
        both = sides[query].query, sides[gallery].gallery
        widths = [x.shape[1] for x in both]
        # no part of the verdict: it only shows that the paragon's space is another one
        if name == "free / old" and how.dimensions == "equal" and widths[0] != widths[1]:
            left_out.append(f"{name} is left out: {widths[0]} and {widths[1]} dimensions.")
            continue
        results[name] = search(items, *both, how)
    return results, left_out


def uncertainties(path: str, items: Items) -> np.ndarray:
    """A number per gallery item, (G,), from an .npy of (G,) or (G, 1)."""
    count = len(items.gallery_labels)
    if not path.endswith(".npy") or not Path(path).is_file():
        raise BctError(
            f"--backfill {path} is no order",
            f"choose {', '.join(ORDERS)}, or give an .npy of uncertainties",
        )
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BctError(f"{path} can't be read ({error})", "write it with np.save") from None
    if values.shape not in ((count,), (count, 1)) or values.dtype.kind != "f":
        raise BctError(
            f"{path} holds {values.dtype} {values.shape} for {count} gallery images",
            "store one uncertainty per image, as floats, in their order",
        )
    return values.reshape(-1)


def order(
    name: str, given: dict[str, np.ndarray], gallery: np.ndarray, items: Items
) -> list[np.ndarray]:
    """Permutations of the gallery: what comes first in a backfill."""
    if name == "random":
        return [order_random(len(gallery), seed) for seed in range(_SEEDS)]
    first = given.get(name)
    if first is None:
        first = distance_to_centre(gallery, items.gallery_labels)
    return [order_by_distance(first)]


def heading(
    args: argparse.Namespace, tested: list[Model], items: Items, sides: dict[str, Sides]
) -> str:
    where = f"in {args.gallery}" if args.gallery else "each among all the others"
    lines = [
        f"{args.data}: {len(items.query_labels):,} queries, {where} "
        f"({len(items.gallery_labels):,} images); {args.metric}, dimensions: {args.dimensions}\n"
    ]
    for model in tested:
        view, seen = model.view, "stored embeddings"
        if view:
            seen = f"{view.size} pixels, crop {view.crop}, {view.pixels}"
        width = sides[model.label].gallery.shape[1]
        lines.append(f"- {model.label}: {model.file}, {width} dimensions, {seen}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
