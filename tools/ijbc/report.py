"""The results of an evaluation as a table, JSON and a picture."""

import warnings
from collections.abc import Iterator
from itertools import cycle, product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from bct import markdown
from bct.errors import BctError
from bct.files import atomic, write_json, write_text
from bct.metrics.scores import rate_name, roc_points
from bct.outputs import check_outputs, results_files
from bct.protocols.scoring import verification
from bct.stored.vector_files import open_vectors, read_arrays

SHOWN_FPIRS = (1e-2, 1e-1)
_BESIDE, _TALLEST = 4.5, 300  # inches: of bars beside the curves, of the tallest picture
_LONGEST = 44  # letters of a name in a picture


def table(tests: dict[str, dict]) -> str:
    """A Markdown table: a row per test, TAR at each FAR, AUC, and 1:N figures where there are any.

    Args:
        tests: name -> {"pairs": scoring.verification(), "search": scoring.open_set() or absent}.
    """
    rows = {name: cells(test) for name, test in tests.items()}
    titles = ["query / gallery", *next(iter(rows.values()))]
    lines = [[name, *(f"{value:.4f}" for value in row.values())] for name, row in rows.items()]
    return markdown.table(titles, lines, padded=True)


def cells(test: dict) -> dict[str, float]:
    """The figures of one test that the table shows, by column title."""
    out = {f"TAR@{far}": tar for far, tar in test["pairs"]["tar"].items()}
    out["AUC"] = test["pairs"]["auc"]
    if "search" in test:
        search = test["search"]
        out["top-1"] = search["mean"]["top1"]
        for fpir in SHOWN_FPIRS:
            at = int(np.argmin(np.abs(np.array(search["fpir"]) - fpir)))
            out[f"TPIR@{rate_name(fpir)}"] = search["mean"]["tpir"][at]
    return out


