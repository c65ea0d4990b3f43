"""Centre, radius, angles of each class of the old embeddings: what AdvBCT and LCE need.

    python tools/class_statistics.py --SD f128_r18_softmax_class70

Reads feature_save/<scenario>/<SD>_feature.npy and _label.npy, writes <SD>_class_statistics.npy, one
record per class: bct/stored/class_statistics.py, class_statistics, says what is in it.
"""

import numpy as np

from bct.command import artefact_parser, run_cli
from bct.stored.artefacts import make_artefact, place_given
from bct.stored.class_statistics import class_statistics
from bct.stored.class_table import class_statistics_dtype


def main() -> None:
    parser = artefact_parser(__doc__)
    place = place_given(parser, parser.parse_args())
    print(make_artefact("class_statistics", place, class_statistics, said, class_statistics_dtype))


def said(statistics: np.ndarray) -> str:
    undefined = int((statistics["kept"] < 2).sum())
    return f"{len(statistics)} classes, {undefined} of them without a radius (one image or none)"


if __name__ == "__main__":
    run_cli(main)
