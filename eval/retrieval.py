"""Retrieval on image sets: each model with itself, and new queries against old galleries.

    python eval/retrieval.py -m new.pt -m_old old.pt --data val --leave-one-out
    python eval/retrieval.py -m a.pt b.pt -m_old old.pt -m_alone alone.pt --data val --leave-one-out
    python eval/retrieval.py -m new.pt -m_old old.pt --data queries --gallery gallery
    python eval/retrieval.py --matrix v1.pt v2.pt v3.pt --data val --leave-one-out    # a chain
    python eval/retrieval.py -m new.pt -m_old old.pt --old-gallery transformed.npy \\
        --backfill random uncertainty.npy --data val --leave-one-out                  # FCT
    torchrun --nproc_per_node=8 eval/retrieval.py ...             # the ranks share the images

q / g is a query by model q against a gallery by model g. With -m_old there are old/old, new/old and
new/new; -m_alone is the new network trained without compatibility, by which a gain is measured.
Top-k and mAP are exact, see bct/metrics/ranking.py. Where the class names of the old model's data
are known, queries of classes it was trained on and of others are given apart, too. A self test uses
all dimensions of its model; --dimensions says how two widths meet.

A model is whatever eval/ijbc.py takes; an .npy or .npz has a row per image of the set, and for two
sets there are two files, queries.npy,gallery.npy. A model.json says how its network sees an image;
--size, --crop and --pixels say it for a network that has none.
"""

from bct.command import run_cli, some_text
from bct.protocols.image_search import open_search
from bct.protocols.search_run import run_searches, search_arguments, search_parser


def main() -> None:
    parser = search_parser(__doc__, output="work_dirs/retrieval", ks=(1, 5))
    add = parser.add_argument
    asked = "the queries: a folder, list, file, ..."
    add("--data", type=some_text, required=True, metavar="SET", help=asked)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--gallery", type=some_text, metavar="SET", help="what they are searched in")
    own = "each image of --data is searched among all the others"
    where.add_argument("--leave-one-out", action="store_true", help=own)
    known = "the first N labels, or a .json with class names; default: the old model.json"
    add("--old-classes", type=some_text, metavar="N", help=known)
    args = search_arguments(parser)
    run_searches(args, lambda stored: open_search(args.data, args.gallery))


if __name__ == "__main__":
    run_cli(main)
