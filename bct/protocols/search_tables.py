"""The figures of searches on image sets as Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bct.data.images import size_in_words
from bct.markdown import table as markdown
from bct.models.model import Model
from bct.protocols.image_search import sets_of
from bct.protocols.protocol import Protocol
from bct.protocols.roles import Roles
from bct.protocols.search_backfill import SHARES
from bct.protocols.search_tests import EVERY, OVER, How
from bct.protocols.verdict import interval_title


def tables(found: dict, roles: Roles, how: How, parts: dict[str, np.ndarray]) -> list[str]:
    """All tables. Args: found: what search_tests.measured gave, and "backfill"."""
    text = [tests(found["tests"], part, how.qualities) for part in parts]
    if "chain" in found:
        text.append(chain(roles.versions, found["chain"]))
    if "compatibility" in found:
        text.append(compatibility(found["compatibility"]))
    if "backfill" in found:
        text.append(backfill(found["backfill"]))
    return text


def heading(
    protocol: Protocol, how: How, models: Mapping[str, Model], widths: Mapping[str, int]
) -> str:
    """What is tested. Args: models and widths: by label."""
    query, *gallery = (images.path for images in sets_of(protocol))
    where = f"in {gallery[0]}" if gallery else "each among all the others"
    search = protocol.search
    lines = [
        f"{query}: {len(search.queries):,} queries, {where} "
        f"({len(search.gallery):,} images); {how.metric}, dimensions: {how.dimensions}\n"
    ]
    for label, model in models.items():
        view, seen = model.view, "stored embeddings"
        if view:
            seen = f"{size_in_words(view.size)} pixels, crop {view.crop}, {view.pixels}"
        lines.append(f"- {label}: {model.file}, {widths[label]} dimensions, {seen}")
    return "\n".join(lines)


def title(quality: str) -> str:
    return "mAP" if quality == "map" else quality.replace("top", "top-")


def tests(found: dict[str, dict], part: str, qualities: Sequence[str]) -> str:
    """All tests on one part of the queries. Args: found: name -> search_tests.figures()."""
    rows = []
    for name, test in found.items():
        shown = [f"{test[part][quality]:.4f}" for quality in qualities]
        rows.append([name, *shown, *(f"{test[part][key]:,}" for key in ("queries", "without"))])
    titles = [f"{part}: query / gallery", *map(title, qualities), "queries", "without a positive"]
    return markdown(titles, rows)


def chain(versions: list[str], found: dict) -> str:
    """A matrix per quality, and one table of the chain's figures."""
    blocks = []
    for quality, figures in found.items():
        rows = [
            [name, *(f"{value:.4f}" for value in row)]
            for name, row in zip(versions, figures["matrix"], strict=True)
        ]
        galleries = [f"{name} gallery" for name in versions]
        blocks.append(markdown([f"{title(quality)} by query", *galleries], rows))
    keys = [key for key in next(iter(found.values())) if key != "matrix"]
    rows = [[title(q), *(f"{figures[key]:+.4f}" for key in keys)] for q, figures in found.items()]
    blocks.append(markdown(["chain", *(key.replace("_", " ") for key in keys)], rows))
    return "\n\n".join(blocks)


def compatibility(found: dict) -> str:
    """Label -> part -> search_tests.compatible(), of all queries."""
    keys = ("update_gain", "price", "p_up", "p_comp", "p_1")
    rows = []
    for label, parts in found.items():
        for quality, figures in parts[EVERY].items():
            gap = figures["difference"]
            values = [figures.get(key) for key in keys]
            rows.append(
                [
                    f"{label}, {title(quality)}",
                    "yes" if figures["compatible"] else "no",
                    f"{gap['estimate']:+.4f}",
                    f"{gap['low']:+.4f} to {gap['high']:+.4f}",
                    *("-" if value is None else f"{value:.4f}" for value in values),
                ]
            )
    titles = [EVERY, "compatible", "cross - old self", interval_title(OVER)]
    return markdown([*titles, "update gain", "price", "P_up", "P_comp", "P_1"], rows)


def backfill(found: dict) -> str:
    """Label -> order -> search_backfill.backfilling()."""
    shown = range(0, len(SHARES), 2)
    rows = []
    for label, orders in found.items():
        for order, figures in orders.items():
            for quality, curve in figures.items():
                enough = curve["enough_for_old"]
                rows.append(
                    [
                        f"{label}, {Path(order).stem}, {title(quality)}",
                        *(f"{curve['values'][i]:.4f}" for i in shown),
                        f"{curve['area']:.4f}",
                        f"{curve['published_mean']:.4f}",
                        "never" if enough is None else f"{100 * enough:.0f} %",
                    ]
                )
    shares = [f"{100 * SHARES[i]:.0f} % refreshed" for i in shown]
    return markdown(["backfill, order", *shares, "area", "mean", "as good as old from"], rows)
