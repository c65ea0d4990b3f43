"""Verification sets (LFW, CFP-FP, AgeDB-30, ... in insightface's .bin format).

    python eval/verification.py -m new.pt -net r50 --set lfw.bin agedb_30.bin
    python eval/verification.py -m new.pt -m_old old.pt --set lfw.bin        # and the cross test
    torchrun --nproc_per_node=8 eval/verification.py ...                     # shares the images

With -m_old the table has old/old, new/old (a pair's first image by the old model, its second by the
new one) and new/new. A model is whatever eval/ijbc.py takes; an .npy or .npz has a row per image of
the set, image plus mirror image. Accuracy is insightface's: 10 contiguous folds.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from bct.command import run_cli
from bct.metrics.accuracy import accuracy
from easydict import EasyDict

from bct import distributed
from bct.amp import amp_dtype
from bct.errors import BctError
from bct.files import model_name, sha256_file, write_json, write_text
from bct.metrics.bootstrap import bootstrap_tar_difference
from bct.metrics.flips import threshold_drift, verification_flips
from bct.metrics.scores import auc, rate_name, tar_at_far
from bct.models.weights import load_backbone
from bct.protocols.pairs import VerificationSet, embed, load_bin
from bct.stored.vector_files import is_stored, stored_embeddings


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-m", "--model_file", required=True, metavar="NEW", help="new model")
    add("-net", "--network", help="its network, e.g. r50")
    add("-m_old", "--model_file_old", metavar="OLD", help="old model: adds the cross test")
    add("-old_net", "--network_old", help="its network")
    add("--set", nargs="+", type=Path, required=True, metavar="LFW.bin", help="sets")
    add("-b", "--batch_size", type=int, default=256)
    add("--far", type=float, default=1e-3, help="FAR of the TAR, the threshold and the verdict")
    add("--amp", choices=("bf16", "fp16", "off"), help="precision; default: as in training")
    add("-o", "--output", type=Path, default=Path("work_dirs/verification"))
    args = parser.parse_args()
    if not 0 < args.far < 1:
        raise BctError(f"--far {args.far:g} is no rate", "give one between 0 and 1, such as 1e-3")
    if len({path.stem for path in args.set}) < len(args.set):
        raise BctError("two sets have one name", "rename a file")
    return args


def main() -> None:
    args = arguments()
    device = distributed.setup()
    evaluate(args, device)
    distributed.shutdown()


def evaluate(args: argparse.Namespace, device: torch.device) -> None:
    dtype = amp_dtype(EasyDict(amp=args.amp, fp16=None), device)
    files = {"new": (args.model_file, args.network)}
    if args.model_file_old:
        files = {"old": (args.model_file_old, args.network_old), **files}
    networks = {
        label: load_backbone(file, network, dtype, fold=True).to(device)
        for label, (file, network) in files.items()
        if not is_stored(file)
    }
    results, text = {}, []
    for path in args.set:
        images = load_bin(path)
        embeddings = {
            label: embed(networks[label], images.images, device, args.batch_size)
            if label in networks
            else stored_embeddings(file, len(images.images))
            for label, (file, _) in files.items()
        }
        tests, scores = compare(images, embeddings, args.far)
        results[images.name] = tests
        text += [table(images.name, tests, args.far), *notes(images, tests, scores, args.far)]
    if not distributed.is_main():
        return
    stem = "_vs_".join(model_name(files[label][0]) for label in ("new", "old") if label in files)
    target = args.output / f"{stem}_{'+'.join(results)}"
    models = {
        label: {"file": str(file), "sha256": sha256_file(file)}
        for label, (file, _) in files.items()
    }
    write_json(target.with_name(f"{target.name}.json"), {"models": models, "sets": results})
    page = "\n\n".join(text)
    write_text(target.with_name(f"{target.name}.md"), page + "\n")
    print(f"\n{page}\n\nwritten to {target}.md, .json")


def compare(
    images: VerificationSet, embeddings: dict[str, np.ndarray], far: float
) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """Test name -> its figures, and -> the cosine of every pair."""
    pairings = [("new", "new")]
    if "old" in embeddings:
        pairings = [("old", "old"), ("new", "old"), ("new", "new")]
    tests, scores = {}, {}
    for query, gallery in pairings:
        first, second = embeddings[gallery][0::2], embeddings[query][1::2]
        if first.shape != second.shape:
            raise BctError(
                f"the models' embeddings have {first.shape[1]} and {second.shape[1]} dimensions, "
                "so they can't be compared",
                "give models of equal embedding size",
            )
        name = f"{query} / {gallery}"
        mean, std, xnorm = accuracy(first, second, images.issame)
        units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)]
        scores[name] = (units[0] * units[1]).sum(1)
        tests[name] = {"accuracy": mean, "std": std, "xnorm": xnorm}
        if not images.only:
            point = tar_at_far(scores[name], images.issame, (far,))[0]
            tests[name] |= {
                "auc": auc(scores[name], images.issame),
                "tar": point.tar,
                "reached_far": point.far,
                "threshold": point.threshold,
            }
    return tests, scores


def table(name: str, tests: dict[str, dict], far: float) -> str:
    """A set's Markdown table."""
    key = f"TAR@{rate_name(far)}"
    lines = [f"| {name} | accuracy | AUC | {key} | threshold | XNorm |", "| :-- |" + " --: |" * 5]
    for test, figures in tests.items():
        rest = [f"{figures[k]:.4f}" if k in figures else "-" for k in ("auc", "tar", "threshold")]
        cells = [f"{figures['accuracy']:.5f}+-{figures['std']:.5f}", *rest]
        lines.append(f"| {test} | {' | '.join(cells)} | {figures['xnorm']:.2f} |")
    return "\n".join(lines)


def notes(
    images: VerificationSet, tests: dict[str, dict], scores: dict[str, np.ndarray], far: float
) -> list[str]:
    """What the table does not say: compatibility, drift and flips, or why there is no TAR."""
    if images.only:
        missing = "FAR" if images.only == "genuine" else "TAR"
        return [
            f"{images.name} has {images.only} pairs only: {missing} is undefined, and the accuracy "
            "is that of a threshold that accepts or rejects everything"
        ]
    lines = []
    impostors = int((~images.issame).sum())
    if far * impostors < 1:
        lines.append(
            f"{impostors} impostor pairs: FAR {rate_name(far)} allows no false accept at all"
        )
    if "new / old" in tests:
        old, cross = scores["old / old"], scores["new / old"]
        pair = np.arange(len(old))  # a set does not say who is in it: pairs are resampled
        gap = bootstrap_tar_difference(cross[None], old[None], pair, pair, images.issame, far)
        verdict = "compatible" if gap.estimate > 0 else "not compatible"
        drift = threshold_drift(old, cross, images.issame, (far,))[0]
        flips = verification_flips(old, cross, images.issame, far)
        lines += [
            f"{verdict} at FAR {rate_name(far)}: cross - old self {gap.estimate:+.4f}, "
            f"95 % interval {gap.low:+.4f} to {gap.high:+.4f} over pairs",
            f"at the old threshold {drift.old.threshold:.4f} new/old has FAR {drift.new.far:.2e} "
            f"(old/old {drift.old.far:.2e}) and TAR {drift.new.tar:.4f}",
            f"flips at FAR {rate_name(far)}, each system at its own threshold: genuine pairs lost "
            f"{flips.genuine.negative}, won {flips.genuine.positive}; impostors newly accepted "
            f"{flips.impostor.negative}, newly rejected {flips.impostor.positive}",
        ]
    return lines


if __name__ == "__main__":
    run_cli(main)
