"""Centre, radius and angle of each class of the old embeddings: the statistics AdvBCT needs.

    python tools/class_statistics.py --SD f128_r18_softmax_class70

Reads feature_save/<scenario>/<SD>_feature.npy and _label.npy, writes <SD>_class_statistics.npy, one
record per class: bct/stored/class_statistics.py, class_statistics, says what is in it.
"""

import argparse
from pathlib import Path

from bct.command import run_cli
from bct.files import ROOT
from bct.scenarios import scenario_of
from bct.stored.artefacts import artefact_path, is_valid, open_features, write_artefact
from bct.stored.class_statistics import class_statistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--SD", required=True, help="name of the artefact, e.g. f128_r18_..._class70"
    )
    parser.add_argument("--feature-save", type=Path, default=ROOT / "feature_save")
    args = parser.parse_args()
    features, labels, made_from = open_features(args.feature_save, args.SD)
    path = artefact_path("class_statistics", args.feature_save, scenario_of(args.SD), args.SD)
    made_from |= {"kind": "class_statistics", "dim": features.shape[1]}
    if is_valid(path, **made_from):
        return print(f"{path} is up to date: reusing it")
    statistics = class_statistics(features, labels)
    with write_artefact(path, statistics.shape, statistics.dtype, **made_from) as out:
        out[:] = statistics
    undefined = int((statistics["kept"] < 2).sum())
    print(f"{path}: {len(statistics)} classes, {undefined} of them without a radius (one image)")


if __name__ == "__main__":
    run_cli(main)
