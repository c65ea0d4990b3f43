"""How fast a network embeds: what a backfill takes."""

import time

import numpy as np
import torch

from bct.data.images import SIZE


@torch.inference_mode()
def images_per_second(
    backbone: torch.nn.Module,
    batch_size: int,
    device: torch.device,
    size: int = SIZE,
    mirror: bool = True,
    seconds: float = 2.0,
) -> float:
    """Images that the network embeds per second, with their mirror images if asked, after a
    warm-up."""
    images = torch.zeros(batch_size, 3, size, size, device=device)

    def once() -> None:
        sum(backbone(x) for x in (images, images.flip(3))[: 1 + mirror]).cpu()  # waits for it

    once()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        once()
        count += batch_size
    return float(np.round(count / (time.perf_counter() - started), 1))
