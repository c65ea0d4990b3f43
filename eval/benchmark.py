"""The table of runs/benchmark.sh: all methods in all scenarios, over seeds.

    python eval/benchmark.py work_dirs/benchmark -d /data/ijb --bin lfw.bin --far 1e-2

Reads <root>/<kind>/seed<k>/old and <root>/<scenario>/seed<k>/<method> and alone, runs that are
finished, and evaluates each on IJB-C's 1:1 and 1:N protocols and, with --bin, on a verification
set whose first images are the old model's and second ones the new model's. Embeddings of another
width than the old ones are compared by `dimensions` of their training. Where a method maps the old
gallery, the new model is the one trained alone, and meets the mapped embeddings of the old
gallery's images. Writes <root>/table.md and table.json. Embeddings are cached.
"""

import argparse
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from easydict import EasyDict

from bct import distributed
from bct.amp import amp_dtype, dtype_name
from bct.command import run_cli
from bct.errors import BctError
from bct.files import ROOT, atomic, read_json, sha256_file, write_json
from bct.method import load_method
from bct.metrics.bootstrap import bootstrap_tar_difference
from bct.metrics.compatibility import compatible, p_1, p_comp, p_up, price, update_gain
from bct.metrics.scores import rate_name, tar_at_far
from bct.models import widths
from bct.models.weights import load_backbone
from bct.protocols.pairs import VerificationSet, embed, load_bin
from bct.rows import BLOCK
from bct.stored.artefacts import open_valid, write_artefact
from tools.ijbc.features import image_features
from tools.ijbc.protocol import Protocol, read_galleries, read_protocol
from tools.ijbc.scoring import Templates, open_set, pair_scores, template_features

SCENARIOS = ("OPclass", "OPdata", "EXclass", "EXdata")
LEGEND = """\
TAR at FAR {far} on IJB-C 1:1, mean +- standard deviation over seeds. old: old model with itself;
self: new model with itself; cross: new query, old gallery; alone: the new network trained alone,
with itself, and in the column cross against the old gallery. "cross - old" is a mean over seeds;
its 95 % bootstrap interval is over the templates of the 1:1 pairs, not over seeds. A method is
compatible when the difference is above 0, clearly so or clearly not when the whole interval is.
gain = (cross - old) / (alone - old); price = alone - self; P_up, P_comp, P_1 as in
bct/metrics/compatibility.py, x 100; top-1: 1:N, mean of the galleries."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("-d", "--data_path", required=True, help="folder that contains IJBC/")
    parser.add_argument("-s", "--subset", default="IJBC", choices=("IJBC", "IJBB"))
    parser.add_argument("--bin", type=Path, help="verification set for another cross test")
    parser.add_argument("--far", type=float, default=1e-2)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--amp", choices=("bf16", "fp16", "off"))
    parser.add_argument("--cache", type=Path, default=ROOT / "work_dirs" / "ijbc_cache")
    args = parser.parse_args()
    device = distributed.setup()
    judge = Judge(args, device)
    results = {}
    for scenario in SCENARIOS:
        seeds = finished_seeds(args.root, scenario)
        if seeds:
            results[scenario] = judge.scenario(args.root, scenario, seeds)
    if not results:
        raise BctError(
            f"{args.root} holds no scenario with a finished old model, network alone and method",
            "train them with runs/benchmark.sh",
        )
    text = (
        LEGEND.format(far=rate_name(args.far)) + "\n\n" + "\n\n".join(map(table, results.items()))
    )
    write_json(args.root / "table.json", {"far": args.far, "scenarios": results})
    with atomic(args.root / "table.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    print(f"{text}\n\nwritten to {args.root}/table.md and table.json")


def finished_seeds(root: Path, scenario: str) -> dict[str, list[str]]:
    """method -> the seeds of which it, the old model and the one alone have finished."""
    seeds: dict[str, list[str]] = {}
    for folder in sorted((root / scenario).glob("seed*")):
        if finished(folder / "alone") and finished(root / scenario[2:] / folder.name / "old"):
            for run in sorted(folder.iterdir()):
                if run.name != "alone" and finished(run):
                    seeds.setdefault(run.name, []).append(folder.name)
    return seeds


def finished(run: Path) -> bool:
    return (run / "run.json").is_file() and read_json(run / "run.json")["finished"]


class Side(NamedTuple):
    """What embeds one side of a test: a run's network, with what maps its embeddings, if any."""

    network: Path
    mapped_by: Path | None = None


