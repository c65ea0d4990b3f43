"""The table of runs/benchmark.sh: all methods in all scenarios, over seeds.

    python eval/benchmark.py work_dirs/benchmark -d /data/ijb --bin lfw.bin --far 1e-2

Reads <root>/<kind>/seed<k>/old and <root>/<scenario>/seed<k>/<method> and alone, runs that are
finished (the old model may be one of tools/import_model.py), and evaluates each on IJB-C's 1:1 and
1:N protocols and, with --bin, on a verification set whose first images are the old model's and
second ones the new model's. Embeddings of another width than the old ones are compared by
`dimensions` of their training. Where a method maps the old gallery, the new model is the one
trained alone, and meets the mapped embeddings of the old gallery's images. Writes <root>/table.md
and table.json. Embeddings are cached.
"""

from pathlib import Path

from bct import distributed, markdown
from bct.amp import amp_dtype
from bct.command import CACHE, Parser, file_path, positive, rate, run_cli, some_text
from bct.errors import BctError
from bct.files import read_json, write_json, write_text
from bct.metrics.scores import rate_name
from bct.outputs import check_outputs, results_files
from bct.protocols.compare import check_resolved
from bct.protocols.pairs import open_bin
from bct.protocols.protocol import Protocol
from bct.protocols.scoring import resolved
from bct.scenarios import SCENARIOS
from tools.ijbc.comparison import LEGEND, Judge, check_pairs
from tools.ijbc.protocol import read_protocol


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("root", type=file_path)
    parser.add_argument(
        "-d", "--data_path", type=some_text, required=True, help="folder that contains IJBC/"
    )
    parser.add_argument("-s", "--subset", default="IJBC", choices=("IJBC", "IJBB"))
    parser.add_argument("--bin", type=file_path, help="verification set for another cross test")
    parser.add_argument("--far", type=rate, default=1e-2)
    parser.add_argument("--resamples", type=positive, default=1000)
    parser.add_argument("--amp", choices=("bf16", "fp16", "off"))
    parser.add_argument("--cache", type=file_path, default=CACHE)
    args = parser.parse_args()
    device = distributed.setup()
    protocol = read_protocol(args.data_path, args.subset)
    pairs = open_bin(args.bin) if args.bin else None
    check_resolved(protocol, args.far)
    remarks = [*protocol.remarks, *(set_remarks(pairs, args.far) if pairs else [])]
    check_outputs(*results_files(args.root / "table"))
    dtype = amp_dtype(args.amp, device)
    judge = Judge(protocol, pairs, args.far, args.resamples, args.cache, device, dtype)
    results = {}
    for scenario in SCENARIOS:
        for method, runs in finished_runs(args.root, scenario).items():
            results.setdefault(scenario, {})[method] = judge.method(*runs)
    if not results:
        raise BctError(
            f"{args.root} holds no scenario with a finished old model, network alone and method",
            "train them with runs/benchmark.sh",
        )
    legend = LEGEND.format(far=rate_name(args.far))
    text = "\n\n".join([legend, *(table(*item) for item in results.items()), *remarks])
    about = {"far": args.far, "scenarios": results, "remarks": remarks}
    write_json(args.root / "table.json", about)
    write_text(args.root / "table.md", text + "\n")
    print(f"{text}\n\nwritten to {args.root}/table.md and table.json")


def set_remarks(pairs: Protocol, far: float) -> list[str]:
    """What to know of the verification set. BctError like check_pairs."""
    check_pairs(pairs)
    if resolved(pairs.pairs.genuine, far):
        return pairs.remarks
    return [*pairs.remarks, f"{pairs.name}: FAR {rate_name(far)} allows no false accept at all."]


def finished_runs(root: Path, scenario: str) -> dict[str, tuple[list[Path], ...]]:
    """method -> its old models, its runs and the networks alone, seed by seed, all finished. An old
    model may be imported."""
    found: dict[str, tuple[list[Path], ...]] = {}
    for folder in sorted((root / scenario).glob("seed*")):
        old, alone = root / scenario[2:] / folder.name / "old", folder / "alone"
        imported = (old / "import.json").is_file()
        if finished(alone) and (imported or finished(old)):
            for run in sorted(folder.iterdir()):
                if run != alone and finished(run):
                    kept = found.setdefault(run.name, ([], [], []))
                    for runs, path in zip(kept, (old, run, alone), strict=True):
                        runs.append(path)
    return found


def finished(run: Path) -> bool:
    if not (run / "run.json").is_file():
        return False
    said = read_json(run / "run.json")
    return isinstance(said, dict) and said.get("finished") is True


def table(scenario: str, methods: dict[str, dict]) -> str:
    """A scenario's Markdown table: the old model, the new one alone, then the methods."""
    some = next(iter(methods.values()))
    has_set = "old_set" in some
    titles = ["", "cross", "self", "cross - old", "compatible", "gain", "price"]
    titles += ["P_up", "P_comp", "P_1", "top-1 cross", "top-1 self"] + ["set cross"] * has_set
    rows = [
        row("old", some, "", "old", [""] * 7, has_set),
        row("alone", some, "alone_cross", "alone", [""] * 7, has_set),
        *(row(name, m, "cross", "self", verdict(m), has_set) for name, m in methods.items()),
    ]
    seeds = "/".join(map(str, sorted({len(m["seeds"]) for m in methods.values()})))
    return f"**{scenario}**, {seeds} seed(s)\n\n{markdown.table(titles, rows)}"


def row(
    name: str, figures: dict, cross: str, own: str, middle: list[str], has_set: bool
) -> list[str]:
    """The cells of a line: `cross` and `own` name the tests shown in the columns cross and self."""
    tar, top1 = ([markdown.spread(figures.get(f"{test}_{key}")) for test in (cross, own)]
                 for key in ("tar", "top1"))  # fmt: skip
    in_set = [markdown.spread(figures.get(f"{cross or own}_set"))] * has_set
    return [name, *tar, *middle, *top1, *in_set]


def verdict(figures: dict) -> list[str]:
    """The seven cells that judge a method."""
    estimate, low, high = (figures["difference"][key] for key in ("estimate", "low", "high"))
    clearly = "clearly " if low > 0 or high < 0 else ""
    shares = [figures[key] for key in ("p_up", "p_comp", "p_1")]
    return [
        f"{estimate:+.3f} [{low:+.3f}, {high:+.3f}]",
        clearly + ("yes" if figures["compatible"] else "no"),
        "-" if figures["update_gain"] is None else f"{figures['update_gain']:.2f}",
        f"{figures['price']:+.3f}",
        *("-" if share is None else f"{100 * share:.1f}" for share in shares),
    ]


if __name__ == "__main__":
    run_cli(main)
