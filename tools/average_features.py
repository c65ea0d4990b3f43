"""Class means of the old embeddings: the prototypes of BCT and UniBCT.

    python tools/average_features.py --SD f128_r18_softmax_class70

Reads feature_save/<scenario>/<SD>_feature.npy and _label.npy, writes <SD>_avg_feature.npy, float32
(C, D): the mean of each class's raw embeddings, L2-normalised afterwards.
"""

from bct.command import artefact_parser, run_cli
from bct.stored.artefacts import make_artefact
from bct.stored.class_statistics import class_means


def main() -> None:
    args = artefact_parser(__doc__).parse_args()
    said = make_artefact(
        "old_prototype",
        args.SD,
        args.feature_save,
        class_means,
        lambda means: f"{means.shape[0]} classes x {means.shape[1]}",
    )
    print(said)


if __name__ == "__main__":
    run_cli(main)