def draw(tests: dict[str, dict], curves: dict[str, tuple], path: Path, main_far: float) -> None:
    """ROC curves, and TAR at `main_far` (and top-1) as bars, into a PNG: side by side, or one below
    the other where there are many.

    Args:
        curves: test name -> (FAR, TAR) arrays.
    """
    shown = [
        f"TAR@{rate_name(main_far)}",
        *(["top-1"] if "search" in next(iter(tests.values())) else []),
    ]
    bars = min(0.7 + 0.17 * (len(tests) * (len(shown) + 1)), _TALLEST)
    legend = 0.2 * -(-len(curves) // 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters that the font lacks
        if bars <= _BESIDE:
            size = (11, max(4.0, bars) + legend)
            figure, (roc, bar) = plt.subplots(1, 2, figsize=size, layout="constrained")
        else:
            heights = (_BESIDE, bars)
            figure, (roc, bar) = plt.subplots(
                2, 1, figsize=(11, sum(heights) + legend), layout="constrained",
                height_ratios=heights,
            )  # fmt: skip
        _draw_curves(roc, curves, main_far)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
        _draw_bars(bar, tests, shown)
        with atomic(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _draw_curves(axes: plt.Axes, curves: dict[str, tuple], main_far: float) -> None:
    """Ten colours in four styles of line; after 40 curves they begin anew."""
    for name, (far, tar), (style, colour) in zip(curves, curves.values(), _looks(), strict=False):
        axes.semilogx(far, tar, style, label=_label(name), color=colour)
    axes.axvline(main_far, color="0.8", zorder=0)
    axes.set(xlabel="false accept rate", ylabel="true accept rate", ylim=(0, 1), title="1:1")
    axes.grid(alpha=0.3)


def _draw_bars(axes: plt.Axes, tests: dict[str, dict], shown: list[str]) -> None:
    colours = [colour for _, (_, colour) in zip(tests, _looks(), strict=False)]
    height = 0.8 / len(shown)
    for k, column in enumerate(shown):
        values = [cells(test)[column] for test in tests.values()]
        at = np.arange(len(tests)) + k * height
        bars = axes.barh(at, values, height, color=colours, alpha=1 - 0.5 * k)
        axes.bar_label(bars, [f"{v:.3f}  {column}" for v in values], padding=3, fontsize=8)
    middle = np.arange(len(tests)) + height * (len(shown) - 1) / 2
    axes.set_yticks(middle, list(map(_label, tests)), fontsize=8)
    axes.set(xlim=(0, 1.25), title="query / gallery")
    axes.set_ylim(len(tests) - 0.4, -0.6)  # the first at the top
    axes.spines[["top", "right"]].set_visible(False)


def _looks() -> Iterator[tuple[str, tuple]]:
    """(line style, colour), without an end."""
    return cycle(product(("-", "--", ":", "-."), plt.colormaps["tab10"].colors))


def _label(name: str) -> str:
    """A name as a picture can hold it: short, of letters that print, and no formula."""
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST // 2]}...{name[-_LONGEST // 2 :]}"
    plain = "".join(letter if letter.isprintable() else "?" for letter in name)
    plain = plain.replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain  # a legend leaves out names like _x


def draw_search(curves: dict[str, tuple], path: Path) -> None:
    """Open-set identification: TPIR over FPIR, into a PNG.

    Args:
        curves: test name -> (FPIR, TPIR) arrays, means over the galleries.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters that the font lacks
        figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
        for name, (fpir, tpir), (style, colour) in zip(
            curves, curves.values(), _looks(), strict=False
        ):
            axes.semilogx(fpir, tpir, style, label=_label(name), color=colour)
        axes.set(xlabel="false positive identification rate (FPIR)", ylim=(0, 1), title="1:N")
        axes.set_ylabel("true positive identification rate (TPIR)")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
        with atomic(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def search_picture(target: Path) -> Path:
    """What `draw_search` writes beside the other results."""
    return target.with_name(f"{target.name}_idroc.png")


def search_curves(tests: dict[str, dict]) -> dict[str, tuple]:
    """(FPIR, TPIR) of each test that has a search, for draw_search."""
    return {
        name: (test["search"]["fpir"], test["search"]["mean"]["tpir"])
        for name, test in tests.items()
        if "search" in test
    }


def files_of(target: Path) -> list[Path]:
    """What `write` and `draw` write: .json, .md and .png."""
    return [*results_files(target), target.with_name(f"{target.name}.png")]


def write(target: Path, summary: dict, text: str) -> None:
    """<target>.json and <target>.md."""
    json_file, page, _ = files_of(target)
    write_json(json_file, summary)
    write_text(page, text + "\n")


def read_scores(path: Path) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    """(name, scores (P,), labels bool (P,) if they were saved) of each test in a file.

    Args:
        path: .npz with `scores` (T, P) or (P,) and, if any, `names` (T,) and `label` (P,) of 0 and
            1; .npy or .txt with scores (P,).

    Raises BctError: no such file, or none of these; scores that are not finite.
    """
    if not path.is_file():
        raise BctError(f"{path} does not exist", "evaluate a model first: eval/ijbc.py -m ...")
    with open(path, "rb") as file:
        start = file.read(6)
    if path.suffix == ".txt":
        scores = _from_text(path)
    elif start == b"\x93NUMPY":
        scores = open_vectors(path, column=True, finite=False)[0]
    elif start[:2] == b"PK":
        return _from_archive(path, _arrays(path))
    else:
        raise _no_scores(path, "it is neither .npz, .npy nor .txt")
    return [(path.stem, _checked(path, scores), None)]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return read_arrays(path)
    except BctError as error:
        raise _no_scores(path, error.what.removeprefix(f"{path} ")) from None


def _from_archive(
    path: Path, arrays: dict[str, np.ndarray]
) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    if "scores" not in arrays:
        raise _no_scores(path, f"it has {', '.join(sorted(arrays)) or 'nothing'}, no array scores")
    scores = arrays["scores"]
    if scores.ndim not in (1, 2):
        raise _no_scores(path, f"they are {scores.shape}")
    scores = np.atleast_2d(scores)
    names = arrays.get("names", np.array([path.stem]))
    if names.dtype.kind != "U" or names.shape != scores.shape[:1]:
        raise _no_scores(path, f"its names are {names.dtype} {names.shape}, scores {scores.shape}")
    if len(set(names.tolist())) < len(names):
        raise _no_scores(path, "two of its tests have one name")
    label = arrays.get("label")
    if label is not None:
        numbers = label.dtype.kind in "biuf" and label.shape == scores.shape[1:]
        if not numbers or not np.isin(label, (0, 1)).all():
            raise _no_scores(path, f"its label is not 0 or 1 for each of {scores.shape[1]} pairs")
        label = label.astype(bool)
    return [
        (name, _checked(path, row), label) for name, row in zip(names.tolist(), scores, strict=True)
    ]


def _from_text(path: Path) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty file is refused
            return np.loadtxt(path, ndmin=1, encoding="utf-8-sig")
    except (ValueError, OverflowError) as error:
        raise _no_scores(path, " ".join(str(error).split())[:120]) from None


def _checked(path: Path, scores: np.ndarray) -> np.ndarray:
    """Scores (P,) as float32 or float64."""
    if scores.dtype.kind != "f" or scores.ndim != 1 or not len(scores):
        raise _no_scores(path, f"it has {scores.dtype} {scores.shape}, not floats (P,)")
    finite = np.isfinite(scores)
    if not finite.all():
        raise _no_scores(path, f"number {int(finite.argmin())} is not finite")
    return scores.astype(np.float32 if scores.dtype.itemsize <= 4 else np.float64)


def _no_scores(path: Path, why: str) -> BctError:
    return BctError(f"{path} holds no scores: {why}", "give a file that eval/ijbc.py -m ... wrote")


def read_search(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Test -> (FPIR (F,), TPIR (F,)) of a file that eval/ijbc.py -N saved, ours or MixBCT's.

    Args:
        path: .npz with `names` (T,), `fpir` (F,) and `tpir` (T, F); or MixBCT's, whose `scores` are
            (T, 2, F), a row of each.

    Raises BctError: no such file, or neither of these.
    """
    if not path.is_file():
        raise BctError(f"{path} does not exist", "evaluate a model first: eval/ijbc.py -m ... -N")
    arrays = _arrays(path) if path.suffix == ".npz" else {}
    none = np.zeros((0, 0))
    fpir, tpir = arrays.get("fpir", none), np.atleast_2d(arrays.get("tpir", none))
    curves = arrays.get("scores", none)  # MixBCT's
    if fpir.ndim == 1 and tpir.shape[1:] == fpir.shape:
        curves = np.stack([np.broadcast_to(fpir, tpir.shape), tpir], axis=1)
    names = arrays.get("names", np.array([path.stem]))
    fits = curves.ndim == 3 and curves.shape[1] == 2 and curves.shape[:1] == names.shape
    if not fits or curves.dtype.kind != "f" or not np.isfinite(curves).all():
        raise BctError(f"{path} holds no curves of 1:N", "evaluate with -N, or draw 1:1 without")
    return {str(name): (x, y) for name, (x, y) in zip(names.tolist(), curves, strict=True)}


def draw_saved_search(paths: list[Path], target: Path) -> None:
    """The table of saved 1:N curves, to <target>.md and .json, and a picture of them."""
    picture = search_picture(target)
    check_outputs(*files_of(target)[:2], picture)
    curves: dict[str, tuple] = {}
    for path in paths:
        for name, curve in read_search(path).items():
            title = f"{path.stem}: {name}" if name in curves else name
            if title in curves:
                raise BctError(f"two tests are called {title!r}", "give each file once")
            curves[title] = curve
    rates = {
        name: {
            rate_name(shown): float(tpir[np.argmin(np.abs(np.array(fpir) - shown))])
            for shown in SHOWN_FPIRS
        }
        for name, (fpir, tpir) in curves.items()
    }
    titles = ["query / gallery", *(f"TPIR@{rate_name(shown)}" for shown in SHOWN_FPIRS)]
    lines = [[name, *(f"{value:.4f}" for value in row.values())] for name, row in rates.items()]
    text = markdown.table(titles, lines, padded=True)
    write(
        target,
        {"scores": list(map(str, paths)), "tests": {n: {"tpir": r} for n, r in rates.items()}},
        text,
    )
    print(f"{text}\n\nwritten to {target}.md, .json", flush=True)
    draw_search(curves, picture)
    print(f"drawn in {picture}")


def save_scores(
    path: Path,
    scores: dict[str, np.ndarray],
    genuine: np.ndarray | None,
    search: dict[str, tuple] | None = None,
) -> None:
    """An .npz that read_scores reads: names, scores (T, P) and, if given, the labels (P,), and of
    the searches fpir (F,) and tpir (T, F), which read_search reads."""
    more = {} if genuine is None else {"label": genuine}
    if search:
        more["fpir"] = np.array(next(iter(search.values()))[0])
        more["tpir"] = np.array([search[name][1] for name in scores])
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, names=list(scores), scores=np.stack(list(scores.values())), **more)


def draw_saved(
    paths: list[Path], known: np.ndarray | None, rule: str, target: Path, far: float
) -> None:
    """The table of saved scores, printed and written to <target>.md and .json; then their ROC
    curves in <target>.png.

    Args:
        known: which pairs are genuine, bool (P,), for files that do not say it.
    """
    check_outputs(*files_of(target))
    tests, curves = {}, {}
    for path in paths:
        for name, scores, label in read_scores(path):
            genuine = known if label is None else label
            if genuine is None or len(genuine) != len(scores):
                have = "no labels" if genuine is None else f"{len(genuine)} labels"
                raise BctError(
                    f"{path} has {len(scores)} scores and there are {have} for them",
                    "give the protocol's folder, -d, or scores saved with -L",
                )
            if name in tests:
                name = f"{path.stem}: {name}"
            if name in tests:
                raise BctError(
                    f"two tests are called {name!r}", "give each file once, or rename one"
                )
            tests[name] = {"pairs": verification(scores, genuine, rule)}
            curves[name] = roc_points(scores, genuine)
    text = table(tests)
    write(target, {"scores": list(map(str, paths)), "roc": rule, "tests": tests}, text)
    print(f"{text}\n\nwritten to {target}.md, .json", flush=True)
    picture = files_of(target)[-1]
    draw(tests, curves, picture, far)
    print(f"drawn in {picture}")
