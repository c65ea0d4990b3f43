"""The report as one HTML page that needs nothing else, and as Markdown."""

import base64
import math
from pathlib import Path

import jinja2
import numpy as np
import simplejpeg

from bct.files import write_json, write_text
from bct.metrics.scores import rate_name
from bct.protocols.protocol import Protocol
from bct.protocols.verdict import interval_title
from bct.report import drawings
from bct.report.analysis import Drawings

_TONES = {"deploy now": "good", "backfill first": "warn", "do not": "bad"}
_NAMES = {  # of the rows in the figure of gains
    "new / old": "after the upgrade",
    "new / new": "after full backfill",
    "alone / alone": "without compatibility",
}


def write(
    folder: Path,
    report: dict,
    arrays: Drawings,
    genuine: np.ndarray,
    thumbnails: dict[int, str] | None = None,
) -> None:
    """report.html, report.md and report.json in `folder`."""
    far = report["far"]
    threshold = next(d["threshold"] for d in report["drift"] if d["far"] == far)
    differences = report["compatibility"]["differences"]
    backfill = report["backfill"]
    drawn = {
        "roc": drawings.roc(arrays.curves, far),
        "scores": drawings.distributions(arrays.scores, genuine, threshold),
        "gains": drawings.gains(
            {_NAMES[name]: tuple(d.values()) for name, d in differences.items()},
            f"difference of TAR at FAR {rate_name(far)}",
        ),
        "backfill": drawings.backfill(
            {
                name: (np.array(backfill["shares"]), np.array(order["tar"]))
                for name, order in backfill["orders"].items()
            },
            backfill["old"],
            f"TAR at FAR {rate_name(far)}",
        ),
    }
    values = {
        **report,
        "tar": report["compatibility"]["tar"],
        "labels": list(report["models"]),
        "rates": list(report["tests"]["old / old"]["pairs"]["tar"]),
        "tone": _TONES[report["verdict"]["decision"]],
        "interval": interval_title(report["compatibility"]["over"]),
        "figures": drawn,
        "thumbnails": thumbnails,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= _FILTERS
    write_json(folder / "report.json", report)
    for name in ("report.md", "report.html"):
        text = environment.get_template(f"{name}.j2").render(values)
        write_text(folder / name, text)


def thumbnails(protocol: Protocol, report: dict) -> dict[int, str]:
    """Item's number -> its first image as a data: address, for the flipped pairs."""
    shown = {
        pair[side]
        for pairs in report["flips"]["examples"].values()
        for pair in pairs
        for side in ("gallery", "query")
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
        return "-" if value is None or math.isnan(value) else format(value, form)

    return show


_FILTERS = {
    "rate": rate_name,
    "f2": _number(".2f"),
    "f3": _number(".3f"),
    "e2": _number(".2e"),
    "signed": _number("+.3f"),
    "percent": lambda value: "never" if value is None else f"{100 * value:.0f} %",
    "hours": _hours,
}
