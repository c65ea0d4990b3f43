"""IJB-C (or IJB-B) evaluation: self tests of each model, cross tests against an old one.

    python eval/ijbc.py -m new.pt -net r50 -d /data/ijb                          # new/new
    python eval/ijbc.py -m new.pt -net r50 -m_old old.pt -old_net r18 -d /data/ijb [-N]
    torchrun --nproc_per_node=8 eval/ijbc.py ...                  # the ranks share the images

With -m_old the table has old/old, new/old (query by the new model, gallery and enrolment side by
the old one) and new/new. -N adds identification (1:N). Several new models may be given at once.
Embeddings are cached by weights and images; a model.pt with its model.json needs no -net.
"""

import argparse
from pathlib import Path

from easydict import EasyDict

from bct import distributed
from bct.amp import amp_dtype
from bct.errors import BctError, run_cli
from bct.files import ROOT, sha256_file
from bct.metrics import FARS, rate_name, roc_points
from tools.ijbc import report
from tools.ijbc.features import image_features
from tools.ijbc.protocol import read_galleries, read_protocol
from tools.ijbc.scoring import open_set, pair_scores, template_features, verification


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-m", "--model_file", nargs="+", required=True, metavar="NEW.pt", help="new model(s)")
    add("-net", "--network", nargs="*", default=[], help="their networks, e.g. r50")
    add("-m_old", "--model_file_old", metavar="OLD.pt", help="old model: adds the cross tests")
    add("-old_net", "--network_old", help="its network")
    add("-d", "--data_path", required=True, help="the folder that contains IJBC/ (or IJBB/)")
    add("-s", "--subset", default="IJBC", choices=("IJBC", "IJBB"))
    add("-b", "--batch_size", type=int, default=128)
    add("-N", "--is_one_2_N", action="store_true", help="also identification, 1:N")
    rules = "strict: highest TAR whose FAR is within the target; nearest: as published"
    add("--roc", default="strict", choices=("strict", "nearest"), help=rules)
    add("--far", type=float, default=1e-4, help="FAR of the verdict and the bar chart")
    add("--amp", choices=("bf16", "fp16", "off"), help="precision; default: as in training")
    add("-o", "--output", type=Path, default=Path("work_dirs/ijbc"), help="folder for the results")
    add("--cache", type=Path, default=ROOT / "work_dirs" / "ijbc_cache")
    add("-j", "--num_workers", type=int, default=2)
    args = parser.parse_args()
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
    device = distributed.setup()
    try:
        evaluate(args, device)
    finally:
        distributed.shutdown()


def evaluate(args: argparse.Namespace, device) -> None:
    protocol = read_protocol(args.data_path, args.subset)
    galleries = read_galleries(protocol) if args.is_one_2_N else None
    dtype = amp_dtype(EasyDict(amp=args.amp, fp16=None), device)

    models = {}  # label -> (file, templates); the old model first
    networks = args.network or [None] * len(args.model_file)
    files = list(zip(args.model_file, networks, strict=True))
    labels = ["new"] if len(files) == 1 else [model_name(file) for file, _ in files]
    if args.model_file_old:
        files.insert(0, (args.model_file_old, args.network_old))
        labels.insert(0, "old")
    for label, (file, network) in zip(labels, files, strict=True):
        features = image_features(
            protocol, file, network, args.cache, device, dtype, args.batch_size, args.num_workers
        )
        models[label] = template_features(features, protocol)
    if not distributed.is_main():
        return

    tests, curves = {}, {}
    for query, gallery in pairings(labels, bool(args.model_file_old)):
        name = f"{query} / {gallery}"
        # the first template of a pair is the enrolled one, the second the probe
        enrolled, probe = models[gallery], models[query]
        scores = pair_scores(enrolled, probe, protocol.first, protocol.second)
        tests[name] = {"pairs": verification(scores, protocol, args.roc)}
        curves[name] = roc_points(scores, protocol.genuine, max(1 / len(scores), 1e-6))
        if galleries:
            tests[name]["search"] = open_set(enrolled, probe, *galleries, args.roc)

    text = "\n\n".join([report.table(tests), *notes(args, tests, protocol)])
    stem = "_vs_".join(model_name(f) for f in (args.model_file[0], args.model_file_old) if f)
    stem += f"_{args.subset}_{'1N' if galleries else '11'}"
    summary = {
        "subset": args.subset,
        "data": protocol.fingerprint,
        "roc": args.roc,
        "models": {
            label: {"file": str(file), "sha256": sha256_file(file)}
            for label, (file, _) in zip(labels, files, strict=True)
        },
        "tests": tests,
    }
    report.write(args.output, stem, summary, text, curves, args.far)
    print(f"\n{text}\n\nwritten to {args.output}/{stem}.md, .json, .png")


def pairings(labels: list[str], has_old: bool) -> list[tuple[str, str]]:
    """(query model, gallery model) of every test, in the order of the table."""
    if not has_old:
        return [(label, label) for label in labels]
    old, *new = labels
    return [(old, old)] + [pair for label in new for pair in ((label, old), (label, label))]


def notes(args: argparse.Namespace, tests: dict, protocol) -> list[str]:
    """What the figures mean: the verdict on compatibility, and FARs too small for this protocol."""
    lines = []
    key = rate_name(args.far)
    if args.model_file_old:
        old_self = tests["old / old"]["pairs"]["tar"][key]
        for name, test in tests.items():
            query, gallery = name.split(" / ")
            if gallery == "old" and query != "old":
                cross = test["pairs"]["tar"][key]
                verdict, sign = ("", ">") if cross > old_self else ("not ", "<=")
                lines.append(
                    f"{query}: {verdict}compatible at FAR {key} "
                    f"(cross {cross:.4f} {sign} old self {old_self:.4f})"
                )
    impostors = int((~protocol.genuine).sum())
    small = [far for far in tests[next(iter(tests))]["pairs"]["tar"] if float(far) * impostors < 1]
    if small and args.roc == "strict":
        lines.append(
            f"{impostors} impostor pairs: FAR {', '.join(small)} allows no false accept at all"
        )
    return lines


def model_name(file: str) -> str:
    """A short name for a model file: work_dirs/x/model.pt is x."""
    path = Path(file)
    return path.parent.name if path.stem in ("model", "best", "backbone") else path.stem


if __name__ == "__main__":
    run_cli(main)
