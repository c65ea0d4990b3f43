"""Person re-identification on Market-1501: each model with itself, and new queries against old
galleries.

    python eval/reid.py /data/Market-1501-v15.09.15 -m new.pt -m_old old.pt -m_alone alone.pt
    python eval/reid.py /data/Market-1501-v15.09.15 -m queries.npy,gallery.npy --rerank 20 6 0.3
    python eval/reid.py /data/Market-1501-v15.09.15 -m new.pt -m_old old.pt --backfill random margin
    torchrun --nproc_per_node=8 eval/reid.py ...                  # the ranks share the images

mAP and the CMC (rank-k is top-k). A person's images by the query's own camera are taken out of its
ranking; images of nobody in particular (0000) stay in the gallery, boxes of nobody (-1) do not.
Queries without a positive are left out and counted. Intervals are over persons. A model is whatever
eval/retrieval.py takes.
"""

from bct.command import run_cli, some_text
from bct.protocols.market import open_market
from bct.protocols.search_run import run_searches, search_arguments, search_parser


def main() -> None:
    parser = search_parser(__doc__, output="work_dirs/reid", ks=(1, 5, 10, 20))
    parser.add_argument("root", type=some_text, help="with query/ and bounding_box_test/, or lists")
    parser.add_argument("--lacking", action="store_true", help="leave out images that are missing")
    args = search_arguments(parser)
    run_searches(args, lambda stored: open_market(args.root, stored, args.lacking))


if __name__ == "__main__":
    run_cli(main)
