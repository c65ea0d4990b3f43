"""Verification sets (LFW, CFP-FP, AgeDB-30, ... in insightface's .bin format).

    python eval/verification.py -m new.pt -net r50 --set lfw.bin agedb_30.bin
    python eval/verification.py -m new.pt -m_old old.pt --set lfw.bin        # and the cross test
    torchrun --nproc_per_node=8 eval/verification.py ...                     # shares the images

With -m_old the table has old/old, new/old (a pair's first image by the old model, its second by the
new one) and new/new. A model is whatever eval/ijbc.py takes; an .npy or .npz has a row per image of
the set, image plus mirror image. Accuracy is insightface's: 10 contiguous folds.
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
    write_results,
)
from bct.errors import BctError
from bct.models.embed import embed_models
from bct.models.model import described, open_models
from bct.outputs import check_outputs, results_files
from bct.protocols.pair_tests import notes, pair_tests, table
from bct.protocols.pairs import open_bin
from bct.protocols.roles import roles_and_files


def arguments() -> argparse.Namespace:
    parser = model_parser(__doc__, several=False)
    add = parser.add_argument
    add("--set", nargs="+", type=file_path, required=True, metavar="LFW.bin", help="sets")
    add("--far", type=rate, default=1e-3, help="FAR of the TAR, the threshold and the verdict")
    pixels_option(parser)
    evaluation_options(parser, output="work_dirs/verification", batch_size=256)
    args = parser.parse_args()
    if len({path.stem for path in args.set}) < len(args.set):
        raise BctError("two sets have one name", "rename a file")
    return args


def main() -> None:
    args = arguments()
    device = distributed.setup()
    evaluate(args, device)
    distributed.shutdown()


def evaluate(args: argparse.Namespace, device: torch.device) -> None:
    roles, files = roles_and_files(args)
    models = open_models(files, amp_dtype(args.amp, device), pixels=args.pixels)
    protocols = [open_bin(path) for path in args.set]
    target = args.output / results_name(args, "+".join(p.name for p in protocols))
    about = {"models": described(models), "data": [p.fingerprint for p in protocols]}
    if not args.overwrite:
        refuse_to_replace(target, about)
    check_outputs(*results_files(target))
    results, text = {}, []
    for protocol in protocols:
        embeddings = embed_models(
            models, protocol.images, args.cache, device=device,
            batch_size=args.batch_size, num_workers=0, remarks=protocol.remarks,
        )  # fmt: skip
        tests, scores = pair_tests(protocol, embeddings, roles, args.far)
        results[protocol.name] = tests
        text += [table(protocol, tests, args.far)]
        text += notes(protocol, tests, scores, roles, args.far)
    if not distributed.is_main():
        return
    write_results(target, {**about, "sets": results}, "\n\n".join(text))


if __name__ == "__main__":
    run_cli(main)