class Judge:
    """Embeds models once and compares them."""

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args, self.device = args, device
        self.dtype = amp_dtype(EasyDict(amp=args.amp, fp16=None), device)
        self.protocol: Protocol = read_protocol(args.data_path, args.subset)
        self.galleries = read_galleries(self.protocol)
        self.set: VerificationSet | None = load_bin(args.bin) if args.bin else None
        # the old model and the one alone are compared with every method
        self.embeddings, self.test = cache(self.embeddings), cache(self.test)

    def embeddings(self, side: Side) -> tuple[Templates, np.ndarray | None]:
        """Template features of the protocol, and unit embeddings (2P, D) of the set."""
        weights = side.network / "model.pt"
        features = image_features(
            self.protocol, weights, None, self.args.cache, self.device, self.dtype
        )
        pairs = self.set_embeddings(weights) if self.set else None
        if side.mapped_by:
            features = mapped(features, side.mapped_by, self.device)
            pairs = None if pairs is None else mapped(pairs, side.mapped_by, self.device)
        return template_features(features, self.protocol), None if pairs is None else unit(pairs)

    def set_embeddings(self, weights: Path) -> np.ndarray:
        """Of the set's images, each with its mirror image: float32 (2P, D)."""
        made_from = {
            "model": sha256_file(weights),
            "data": sha256_file(self.args.bin),
            "amp": dtype_name(self.dtype),
        }
        path = self.args.cache / f"{'_'.join(value[:12] for value in made_from.values())}.npy"
        embeddings = open_valid(path, **made_from)
        if embeddings is None:
            backbone = load_backbone(weights, None, self.dtype, fold=True).to(self.device)
            embeddings = embed(backbone, self.set.images, self.device)
            with write_artefact(path, embeddings.shape, "float32", **made_from) as out:
                out[:] = embeddings
        return embeddings

    def scenario(self, root: Path, scenario: str, seeds: dict[str, list[str]]) -> dict[str, dict]:
        """method -> its figures."""
        out = {}
        for method, names in seeds.items():
            tests: dict[str, list[dict]] = {}
            for name in names:
                old, folder = root / scenario[2:] / name / "old", root / scenario / name
                for test, result in self.tests(old, folder / method, folder / "alone").items():
                    tests.setdefault(test, []).append(result)
            out[method] = self.compare(names, tests)
        return out

    def tests(self, old: Path, run: Path, alone: Path) -> dict[str, dict[str, Any]]:
        """The figures of all tests of one training."""
        about = read_json(run / "run.json")["identity"]
        new, gallery = Side(run), Side(old)
        if load_method(about["method"]).maps_gallery:
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
        """Figures of one gallery with one query model, brought to the gallery's width."""
        (enrolled, first), (probe, second) = self.embeddings(gallery), self.embeddings(query)
        width = enrolled.features.shape[1]
        probe = Templates(probe.ids, at_width(probe.features, width, dimensions))
        protocol, far = self.protocol, (self.args.far,)
        scores = pair_scores(enrolled, probe, protocol.first, protocol.second)
        search = open_set(enrolled, probe, *self.galleries)
        figures = {
            "scores": scores,
            "tar": tar_at_far(scores, protocol.genuine, far)[0].tar,
            "top1": search["mean"]["top1"],
        }
        if self.set:
            of_set = (first[0::2] * at_width(second, width, dimensions)[1::2]).sum(1)
            figures["set"] = tar_at_far(of_set, self.set.issame, far)[0].tar
        return figures

    def compare(self, names: list[str], tests: dict[str, list[dict]]) -> dict[str, Any]:
        """A method's figures from its tests, each with one result per seed."""
        figures = {
            f"{test}_{key}": [float(result[key]) for result in results]
            for test, results in tests.items()
            for key in results[0]
            if key != "scores"
        }
        mean = {key: float(np.mean(values)) for key, values in figures.items()}
        o, c, s, p = (mean[f"{test}_tar"] for test in ("old", "cross", "self", "alone"))
        interval = bootstrap_tar_difference(
            np.stack([r["scores"] for r in tests["cross"]]),
            np.stack([r["scores"] for r in tests["old"]]),
            self.protocol.first,
            self.protocol.second,
            self.protocol.genuine,
            self.args.far,
            self.args.resamples,
        )
        return {
            "seeds": names,
            **figures,
            "difference": {**interval._asdict(), "interval_over": "templates"},
            "compatible": compatible(c, o),
            "update_gain": update_gain(c, o, p),
            "price": price(s, p),
            "p_up": p_up(s, p),
            "p_comp": p_comp(c, o, p),
            "p_1": p_1(s, c, o, p),
        }


