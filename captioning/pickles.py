"""Pickles from elsewhere: every step is checked first, then plain values and what the caller names are built.

    value = read_pickle(data, {"vocabulary.Vocabulary": StandIn})
    end = check_pickle(data, start)        # where several stand one behind the other

A pickle is a program of small steps. A few bytes of it can ask for gigabytes, for values within values that take for
ever to compare, or for any function. So its steps are followed without doing them, and what no plain value needs is
refused. numpy's way to write a number takes any type, also one that holds addresses: `NUMBERS` reads numbers instead.
"""

import io
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping

from captioning.errors import one_line

MOST_DEPTH = 100  # values within values
MOST_TABLES = 2**18  # lists and dicts: a byte makes one, which takes a hundred
LONGEST_INTEGER = 9  # bytes, an unsigned number of 64 bits: of larger ones many could share a hash
LONGEST_LINE = 250  # characters of a number or a name that is written as text
SHARING = 64  # how often, in the mean, a byte of the pickle may count: values may be named again, within bounds

NAMES = {ord(step.code): step.name for step in pickletools.opcodes}
ARGUMENT = {step.name: step.arg.n if step.arg else 0 for step in pickletools.opcodes}
TEXT, TWO_TEXTS = pickletools.UP_TO_NEWLINE, {"GLOBAL"}
LENGTHS = {  # how the length of an argument is written before it
    pickletools.TAKEN_FROM_ARGUMENT1: struct.Struct("<B"),
    pickletools.TAKEN_FROM_ARGUMENT4: struct.Struct("<i"),
    pickletools.TAKEN_FROM_ARGUMENT4U: struct.Struct("<I"),
    pickletools.TAKEN_FROM_ARGUMENT8U: struct.Struct("<Q"),
}
SCALARS = {"NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BININT", "BININT1", "BININT2"}
SCALARS |= {"BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"}
SCALARS |= {"BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "GLOBAL"}
SCALAR = (1, 0)  # weight and depth of a value: how many values it takes to walk through it, and how deep they lie


class PickleError(ValueError):
    """A pickle that is damaged, or that asks for more than plain values. The message does not name the file."""


class Check:
    """Follows the steps of the pickle that begins at `start` of `data`, with weights in place of values.

    A tuple is (weight, depth), what can still grow a list [weight, depth, whether it is part of another].
    references: whether it may refer to what is stored elsewhere, as the pickles of torch do.
    """

    def __init__(self, data, start: int, references: bool):
        self.data, self.start, self.position = data, start, start
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: list = []
        self.total = self.tables = 0
        self.steps: dict[int, tuple[int, Callable[[int, int], None] | None]] = {}  # code -> size of argument, method
        for code, name in NAMES.items():
            if name in SCALARS:
                self.steps[code] = ARGUMENT[name], None
            elif hasattr(self, name) and (references or name != "BINPERSID"):
                self.steps[code] = ARGUMENT[name], getattr(self, name)

    def run(self) -> int:
        """The place behind the pickle. Raises PickleError."""
        data, steps, end = self.data, self.steps, len(self.data)
        position = self.start
        try:
            while (code := data[position]) != ord("."):
                size, step = steps[code]
                begin = position + 1
                position = begin + size if size >= 0 else self._end(code, begin, size)
                if position > end:
                    raise PickleError("it is cut off")
                if step is None:
                    self.stack.append(SCALAR)
                else:
                    step(begin, position)
        except KeyError as error:
            name = NAMES.get(error.args[0]) or repr(error.args[0])
            raise PickleError(f"it has the step {name}, which no plain value needs") from None
        except IndexError:
            raise PickleError("it is cut off or damaged") from None
        if len(self.stack) != 1 or self.marks:
            raise PickleError("it is damaged: it does not end in one value")
        return position + 1

    def _end(self, code: int, begin: int, size: int) -> int:
        """Where an argument ends whose length is not fixed."""
        if size == TEXT:
            end = begin
            for _ in range(2 if NAMES[code] in TWO_TEXTS else 1):
                end = self.data.find(b"\n", end) + 1
                if not end:
                    raise PickleError("it is cut off")
            if end - begin > LONGEST_LINE and NAMES[code] not in ("STRING", "UNICODE"):
                raise PickleError("it has a number or a name of more than 250 characters")
            return end
        head = LENGTHS[size]
        length = head.unpack(self.data[begin : begin + head.size].ljust(head.size, b"\0"))[0]
        if length < 0 or (length > LONGEST_INTEGER and NAMES[code] in ("LONG1", "LONG4")):
            raise PickleError("it has a number of more than 64 bits")
        return begin + head.size + length

    def _joined(self, items, last: int) -> tuple:
        """(weight, depth) of a value that has `items` as parts; they can no longer grow. last: where this step ends."""
        if items.count(SCALAR) == len(items):  # most are; each took a step of its own
            return len(items) + 1, 1
        weight, depth = 1, 0
        for item in items:
            weight += item[0]
            depth = max(depth, item[1])
            if type(item) is list:
                item[2] = True
        self.total += weight
        if depth >= MOST_DEPTH:
            raise PickleError(f"it has values within values more than {MOST_DEPTH} deep")
        if self.total > SHARING * (last - self.start) + 10_000:
            raise PickleError("it repeats values within values without bounds")
        return weight, depth + 1

    def _pop(self, count: int) -> list:
        if len(self.stack) < count:
            raise PickleError("it is damaged: a step lacks its values")
        items = self.stack[-count:]
        self.stack[-count:] = ()
        return items

    def _pop_to_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _grow(self, items: list, end: int) -> None:
        target = self.stack[-1]
        if type(target) is not list or target[2]:
            raise PickleError("it changes a value that is a part of another")
        weight, depth = self._joined(items, end)
        if target[2]:
            raise PickleError("it has a value within itself")
        target[0] += weight - 1
        target[1] = max(target[1], depth)

    def _growing(self, items: list, end: int) -> None:
        self.tables += 1
        if self.tables > MOST_TABLES:
            raise PickleError(f"it has more than {MOST_TABLES:,} lists and tables")
        self.stack.append([*self._joined(items, end), False])

    def _keep(self, place: int) -> None:
        if not self.memo and place == 1:  # they are numbered one after the other, from 0 or 1
            self.memo.append(SCALAR)
        if place == len(self.memo):
            self.memo.append(self.stack[-1])
        elif place < len(self.memo):
            self.memo[place] = self.stack[-1]
        else:
            raise PickleError("it numbers its values with gaps")

    def _recall(self, place: int) -> None:
        self.stack.append(self.memo[place])

    def _integer(self, begin: int, end: int) -> int:
        return int.from_bytes(self.data[begin:end], "little")

    def _written(self, begin: int, end: int) -> int:
        text = self.data[begin:end].strip()
        if not text.isdigit():
            raise PickleError("it is damaged: a number is none")
        return int(text)

    # One method for each step that is known, named as pickletools names it: begin and end of its argument.

    def PROTO(self, begin, end):
        pass

    def FRAME(self, begin, end):
        if end + self._integer(begin, end) > len(self.data):
            raise PickleError("it is cut off")

    def MARK(self, begin, end):
        self.marks.append(self.stack)
        self.stack = []
        if len(self.marks) > MOST_DEPTH:
            raise PickleError(f"it has values within values more than {MOST_DEPTH} deep")

    def EMPTY_TUPLE(self, begin, end):
        self.stack.append(SCALAR)

    def TUPLE1(self, begin, end):
        self.stack.append(self._joined(self._pop(1), end))

    def TUPLE2(self, begin, end):
        self.stack.append(self._joined(self._pop(2), end))

    def TUPLE3(self, begin, end):
        self.stack.append(self._joined(self._pop(3), end))

    def TUPLE(self, begin, end):
        items = self._pop_to_mark()
        self.stack.append(self._joined(items, end))

    def LIST(self, begin, end):
        self._growing(self._pop_to_mark(), end)

    def EMPTY_LIST(self, begin, end):
        self._growing([], end)

    DICT, EMPTY_DICT = LIST, EMPTY_LIST

    def APPEND(self, begin, end):
        self._grow(self._pop(1), end)

    def SETITEM(self, begin, end):
        self._grow(self._pop(2), end)

    def APPENDS(self, begin, end):
        items = self._pop_to_mark()
        self._grow(items, end)

    SETITEMS, BUILD = APPENDS, APPEND

    def STACK_GLOBAL(self, begin, end):
        self._pop(2)
        self.stack.append(SCALAR)

    def REDUCE(self, begin, end):
        self._growing(self._pop(2), end)

    NEWOBJ = REDUCE

    def BINPERSID(self, begin, end):
        self.stack.append(self._joined(self._pop(1), end))

    def PUT(self, begin, end):
        self._keep(self._written(begin, end))

    def GET(self, begin, end):
        self._recall(self._written(begin, end))

    def BINPUT(self, begin, end):
        self._keep(self._integer(begin, end))

    def BINGET(self, begin, end):
        self._recall(self._integer(begin, end))

    LONG_BINPUT, LONG_BINGET = BINPUT, BINGET

    def MEMOIZE(self, begin, end):
        self.memo.append(self.stack[-1])


def check_pickle(data, start: int = 0, references: bool = False) -> int:
    """The place behind the pickle that begins at `start` of `data` (bytes, or a map of a file).

    references: whether it may refer to what is stored elsewhere. Raises PickleError where it is damaged, or asks for
    more work or memory than plain values of its length need.
    """
    return Check(data, start, references).run()


class _Builder(pickle.Unpickler):
    """Builds plain values and what `known` has by full name; references: called with each reference to elsewhere."""

    def __init__(self, data: bytes, known: Mapping[str, object], references, encoding: str):
        super().__init__(io.BytesIO(data), encoding=encoding)
        self.known, self.references = known, references

    def find_class(self, module: str, name: str):
        full = f"{module}.{name}"
        if full not in self.known:
            raise PickleError(f"it asks for {full}")
        return self.known[full]

    def persistent_load(self, reference):
        if self.references is None:
            raise PickleError("it refers to something elsewhere")
        return self.references(reference)


def read_pickle(data: bytes, known: Mapping[str, object], encoding: str = "ASCII", references=None):
    """The value in a pickle. Raises PickleError where it is damaged or asks for what `known` does not have.

    known: full name -> what stands in for it, which must do no harm whatever it is called with. encoding: of texts that
    Python 2 wrote. references: a function that gives a value for what the pickle refers to elsewhere.
    """
    check_pickle(data, references=references is not None)
    try:
        return _Builder(data, known, references, encoding).load()
    except PickleError:
        raise
    except Exception as error:  # values that do not fit each other raise nearly anything
        raise PickleError(one_line(error)) from error


class NumberType:
    """Stands in for numpy.dtype: the code ("i8", "f4") and the byte order of a number, and nothing else."""

    FORMATS = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
    FORMATS |= {"f2": "e", "f4": "f", "f8": "d", "b1": "?"}

    def __init__(self, code="", *rest):
        self.code, self.order = code, "<"

    def __setstate__(self, state):
        self.order = ">" if state[1] == ">" else "<"


def number(kind: NumberType, data) -> int | float | bool:
    """Stands in for numpy's function that makes a number of its type and its bytes."""
    data = data if isinstance(data, bytes) else data.encode("latin1")  # as Python 2 has them
    return struct.unpack(kind.order + NumberType.FORMATS[kind.code], data)[0]


def latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for _codecs.encode, with which old protocols write bytes."""
    return text.encode("latin1")


NUMBERS = {f"numpy.{module}.multiarray.scalar": number for module in ("core", "_core")}
NUMBERS |= {"numpy.dtype": NumberType, "_codecs.encode": latin1_bytes}
