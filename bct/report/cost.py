"""What re-extracting a gallery takes: time and price."""

import math
import time
from typing import NamedTuple

import numpy as np
import torch

from bct.data.image_set import ImageSet
from bct.errors import BctError
from bct.models.model import Model


class Cost(NamedTuple):
    """What is known of it.

    images_per_second: of re-extraction; None: measured here, if the new model is a network.
    gallery_size: images in the gallery; price_per_hour: of the machine that re-extracts.
    """

    images_per_second: float | None = None
    gallery_size: int | None = None
    price_per_hour: float | None = None


def check_cost(known: Cost) -> None:
    """Raises BctError for a figure that is not above 0, or not finite."""
    for name, value in known._asdict().items():
        if value is not None and not 0 < value < math.inf:
            raise BctError(f"{name} is {value}", "give a number above 0, or leave it out")


def re_extraction(
    known: Cost, model: Model, images: ImageSet, device: torch.device, batch_size: int
) -> dict:
    """Time and price of re-extracting the whole gallery with the model, None if unknown.

    Args:
        images: of the protocol, which say how a network sees them.
    """
    rate, measured = known.images_per_second, False
    if rate is None and model.view is not None:
        backbone = model.backbone.to(device)
        rate = images_per_second(backbone, batch_size, device, model.view.shape, images.mirror)
        measured = True
    hours = known.gallery_size / rate / 3600 if known.gallery_size and rate else None
    price = hours * known.price_per_hour if hours and known.price_per_hour else None
    return {
        "images_per_second": rate,
        "measured": measured,
        "gallery_size": known.gallery_size,
        "price_per_hour": known.price_per_hour,
        "hours": hours,
        "price": price,
    }


@torch.inference_mode()
def images_per_second(
    backbone: torch.nn.Module,
    batch_size: int,
    device: torch.device,
    shape: tuple[int, int],
    mirror: bool,
    seconds: float = 2.0,
) -> float:
    """Images (height and width: shape) that the network embeds per second, after a warm-up.

    Args:
        mirror: with their mirror images, as evaluations of faces have it.
    """
    images = torch.zeros(batch_size, 3, *shape, device=device)

    def once() -> None:
        sum(backbone(x) for x in (images, images.flip(3))[: 1 + mirror]).cpu()  # waits for it

    once()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        once()
        count += batch_size
    return float(np.round(count / (time.perf_counter() - started), 1))
