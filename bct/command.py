"""What the command lines of all scripts share."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bct.errors import BctError
from bct.files import ROOT, model_name, read_json, write_json, write_text
from bct.outputs import short_name

CACHE = ROOT / "work_dirs" / "cache"  # of embeddings


def run_cli(main: Callable[[], None]) -> None:
    """Runs an entry point; a BctError or an OSError ends it with two lines and exit code 1.

    The first rank to fail says why, with its traceback if the error is not one of these; the
    others keep quiet.
    """
    try:
        main()
    except BctError as error:
        report = _lines(error.what, error.do)
    except OSError as error:
        report = _lines(
            str(error), "check that path, its permissions and the free space, then run again"
        )
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if "RANK" not in os.environ:
            raise
        from bct import distributed

        report = traceback.format_exc()
        if distributed.is_peer_failure(error):
            report = _lines(
                f"another rank has died or does not answer ({str(error).splitlines()[0][:200]})",
                "look for what it said, or for the kernel's out-of-memory killer, and start again",
            )
    else:
        return
    if "RANK" in os.environ:
        from bct import distributed  # here, so that tools without torch start fast

        distributed.fail(report)
    print(report, file=sys.stderr, flush=True)
    sys.exit(1)


def _lines(what: str, do: str) -> str:
    return f"error: {what}\n  -> {do}"


def artefact_parser(about: str) -> argparse.ArgumentParser:
    """The options of every tool that makes an artefact from an old model's embeddings."""
    parser = argparse.ArgumentParser(description=about)
    add = parser.add_argument
    add("--SD", required=True, help="name of the artefact, e.g. f128_r18_..._class70")
    add("--feature-save", type=Path, default=ROOT / "feature_save")
    return parser


def model_parser(
    about: str, *, several: bool = True, alone: bool = False
) -> argparse.ArgumentParser:
    """A parser of models and their networks, for bct.protocols.roles.roles_and_files.

    Args:
        several: new models may be given; else one has to be. alone: there may be one trained alone.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    many, new = ("+", "new model(s)") if several else (1, "new model")
    add("-m", "--model_file", nargs=many, default=[], required=not several, metavar="NEW", help=new)
    add("-net", "--network", nargs="*", default=[], help="the networks of -m, e.g. r50")
    add("-m_old", "--model_file_old", metavar="OLD", help="old model: adds the cross tests")
    add("-old_net", "--network_old", help="its network")
    if alone:
        names = ("-m_alone", "--model_file_alone", "-m_free", "--model_file_free", "-m_independent")
        add(*names, metavar="ALONE", help="the new network trained without compatibility")
        names = ("-alone_net", "--network_alone", "-free_net", "--network_free", "-independent_net")
        add(*names, help="its network")
    parser.set_defaults(model_file_alone=None, network_alone=None, old_gallery=None, matrix=False)
    return parser


def evaluation_options(parser: argparse.ArgumentParser, output: str, batch_size: int = 128) -> None:
    """Adds what every evaluation has: batch, workers, precision, cache, output, overwrite.

    Args:
        output: the default folder for results.
    """
    add = parser.add_argument
    add("-b", "--batch_size", type=positive, default=batch_size)
    add("-j", "--num_workers", type=int, default=2)
    add("--amp", choices=("bf16", "fp16", "off"), help="precision; default: as in training")
    add("--cache", type=Path, default=CACHE, help="folder of embeddings computed before")
    add("-o", "--output", type=Path, default=Path(output), help="folder for the results")
    add("--overwrite", action="store_true", help="replace results of other models or data")


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def networks_for(networks: list[str], models: list[str]) -> list[str | None]:
    """One network name per model, or None for each. BctError for another number of names."""
    if networks and len(networks) != len(models):
        raise BctError(
            f"{len(networks)} networks for {len(models)} models", "give -net one name per model"
        )
    return networks or [None] * len(models)


def refuse_to_replace(target: Path, made_from: dict) -> None:
    """Raises BctError if <target>.json holds results that were made from something else.

    Args:
        target: path of the results, without suffix.
        made_from: entries of that JSON which have to be equal; of "models" all but where they lie.
    """
    path = target.with_name(f"{target.name}.json")
    if not path.is_file():
        return
    there = read_json(path)
    ours = isinstance(there, dict)
    if not ours or any(_what(k, there.get(k)) != _what(k, v) for k, v in made_from.items()):
        raise BctError(
            f"{path} holds the results of other models, data or settings",
            "give another folder, -o, or --overwrite",
        )


def _what(key: str, value: Any) -> Any:
    if key != "models" or not isinstance(value, dict):
        return value
    return {
        label: {k: v for k, v in about.items() if k not in ("file", "name")}
        for label, about in value.items()
    }


def results_name(args: argparse.Namespace, *rest: str) -> str:
    """The models and the test, so that no test replaces another one's results.

    Args:
        args: what model_parser has read. rest: the data, and what differs from the defaults.
    """
    new = "+".join(map(model_name, args.model_file))
    old = args.old_gallery or args.model_file_old
    return short_name("_".join(["_vs_".join([new, *([model_name(old)] if old else [])]), *rest]))


def write_results(target: Path, said: dict, page: str) -> None:
    """<target>.json and <target>.md, and the page on the screen."""
    write_json(target.with_name(f"{target.name}.json"), said)
    write_text(target.with_name(f"{target.name}.md"), page + "\n")
    print(f"\n{page}\n\nwritten to {target}.md, .json")
