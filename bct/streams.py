"""Named random streams.

Every random draw of a run is a pure function of (seed, what for, rank, epoch or step): nothing has
to be saved to reproduce or resume a stream.
"""

import hashlib

import torch


def seed_of(*key: int | str) -> int:
    """A 63-bit seed from a tuple, e.g. (cfg.seed, "flip", rank, epoch)."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A random stream of its own for a tuple."""
    return torch.Generator(device).manual_seed(seed_of(*key))
