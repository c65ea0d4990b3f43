"""Class means of the old embeddings: the prototypes of BCT and UniBCT.

    python tools/average_features.py --SD f128_r18_softmax_class70

Reads feature_save/<scenario>/<SD>_feature.npy and _label.npy, writes <SD>_avg_feature.npy, float32
(C, D): the mean of each class's raw embeddings, L2-normalised afterwards.
"""

import argparse
from pathlib import Path

from bct.command import run_cli
from bct.files import ROOT
from bct.scenarios import scenario_of
from bct.stored.artefacts import artefact_path, is_valid, open_features, write_artefact
from bct.stored.class_statistics import class_means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--SD", required=True, help="name of the artefact, e.g. f128_r18_..._class70"
    )
    parser.add_argument("--feature-save", type=Path, default=ROOT / "feature_save")
    args = parser.parse_args()
    features, labels, made_from = open_features(args.feature_save, args.SD)
    path = artefact_path("old_prototype", args.feature_save, scenario_of(args.SD), args.SD)
    made_from["kind"] = "old_prototype"
    if is_valid(path, **made_from):
        return print(f"{path} is up to date: reusing it")
    means = class_means(features, labels)
    with write_artefact(path, means.shape, "float32", **made_from) as out:
        out[:] = means
    print(f"{path}: {means.shape[0]} classes x {means.shape[1]}")


if __name__ == "__main__":
    run_cli(main)
