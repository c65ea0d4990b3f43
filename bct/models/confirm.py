"""Whether stored embeddings are a model's: a few images are embedded anew and compared."""

import numpy as np
import torch

from bct.data.image_set import ImageSet
from bct.data.loader import Loader
from bct.errors import BctError
from bct.models.embed import embedding_of
from bct.models.model import Model
from bct.rows import unit_rows

IMAGES = 8
SAME = 0.99  # cosine: decoders and float16 cost less, another view more


@torch.inference_mode()
def confirm(
    model: Model, images: ImageSet, features: np.ndarray, index: np.ndarray, row: np.ndarray
) -> tuple[str, str]:
    """Embeds some images, as they are and mirrored.

    Args:
        features: (m, D) of any float type; row: int64 (k,), where those of the images are.
        index: int64 (k,), images of the set.

    Returns:
        A line with the figures; and "published" where some rows are of mirrored images alone, as
        MixBCT's tool makes them, else "corrected".

    Raises:
        BctError: embeddings of another width, or that are not this model's.
    """
    width = model.backbone.embedding_size
    if features.shape[1] != width:
        raise BctError(
            f"the embeddings have {features.shape[1]} dimensions, {model.file} makes {width}",
            "give the model that made them, or import them without one",
        )
    chosen = np.unique(np.linspace(0, len(index) - 1, IMAGES).round().astype(np.int64))
    loader = Loader(
        images,
        len(chosen),
        torch.device("cpu"),
        num_workers=0,
        train=False,
        view=model.view,
        indices=index[chosen],
    )
    (batch,) = loader.epoch()
    plain, mirrored = (
        embedding_of(model.backbone(x)).float().numpy()
        for x in (batch.images, batch.images.flip(3))
    )
    stored = unit_rows(np.asarray(features[row[chosen]]))
    cosines = np.stack(
        [(stored * unit_rows(x)).sum(axis=1) for x in (plain, mirrored, plain + mirrored)]
    )
    best, others = cosines.max(axis=0), stored @ unit_rows(plain).T
    apart = others[~np.eye(len(chosen), dtype=bool)].mean() if len(chosen) > 1 else float("nan")
    figures = (
        f"{len(chosen)} images embedded anew by {model.file}: cosine to their own rows "
        f"{best.min():.4f} to {best.max():.4f}, to each other's {apart:.4f} on average"
    )
    if not best.min() >= SAME:
        raise BctError(
            f"these are not the embeddings of this model, or not of these images: {figures}",
            "give the model that made them and the view it was trained with (its model.json), or "
            "say with --rows, --names or --of which image each row is of",
        )
    alone = (cosines[1] >= SAME) & (cosines[0] < SAME)
    return figures, "published" if alone.any() else "corrected"
