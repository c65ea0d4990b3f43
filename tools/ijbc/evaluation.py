"""The tests of IJB: which models meet whose galleries, in which modes, and what that says."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from bct.errors import BctError
from bct.files import model_name
from bct.metrics import chain
from bct.metrics.scores import rate_name
from bct.models.embed import embed_models
from bct.models.model import Model
from bct.protocols.protocol import Protocol
from bct.protocols.roles import Roles, Test, test_name
from bct.protocols.scoring import open_set, verification
from bct.protocols.templates import pair_scores
from bct.protocols.verdict import judged
from bct.stored.vector_files import save_rows
from tools.ijbc.modes import PUBLISHED, Mode

Embeddings = dict[bool, dict[str, np.ndarray]]  # with mirror image? -> label -> (N, D)


def image_embeddings(
    models: Mapping[str, Model],
    protocol: Protocol,
    modes: Iterable[Mode],
    cache: Path,
    device: torch.device,
    **loading: int | bool,
) -> Embeddings:
    """Embeddings of all images, as the modes need them. BctError for a mode F0 of stored sums."""
    mirrors = sorted({mode.mirror for mode in modes})
    for model in models.values():
        if model.view is None and False in mirrors:
            raise BctError(
                f"{model.file} holds sums of image and mirror image, so there is no mode F0",
                "give the model itself, or leave out -B",
            )
    return {
        mirror: embed_models(
            models, protocol.images, cache, device=device, mirror=mirror,
            remarks=protocol.remarks, **loading,
        )
        for mirror in mirrors
    }  # fmt: skip


def save_embeddings(
    folder: Path, subset: str, models: Mapping[str, Model], embeddings: Embeddings
) -> None:
    """<model>_<subset>.npy of each model, with the mirror images."""
    for label, model in models.items():
        save_rows(folder / f"{model_name(model.file)}_{subset}.npy", embeddings[True][label])


def run_tests(
    protocol: Protocol,
    embeddings: Embeddings,
    roles: Roles,
    modes: tuple[Mode, ...],
    rule: str,
) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """Test -> its figures, and -> its scores (P,), of the published mode alone.

    Args:
        rule: see bct.metrics.scores.tar_at_far.
    """
    tests, scores = {}, {}
    first, second, genuine = protocol.pairs
    for mode in modes:
        templates = {
            label: protocol.templates.aggregate(features, mode.normalise, mode.detector)
            for label, features in embeddings[mode.mirror].items()
        }
        for query, gallery in roles.tests():
            name = test_name((query, gallery)) + (f", {mode}" if len(modes) > 1 else "")
            # the first template of a pair is the enrolled one, the second the probe
            enrolled, probe = templates[gallery], templates[query]
            found = pair_scores(enrolled, probe, first, second)
            tests[name] = {"pairs": verification(found, genuine, rule)}
            if protocol.galleries:
                sides = protocol.galleries, protocol.probes
                tests[name]["search"] = open_set(enrolled, probe, *sides, rule)
            if mode == PUBLISHED:
                scores[name] = found
    return tests, scores


def notes(
    protocol: Protocol, tests: dict[str, dict], roles: Roles, far: float, rule: str, modes: int
) -> list[str]:
    """What the figures mean: the verdict on compatibility, and FARs too small for this protocol.

    Args:
        modes: how many there are; the published one is judged.
    """
    lines, measure = [], f"FAR {rate_name(far)}"
    suffix = f", {PUBLISHED}" if modes > 1 else ""

    def tar(test: Test) -> float:
        return tests[test_name(test) + suffix]["pairs"]["tar"][rate_name(far)]

    for label in roles.new if roles.old is not None else []:
        verdict = judged(f"TAR at {measure}", *map(tar, roles.compared(label)))
        lines.append(f"{label}: {verdict.sentence()}")
    versions = roles.versions
    if roles.chain and len(versions) > 1:
        quality = np.array([[tar((query, gallery)) for gallery in versions] for query in versions])
        lines.append(
            f"chain {' -> '.join(versions)}, TAR at {measure}: "
            f"average compatibility {chain.average_compatibility(quality):.3f}, "
            f"average quality {chain.average_quality(quality):.4f}, "
            f"backward transfer {chain.backward_transfer(quality):+.4f}, "
            f"forward transfer {chain.forward_transfer(quality):+.4f}"
        )
    impostors = int((~protocol.pairs.genuine).sum())
    small = [far for far in tests[next(iter(tests))]["pairs"]["tar"] if float(far) * impostors < 1]
    if small and rule == "strict":
        lines.append(
            f"{impostors} impostor pairs: FAR {', '.join(small)} allows no false accept at all"
        )
    return lines
