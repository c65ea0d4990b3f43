"""IJB-C (or IJB-B) evaluation: self tests of each model, cross tests against an old one.

    python eval/ijbc.py -m new.pt -net r50 -d /data/ijb                          # new/new
    python eval/ijbc.py -m new.pt -net r50 -m_old old.pt -old_net r18 -d /data/ijb [-N]
    python eval/ijbc.py -m v2.pt v3.pt -m_old v1.pt -d /data/ijb --matrix        # a chain
    torchrun --nproc_per_node=8 eval/ijbc.py ...                  # the ranks share the images
    python eval/ijbc.py -P a.npz b.npz -d /data/ijb               # only draw saved scores

A model is a model.pt with its model.json (which needs no -net), weights of insightface or MixBCT,
an .onnx file, or an .npy or .npz of embeddings, a row per image of the protocol, as -E writes.

With -m_old the table has old/old, new/old (query by the new model, gallery and enrolment side by
the old one) and new/new. -N adds identification (1:N). Several new models may be given at once.
Embeddings are cached by weights and images. Results are named after the models and the test:
<new>_vs_<old>_IJBC_11.md, .json, .png and, with the scores of all pairs, .npz.
"""

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from bct.command import run_cli
from easydict import EasyDict

from bct import distributed
from bct.amp import amp_dtype
from bct.errors import BctError
from bct.files import ROOT, atomic, model_name, read_json, sha256_file
from bct.metrics.chain import (
    average_compatibility,
    average_quality,
    backward_transfer,
    forward_transfer,
)
from bct.metrics.scores import FARS, rate_name, roc_points
from tools.ijbc import report
from tools.ijbc.features import image_features
from tools.ijbc.protocol import Protocol, read_galleries, read_protocol
from tools.ijbc.scoring import (
    MODES,
    PUBLISHED,
    open_set,
    pair_scores,
    template_features,
    verification,
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-m", "--model_file", nargs="+", default=[], metavar="NEW", help="new model(s)")
    add("-net", "--network", nargs="*", default=[], help="their networks, e.g. r50")
    add("-m_old", "--model_file_old", metavar="OLD", help="old model: adds the cross tests")
    add("-old_net", "--network_old", help="its network")
    add("-d", "--data_path", help="the folder that contains IJBC/ (or IJBB/)")
    add("-s", "--subset", default="IJBC", choices=("IJBC", "IJBB"))
    add("-b", "--batch_size", type=int, default=128)
    add("-N", "--is_one_2_N", action="store_true", help="also identification, 1:N")
    add("-B", "--is_bunch", action="store_true", help="all eight modes, N0D0F0 to N1D1F1")
    add("--matrix", action="store_true", help="every model against every other one's gallery")
    add("-R", "--save_result", type=Path, help="file for the scores; default: beside the table")
    add("-L", "--save_label", action="store_true", help="put the labels into that file, too")
    add("-E", "--save_embeddings", action="store_true", help="write <model>_<subset>.npy, too")
    add("-F", "--force_reload", action="store_true", help="compute cached embeddings anew")
    saved = "draw the curves of saved scores (.npz, .npy, .txt) and nothing else"
    add("-P", "--plot_only", nargs="+", type=Path, metavar="SCORES", help=saved)
    rules = "strict: highest TAR whose FAR is within the target; nearest: as published"
    add("--roc", default="strict", choices=("strict", "nearest"), help=rules)
    add("--far", type=float, default=1e-4, help="FAR of the verdict and the bar chart")
    add("--amp", choices=("bf16", "fp16", "off"), help="precision; default: as in training")
    add("-o", "--output", type=Path, default=Path("work_dirs/ijbc"), help="folder for the results")
    add("--overwrite", action="store_true", help="replace results of other weights of these names")
    add("--cache", type=Path, default=ROOT / "work_dirs" / "ijbc_cache")
    add("-j", "--num_workers", type=int, default=2)
    args = parser.parse_args()
    if bool(args.model_file) == bool(args.plot_only):
        parser.error("give models to test, -m, or saved scores to draw, -P")
    if args.model_file and not args.data_path:
        parser.error("give the folder that contains IJBC/, -d")
    if args.network and len(args.network) != len(args.model_file):
        raise BctError(
            f"{len(args.network)} networks for {len(args.model_file)} models",
            "give -net one name per model",
        )
    if args.far not in FARS:
        raise BctError(
            f"--far {args.far:g} is not a FAR of the table",
            f"choose from {', '.join(map(rate_name, FARS))}",
        )
    return args


def main() -> None:
    args = arguments()
    if args.plot_only:
        return plot_only(args)
    device = distributed.setup()
    evaluate(args, device)
    distributed.shutdown()


class Model(NamedTuple):
    """What is tested: `label` in the table, "old" for the old one."""

    label: str
    file: str
    network: str | None
    sha256: str


def models(args: argparse.Namespace) -> list[Model]:
    """The models to test, the old one first."""
    networks = args.network or [None] * len(args.model_file)
    single = len(args.model_file) == 1
    labels = ["new" if single else model_name(file) for file in args.model_file]
    files = list(zip(labels, args.model_file, networks, strict=True))
    if args.model_file_old:
        files.insert(0, ("old", args.model_file_old, args.network_old))
    labels = [label for label, _, _ in files]
    if len(set(labels)) < len(labels):
        raise BctError(
            f"the models are called {', '.join(labels)}: two have one name",
            "rename a file or its folder, so that the table can tell them apart",
        )
    for _, file, _ in files:
        if not Path(file).is_file():
            raise BctError(f"model {file} does not exist", "check the path, or train it first")
    return [Model(*file, sha256_file(file[1])) for file in files]


def evaluate(args: argparse.Namespace, device: torch.device) -> None:
    tested = models(args)
    protocol = read_protocol(args.data_path, args.subset)
    galleries = read_galleries(protocol) if args.is_one_2_N else None
    modes = MODES if args.is_bunch else (PUBLISHED,)
    target = result_stem(args, tested)
    summary = {
        "subset": args.subset,
        "data": protocol.fingerprint,
        "roc": args.roc,
        "models": {m.label: {"file": m.file, "sha256": m.sha256} for m in tested},
    }
    if not args.overwrite:
        refuse_to_replace(target, summary)

    embeddings = embed(args, tested, protocol, device, {mode.mirror for mode in modes})
    if not distributed.is_main():
        return
    if args.save_embeddings:
        for model in tested:
            path = args.output / f"{model_name(model.file)}_{args.subset}.npy"
            with atomic(path) as temporary, open(temporary, "wb") as file:
                np.save(file, embeddings[model.label, True])

    tests, curves, kept = {}, {}, {}
    for mode in modes:
        templates = {
            m.label: template_features(embeddings[m.label, mode.mirror], protocol, mode)
            for m in tested
        }
        for query, gallery in pairings(args, [m.label for m in tested]):
            name = f"{query} / {gallery}" + (f", {mode}" if args.is_bunch else "")
            # the first template of a pair is the enrolled one, the second the probe
            enrolled, probe = templates[gallery], templates[query]
            scores = pair_scores(enrolled, probe, protocol.first, protocol.second)
            tests[name] = {"pairs": verification(scores, protocol.genuine, args.roc)}
            if galleries:
                tests[name]["search"] = open_set(enrolled, probe, *galleries, args.roc)
            if mode == PUBLISHED:
                curves[name] = roc_points(scores, protocol.genuine, max(1 / len(scores), 1e-6))
                kept[name] = scores

    text = "\n\n".join([report.table(tests), *notes(args, tests, protocol, tested)])
    report.write(target, {**summary, "tests": tests}, text, curves, args.far)
    labels = {"label": protocol.genuine} if args.save_label else {}
    saved = args.save_result or target.with_name(f"{target.name}.npz")
    with atomic(saved) as temporary, open(temporary, "wb") as file:
        np.savez(file, names=list(kept), scores=np.stack(list(kept.values())), **labels)
    print(f"\n{text}\n\nwritten to {target}.md, .json, .png; scores to {saved}")


def result_stem(args: argparse.Namespace, tested: list[Model]) -> Path:
    """Path of the results without suffix: the models and the test, so that no test replaces
    another one's."""
    new = "+".join(model_name(m.file) for m in tested if m.label != "old")
    old = [model_name(m.file) for m in tested if m.label == "old"]
    parts = ["_vs_".join([new, *old]), args.subset, "1N" if args.is_one_2_N else "11"]
    parts += ["8modes"] * args.is_bunch + ["matrix"] * args.matrix
    parts += [args.roc] * (args.roc != "strict")
    return args.output / "_".join(parts)


def refuse_to_replace(target: Path, summary: dict) -> None:
    """Raises BctError if there are results of that name of other weights or data."""
    path = target.with_name(f"{target.name}.json")
    if not path.is_file():
        return
    there = read_json(path)
    hashes = [[m["sha256"] for m in s["models"].values()] for s in (there, summary)]
    if hashes[0] != hashes[1] or there["data"] != summary["data"]:
        raise BctError(
            f"{path} holds the results of other weights or data of these names",
            "give another folder, -o, or --overwrite",
        )


def embed(
    args: argparse.Namespace,
    tested: list[Model],
    protocol: Protocol,
    device: torch.device,
    mirrors: set[bool],
) -> dict[tuple[str, bool], np.ndarray]:
    """(label, with mirror image?) -> embeddings (N, D)."""
    dtype = amp_dtype(EasyDict(amp=args.amp, fp16=None), device)
    return {
        (model.label, mirror): image_features(
            protocol,
            model.file,
            model.network,
            args.cache,
            device,
            dtype,
            args.batch_size,
            args.num_workers,
            mirror=mirror,
            reload=args.force_reload,
        )
        for model, mirror in itertools.product(tested, sorted(mirrors))
    }


def pairings(args: argparse.Namespace, labels: list[str]) -> list[tuple[str, str]]:
    """(query model, gallery model) of every test, in the order of the table."""
    if args.matrix:
        return list(itertools.product(labels, labels))
    if not args.model_file_old:
        return [(label, label) for label in labels]
    old, *new = labels
    return [(old, old)] + [pair for label in new for pair in ((label, old), (label, label))]


def notes(
    args: argparse.Namespace, tests: dict, protocol: Protocol, tested: list[Model]
) -> list[str]:
    """What the figures mean: the verdict on compatibility, and FARs too small for this protocol."""
    lines = []
    key = rate_name(args.far)
    labels = [model.label for model in tested]
    suffix = f", {PUBLISHED}" if args.is_bunch else ""

    def tar(query: str, gallery: str) -> float:
        return tests[f"{query} / {gallery}{suffix}"]["pairs"]["tar"][key]

    if args.model_file_old:
        old_self = tar("old", "old")
        for label in labels[1:]:
            cross = tar(label, "old")
            verdict, sign = ("", ">") if cross > old_self else ("not ", "<=")
            lines.append(
                f"{label}: {verdict}compatible at FAR {key} "
                f"(cross {cross:.4f} {sign} old self {old_self:.4f})"
            )
    if args.matrix and len(labels) > 1:
        quality = np.array([[tar(query, gallery) for gallery in labels] for query in labels])
        lines.append(
            f"chain {' -> '.join(labels)}, TAR at FAR {key}: "
            f"average compatibility {average_compatibility(quality):.3f}, "
            f"average quality {average_quality(quality):.4f}, "
            f"backward transfer {backward_transfer(quality):+.4f}, "
            f"forward transfer {forward_transfer(quality):+.4f}"
        )
    impostors = int((~protocol.genuine).sum())
    small = [far for far in tests[next(iter(tests))]["pairs"]["tar"] if float(far) * impostors < 1]
    if small and args.roc == "strict":
        lines.append(
            f"{impostors} impostor pairs: FAR {', '.join(small)} allows no false accept at all"
        )
    return lines


def plot_only(args: argparse.Namespace) -> None:
    """Draws ROC curves of saved scores into <output>/curves.png."""
    known: np.ndarray | None = None
    if args.data_path:
        known = read_protocol(args.data_path, args.subset).genuine
    tests, curves = {}, {}
    for path in args.plot_only:
        for name, scores, label in report.read_scores(path):
            genuine = known if label is None else label
            if genuine is None or len(genuine) != len(scores):
                have = "no labels" if genuine is None else f"{len(genuine)} labels"
                raise BctError(
                    f"{path} has {len(scores)} scores and there are {have} for them",
                    "give the protocol's folder, -d, or scores saved with -L",
                )
            if name in tests:
                name = f"{path.stem}: {name}"
            tests[name] = {"pairs": verification(scores, genuine, args.roc)}
            curves[name] = roc_points(scores, genuine, max(1 / len(scores), 1e-6))
    report.draw(tests, curves, args.output / "curves.png", args.far)
    print(f"{report.table(tests)}\n\nwritten to {args.output}/curves.png")


if __name__ == "__main__":
    run_cli(main)
