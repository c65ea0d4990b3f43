"""The table of runs/images.sh: every method's searches, over seeds.

    python eval/retrieval_table.py work_dirs/omniglot --minutes 24

Reads <folder>/seed*/retrieval/*.json of eval/retrieval.py, landmarks.py or reid.py, writes
<folder>/retrieval.md and .json. A figure is the mean over seeds +- their deviation (n - 1).
"""

from pathlib import Path

from bct import markdown
from bct.command import Parser, file_path, run_cli, takes
from bct.errors import BctError
from bct.files import model_name, read_json, write_json, write_text
from bct.keys import whole
from bct.protocols.roles import Roles, test_name
from bct.protocols.verdict import judged

PARTS = {
    "all": "all queries",
    "old classes": "queries of old classes",
    "new classes": "queries of new classes",
    "easy": "easy",  # readings of landmarks; "all queries" are by the medium one
    "hard": "hard",
}
QUALITIES = {"map": "mAP", "top1": "top-1"}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=file_path, help="OUT of runs/images.sh")
    parser.add_argument("--minutes", type=takes(whole(None)), help="wall time to state")
    args = parser.parse_args()
    seeds = [read_seed(folder) for folder in sorted(args.folder.glob("seed*"))]
    if not seeds:
        raise BctError(f"{args.folder} holds no seed* folder", "run runs/images.sh first")
    for number, seed in enumerate(seeds):
        if seed.keys() != seeds[0].keys():
            raise BctError(
                f"seed {number} of {args.folder} has other methods than the first one",
                "run runs/images.sh again with the same METHODS for all SEEDS",
            )
    table = {
        quality: {
            name: [row(seed, name, quality) for seed in seeds] for name in seeds[0] if name != "old"
        }
        for quality in QUALITIES
    }
    write_json(args.folder / "retrieval_table.json", table)
    text = [shown(table, quality, len(seeds)) for quality in QUALITIES]
    if args.minutes is not None:
        text.append(f"The last call took {args.minutes} minutes; finished runs were kept.")
    write_text(args.folder / "retrieval.md", "\n\n".join(text) + "\n")
    print("\n\n".join([*text, f"written to {args.folder}/retrieval.md"]))


def read_seed(folder: Path) -> dict[str, dict[str, dict]]:
    """Name of a model -> {"cross", "self"} -> figures by part; "old" has "self" alone. "alone" is
    the new network trained alone."""
    found: dict[str, dict[str, dict]] = {}
    for file in sorted((folder / "retrieval").glob("*.json")):
        said = read_json(file)
        if not isinstance(said, dict) or "tests" not in said:
            continue  # the manifest of an array
        try:
            roles, files = Roles(**said["roles"]), said.get("files", {})
            names = {label: model_name(files.get(label, label)) for label in roles.new}
            found |= tests_of(file, roles, names, said["tests"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BctError(
                f"{file} does not say who is who, or lacks a test ({str(error)[:80]})",
                "let eval/retrieval.py -m NEW -m_old OLD make it again",
            ) from None
    if "old" not in found or "alone" not in found:
        raise BctError(
            f"{folder} holds no tests of an old model and a new one alone",
            "let runs/images.sh finish this seed",
        )
    if len({frozenset(test) for tests in found.values() for test in tests.values()}) > 1:
        raise BctError(
            f"{folder}: only some of its tests tell old and new classes apart",
            "let eval/retrieval.py make all of them with the same --old-classes",
        )
    return found


def tests_of(
    file: Path, roles: Roles, names: dict[str, str], tests: dict[str, dict]
) -> dict[str, dict[str, dict]]:
    """What one file of results says, as read_seed has it. KeyError and the like if it lacks it.

    Args:
        names: of the new models by their labels: a single one's label is "new", whatever it is.
    """
    found = {}
    tests = {
        name: {
            part: {quality: float(test[part][quality]) for quality in QUALITIES}
            for part in PARTS.values()
            if part in test
        }
        for name, test in tests.items()
    }
    for label in roles.new:
        cross, own = (tests[test_name(test)] for test in roles.compared(label)[1:3])
        # a mapped gallery is named after its file: the new model there is the one alone
        found[file.stem if roles.mapped else names[label]] = {"cross": cross, "self": own}
    if not roles.mapped:
        found["old"] = {"self": tests[test_name((roles.old, roles.old))]}
        if roles.alone:
            own, cross = ((roles.alone, other) for other in (roles.alone, roles.old))
            found["alone"] = {"cross": tests[test_name(cross)], "self": tests[test_name(own)]}
    return found


def row(seed: dict, name: str, quality: str) -> dict[str, dict[str, float]]:
    """Part -> old/old, new/old, new/new and the gain of one seed; parts without queries are left
    out."""
    out = {}
    for part, key in PARTS.items():
        if key not in seed["old"]["self"]:
            continue
        old, cross, own, alone = (
            tests[key][quality]
            for tests in (
                seed["old"]["self"],
                seed[name]["cross"],
                seed[name]["self"],
                seed["alone"]["self"],
            )
        )
        gain = judged(quality, old, cross, own, alone).gain
        out[part] = {"old": old, "cross": cross, "own": own, "gain": gain}
    return out


def shown(table: dict, quality: str, seeds: int) -> str:
    """One quality's table: a row per model and part."""
    titles = ["model", "queries", "old/old", "new/old", "new/new", "gain", "compatible"]
    lines = []
    for name, rows in table[quality].items():
        for part in rows[0]:
            parts = [row[part] for row in rows]
            cells = [
                markdown.spread([p[key] for p in parts]) for key in ("old", "cross", "own", "gain")
            ]
            yes = sum(judged(quality, p["old"], p["cross"], p["own"]).compatible for p in parts)
            lines.append([name, part, *cells, f"{yes} of {seeds}"])
    head = f"{QUALITIES[quality]}, {seeds} seed{'s' * (seeds > 1)}"
    return f"{head}\n\n{markdown.table(titles, lines)}"


if __name__ == "__main__":
    run_cli(main)