def mapped(embeddings: np.ndarray, run: Path, device: torch.device) -> np.ndarray:
    """Old embeddings, sums of image and mirror image (N, D), mapped by a run: float32 (N, D_new).

    A map is trained on embeddings of one image, as long as half of a sum.
    """
    model, parts = load_backbone(run / "model.pt").to(device), []
    with torch.inference_mode():
        for start in range(0, len(embeddings), BLOCK):
            rows = torch.from_numpy(np.array(embeddings[start : start + BLOCK])) / 2
            parts.append(model(rows.to(device)).cpu().numpy())
    return np.concatenate(parts)


def at_width(embeddings: np.ndarray, width: int, dimensions: str) -> np.ndarray:
    """Unit embeddings (N, D) brought to a gallery's width, of unit length again."""
    if embeddings.shape[1] == width:
        return embeddings
    return unit(widths.fit(torch.from_numpy(embeddings), width, dimensions).numpy())


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def table(item: tuple[str, dict[str, dict]]) -> str:
    """A scenario's Markdown table: the old model, the new one alone, then the methods."""
    scenario, methods = item
    some = next(iter(methods.values()))
    has_set = "old_set" in some
    titles = [
        "",
        "cross",
        "self",
        "cross - old [95 % over templates]",
        "compatible",
        "gain",
        "price",
    ]
    titles += ["P_up", "P_comp", "P_1", "top-1 cross", "top-1 self"] + ["set cross"] * has_set
    rows = [
        row("old", some, "", "old", [""] * 7, has_set),
        row("alone", some, "alone_cross", "alone", [""] * 7, has_set),
        *(row(name, m, "cross", "self", verdict(m), has_set) for name, m in methods.items()),
    ]
    seeds = "/".join(map(str, sorted({len(m["seeds"]) for m in methods.values()})))
    lines = [titles, [":--"] + ["--:"] * (len(titles) - 1), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{scenario}**, {seeds} seed(s)\n\n{text}"


def row(
    name: str, figures: dict, cross: str, own: str, middle: list[str], has_set: bool
) -> list[str]:
    """The cells of a line: `cross` and `own` name the tests shown in the columns cross and self."""
    tar, top1 = ([spread(figures.get(f"{test}_{key}")) for test in (cross, own)]
                 for key in ("tar", "top1"))  # fmt: skip
    return [name, *tar, *middle, *top1, *[spread(figures.get(f"{cross or own}_set"))] * has_set]


def verdict(figures: dict) -> list[str]:
    """The seven cells that judge a method."""
    difference = figures["difference"]
    low, high = difference["low"], difference["high"]
    clearly = "clearly " if low > 0 or high < 0 else ""
    return [
        f"{difference['estimate']:+.3f} [{low:+.3f}, {high:+.3f}]",
        clearly + ("yes" if figures["compatible"] else "no"),
        f"{figures['update_gain']:.2f}",
        f"{figures['price']:+.3f}",
        *(f"{100 * figures[key]:.1f}" for key in ("p_up", "p_comp", "p_1")),
    ]


def spread(values: list[float] | None) -> str:
    """mean +- standard deviation over seeds; the value alone if there is one."""
    if values is None:
        return ""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} +- {np.std(values, ddof=1):.3f}"


if __name__ == "__main__":
    run_cli(main)
