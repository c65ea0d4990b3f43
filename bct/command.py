"""What the command lines of all scripts share."""

import argparse
import errno
import io
import os
import select
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

from bct.errors import BctError, printable
from bct.files import ROOT, model_name, read_json, write_json, write_text
from bct.keys import Key, number, shown, text, whole
from bct.outputs import short_name

CACHE = ROOT / "work_dirs" / "cache"  # of embeddings


class Parser(argparse.ArgumentParser):
    """Reads a script's arguments; what it refuses ends the script with two lines and exit code 2.

    Args:
        about: the script's docstring, which --help shows as it is.
        prog: what it is called; default: as the script.
    """

    def __init__(self, about: str, prog: str | None = None):
        how = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=about, formatter_class=how)
        # what `python -m torch.distributed.launch` adds, in two spellings
        self.add_argument("--local-rank", "--local_rank", type=takes(whole(0)), action=_LocalRank)

    def error(self, message: str) -> NoReturn:
        what, _, do = message.partition(ADVICE)
        if int(os.environ.get("RANK", 0)) == 0:  # all ranks have the same arguments
            print(_lines(what, do or f"{self.prog} --help shows what there is"), file=sys.stderr)
        self.exit(2)


class _LocalRank(argparse.Action):
    """Says no more than LOCAL_RANK, which old launchers leave unset."""

    def __init__(self, *names: Any, **how: Any):
        super().__init__(*names, **how | {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS})

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        known = os.environ.setdefault("LOCAL_RANK", str(values))
        if known != str(values):
            parser.error(
                f"--local-rank is {values}, LOCAL_RANK in the environment {known}{ADVICE}"
                "leave --local-rank to the launcher"
            )


ADVICE = "\0"  # parts what is wrong from what to do in a message; no argument can hold it


def takes(key: Key) -> Callable[[str], Any]:
    """The type of a command line's option that takes what a key of this kind takes."""

    def read(text: str) -> Any:
        try:
            return key.taken(key.parsed(text))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"it can't be {shown(text)}{ADVICE}{key.advice}"
            ) from None

    return read


positive = takes(whole(1, least=1))
some_text = takes(text(""))
rate = takes(number(0.5, above=0, below=1))  # NaN is none
workers = takes(whole(1, most=1024))
batch = takes(whole(1, least=1, most=2**20))


def file_path(text: str) -> Path:
    """A path, for argparse: what is empty would mean the current folder."""
    return Path(some_text(text))


