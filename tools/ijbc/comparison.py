"""Methods side by side: each training's tests against its old model, over seeds."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bct.adapters.base import load_adapter
from bct.errors import BctError
from bct.files import read_json
from bct.method import Method, load_method
from bct.metrics.bootstrap import bootstrap_tar
from bct.metrics.scores import rate_name, tar_at_far
from bct.models.about import model_in
from bct.models.embed import embed_models
from bct.models.model import open_model
from bct.models.widths import same_width
from bct.protocols.protocol import Protocol
from bct.protocols.scoring import open_set
from bct.protocols.templates import pair_scores
from bct.protocols.verdict import interval_title, judged
from bct.rows import unit_rows

OVER = "templates"  # what the intervals are over


class Side(NamedTuple):
    """What embeds one side of a test: a run's network, with what maps its embeddings, if any."""

    network: Path
    mapped_by: Path | None = None


def check_pairs(pairs: Protocol) -> None:
    """Raises BctError for a verification set whose pairs are all of one kind."""
    genuine = pairs.pairs.genuine
    if genuine.all() or not genuine.any():
        raise BctError(
            f"all pairs of {pairs.name} are of one kind, so TAR at FAR is undefined",
            "give another set, or leave it out",
        )


class Judge:
    """Embeds every model once, on one or two protocols, and compares them.

    Args:
        protocol: with pairs and galleries. pairs: a verification set for another cross test, or
            None. far: of the TARs. cache, device, dtype: see bct.models.embed.
    """

    def __init__(
        self,
        protocol: Protocol,
        pairs: Protocol | None,
        far: float,
        resamples: int,
        cache_folder: Path,
        device: torch.device,
        dtype: torch.dtype | None,
    ):
        self.protocol, self.pairs, self.far, self.resamples = protocol, pairs, far, resamples
        self.cache, self.device, self.dtype = cache_folder, device, dtype
        # the old model and the one alone are compared with every method
        self.items, self.test = cache(self.items), cache(self.test)

    def items(self, side: Side, protocol: Protocol) -> np.ndarray:
        """Unit embeddings of a protocol's items, float32 (T, D)."""
        models = {"x": open_model(model_in(side.network), dtype=self.dtype)}
        rows = embed_models(models, protocol.images, self.cache, device=self.device)["x"]
        if side.mapped_by:
            # a map is trained on embeddings of one image, as long as half of a sum with its mirror
            share = 2 if protocol.images.mirror else 1
            adapter = load_adapter(side.mapped_by / "model.pt").to(self.device)
            rows = adapter.transform(np.asarray(rows) / share)
        return protocol.item_features(rows)

    def method(self, old: list[Path], runs: list[Path], alone: list[Path]) -> dict[str, Any]:
        """A method's figures, each with one value per seed; the arguments are its runs by seed."""
        tests: dict[str, list[dict]] = {}
        for models in zip(old, runs, alone, strict=True):
            for name, result in self.tests(*models).items():
                tests.setdefault(name, []).append(result)
        return {"seeds": [run.parent.name for run in runs], **self.figures(tests)}

    def tests(self, old: Path, run: Path, alone: Path) -> dict[str, dict[str, Any]]:
        """The figures of all tests of one training."""
        about = _identity(run)
        new, gallery = Side(run), Side(old)
        if _method(about["method"]).maps_gallery:
            new, gallery = Side(alone), Side(old, mapped_by=run)
        pairings = {  # test: (gallery, query)
            "old": (Side(old), Side(old)),
            "cross": (gallery, new),
            "self": (new, new),
            "alone": (Side(alone), Side(alone)),
            "alone_cross": (Side(old), Side(alone)),
        }
        return {
            test: self.test(*pair, about["dimensions"] if test == "cross" else "equal")
            for test, pair in pairings.items()
        }

    def test(self, gallery: Side, query: Side, dimensions: str) -> dict[str, Any]:
        """Figures of one gallery with one query model, which meet in one width."""
        protocol, (first, second, genuine) = self.protocol, self.protocol.pairs
        enrolled, probe = (self.items(side, protocol) for side in (gallery, query))
        enrolled, probe = _met(dimensions, enrolled, probe)
        scores = pair_scores(enrolled, probe, first, second)
        search = open_set(enrolled, probe, protocol.galleries, protocol.probes)
        figures = {
            "scores": scores,
            "tar": tar_at_far(scores, genuine, (self.far,))[0].tar,
            "top1": search["mean"]["top1"],
        }
        if self.pairs:
            sides = (self.items(side, self.pairs) for side in (gallery, query))
            first, second, genuine = self.pairs.pairs
            scores = pair_scores(*_met(dimensions, *sides), first, second)
            figures["set"] = tar_at_far(scores, genuine, (self.far,))[0].tar
        return figures

    def figures(self, tests: dict[str, list[dict]]) -> dict[str, Any]:
        """A method's figures from its tests, each with one result per seed."""
        figures = {
            f"{test}_{key}": [float(result[key]) for result in results]
            for test, results in tests.items()
            for key in results[0]
            if key != "scores"
        }
        means = [float(np.mean(figures[f"{t}_tar"])) for t in ("old", "cross", "self", "alone")]
        first, second, genuine = self.protocol.pairs
        seeds = len(tests["old"])
        tars = bootstrap_tar(
            np.stack([r["scores"] for test in ("old", "cross") for r in tests[test]]),
            first, second, genuine, (self.far,), self.resamples,
        )[:, :, 0]  # fmt: skip
        gaps = tars[:, seeds:].mean(1) - tars[:, :seeds].mean(1)
        verdict = judged(f"TAR at FAR {rate_name(self.far)}", *means, replicates=gaps, over=OVER)
        return {**figures, **verdict.figures()}


def _method(name: str) -> type[Method]:
    """By which a run was trained; Method itself is training alone, with other settings say."""
    return Method if name == Method.__name__ else load_method(name)


def _identity(run: Path) -> dict[str, Any]:
    """What a finished run was made with. BctError if its run.json does not say it."""
    said = read_json(run / "run.json")
    about = said.get("identity") if isinstance(said, dict) else None
    if not isinstance(about, dict) or not {"method", "dimensions"} <= about.keys():
        raise BctError(
            f"{run}/run.json does not say by which method the run was trained",
            "give runs of runs/benchmark.sh, or train this one again into another folder",
        )
    return about


def _met(dimensions: str, gallery: np.ndarray, query: np.ndarray) -> Iterable[np.ndarray]:
    """Unit embeddings of both sides in one width, of unit length again."""
    if gallery.shape[1] == query.shape[1]:
        return gallery, query
    rows = same_width(dimensions, gallery, query)
    return [unit_rows(x) for x in rows]


LEGEND = f"""\
TAR at FAR {{far}} on IJB-C 1:1, mean +- standard deviation over seeds. old: old model with itself;
self: new model with itself; cross: new query, old gallery; alone: the new network trained alone,
with itself, and in the column cross against the old gallery. "cross - old" is a mean over seeds,
with its {interval_title(OVER)} of the 1:1 pairs, not over seeds. A method is compatible when the
difference is above 0, clearly so or clearly not when the whole interval is.
gain = (cross - old) / (alone - old); price = alone - self; P_up, P_comp, P_1 as in
bct/metrics/compatibility.py, x 100; top-1: 1:N, mean of the galleries."""
