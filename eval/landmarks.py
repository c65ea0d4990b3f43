"""Landmark retrieval by the published protocols: each model with itself, and new queries against
old galleries.

    python eval/landmarks.py --data roxford5k /data/ROxfordParis -m new.pt -m_old old.pt
    python eval/landmarks.py --data gldv2 /data/GLDv2 -m a.pt b.pt -m_old old.pt -m_alone alone.pt
    python eval/landmarks.py --data rparis6k /data/ROxfordParis -m new.pt --standard
    python eval/landmarks.py --data roxford5k /data -m q.npy,g.npy --whiten train.npy --expand 3 10
    python eval/landmarks.py --data roxford5k /data -m new.pt -m_old old.pt \\
        --backfill random entropy margin                          # hot refresh
    torchrun --nproc_per_node=8 eval/landmarks.py ...             # the ranks share the images

Revisited Oxford and Paris, and sets annotated in their way (gnd_<name>.pkl): mAP and mP@k; medium
decides and is what "all queries" means, easy and hard are parts of their own. Google Landmarks v2:
mAP@100 of the private queries, or of --split public. Queries without a positive are left out and
counted. Images are squashed to a network's own size, as AdvBCT and OpenCompatible have it;
--standard crops queries by their boxes and keeps the aspect, with the long side at 1024, at three
scales. A model is whatever eval/retrieval.py takes, also queries.npy,gallery.npy or .fvecs.
"""

from bct.command import run_cli, some_text
from bct.errors import BctError
from bct.models.whole_images import Whole
from bct.protocols.landmarks import SPLITS, open_landmarks
from bct.protocols.search_run import run_searches, search_arguments, search_parser


def main() -> None:
    parser = search_parser(__doc__, output="work_dirs/landmarks", ks=(1, 5, 10))
    add = parser.add_argument
    add("root", type=some_text, help="the folder of the set, or of several")
    name = "roxford5k, rparis6k, gldv2, or the name of a gnd_<name>.pkl"
    add("--data", type=some_text, metavar="NAME", help=name)
    add("--split", choices=SPLITS, help="of gldv2; default: private")
    standard = "queries cropped by their boxes, aspect kept, the long side at 1024, three scales"
    add("--standard", action="store_true", help=standard)
    boxes = "queries cropped by their boxes, and no more of --standard"
    add("--boxes", action="store_true", help=boxes)
    more = "further images of the gallery, such as R1M: a folder or a list"
    add("--distractors", type=some_text, metavar="SET", help=more)
    add("--lacking", action="store_true", help="leave out images that are missing")
    args = search_arguments(parser)
    if args.data is None:
        raise BctError("it is not said which set this is", f"give --data: {name}")
    run_searches(
        args,
        lambda stored: open_landmarks(
            args.root, args.data, standard=args.standard or args.boxes, split=args.split,
            distractors=args.distractors, stored=stored, lacking=args.lacking,
        ),
        whole=Whole() if args.standard else None,
        words=("standard",) * args.standard or ("boxes",) * args.boxes,
    )  # fmt: skip


if __name__ == "__main__":
    run_cli(main)
