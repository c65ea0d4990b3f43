"""Reading pickles of one dict: CIFAR's files, the label maps that np.save wrote as objects, and the
ground truth of Revisited Oxford and Paris.

The pickle is not handed to Python's unpickler: its operations are few, and carried out here. A dict
makes the difference to lists.py, which does: hashing nested tuples takes time that a few bytes
can make endless, or a deep one the whole stack. So keys are numbers and strings, and a container
is never taken from the memo: all that is built is a tree, no larger than the file.
"""

import pickletools
from typing import Any

from bct.safe.lists import _STAND_INS, _Array


def load_dict(data: bytes) -> dict[int | str, Any]:
    """The dict in a pickle, or in a pickled array of this one object.

    Keys are int or str; values are numbers, strings, lists, tuples, dicts and arrays of numbers.
    numpy's scalars come back as Python's, Python 2's strings as bytes, as keys as str. Raises
    ValueError for every other pickle.
    """
    try:
        outer = [_run(data)]
        _make_plain(outer)
        (found,) = outer
        if not isinstance(found, dict):
            raise ValueError(f"a pickled {type(found).__name__}, not a dict")
        return found
    except Exception as error:  # damaged files end in many kinds
        reason = " ".join(str(error).split())[:120]
        raise ValueError(reason or type(error).__name__) from None


def _run(data: bytes) -> Any:
    machine = _Machine()
    for operation, argument, machine.at in pickletools.genops(data):
        name = operation.name
        if name in _VALUES:
            machine.stack.append(_VALUES[name](argument))
        elif name in _BUILDERS:
            machine.stack.append(_BUILDERS[name](machine))
        elif name in _STEPS:
            _STEPS[name](machine, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"operation {name} at offset {machine.at}")
    (value,) = machine.stack
    return value


class _Machine:
    """What the operations work on: the stack, its marks, the memo; `at`: where in the file."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.at: int | None = 0

    def pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise ValueError("an operation lacks its operands")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def pop_to_mark(self) -> list[Any]:
        return self.pop(len(self.stack) - self.marks.pop())

    def mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, place: int) -> None:
        if isinstance(self.memo[place], list | tuple | dict):
            raise ValueError(f"a container is used twice at offset {self.at}")
        self.stack.append(self.memo[place])

    def append(self, items: list[Any]) -> None:
        self.stack[-1].extend(items)

    def set(self, items: list[Any]) -> None:
        _set(self.stack[-1], items)

    def find(self, names: list[Any]) -> None:
        module, what = names
        if not isinstance(module, str) or not isinstance(what, str):
            raise ValueError(f"a name that is no string at offset {self.at}")
        if (module, what) not in _KNOWN:
            raise ValueError(f"it asks for {module}.{what}")
        self.stack.append(_KNOWN[module, what])

    def call(self, _: None) -> None:
        function, arguments = self.pop(2)
        self.stack.append(function(*arguments))

    def build(self, _: None) -> None:
        (state,) = self.pop(1)
        self.stack[-1].__setstate__(state)


_VALUES = {  # operations that only put a value on the stack, by their argument
    **dict.fromkeys(
        (
            *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
            *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
            *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        ),
        lambda value: value,
    ),
    "BYTEARRAY8": bytes,
    # Python 2's: bytes
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), lambda text: text.encode("latin1")),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_DICT": lambda _: {},
}
_BUILDERS = {  # those that put on the stack what they make of its last values
    "LIST": _Machine.pop_to_mark,
    "TUPLE": lambda machine: tuple(machine.pop_to_mark()),
    "TUPLE1": lambda machine: tuple(machine.pop(1)),
    "TUPLE2": lambda machine: tuple(machine.pop(2)),
    "TUPLE3": lambda machine: tuple(machine.pop(3)),
    "DICT": lambda machine: _set({}, machine.pop_to_mark()),
}
_STEPS = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "MEMOIZE": _Machine.memoize,
    "MARK": _Machine.mark,
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set(machine.pop_to_mark()),
    "GLOBAL": lambda machine, names: machine.find(names.split(" ")),
    "STACK_GLOBAL": lambda machine, _: machine.find(machine.pop(2)),
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}


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


def _make_plain(outer: list[Any]) -> None:
    """Puts arrays in the place of their stand-ins, in lists and dicts of any depth."""
    waiting: list[Any] = [outer]
    seen = set()  # what is in an array of an object may be in several places
    while waiting:
        container = waiting.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in list(items):
            if isinstance(value, _Array):
                container[key] = value = value.array
            if isinstance(value, list | dict):
                waiting.append(value)


class _Any(_Array):
    """numpy.ndarray; in place of an array of objects, whose data are a list, its only object."""

    def __setstate__(self, state: Any) -> None:
        _, _, kind, _, data = state
        if kind.type.hasobject:
            (self.array,) = data
        else:
            super().__setstate__(state)


_KNOWN = {where: _Any if stand_in is _Array else stand_in for where, stand_in in _STAND_INS.items()}
