"""Marks the old embeddings that can be trusted.

    python tools/denoise.py --T 0.9 --SD f128_r18_softmax_class70                 # for MixBCT
    python tools/denoise.py --by entropy --T 0.5 --SD f128_r18_softmax_class70    # for NCCL

By distance: the T * 100 % of each class nearest to its mean. By entropy: those whose distribution
over the old classes has an entropy of at most T ln C. Reads <SD>_feature.npy and <SD>_label.npy in
feature_save/<scenario>/, writes <SD>_credible_ratio_90_feature.npy or
<SD>_credible_entropy_50_feature.npy, bool (n,).
"""

import argparse
from pathlib import Path

from bct.command import run_cli
from bct.errors import BctError
from bct.files import ROOT
from bct.scenarios import scenario_of
from bct.stored.artefacts import artefact_path, is_valid, open_features, write_artefact
from bct.stored.class_statistics import credible_mask, entropy_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--SD", required=True, help="name of the artefact, e.g. f128_r18_..._class70"
    )
    parser.add_argument("--by", default="distance", choices=("distance", "entropy"))
    parser.add_argument("--T", type=float, help="see above; 0.9, or 0.5 by entropy")
    parser.add_argument("--feature-save", type=Path, default=ROOT / "feature_save")
    args = parser.parse_args()
    by_distance = args.by == "distance"
    if args.T is None:
        args.T = 0.9 if by_distance else 0.5
    if not 0 < args.T <= 1:
        raise BctError(
            f"--T {args.T} is not a share", "give a value above 0, at most 1, such as 0.9"
        )
    kind = "credible_old_feature" if by_distance else "credible_by_entropy"
    scenario = scenario_of(args.SD)
    path = artefact_path(kind, args.feature_save, scenario, args.SD, args.T)
    features, labels, made_from = open_features(args.feature_save, args.SD)
    made_from |= {"kind": kind, "T": args.T}
    if is_valid(path, **made_from):
        return print(f"{path} is up to date: reusing it")
    mask = (credible_mask if by_distance else entropy_mask)(features, labels, args.T)
    with write_artefact(path, mask.shape, "bool", **made_from) as out:
        out[:] = mask
    print(f"{path}: {mask.sum()} of {len(mask)} embeddings are credible ({mask.mean():.1%})")


if __name__ == "__main__":
    run_cli(main)
