"""What a file that should hold tensors is, found before torch sees it, and how much it may take.

torch.save writes a zip of a pickle and of storages as they are; before 1.6 it wrote five pickles
and the storages after them. The pickles' operations are looked at here: which classes and functions
they name, and whether a few bytes of them build what is exponentially large. None is carried out.
"""

import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any

GROWTH, FREE = 4, 64 << 20  # how many times its size a file's tensors may take, beyond 64 MiB
_DEEPEST = 500  # containers in each other; a hash of many more overflows the stack
_LARGEST = 1000  # how often on average a pickle may use each of its values
_FILLING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")  # operations
# the first pickle before torch 1.6, of protocol 2; later ones can be asked for
_MAGIC = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", re.S)
_PROTOCOL = 2  # of pickle: torch's reader knows no operation of later ones

_STARTS = (  # of files that are taken for weights
    (b"version https://git-lfs", "a git-lfs pointer: the weights themselves are not there"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive"),
    (b"\x89HDF", "an HDF5 file, of Keras perhaps"),
    (b"\x93NUMPY", "an array that numpy saved"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"\x7fELF", "a program"),
)
_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without data (device meta)",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_tensor_v3": "a tensor of a new type, such as float8 or uint16",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
}
_KNOWN = {
    *("collections.OrderedDict", "collections.Counter", "_codecs.encode"),
    *("builtins.set", "__builtin__.set", "builtins.complex", "__builtin__.complex"),
    *("builtins.bytes", "__builtin__.bytes"),  # of none, as protocol 2 writes b""
    *("torch.Size", "torch.device", "torch.Tensor", "torch.nn.parameter.Parameter"),
    *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"),
    *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"),
    "torch._tensor._rebuild_from_type_v2",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")
      for name in ("scalar", "_reconstruct")),
    *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
    *("numpy.ndarray", "numpy.dtype"),
}  # fmt: skip
NODES = ("yacs.config.CfgNode",)  # dicts
CONFIGS = (  # what AdvBCT and OpenCompatible pickle beside their weights, and the paths in it
    *(*NODES, "parse_config.ConfigParser"),
    *(f"{module}.{system}Path" for module in ("pathlib", "pathlib._local")
      for system in ("Posix", "Windows")),
)  # fmt: skip
_OF_TORCH = re.compile(r"torch\.(\w+Storage|(float|int|uint|bool|complex|bfloat)\w*)")
_TO_SAVE = (
    "save its weights alone where its code is, torch.save(model.state_dict(), 'weights.pt'); a "
    "network that is none of ours as ONNX"
)
_EMBEDDINGS = "embeddings are for tools/import_features.py; give the model's own file here"
_CENTRES = "AdvBCT's class centres are for tools/import_features.py; give the model's own file here"
_LIST = "give a file that torch.save wrote; a list of images is data: rec=, --data or --rec"
_COPY = "give a file that torch.save wrote; copy or download it again"


class NoTensorsError(ValueError):
    """what: what the file is instead; do: what helps."""

    def __init__(self, what: str, do: str = _COPY):
        super().__init__(what)
        self.what, self.do = what, do


def check_file(path: Path) -> None:
    """Raises NoTensorsError for all but tensors and plain values that torch.save wrote."""
    with open(path, "rb") as file:
        start = file.read(4096)
        _check_start(path, start)
        if start[:2] == b"PK":
            _check_archive(path)
            return
        file.seek(0)
        by_torch = _MAGIC.match(start)
        newest = max(_check_pickle(file) for _ in range(5 if by_torch else 1))
        if not by_torch:
            raise NoTensorsError("a pickle that torch.save has not written")
        _check_protocol(newest)


def most(path: Path) -> int:
    """How many bytes the tensors of a file may take."""
    return FREE + GROWTH * path.stat().st_size


def _check_start(path: Path, start: bytes) -> None:
    if not start:
        raise NoTensorsError("empty")
    for signature, what in _STARTS:
        if start.startswith(signature):
            do = {b"version https://git-lfs": "fetch it: git lfs pull", b"\x93NUMPY": _EMBEDDINGS}
            raise NoTensorsError(what, do.get(signature, _COPY))
    if start[257:262] == b"ustar" or start.startswith(b"././@LongLink"):
        raise NoTensorsError("a tar archive", "unpack it, or save the weights with a newer torch")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        raise NoTensorsError(
            "a safetensors file",
            "save it as torch does: torch.save(safetensors.torch.load_file(FILE), 'weights.pt')",
        )
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb"<(!doctype|html|head|body|\?xml|!--)", text, re.I):
        raise NoTensorsError("a web page", "download the file itself, not the page about it")
    if text[:1] in b"{[" and _is_text(start):
        raise NoTensorsError("a JSON text", _CENTRES)
    if _is_text(start):
        first = text.splitlines()[0] if text else b""
        raise NoTensorsError(f"a text ({shown(first.decode('latin1'), 40)})", _LIST)


