"""The report's figures as inline SVG that follows the page's colours, light or dark."""

import io
import re
from collections.abc import Callable, Collection, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from bct.metrics.scores import rate_name
from bct.report.study import signed

# colours that nothing else has, put into the SVG and replaced by the page's CSS variables
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0{k}0a0b" for k in range(1, 7))
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    **{colour: f"var(--s{k})" for k, colour in enumerate(SERIES, 1)},
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and scaled
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "axes.prop_cycle": plt.cycler(color=SERIES),
}
_RE_EXTRACTED = "share of the gallery re-extracted, %"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 2)))  # told apart without colour, too


def svg(draw: Callable[[plt.Figure], None], size: tuple[float, float], name: str, text: str) -> str:
    """An <svg> element for a page.

    Args:
        draw: draws into an empty figure.
        size: width and height, inches; the page scales it.
        name: makes the ids in the SVG the figure's own; several lie in one page.
        text: what it shows, in words, for those who can't see it.
    """
    with plt.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = plt.figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    code = buffer.getvalue()
    code = code[code.index("<svg") :]
    code = re.sub(r'(?<=id=")|(?<=href="#)|(?<=url\(#)', f"{name}-", code)
    code = re.sub(r"<metadata>.*?</metadata>", "", code, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        code = code.replace(colour, variable)
    width, height = (round(72 * inches) for inches in size)
    head = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-text" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-text">{_escape(text)}</title>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, code, count=1)


def roc(curves: dict[str, tuple[np.ndarray, np.ndarray]], far: float) -> str:
    """ROC curves, test name -> (FAR, TAR), with the FAR in use."""

    def draw(figure: plt.Figure) -> None:
        axes = figure.subplots()
        for (name, (x, y)), dash in zip(curves.items(), _DASHES, strict=False):
            axes.semilogx(x, y, dash, label=name)
        axes.axvline(far, color=MUTED, linewidth=1)
        axes.annotate(f" FAR {rate_name(far)}", (far, 0.02), color=MUTED)
        axes.set(xlabel="false accept rate", ylabel="true accept rate", ylim=(0, 1.01))
        axes.grid()
        axes.legend(loc="upper left" if far > 1e-3 else "lower right")

    at = {name: float(np.interp(far, x, y)) for name, (x, y) in curves.items()}
    text = "ROC curves. True accept rate at false accept rate " + rate_name(far) + ": "
    return svg(draw, (8, 4.4), "roc", text + _listed(at))


def distributions(scores: dict[str, np.ndarray], genuine: np.ndarray, threshold: float) -> str:
    """Densities of genuine and impostor scores per test, and the threshold in use."""
    low = min(float(s.min()) for s in scores.values())
    bins = int(np.clip(2 * np.sqrt(np.count_nonzero(genuine)), 20, 80))
    edges = np.linspace(low, max(float(s.max()) for s in scores.values()), bins + 1)
    middle = (edges[1:] + edges[:-1]) / 2

    def draw(figure: plt.Figure) -> None:
        panels = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, s) in zip(panels, scores.items(), strict=True):
            for kind, chosen, dash in (("impostors", ~genuine, "--"), ("genuine", genuine, "-")):
                density = np.histogram(s[chosen], edges, density=True)[0]
                colour = SERIES[1 if kind == "impostors" else 0]
                axes.plot(middle, density, dash, color=colour, label=kind)
                axes.fill_between(middle, density, color=colour, alpha=0.15, linewidth=0)
            axes.axvline(threshold, color=INK, linewidth=1.2)
            axes.set_yticks([])
            axes.set_title(name, loc="left", fontsize=11)
        panels[0].legend(loc="upper left")
        top = panels[0].get_ylim()[1]
        panels[0].set_ylim(top=1.2 * top)  # room for the label above the curves
        panels[0].annotate(" deployed threshold", (threshold, 1.08 * top), color=INK)
        panels[-1].set_xlabel("cosine similarity")

    means = {
        f"{name}, {kind}": float(s[chosen].mean())
        for name, s in scores.items()
        for kind, chosen in (("genuine", genuine), ("impostors", ~genuine))
    }
    text = f"Score distributions; deployed threshold {threshold:.3f}; mean similarity: "
    return svg(draw, (8, 2.3 * len(scores)), "scores", text + _listed(means))


