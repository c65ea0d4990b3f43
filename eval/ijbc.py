"""IJB-C (or IJB-B) evaluation: self tests of each model, cross tests against an old one.

    python eval/ijbc.py -m new.pt -net r50 -d /data/ijb                          # new/new
    python eval/ijbc.py -m new.pt -net r50 -m_old old.pt -old_net r18 -d /data/ijb [-N]
    python eval/ijbc.py -m v2.pt v3.pt -m_old v1.pt -d /data/ijb --matrix        # a chain
    torchrun --nproc_per_node=8 eval/ijbc.py ...                  # the ranks share the images
    python eval/ijbc.py -P a.npz 'b*.npz' -d /data/ijb [-N]       # only draw saved scores

A model is a model.pt with its model.json (which needs no -net), weights of insightface or MixBCT,
an .onnx file, or an .npy or .npz of embeddings, a row per image of the protocol, as -E writes.

With -m_old the table has old/old, new/old (query by the new model, gallery and enrolment side by
the old one) and new/new. -N adds identification (1:N). Several new models may be given at once.
Embeddings are cached by weights and images. Results are named after the models and the test:
<new>_vs_<old>_IJBC_11.md, .json, .png and, with the scores of all pairs, .npz; with -N also
<...>_IJBC_1N_idroc.png. With -B the .npz holds the scores of all eight modes, named "new / old,
N0D1F1"; the pictures show the published mode, N0D1F1.

-P takes paths, quoted patterns, and several of both with commas between them; .npz, .npy and .txt.
Which pairs are genuine is in the .npz (-L), in -d's protocol, or in a list of pairs given among the
files (ijbc_template_pair_label.txt). It writes curves.md, .json and .png; with -N curves_1N.md,
.json and curves_1N_idroc.png: TPIR over FPIR of evaluations with -N.
"""

import argparse

import torch

from bct import distributed
from bct.amp import amp_dtype
from bct.command import (
    evaluation_options,
    file_path,
    model_parser,
    pixels_option,
    rate,
    refuse_to_replace,
    results_name,
    run_cli,
    some_text,
)
from bct.metrics.scores import check_far, roc_points
from bct.models.model import described, open_models
from bct.outputs import check_outputs
from bct.protocols.roles import roles_and_files
from bct.stored.vector_files import save_rows
from tools.ijbc import report
from tools.ijbc.evaluation import embedding_files, image_embeddings, notes, run_tests
from tools.ijbc.modes import MODES, PUBLISHED
from tools.ijbc.protocol import read_protocol
from tools.ijbc.saved import expanded, refuse_to_replace_curves, scores_and_labels


def arguments() -> argparse.Namespace:
    parser = model_parser(__doc__)
    add = parser.add_argument
    add("-d", "--data_path", type=some_text, help="the folder that contains IJBC/ (or IJBB/)")
    add("-s", "--subset", default="IJBC", choices=("IJBC", "IJBB"))
    add("-N", "--is_one_2_N", action="store_true", help="also identification, 1:N")
    add("-B", "--is_bunch", action="store_true", help="all eight modes, N0D0F0 to N1D1F1")
    add("--matrix", action="store_true", help="every model against every other one's gallery")
    add(
        "-R", "--save_result", type=file_path, help="file for the scores; default: beside the table"
    )
    add("-L", "--save_label", action="store_true", help="put the labels into that file, too")
    add("-E", "--save_embeddings", action="store_true", help="write <model>_<subset>.npy, too")
    add("-F", "--force_reload", action="store_true", help="compute cached embeddings anew")
    saved = "draw the curves of saved scores and nothing else: .npz, .npy, .txt; 'quoted*', a,b"
    add("-P", "--plot_only", nargs="+", type=some_text, metavar="SCORES", help=saved)
    rules = "strict: highest TAR whose FAR is within the target; nearest: as published"
    add("--roc", default="strict", choices=("strict", "nearest"), help=rules)
    add("--far", type=rate, default=1e-4, help="FAR of the verdict and the bar chart")
    pixels_option(parser)
    evaluation_options(parser, output="work_dirs/ijbc")
    args = parser.parse_args()
    if bool(args.model_file) == bool(args.plot_only):
        parser.error("give models to test, -m, or saved scores to draw, -P")
    tests = ("model_file_old", "is_bunch", "matrix", "save_result", "save_label",
             "save_embeddings", "force_reload")  # fmt: skip
    for name in tests if args.plot_only else ():
        if getattr(args, name):
            parser.error(f"--{name} is for tests of models: -P only draws")
    if args.model_file and not args.data_path:
        parser.error("give the folder that contains IJBC/, -d")
    check_far(args.far)
    return args


