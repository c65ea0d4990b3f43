"""Class means of the old embeddings: the prototypes of BCT and UniBCT.

    python tools/average_features.py --SD f128_r18_softmax_class70

Reads feature_save/<scenario>/<SD>_feature.npy and _label.npy, writes <SD>_avg_feature.npy, float32
(C, D): the mean of each class's raw embeddings, L2-normalised afterwards.
"""

from bct.command import artefact_parser, run_cli
from bct.stored.artefacts import make_artefact, place_given
from bct.stored.class_statistics import class_means


def main() -> None:
    parser = artefact_parser(__doc__)
    said = make_artefact(
        "old_prototype",
        place_given(parser, parser.parse_args()),
        class_means,
        lambda means: f"{means.shape[0]} classes x {means.shape[1]}",
    )
    print(said)


if __name__ == "__main__":
    run_cli(main)
