"""AdvBCT's table: each method's self and cross tests on several data sets, P_up, P_comp and P_1.

    python eval/landmarks_table.py work_dirs/gldv2_advbct/EXclass/tests -o table

Reads the results that eval/landmarks.py or eval/reid.py has written into a folder, a file for each
data set, all with -m_old, -m_alone and the same new models. Writes <output>.md and .json. The three
figures are means over the data sets, see bct/metrics/compatibility.py.
"""

import math
from pathlib import Path

from bct.command import Parser, file_path, run_cli
from bct.errors import BctError
from bct.files import read_json, write_json, write_text
from bct.markdown import table
from bct.metrics.compatibility import p_1, p_comp, p_up
from bct.outputs import check_outputs
from bct.protocols.roles import Roles, test_name

MAIN = "all queries"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=file_path, help="of the results")
    parser.add_argument("-o", "--output", type=file_path, required=True, help="without suffix")
    args = parser.parse_args()
    files = [args.output.with_name(f"{args.output.name}{end}") for end in (".md", ".json")]
    check_outputs(*files)
    found = read_results(args.folder)
    rows = figures(found)
    text = shown(list(found), rows)
    write_json(files[1], {"sets": list(found), "models": rows})
    write_text(files[0], text + "\n")
    print(f"{text}\n\nwritten to {files[0]} and .json")


def read_results(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Data set -> new model -> {"old", "cross", "self", "alone"}: mAP of the main reading.

    Raises BctError for a folder without results, and for files of other models.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    weights: dict[
        str, tuple[str | None, Path]
    ] = {}  # label -> SHA-256, and the first file that has it
    for file in sorted(folder.glob("*.json")):
        said = read_json(file)
        if not isinstance(said, dict) or "tests" not in said:
            continue  # the manifest of an array
        try:
            roles = Roles(**said["roles"])
            found[file.stem] = {label: qualities(roles, label, said) for label in roles.new}
        except (KeyError, TypeError, ValueError) as error:
            raise BctError(
                f"{file} lacks a test of old model, new one and new one alone ({str(error)[:80]})",
                "make it with -m, -m_old and -m_alone: eval/landmarks.py --help",
            ) from None
        for label, digest in networks(said).items():
            known, first = weights.setdefault(label, (digest, file))
            if known != digest:
                raise BctError(
                    f"{label} is one network in {first}, another one in {file}",
                    "evaluate the same models on every data set, into a folder of their own",
                )
    if not found:
        raise BctError(f"{folder} holds no results", "let eval/landmarks.py write them there: -o")
    models = {tuple(models) for models in found.values()}
    if len(models) > 1:
        raise BctError(
            f"the results in {folder} are of different models: {' and '.join(map(str, models))}",
            "evaluate the same new models on every data set",
        )
    return found


def networks(said: dict) -> dict[str, str | None]:
    """Label -> SHA-256 of each network of results; stored embeddings are others in each set."""
    models = said.get("models", {})
    return {label: model.get("sha256") for label, model in models.items() if model.get("view")}


def qualities(roles: Roles, label: str, said: dict) -> dict[str, float]:
    """The four qualities of one new model. KeyError, ValueError for what is not there."""
    names = dict(zip(("old", "cross", "self", "alone"), roles.compared(label), strict=True))
    return {key: float(said["tests"][test_name(test)][MAIN]["map"]) for key, test in names.items()}


def figures(found: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict]:
    """New model -> its tests by data set, and P_up, P_comp, P_1 over them."""
    out = {}
    for label in next(iter(found.values())):
        each = {name: models[label] for name, models in found.items()}
        old, cross, own, alone = (
            [tests[key] for tests in each.values()] for key in ("old", "cross", "self", "alone")
        )
        shares = p_up(own, alone), p_comp(cross, old, alone), p_1(own, cross, old, alone)
        # none means something where the one alone is no better than the old model on some set
        known = [None if math.isnan(share) else share for share in shares]
        out[label] = {"sets": each, **dict(zip(("p_up", "p_comp", "p_1"), known, strict=True))}
    return out


def shown(sets: list[str], rows: dict[str, dict]) -> str:
    """The Markdown table, in per cent: the old model, the new one alone, then the others."""
    titles = ["model", *(f"{name} {test}" for name in sets for test in ("self", "cross"))]
    titles += ["P_up", "P_comp", "P_1"]
    some = next(iter(rows.values()))["sets"]
    lines = [
        [role, *(cell for name in sets for cell in (percent(some[name][role]), "")), "", "", ""]
        for role in ("old", "alone")
    ]
    for label, row in rows.items():
        tests = [row["sets"][name][test] for name in sets for test in ("self", "cross")]
        shares = [row[key] for key in ("p_up", "p_comp", "p_1")]
        lines.append([label, *map(percent, [*tests, *shares])])
    return table(titles, lines)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


if __name__ == "__main__":
    run_cli(main)
