"""The report as one HTML page that needs nothing else, and as Markdown."""

import base64
import math
from pathlib import Path

import jinja2
import numpy as np
import simplejpeg

from bct.errors import printable
from bct.files import write_json, write_text
from bct.metrics.scores import rate_name
from bct.protocols.protocol import Protocol
from bct.protocols.verdict import interval_title
from bct.report import drawings
from bct.report.study import Drawings, Measure, signed

_TONES = {
    "deploy now": "good",
    "tie": "warn",
    "backfill first": "warn",
    "no verdict": "warn",
    "do not": "bad",
}
_NAMES = {  # of the rows in the figure of gains
    "new / old": "after the upgrade",
    "new / new": "after full backfill",
    "alone / alone": "without compatibility",
}
_OF_PAIRS = {"far": None, "drift": None}  # what a report by a search does not have
_OF_WAY = {  # of an average precision
    "steps": "",
    "trapezoid": " It is the area under that curve by trapezoids.",
    "first100": " It looks at the first 100 items, and of more right ones expects 100.",
}


def files_of(folder: Path) -> list[Path]:
    """In the order in which they are written."""
    return [folder / f"report.{kind}" for kind in ("json", "md", "html")]


def write(
    folder: Path,
    report: dict,
    arrays: Drawings | None = None,
    pictures: Protocol | None = None,
) -> None:
    """report.json, report.md and report.html in `folder`, in this order.

    The figures are saved before anything is drawn, so that no failure there loses them. No page of
    an earlier report stays beside them.

    Args:
        report: see bct.report.analysis.analyse and write_report. arrays: of pairs.
        pictures: of which protocol's items the page shows pictures; None: none.
    """
    figures, *pages = files_of(folder)
    write_json(figures, report)
    for path in pages:
        path.unlink(missing_ok=True)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= _FILTERS
    values = {**_OF_PAIRS, "cost": None, **report, **_values(report)}
    for path in pages:
        if path.suffix == ".html":
            shown = None if pictures is None else thumbnails(pictures, report)
            values |= {"figures": _figures(report, arrays), "thumbnails": shown}
        write_text(path, environment.get_template(f"{path.name}.j2").render(values))


def _values(report: dict) -> dict:
    """What the templates show in the same places, whatever the report judges by."""
    measure, far = Measure(**report["measure"]), report.get("far")
    tests, flips = report["tests"], report["flips"]
    if far is None:
        cells = {
            name: (test["retrieval"]["map"], test["retrieval"]["top1"])
            for name, test in tests.items()
        }
    else:
        cells = {
            name: (test["pairs"]["tar"][rate_name(far)], _top1(test))
            for name, test in tests.items()
        }
    unit = "queries" if far is None else "pairs"
    orders = report["backfill"]["orders"]
    readings = next(iter(tests.values())).get("readings", {})
    return {
        "measure": measure,
        "readings": list(readings),
        "searched": _searched(tests),
        "of_way": _OF_WAY[report["protocol"].get("precision", "steps")],
        "qualities": report["compatibility"][measure.key],
        "cells": cells,
        "labels": list(report["models"]),
        "tone": _TONES[report["verdict"]["decision"]],
        "interval": interval_title(report["compatibility"]["over"]),
        "unit": unit,
        "orders": {_shown(name, order): order for name, order in orders.items()},
        "available": {name: order for name, order in orders.items() if order["available"]},
        "changes": {
            kind: {**found, "number": found[unit]}
            for kind, found in flips.items()
            if kind != "examples"
        },
    }


def _searched(tests: dict) -> dict[str, dict]:
    """The figures of each search, and of its readings."""
    out = {}
    for name, test in tests.items():
        each = test.get("readings") or ({"": test["retrieval"]} if "retrieval" in test else {})
        out |= {f"{name}, {reading}" if reading else name: f for reading, f in each.items()}
    return out


def _shown(name: str, order: dict) -> str:
    return name if order["available"] else f"{name} (a bound)"


def _top1(test: dict) -> float | None:
    return test["search"]["mean"]["top1"] if "search" in test else None


def _figures(report: dict, arrays: Drawings | None) -> dict[str, str]:
    """Name -> SVG."""
    measure, backfill = Measure(**report["measure"]), report["backfill"]
    differences = report["compatibility"]["differences"]
    orders, shares = backfill["orders"], np.array(backfill["shares"])
    drawn = {
        "gains": drawings.gains(
            {_NAMES[name]: tuple(d.values()) for name, d in differences.items()},
            f"difference of {measure.words}",
        ),
        "backfill": drawings.backfill(
            shares,
            {_shown(name, order): order[measure.key] for name, order in orders.items()},
            {_shown(name, order) for name, order in orders.items() if not order["available"]},
            backfill["old"],
            measure.words,
        ),
    }
    if arrays is not None:
        far = report["far"]
        deployed = next(d for d in report["drift"] if d["far"] == far)
        drawn["roc"] = drawings.roc(arrays.curves, far)
        drawn["scores"] = drawings.distributions(
            arrays.scores, arrays.genuine, deployed["threshold"]
        )
        drawn["kept"] = drawings.kept(
            shares,
            {
                name: (order["kept_tar"], order["kept_far"])
                for name, order in orders.items()
                if order["available"]
            },
            (deployed["old_tar"], deployed["old_far"]),
        )
    return drawn


def thumbnails(protocol: Protocol, report: dict) -> dict[int, str]:
    """Item's number -> its first image as a data: address, for the flipped pairs or queries."""
    shown = {
        example[side]
        for examples in report["flips"]["examples"].values()
        for example in examples
        for side in ("gallery", "query")
        if side in example
    }
    out = {}
    pixels = np.empty((112, 112, 3), np.uint8)
    for number in sorted(shown):
        protocol.thumbnail(protocol.first_image(number), pixels)
        jpeg = base64.b64encode(simplejpeg.encode_jpeg(pixels, 85)).decode()
        out[number] = f"data:image/jpeg;base64,{jpeg}"
    return out


def _hours(value: float) -> str:
    if value < 1:
        return f"{60 * value:.0f} minutes"
    return f"{value:.1f} hours" if value < 48 else f"{value / 24:.1f} days"


def _number(form: str):
    def show(value: float | None) -> str:
        if value is None or math.isnan(value):
            return "-"
        shown = format(value, form)
        return shown.lstrip("-") if float(shown) == 0 else shown  # no -0.000

    return show


_FILTERS = {
    "rate": rate_name,
    "f2": _number(".2f"),
    "f3": _number(".3f"),
    "f4": _number(".4f"),
    "e2": _number(".2e"),
    "signed": signed,
    "percent": lambda value: "never" if value is None else f"{100 * value:.0f} %",
    "hours": _hours,
    "printable": printable,
}
