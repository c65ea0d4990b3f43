"""The upgrade report of any protocol, written: report.html, report.md, report.json."""

import datetime
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from bct import distributed
from bct.command import refuse_to_replace
from bct.errors import BctError
from bct.files import model_name
from bct.models.embed import embed_models
from bct.models.model import Model, described
from bct.models.widths import check_meet, same_width
from bct.outputs import check_outputs
from bct.protocols.compare import check_resamples
from bct.protocols.protocol import Protocol, fingerprint_of
from bct.report import page
from bct.report.analysis import analyse, check_protocol
from bct.report.cost import Cost, check_cost, re_extraction
from bct.report.pairs import measure_at
from bct.report.searches import measure_of
from bct.report.study import Study

ROLES = ("old", "new", "alone")


def write_report(
    folder: str | Path,
    protocol: Protocol,
    models: Mapping[str, Model],
    embeddings: Mapping[str, np.ndarray] | None = None,
    *,
    far: float = 1e-4,
    resamples: int = 1000,
    cost: Cost | None = None,
    thumbnails: bool = False,
    cache: str | Path | None = None,
    device: torch.device | str = "cpu",
    dimensions: str = "equal",
    batch_size: int = 128,
    num_workers: int = 2,
    overwrite: bool = False,
) -> dict | None:
    """May the new model be deployed against the old gallery? One page with the answer.

    A protocol with pairs is judged by TAR at FAR, one with a search alone by mAP. Under torchrun
    all ranks call this, and the first one writes.

    Args:
        folder: for report.html (one file that loads nothing), report.md and report.json. The
            latter is written first, and each of them is whole or not there.
        models: "old", "new" and, if there is one, "alone": the new network trained without
            compatibility, by which the price is measured.
        embeddings: role -> of the protocol's images, float (N, D), not normalised; None: computed.
        far: for pairs, what the deployed threshold was set for; one of bct.metrics.scores.FARS.
        resamples: of the bootstrap.
        cost: for the time and price of re-extracting a gallery; None: the page says nothing of it.
        thumbnails: show changed pairs or queries, which may be personal data.
        cache, batch_size, num_workers: see bct.models.embed.embed_models.
        overwrite: replace a report on other models or images, or that asks something else of them.
        dimensions: how embeddings of several widths meet, see bct.models.widths.

    Returns:
        The report, as report.json has it; None on other ranks than the first.

    Raises:
        BctError: other roles; a report on others in the folder; a protocol that can't be judged so,
            all before anything is computed; what embed_models refuses; embeddings of other images
            or widths.
    """
    _check_roles(models, embeddings)
    check_protocol(protocol, far)
    check_resamples(resamples)
    if cost is not None:
        check_cost(cost)
    if thumbnails and protocol.thumbnail is None:
        raise BctError(f"{protocol.name} has no pictures to show", "leave out thumbnails")
    models, device = {role: models[role] for role in ROLES if role in models}, torch.device(device)
    about = described(models)
    made_from = {
        "models": about,
        "data": protocol.fingerprint,
        "asked": fingerprint_of(protocol),
        "measure": (measure_of(protocol) if protocol.pairs is None else measure_at(far))._asdict(),
        "dimensions": dimensions,
    }
    if not overwrite:
        refuse_to_replace(Path(folder) / "report", made_from)
    check_outputs(*page.files_of(Path(folder)))
    if embeddings is None:
        check_meet(dimensions, *(model.width for model in models.values()))
        embeddings = embed_models(
            models, protocol.images, cache, device=device,
            batch_size=batch_size, num_workers=num_workers,
        )  # fmt: skip
    if not distributed.is_main():
        return None
    known = {}
    if cost is not None:
        known["cost"] = re_extraction(cost, models["new"], protocol.images, device, batch_size)
    rows = same_width(dimensions, *(embeddings[role] for role in models))
    found, drawings = analyse(
        Study.of(protocol, dict(zip(models, rows, strict=True))), far, resamples
    )
    report = {
        **made_from,
        "models": {
            role: {"name": model_name(model["file"]), **model} for role, model in about.items()
        },
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "resamples": resamples,
        **found,
        **known,
    }
    page.write(Path(folder), report, drawings, protocol if thumbnails else None)
    return report


def _check_roles(models: Mapping, embeddings: Mapping | None) -> None:
    given = [models] if embeddings is None else [models, embeddings]
    for roles in given:
        if not {"old", "new"} <= set(roles) <= set(ROLES):
            raise BctError(
                f"a report of {', '.join(map(str, roles)) or 'no model'} can't be made",
                "give old and new and, if there is one, alone",
            )
    if len({frozenset(roles) for roles in given}) > 1:
        raise BctError(
            f"there are models {', '.join(models)} and embeddings of {', '.join(embeddings)}",
            "give embeddings of the same roles",
        )
