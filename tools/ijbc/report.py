"""The results of an evaluation as a table, JSON and a picture."""

from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from bct import markdown
from bct.errors import BctError
from bct.files import atomic, write_json, write_text
from bct.metrics.scores import rate_name, roc_points
from bct.protocols.scoring import verification

SHOWN_FPIRS = (1e-2, 1e-1)


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
    """ROC curves on the left, TAR at `main_far` (and top-1) as bars on the right, into a PNG.

    Args:
        curves: test name -> (FAR, TAR) arrays.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    label = {name: name.replace("$", r"\$") for name in tests}  # between two it would be a formula
    colours = dict(zip(curves, cycle(plt.colormaps["tab10"].colors), strict=False))
    for name, (far, tar) in curves.items():
        left.semilogx(far, tar, label=label[name], color=colours[name])
    left.axvline(main_far, color="0.8", zorder=0)
    left.set(xlabel="false accept rate", ylabel="true accept rate", ylim=(0, 1), title="1:1")
    left.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    shown = [
        f"TAR@{rate_name(main_far)}",
        *(["top-1"] if "search" in next(iter(tests.values())) else []),
    ]
    height = 0.8 / len(shown)
    for k, column in enumerate(shown):
        values = [cells(test)[column] for test in tests.values()]
        at = np.arange(len(tests)) + k * height
        bars = right.barh(at, values, height, color=[colours[name] for name in tests],
                          alpha=1 - 0.5 * k, label=column)  # fmt: skip
        right.bar_label(bars, [f"{v:.3f}  {column}" for v in values], padding=3, fontsize=8)
    right.set_yticks(np.arange(len(tests)) + height * (len(shown) - 1) / 2, list(label.values()))
    right.invert_yaxis()
    right.set(xlim=(0, 1.25), title="query / gallery")
    right.spines[["top", "right"]].set_visible(False)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def write(
    target: Path,
    summary: dict,
    text: str,
    scores: dict[str, np.ndarray],
    genuine: np.ndarray,
    main_far: float,
) -> None:
    """<target>.md, <target>.json and <target>.png, with the curves of these scores."""
    file = {kind: target.with_name(f"{target.name}.{kind}") for kind in ("json", "md", "png")}
    write_json(file["json"], summary)
    write_text(file["md"], text + "\n")
    curves = {name: roc_points(of_test, genuine) for name, of_test in scores.items()}
    drawn = {name: summary["tests"][name] for name in curves}
    draw(drawn, curves, file["png"], main_far)


def read_scores(path: Path) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    """(name, scores (P,), labels bool (P,) if they were saved) of each test in a file.

    Args:
        path: .npz with `scores` (T, P) or (P,) and, if any, `names` and `label`; .npy or .txt
            with scores (P,).

    Raises BctError: no such file, or none of these.
    """
    if not path.is_file():
        raise BctError(f"{path} does not exist", "evaluate a model first: eval/ijbc.py -m ...")
    try:
        if path.suffix == ".txt":
            return [(path.stem, np.loadtxt(path, ndmin=1), None)]
        saved = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return [(path.stem, saved.reshape(-1), None)]
        scores = np.atleast_2d(saved["scores"])
        names = saved["names"].tolist() if "names" in saved else [path.stem]
        label = saved["label"].astype(bool) if "label" in saved else None
        return [(name, row, label) for name, row in zip(names, scores, strict=True)]
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise BctError(
            f"{path} holds no scores ({error})", "give a file that eval/ijbc.py -m ... wrote"
        ) from None


def save_scores(path: Path, scores: dict[str, np.ndarray], genuine: np.ndarray | None) -> None:
    """An .npz that read_scores reads: names, scores (T, P) and, if given, the labels (P,)."""
    labels = {} if genuine is None else {"label": genuine}
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, names=list(scores), scores=np.stack(list(scores.values())), **labels)


def draw_saved(
    paths: list[Path], known: np.ndarray | None, rule: str, target: Path, far: float
) -> None:
    """Draws the ROC curves of saved scores and prints their table.

    Args:
        known: which pairs are genuine, bool (P,), for files that do not say it.
    """
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
            tests[name] = {"pairs": verification(scores, genuine, rule)}
            curves[name] = roc_points(scores, genuine)
    draw(tests, curves, target, far)
    print(f"{table(tests)}\n\nwritten to {target}")
