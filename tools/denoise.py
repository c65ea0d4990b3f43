"""Marks the old embeddings that can be trusted.

    python tools/denoise.py --T 0.9 --SD f128_r18_softmax_class70                 # for MixBCT
    python tools/denoise.py --by entropy --T 0.5 --SD f128_r18_softmax_class70    # for NCCL

By distance: the T * 100 % of each class nearest to its mean. By entropy: those whose distribution
over the old classes has an entropy of at most T ln C. Reads <SD>_feature.npy and <SD>_label.npy in
feature_save/<scenario>/, writes <SD>_credible_ratio_90_feature.npy or
<SD>_credible_entropy_50_feature.npy, bool (n,).
"""

import numpy as np

from bct.command import artefact_parser, run_cli, takes
from bct.keys import number
from bct.stored.artefacts import make_artefact, place_given
from bct.stored.class_statistics import credible_mask, entropy_mask


def main() -> None:
    parser = artefact_parser(__doc__)
    share = takes(number(None, above=0, most=1))
    parser.add_argument("--by", default="distance", choices=("distance", "entropy"))
    parser.add_argument(
        "--T", type=share, help="share or limit, as above; default: 0.9, or 0.5 by entropy"
    )
    args = parser.parse_args()
    place = place_given(parser, args)
    kind, mask_of, T = {
        "distance": ("credible_old_feature", credible_mask, 0.9),
        "entropy": ("credible_by_entropy", entropy_mask, 0.5),
    }[args.by]
    if args.T is not None:
        T = args.T

    def compute(
        features: np.ndarray, labels: np.ndarray, zeros: list[int], partial: bool
    ) -> np.ndarray:
        return mask_of(features, labels, T, zeros, partial)

    print(make_artefact(kind, place, compute, said, T=T))


def said(mask: np.ndarray) -> str:
    return f"{mask.sum()} of {len(mask)} embeddings are credible ({mask.mean():.1%})"


if __name__ == "__main__":
    run_cli(main)
