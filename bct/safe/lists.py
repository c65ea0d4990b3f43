"""Reading pickles of lists of bytes, numbers and numpy arrays, and nothing else.

A pickle is a program: it can call what it names, ask for memory by a number, or build in a few
bytes what is exponentially large. Here its operations are looked at before any is carried out, only
those that such lists need are admitted, and numpy's classes are replaced by stand-ins that hold
no more than what the file itself contains. Protocols 0 to 5 are read; buffers outside the file,
which protocol 5 can name, are not.
"""

import io
import pickle
import pickletools
import warnings
from typing import Any

import numpy as np

_OPERATIONS = {
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "FLOAT", "BINFLOAT"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE"),
    *(
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BYTEARRAY8",
        "EMPTY_LIST",
        "APPEND",
        "APPENDS",
        "LIST",
        "EMPTY_TUPLE",
    ),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT"),
    *("LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")


def load_lists(data: bytes) -> list[list]:
    """The lists in a pickled tuple or list of lists; their arrays come back as arrays.

    numpy scalars come back as Python's, Python 2's byte strings as bytes, byte arrays as they are,
    and an array in the place of a list as a list. Raises ValueError for every other pickle.
    """
    try:
        with warnings.catch_warnings():  # of odd escapes in damaged text
            warnings.simplefilter("ignore", DeprecationWarning)
            _check_operations(data)
        outer = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        return [[_plain(item) for item in _plain(inner)] for inner in _plain(outer)]
    except Exception as error:  # pickle raises many kinds for damaged files
        reason = " ".join(str(error).split())[:120]
        raise ValueError(reason or type(error).__name__) from None


def _plain(value: Any) -> Any:
    return value.array if isinstance(value, _Array) else value


def _check_operations(data: bytes) -> None:
    for count, (operation, argument, at) in enumerate(pickletools.genops(data)):
        if operation.name not in _OPERATIONS:
            raise ValueError(f"operation {operation.name} at offset {at}")
        # a number that a pickler would not give: pickle would make room for all before it
        if operation.name in _PUTS and not 0 <= argument <= count:
            raise ValueError(f"memo {argument} at offset {at}")


class _Type:
    """Stands for numpy.dtype. Only its name is used: byte order, the state's, can't be undone."""

    kinds = "biuf"  # booleans and numbers

    def __init__(self, name: Any, *_: Any):
        name = name.decode("ascii") if isinstance(name, bytes) else name
        if name in ("O8", "O4", "O"):  # an array of it has its values in a list
            self.type = np.dtype(object)
            return
        if not isinstance(name, str) or name[:1] not in self.kinds or not name[1:].isdigit():
            # not the value's repr: of nested tuples it may take forever
            said = repr(name) if isinstance(name, str) else f"a {type(name).__name__}"
            raise ValueError(f"an array of {said}")
        self.type = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.type = self.type.newbyteorder(order)


class _Array:
    """Stands for numpy.ndarray, whose state is (version, shape, type, Fortran order, bytes); in
    place of a row of objects, whose data are a list, this list."""

    def __init__(self, *_: Any):
        self.array: np.ndarray | list = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if kind.type.hasobject:
            if not isinstance(data, list) or shape != (len(data),):
                raise ValueError("an array of objects that is no row")
            self.array = data
        else:
            self.array = _numbers(data, kind.type).reshape(shape, order="F" if fortran else "C")


def _numbers(data: Any, kind: np.dtype) -> np.ndarray:
    """(n,), in the bytes of `data`. numpy would ask any object for its buffer: also an array."""
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"an array of a {type(data).__name__}")
    return np.frombuffer(data, kind)


def _buffer(data: bytes | bytearray, kind: _Type, shape: Any, order: str, *axes: Any) -> _Array:
    """Stands for numpy's _frombuffer, by which protocol 5 writes an array."""
    array = _Array()
    if order == "K" and axes:
        array.array = _numbers(data, kind.type).reshape(shape).transpose(*axes)
    else:
        array.array = _numbers(data, kind.type).reshape(shape, order=order)
    return array


def _bytes(*data: Any) -> bytes:
    """Stands for bytearray, as protocols below 5 write one: of bytes, or of latin1 in Python 2; and
    for bytes, as those below 3 write b""."""
    if len(data) == 2:
        return _encode(data[0], data[1].replace("latin-1", "latin1"))
    (content,) = data or (b"",)
    if not isinstance(content, bytes):  # of a number it would make as many zeros
        raise ValueError(f"bytes of a {type(content).__name__}")
    return content


def _scalar(kind: _Type, data: bytes) -> Any:
    if not kind.type.itemsize:  # an empty text
        return kind.type.type().item()
    (value,) = _numbers(data, kind.type).tolist()
    return value


def _encode(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, by which Python 3 writes bytes in protocols of Python 2."""
    if encoding != "latin1":
        raise ValueError("another encoding than latin1")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    **{
        (module, name): _bytes
        for module in ("builtins", "__builtin__")
        for name in ("bytearray", "bytes")
    },
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _buffer),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _STAND_INS[module, name]
