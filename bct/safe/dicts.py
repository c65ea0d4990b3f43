"""Reading pickles of one dict: CIFAR's files, and the label maps that np.save wrote as objects.

The pickle is not handed to Python's unpickler: its operations are few, and carried out here. A dict
makes the difference to safe_pickle, which does: hashing nested tuples takes time that a few bytes
can make endless, or a deep one the whole stack. So keys are numbers and strings, and a container
is never taken from the memo: all that is built is a tree, no larger than the file.
"""

import pickletools
from typing import Any

import numpy as np

from bct.safe.lists import _STAND_INS, _Array, _Type

_STRINGS = ("STRING", "BINSTRING", "SHORT_BINSTRING")  # Python 2's: bytes
_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load_dict(data: bytes) -> dict[int | str, Any]:
    """The dict in a pickle, or in a pickled array of this one object.

    Keys are int or str; values are numbers, strings, lists, tuples and arrays of numbers. numpy's
    scalars come back as Python's, Python 2's strings as bytes, as keys as str. Raises ValueError
    for every other pickle.
    """
    try:
        found = _plain(_run(data))
        if not isinstance(found, dict):
            raise ValueError(f"a pickled {type(found).__name__}, not a dict")
        return {_key(key): _plain(value) for key, value in found.items()}
    except Exception as error:  # damaged files end in many kinds
        reason = " ".join(str(error).split())[:120]
        raise ValueError(reason or type(error).__name__) from None


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int) -> list[Any]:
        if count > len(stack):
            raise ValueError("an operation lacks its operands")
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    def pop_to_mark() -> list[Any]:
        return pop(len(stack) - marks.pop())

    for operation, argument, at in pickletools.genops(data):
        name = operation.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _STRINGS:
            stack.append(argument.encode("latin1"))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            if isinstance(memo[argument], list | tuple | dict):
                raise ValueError(f"a container is used twice at offset {at}")
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name == "LIST":
            stack.append(pop_to_mark())
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name in _TUPLES:
            stack.append(tuple(pop(_TUPLES[name])))
        elif name == "DICT":
            stack.append(_set({}, pop_to_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = pop(1) if name == "APPEND" else pop_to_mark()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = pop(2) if name == "SETITEM" else pop_to_mark()
            _set(stack[-1], items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, what = argument.split(" ") if name == "GLOBAL" else pop(2)
            if not isinstance(module, str) or not isinstance(what, str):
                raise ValueError(f"a name that is no string at offset {at}")
            if (module, what) not in _KNOWN:
                raise ValueError(f"it asks for {module}.{what}")
            stack.append(_KNOWN[module, what])
        elif name == "REDUCE":
            function, arguments = pop(2)
            stack.append(function(*arguments))
        elif name == "BUILD":
            (state,) = pop(1)
            stack[-1].__setstate__(state)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"operation {name} at offset {at}")
    (value,) = stack
    return value


def _set(target: Any, items: list[Any]) -> dict:
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_key(key)] = value
    return target


def _key(key: Any) -> int | str:
    if isinstance(key, bytes):
        return key.decode("latin1")
    if isinstance(key, int | str):
        return key
    raise ValueError(f"a key of type {type(key).__name__}")


def _plain(value: Any) -> Any:
    return value.array if isinstance(value, _Array) else value


class _AnyType(_Type):
    """numpy.dtype, of objects too."""

    def __init__(self, name: Any, *more: Any):
        if name in ("O8", b"O8", "O4", b"O4", "O", b"O"):
            self.type = np.dtype(object)
        else:
            super().__init__(name, *more)


class _Any(_Array):
    """numpy.ndarray; in place of an array of objects, whose data are a list, its only object."""

    def __setstate__(self, state: Any) -> None:
        _, _, kind, _, data = state
        if kind.type.hasobject:
            (self.array,) = data
        else:
            super().__setstate__(state)


_KNOWN = {
    where: {_Array: _Any, _Type: _AnyType}.get(stand_in, stand_in)
    for where, stand_in in _STAND_INS.items()
}
