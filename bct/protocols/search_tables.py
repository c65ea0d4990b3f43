"""The figures of searches on image sets as Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bct.data.images import size_in_words
from bct.markdown import table as markdown
from bct.models.model import Model
from bct.models.whole_images import Whole
from bct.protocols.image_search import sets_of
from bct.protocols.protocol import Protocol
from bct.protocols.roles import Roles
from bct.protocols.search_tests import EVERY, How, Part
from bct.protocols.verdict import interval_title


def tables(found: dict, roles: Roles, how: How, parts: Mapping[str, Part], over: str) -> list[str]:
    """All tables. Args: found: what search_tests.measured gave, and "backfill"; over: what
    intervals are over."""
    text = [tests(found["tests"], name, part, how) for name, part in parts.items()]
    if "chain" in found:
        text.append(chain(roles.versions, found["chain"], how.way))
    if "compatibility" in found:
        text.append(compatibility(found["compatibility"], how.way, over))
    if "backfill" in found:
        text += backfill(found["backfill"], how.way)
        text.append(regressions(found["backfill"], how.way))
    return text


def heading(
    protocol: Protocol,
    how: How,
    models: Mapping[str, Model],
    widths: Mapping[str, int],
    whole: Whole | None = None,
    whitened: bool = False,
) -> str:
    """What is tested. Args: models and widths: by label."""
    query, *gallery = (images.path for images in sets_of(protocol))
    where = f"in {gallery[0]}" if gallery else "each among all the others"
    where = "in its gallery" if gallery == [query] else where  # lists of one file
    search = protocol.search
    lines = [
        f"{query}: {len(search.queries):,} queries, {where} "
        f"({len(search.gallery):,} images); {how.metric}, dimensions: {how.dimensions}\n"
    ]
    beside = ["embeddings whitened"] * whitened + [how.refine.sentence] * how.refine.ranks
    if beside:
        lines[0] = f"{lines[0].rstrip()}; {'; '.join(beside)}\n"
    for label, model in models.items():
        view, seen = model.view, "stored embeddings"
        if view:
            seen = f"{size_in_words(view.size)} pixels, crop {view.crop}, {view.pixels}"
        if view and whole:
            seen = f"long side {whole.size} at {len(whole.scales)} scales, {view.pixels}"
        lines.append(f"- {label}: {model.file}, {widths[label]} dimensions, {seen}")
    return "\n".join(lines)


def title(quality: str, way: str = "steps") -> str:
    if quality == "map":
        return "mAP@100" if way == "first100" else "mAP"
    return quality.replace("top", "top-").replace("mp", "mP@")


def tests(found: dict[str, dict], part: str, what: Part, how: How) -> str:
    """All tests on one part of the queries. Args: found: name -> search_tests.figures()."""
    rows, qualities = [], how.qualities
    for name, test in found.items():
        shown = [f"{test[part][quality]:.4f}" for quality in qualities]
        rows.append([name, *shown, *(f"{test[part][key]:,}" for key in ("queries", "without"))])
    named = f"{part} ({what.reading})" if part == EVERY and what.reading else part
    titles = [f"{named}: query / gallery", *(title(quality, how.way) for quality in qualities)]
    titles += ["queries", "without a positive"]
    return markdown(titles, rows)


def chain(versions: list[str], found: dict, way: str) -> str:
    """A matrix per quality, and one table of the chain's figures."""
    blocks = []
    for quality, figures in found.items():
        rows = [
            [name, *(f"{value:.4f}" for value in row)]
            for name, row in zip(versions, figures["matrix"], strict=True)
        ]
        galleries = [f"{name} gallery" for name in versions]
        blocks.append(markdown([f"{title(quality, way)} by query", *galleries], rows))
    keys = [key for key in next(iter(found.values())) if key != "matrix"]
    rows = [
        [title(q, way), *(f"{figures[key]:+.4f}" for key in keys)] for q, figures in found.items()
    ]
    blocks.append(markdown(["chain", *(key.replace("_", " ") for key in keys)], rows))
    return "\n\n".join(blocks)


def compatibility(found: dict, way: str, over: str) -> str:
    """Label -> part -> search_tests.compatible(), of all queries."""
    keys = ("update_gain", "price", "p_up", "p_comp", "p_1")
    rows = []
    for label, parts in found.items():
        for quality, figures in parts[EVERY].items():
            gap = figures["difference"]
            values = [figures.get(key) for key in keys]
            rows.append(
                [
                    f"{label}, {title(quality, way)}",
                    "yes" if figures["compatible"] else "no",
                    f"{gap['estimate']:+.4f}",
                    f"{gap['low']:+.4f} to {gap['high']:+.4f}",
                    *("-" if value is None else f"{value:.4f}" for value in values),
                ]
            )
    titles = [EVERY, "compatible", "cross - old self", interval_title(over)]
    return markdown([*titles, "update gain", "price", "P_up", "P_comp", "P_1"], rows)


def backfill(found: dict, way: str) -> list[str]:
    """A table for all curves with the same shares. Args: found: label -> order ->
    search_backfill.backfilling()."""
    rows: dict[tuple[float, ...], list[list[str]]] = {}
    for label, orders in found.items():
        for order, figures in orders.items():
            for quality, curve in figures.items():
                enough = curve["enough_for_old"]
                rows.setdefault(tuple(curve["shares"]), []).append(
                    [
                        f"{label}, {Path(order).stem}, {title(quality, way)}",
                        *(f"{curve['values'][i]:.4f}" for i in _shown(curve["shares"])),
                        f"{curve['area']:.4f}",
                        f"{curve['published_mean']:.4f}",
                        "never" if enough is None else f"{100 * enough:.0f} %",
                    ]
                )
    return [
        markdown(
            ["backfill, order", *_titles(shares), "area", "mean", "as good as old from"], of_shares
        )
        for shares, of_shares in rows.items()
    ]


def regressions(found: dict, way: str) -> str:
    """What single queries lose on the way, and the deepest fall of the mean."""
    rows = []
    for label, orders in found.items():
        for order, figures in orders.items():
            curve = figures["map"]
            for key, what in (("negative_flips", "negative flips"), ("ap_drops", "AP drops")):
                at = curve["shares"][int(max(range(len(curve[key])), key=curve[key].__getitem__))]
                rows.append(
                    [
                        f"{label}, {Path(order).stem}, {what}",
                        f"{max(curve[key]):.4f} at {100 * at:.0f} %",
                        f"{curve[key][-1]:.4f}",
                        f"{curve['violations']['drawdown']:.4f}",
                    ]
                )
    titles = ["share of queries against 0 % refreshed", "most", "at 100 %"]
    return markdown([*titles, f"drawdown of {title('map', way)}"], rows)


def _shown(shares: Sequence[float]) -> range:
    return range(0, len(shares), 2 if len(shares) > 6 else 1)


def _titles(shares: Sequence[float]) -> list[str]:
    return [f"{100 * shares[i]:.0f} % refreshed" for i in _shown(shares)]