def words(text: str) -> list[str]:
    """The words of a command such as "torchrun --nproc_per_node=8", for argparse."""
    try:
        return shlex.split(some_text(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"it can't be {shown(text)}: {error}{ADVICE}close the quotation"
        ) from None


def run_cli(main: Callable[[], None]) -> None:
    """Runs an entry point; a BctError or an OSError ends it with two lines and exit code 1.

    The first rank to fail says why, with its traceback if the error is not one of these; the
    others keep quiet. docs/reliability.md lists the exit codes.
    """
    _show_as_text(sys.stdout)
    try:
        _flushed(main)
    except BctError as error:
        report = _lines(error.what, error.do)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if isinstance(error, OSError) and _nobody_reads() and error.errno == errno.EPIPE:
            sys.exit(128 + signal.SIGPIPE)
        if _out_of_memory(error):
            report = _lines(
                f"there is not enough memory: {_first_line(error)}",
                "take smaller batches, images or sets, or a larger machine",
            )
        elif _worker_died(error):
            report = _lines(
                f"a process that reads data has died ({_first_line(error)})",
                "look for the kernel's out-of-memory killer, and whether a file was cut while it "
                "was read; then run again, a training with resume=True",
            )
        elif isinstance(error, OSError):
            report = _lines(
                str(error), "check that path, its permissions and the free space, then run again"
            )
        elif "RANK" in os.environ:
            report = _of_a_rank(error)
        else:
            raise
    else:
        return
    if "RANK" in os.environ:
        from bct import distributed  # here, so that tools without torch start fast

        distributed.fail(report)
    print(report, file=sys.stderr, flush=True)
    sys.exit(1)


def _show_as_text(stream: TextIO | None) -> None:
    """Escapes what a name may do to a terminal, and what the stream's encoding does not have."""
    if not isinstance(stream, io.TextIOWrapper):
        return
    stream.reconfigure(errors="backslashreplace")
    write = stream.write
    stream.write = lambda text: write(printable(text, keep="\n\t\r"))


def _flushed(main: Callable[[], None]) -> None:
    """Runs it and writes out what it has printed, while a failure to do so can still be told."""
    try:
        main()
    except SystemExit:
        if sys.stdout:
            sys.stdout.flush()
        raise
    if sys.stdout:
        sys.stdout.flush()


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone, as with `| head`.

    If it takes nothing any more, as on a full disk, it is closed, or Python would complain of it at
    its own end, too.
    """
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return False
    watch = select.poll()
    watch.register(sys.stdout, 0)
    gone = any(event & select.POLLERR for _, event in watch.poll(0))
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
    return gone


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):  # torch's
        return any(words in str(error) for words in ("allocate memory", "out of memory"))
    return isinstance(error, MemoryError)


def _worker_died(error: BaseException | None) -> bool:
    """Torch says so from a signal handler: in the middle of whatever is being done."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _of_a_rank(error: Exception) -> str:
    from bct import distributed

    if not distributed.is_peer_failure(error):
        return traceback.format_exc()
    return _lines(
        f"another rank has died or does not answer ({_first_line(error)})",
        "look for what it said, or for the kernel's out-of-memory killer, and start again",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _lines(what: str, do: str) -> str:
    return f"error: {printable(what)}\n  -> {printable(do)}"


def run_step(command: list[str]) -> None:
    """Runs a command of ours in the clone. One that fails has said why: this one ends with its exit
    code."""
    code = subprocess.run(command, cwd=ROOT, check=False).returncode  # noqa: S603 - our own
    if code:
        print(f"\nstopped at: {shlex.join(command)}\nGiven again, this keeps what is made.")
        sys.exit(code if code > 0 else 128 - code)


def artefact_parser(about: str) -> Parser:
    """The options of every tool that makes an artefact from an old model's embeddings."""
    parser = Parser(about)
    add = parser.add_argument
    add("--SD", type=some_text, help="name of the artefact, e.g. f128_r18_..._class70")
    add("--feature-save", type=file_path, default=ROOT / "feature_save")
    folder_options(parser)
    return parser


def folder_options(parser: Parser) -> None:
    """Adds the other way to name artefacts: a model's folder and a training set."""
    add = parser.add_argument
    add("--model", type=file_path, metavar="FOLDER", help="in place of --SD: the model's folder")
    add("--rec", type=file_path, metavar="SET", help="and the training set that is embedded")


def named_by_folder(parser: Parser, args: argparse.Namespace) -> bool:
    """Whether --model and --rec name the artefacts, not --SD. Exit code 2 for anything between."""
    given = args.model is not None, args.rec is not None
    if any(given) and (not all(given) or args.SD):
        parser.error(f"--model and --rec go together, without --SD{ADVICE}give both, or --SD alone")
    if not any(given) and not args.SD:
        parser.error(f"no model is named{ADVICE}give --SD, or --model FOLDER --rec SET")
    return all(given)


def model_parser(about: str, *, several: bool = True, alone: bool = False) -> Parser:
    """A parser of models and their networks, for bct.protocols.roles.roles_and_files.

    Args:
        several: new models may be given; else one has to be. alone: there may be one trained alone.
    """
    parser = Parser(about)

    def add(*names: str, **how: Any) -> None:
        parser.add_argument(*names, type=some_text, **how)

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


def pixels_option(parser: Parser) -> None:
    """Adds how the pixels of networks are normalised, for bct.models.model.open_models."""
    seen = "how pixels are normalised where neither a model.json nor an .onnx says it; raw: 0..255"
    parser.add_argument("--pixels", choices=("face", "imagenet", "raw"), help=seen)


def evaluation_options(parser: Parser, output: str, batch_size: int = 128) -> None:
    """Adds what every evaluation has: batch, workers, precision, cache, output, overwrite.

    Args:
        output: the default folder for results.
    """
    add = parser.add_argument
    add("-b", "--batch_size", type=batch, default=batch_size)
    add("-j", "--num_workers", type=workers, default=2)
    add("--amp", choices=("bf16", "fp16", "off"), help="precision; default: as in training")
    add("--cache", type=file_path, default=CACHE, help="folder of embeddings computed before")
    add("-o", "--output", type=file_path, default=Path(output), help="folder for the results")
    add("--overwrite", action="store_true", help="replace results of other models or data")


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
    page = printable(page, keep="\n")
    write_json(target.with_name(f"{target.name}.json"), said)
    write_text(target.with_name(f"{target.name}.md"), page + "\n")
    print(f"\n{page}\n\nwritten to {target}.md, .json")