def main() -> None:
    args = arguments()
    if args.plot_only:
        return draw(args)
    device = distributed.setup()
    evaluate(args, device)
    distributed.shutdown()


def draw(args: argparse.Namespace) -> None:
    """Draws saved scores."""
    files, known = scores_and_labels(expanded(args.plot_only))
    target = args.output / ("curves_1N" if args.is_one_2_N else "curves")
    made_from = {"scores": list(map(str, files))} | ({} if args.is_one_2_N else {"roc": args.roc})
    if not args.overwrite:
        refuse_to_replace_curves(target, made_from)
    if args.is_one_2_N:
        return report.draw_saved_search(files, target)
    if known is None and args.data_path:
        known = read_protocol(args.data_path, args.subset, identification=False).pairs.genuine
    report.draw_saved(files, known, args.roc, target, args.far)


def evaluate(args: argparse.Namespace, device: torch.device) -> None:
    roles, files = roles_and_files(args)
    models = open_models(files, amp_dtype(args.amp, device), pixels=args.pixels)
    protocol = read_protocol(args.data_path, args.subset, identification=args.is_one_2_N)
    modes = MODES if args.is_bunch else (PUBLISHED,)
    rest = ["1N" if args.is_one_2_N else "11", *["8modes"] * args.is_bunch]
    rest += ["matrix"] * args.matrix + [args.roc] * (args.roc != "strict")
    target = args.output / results_name(args, args.subset, *rest)
    summary = {"subset": args.subset, "data": protocol.fingerprint, "roc": args.roc}
    summary |= {"models": described(models)}
    if not args.overwrite:
        refuse_to_replace(target, summary)
    saved = args.save_result or target.with_name(f"{target.name}.npz")
    stored = embedding_files(args.output, args.subset, models) if args.save_embeddings else {}
    pictures = [report.search_picture(target)] * args.is_one_2_N
    check_outputs(*report.files_of(target), *pictures, saved, *stored.values())
    embeddings = image_embeddings(
        models, protocol, modes, args.cache, device,
        batch_size=args.batch_size, num_workers=args.num_workers, reload=args.force_reload,
    )  # fmt: skip
    if not distributed.is_main():
        return
    for label, file in stored.items():
        save_rows(file, embeddings[True][label])
    tests, scores = run_tests(protocol, embeddings, roles, modes, args.roc)
    remarks = notes(protocol, tests, roles, args.far, args.roc, len(modes))
    text = "\n\n".join([report.table(tests), *remarks])
    genuine = protocol.pairs.genuine
    search = report.search_curves(tests)
    report.save_scores(saved, scores, genuine if args.save_label else None, search)
    report.write(target, {**summary, "tests": tests, "remarks": remarks}, text)
    print(f"\n{text}\n\nwritten to {target}.md, .json; scores to {saved}", flush=True)
    drawn = [name for name in scores if len(modes) == 1 or name.endswith(f", {PUBLISHED}")]
    curves = {name: roc_points(scores[name], genuine) for name in drawn}
    picture = target.with_name(f"{target.name}.png")
    report.draw({name: tests[name] for name in drawn}, curves, picture, args.far)
    for other in pictures:
        report.draw_search({name: search[name] for name in drawn}, other)
    print(f"drawn in {', '.join(map(str, [picture, *pictures]))}")


if __name__ == "__main__":
    run_cli(main)