def _is_text(start: bytes) -> bool:
    """Old pickles are of printable characters too, but have none of the usual ends of lines."""
    try:
        text = start[:4000].decode("utf-8", "ignore")
        printable = all(c.isprintable() or c in "\r\n\t\f" for c in text) and "\ufffd" not in text
    except ValueError:
        return False
    return printable and len(text) > 0.9 * len(start[:4000]) and not re.match(rb"[(cd]", start)


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            inner = [name.partition("/")[2] for name in names]
            if "constants.pkl" in inner:
                raise NoTensorsError(
                    "TorchScript, a program that runs when it is loaded",
                    "where you trust it, name the network torchscript, as of "
                    "tools/import_model.py; or give its weights",
                )
            if "data.pkl" not in inner:
                kind = (
                    "an archive of numpy's arrays"
                    if names and all(name.endswith(".npy") for name in names)
                    else "a zip archive"
                )
                found = ", ".join(shown(name, 40) for name in names[:3]) or "nothing"
                raise NoTensorsError(f"{kind} of {found}, not one that torch.save wrote")
            unpacked = sum(member.file_size for member in members)
            if unpacked > most(path):
                raise NoTensorsError(
                    f"an archive that unpacks to {unpacked:,} bytes from "
                    f"{path.stat().st_size:,}: more than weights can",
                )
            with archive.open(names[inner.index("data.pkl")]) as file:
                _check_protocol(_check_pickle(file))
    except NoTensorsError:
        raise
    except Exception as error:  # zipfile raises many kinds on damaged files
        raise NoTensorsError(f"damaged ({type(error).__name__}: {shown(error, 80)})") from None


def _check_protocol(newest: int) -> None:
    if newest > _PROTOCOL:
        raise NoTensorsError(
            f"pickled with a protocol above {_PROTOCOL}, which torch does not read safely",
            "save it again as torch does by itself, without pickle_protocol",
        )


def _check_pickle(file: IO[bytes]) -> int:
    """The protocol of the newest operation in the pickle that begins here; the file is left behind
    it."""
    try:
        names, protocol = _names(file)
    except NoTensorsError:
        raise
    except Exception as error:  # pickletools raises many kinds
        raise NoTensorsError(f"damaged ({type(error).__name__}: {shown(error, 80)})") from None
    for name in names:
        if name in _TENSORS:
            raise NoTensorsError(
                f"of {_TENSORS[name]}", "save plain tensors: dense, of floats, with their data"
            )
    foreign = [n for n in names if n not in (*_KNOWN, *CONFIGS) and not _OF_TORCH.fullmatch(n)]
    if not foreign:
        return protocol
    first = shown(foreign[0], 60)
    if any(re.match(r"torch\.nn\.modules\.|torchvision\.models\.", name) for name in foreign):
        raise NoTensorsError(f"a whole pickled module ({first}), which runs code", _TO_SAVE)
    raise NoTensorsError(f"a pickle that asks for {first}, which runs code", _TO_SAVE)


def _names(file: IO[bytes]) -> tuple[list[str], int]:
    """The classes and functions that a pickle names, in its order; the protocol of its newest
    operation.

    Every value on its stack is known here by how large it would be written out, and how deep.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    names: dict[str, None] = {}
    protocol = 0
    for count, (operation, argument, _) in enumerate(pickletools.genops(file), 1):
        name, protocol = operation.name, max(protocol, operation.proto)
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(None)
        elif name not in ("PROTO", "FRAME", "STOP"):
            before, after = operation.stack_before, operation.stack_after
            parts = []
            if pickletools.stackslice in before:
                while (value := stack.pop()) is not None:
                    parts.append(value)
                before = before[: before.index(pickletools.markobject)]
            parts += [stack.pop() for _ in before]
            if name == "GLOBAL":
                names[argument.replace(" ", ".")] = None
            elif name == "STACK_GLOBAL":
                names[".".join(str(part[2]) for part in reversed(parts))] = None
            size = 1 + sum(part[0] for part in parts)
            depth = 1 + max((part[1] for part in parts), default=0)
            if name in _FILLING:  # the container, which is the last of the parts, is what it was
                depth = max(parts[-1][1], 1 + max((part[1] for part in parts[:-1]), default=0))
            if depth > _DEEPEST or size > _LARGEST * (count + 1000):
                raise NoTensorsError("a pickle whose values are too deep in each other")
            stack += [(size, depth, argument)] * len(after)
    return list(names), protocol


def shown(text: Any, most: int) -> str:
    """In one line of plain characters; cut between words, which three dots say."""
    line = " ".join(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(text)).split())
    line = line.encode("ascii", "backslashreplace").decode()
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= most else line[:most].rsplit(" ", 1)[0] + "..."