def gains(rows: dict[str, tuple[float, float, float]], title: str) -> str:
    """Differences with their intervals: name -> (estimate, low, high)."""

    def draw(figure: plt.Figure) -> None:
        axes = figure.subplots()
        at = np.arange(len(rows))[::-1]
        for y, (estimate, low, high) in zip(at, rows.values(), strict=True):
            axes.plot([low, high], [y, y], color=SERIES[0])
            axes.plot(estimate, y, "o", color=SERIES[0], markersize=7)
            axes.annotate(signed(estimate), (estimate, y + 0.15), ha="center", color=INK)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.set_yticks(at, list(rows))
        axes.set(xlabel=title, ylim=(-0.5, len(rows) - 0.3))
        axes.grid(axis="x")

    text = "Differences from the old system, with 95 % intervals: " + "; ".join(
        f"{name} {signed(e)}, from {signed(low)} to {signed(high)}"
        for name, (e, low, high) in rows.items()
    )
    return svg(draw, (8, 0.9 + 0.6 * len(rows)), "gains", text + ".")


def backfill(
    shares: np.ndarray,
    curves: dict[str, Sequence[float]],
    bounds: Collection[str],
    old: float,
    title: str,
) -> str:
    """Quality at the re-extracted shares (B,), order -> (B,), and the old system's. Bounds are
    drawn as such: no order that can be had."""

    def draw(figure: plt.Figure) -> None:
        axes: Axes = figure.subplots()
        for (name, y), dash in zip(curves.items(), _DASHES, strict=False):
            of_bound = {"color": MUTED, "linewidth": 1} if name in bounds else {}
            axes.plot(100 * shares, y, ":" if of_bound else dash, label=name, **of_bound)
        axes.axhline(old, color=MUTED, linewidth=1)
        axes.annotate("old system", (0, old), color=MUTED, va="bottom")
        axes.set(xlabel=_RE_EXTRACTED, ylabel=title, xlim=(0, 100))
        axes.grid()
        axes.legend(loc="lower right")

    first = next(iter(curves.values()))
    text = f"Backfill curves: {title} from {first[0]:.3f} with nothing re-extracted "
    text += f"to {first[-1]:.3f} with everything; the old system has {old:.3f}."
    return svg(draw, (8, 3.8), "backfill", text)


def kept(
    shares: np.ndarray,
    curves: dict[str, tuple[Sequence[float], Sequence[float]]],
    old: tuple[float, float],
) -> str:
    """TAR and FAR at the deployed threshold: order -> both at the shares (B,); and the old
    system's."""
    names = ("true accept rate", "false accept rate")

    def draw(figure: plt.Figure) -> None:
        panels = figure.subplots(1, 2, sharex=True)
        for k, axes in enumerate(panels):
            for (name, both), dash in zip(curves.items(), _DASHES, strict=False):
                axes.plot(100 * shares, both[k], dash, label=name)
            axes.axhline(old[k], color=MUTED, linewidth=1)
            axes.annotate("old system", (0, old[k]), color=MUTED, va="bottom")
            axes.set(xlabel=_RE_EXTRACTED, xlim=(0, 100))
            axes.set_title(names[k], loc="left", fontsize=11)
            axes.grid()
        panels[0].legend(loc="upper left")

    first = next(iter(curves.values()))
    text = "At the deployed threshold, from nothing to everything re-extracted: " + "; ".join(
        f"{name} from {rates[0]:.3g} to {rates[-1]:.3g}, the old system has {before:.3g}"
        for name, rates, before in zip(names, first, old, strict=True)
    )
    return svg(draw, (8, 3.4), "kept", text + ".")


def _listed(values: dict[str, float]) -> str:
    return "; ".join(f"{name} {round(value, 3) + 0:.3f}" for name, value in values.items()) + "."


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
