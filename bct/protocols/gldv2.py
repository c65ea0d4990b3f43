"""Google Landmarks v2 (Weyand et al., CVPR 2020): queries of a split in the index.

An average precision looks at the first 100 of a ranking, and divides by the number of positives or
by 100, whichever is less, see bct/metrics/average_precision.py.
"""

from pathlib import Path

from bct.data.gldv2_files import read_gldv2
from bct.data.listed_images import ListedImages
from bct.metrics.relevance import ByItem, Rows
from bct.protocols.listed import landmarks, listed_protocol, restricted
from bct.protocols.protocol import Protocol


def open_gldv2(
    root: str | Path, split: str = "private", stored: bool = False, lacking: bool = False
) -> Protocol:
    """Opens a folder with index.csv, the solution, index/ and test/, see bct/data/gldv2_files.py.

    Args:
        split: "private", by which models are compared, or "public".
        stored: descriptors are there in place of a network: no image is looked for. It is so, too,
            where there is neither index/ nor test/.
        lacking: images may be missing; they and their queries are left out, and remarks say so.

    Raises BctError: what read_gldv2 refuses; missing images.
    """
    root = Path(root)
    said = read_gldv2(root, split)
    images = root if (root / "index").is_dir() or (root / "test").is_dir() else None
    folder = None if stored else images
    queries = ListedImages(said.path, folder, said.queries, lacking=lacking)
    gallery = ListedImages(said.path, folder, said.gallery, lacking=lacking)
    remarks = [f"{said.ignored:,} ignored queries are left out."] if said.ignored else []
    remarks += [side.remark for side in (queries, gallery) if side.remark]
    rows = Rows.of_lists(said.positive)
    positive = restricted(rows, queries.rows, gallery.rows, len(said.gallery))
    relevance = ByItem(positive, Rows.of_lists([[]] * len(queries)))
    subjects = landmarks(relevance, len(gallery))
    return listed_protocol(
        f"gldv2_{split}", said.path, queries, gallery, {split: relevance}, "first100", subjects,
        remarks,
    )  # fmt: skip
