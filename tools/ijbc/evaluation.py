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
from bct.outputs import short_name
from bct.protocols.evidence import unjudged
from bct.protocols.protocol import Protocol
from bct.protocols.roles import Roles, Test, test_name
from bct.protocols.scoring import open_set, resolved, verification
from bct.protocols.templates import pair_scores
from bct.protocols.verdict import judged
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


def embedding_files(folder: Path, subset: str, models: Mapping[str, Model]) -> dict[str, Path]:
    """Label -> <model>_<subset>.npy. BctError for two models of one name."""
    files = {
        label: folder / f"{short_name(model_name(model.file))}_{subset}.npy"
        for label, model in models.items()
    }
    for label, file in files.items():
        others = [other for other in files if files[other] == file and other != label]
        if others and models[others[0]].sha256 != models[label].sha256:
            raise BctError(
                f"{models[label].file} and {models[others[0]].file} would both be saved as {file}",
                "rename a file or its folder, or leave out -E",
            )
    return files


def run_tests(
    protocol: Protocol,
    embeddings: Embeddings,
    roles: Roles,
    modes: tuple[Mode, ...],
    rule: str,
) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """Test -> its figures, and -> its scores (P,), in every mode.

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
            scores[name] = found
    return tests, scores


def notes(
    protocol: Protocol, tests: dict[str, dict], roles: Roles, far: float, rule: str, modes: int
) -> list[str]:
    """What the figures mean: what was left out, the verdict on compatibility, and FARs too small
    for this protocol.

    Args:
        modes: how many there are; the published one is judged.
    """
    lines, measure = list(protocol.remarks), f"FAR {rate_name(far)}"
    genuine = protocol.pairs.genuine
    no_verdict = unjudged(protocol, far)
    suffix = f", {PUBLISHED}" if modes > 1 else ""

    def tar(test: Test) -> float:
        return tests[test_name(test) + suffix]["pairs"]["tar"][rate_name(far)]

    if no_verdict and (roles.old is not None or roles.chain):
        lines.append(no_verdict)
    for label in roles.new if roles.old is not None and not no_verdict else []:
        verdict = judged(f"TAR at {measure}", *map(tar, roles.compared(label)))
        lines.append(f"{label}: {verdict.sentence()}")
    versions = roles.versions
    if roles.chain and len(versions) > 1 and not no_verdict:
        quality = np.array([[tar((query, gallery)) for gallery in versions] for query in versions])
        lines.append(
            f"chain {' -> '.join(versions)}, TAR at {measure}: "
            f"average compatibility {chain.average_compatibility(quality):.3f}, "
            f"average quality {chain.average_quality(quality):.4f}, "
            f"backward transfer {chain.backward_transfer(quality):+.4f}, "
            f"forward transfer {chain.forward_transfer(quality):+.4f}"
        )
    rates = next(iter(tests.values()))["pairs"]["tar"]
    small = [rate for rate in rates if not resolved(genuine, float(rate))]
    if small and rule == "strict":
        lines.append(
            f"{np.count_nonzero(~genuine)} impostor pairs: FAR {', '.join(small)} allows no false "
            "accept at all"
        )
    return lines
