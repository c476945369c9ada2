"""Reading pickles without running them.

A pickle is a program, and unpickling it can do anything. Here nothing is unpickled. `interpret` reads the operations,
and knows only those that build values: None, numbers, strings, lists, tuples, dicts. A name in the pickle stays a name:
nothing looks it up or imports it. A Rules decides what a pickle may name, call and refer to; by default, nothing.

A pickle.Unpickler with its own find_class would be shorter, but it would still run the operations not known here.

Source: pickletools in Python's library.
"""

import io
import pickletools
import warnings

from npgpt.files.content import POINTER, refuse_pointer
from npgpt.runtime.errors import FileError, FormatError

MAX_PICKLE = 4_000_000  # bytes; the pickle in a file of GPT-2 XL has about 100,000


class Global(str):
    """A name in the pickle, such as "torch.FloatStorage"; never the object with this name."""


class Rules:
    """What a pickle may do besides building plain values: nothing. `needed_by` is for messages."""

    needed_by = "no file of plain values needs"

    def named(self, name):
        """Return the value for the name "module.name". Raises FormatError if the name is not allowed."""
        raise FormatError(f"its pickle names {name!r}, which {self.needed_by}; nothing was run")

    def persistent(self, description):
        """Return the value that a persistent id refers to."""
        raise FormatError(f"its pickle refers to something outside, which {self.needed_by}; nothing was run")

    def call(self, function, arguments):
        """Return the value of a call of the Global `function` with the tuple `arguments`."""
        raise ValueError(f"{function} cannot be called")  # never reached: no name is allowed that could be called


def read(path):
    """Return the value of the pickle in the file `path`: None, numbers, strings, lists, tuples and dicts.

    Raises FileError if the file cannot be read, FormatError if it is not a pickle of such values.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_PICKLE + 1)
        refuse_pointer(path, data[:len(POINTER)])
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    value, length = interpret(path, data[:MAX_PICKLE], Rules())
    if length < len(data):
        raise FormatError(f"{path}: more bytes follow the end of its pickle; a pickle must be the whole file")
    return value


def interpret(path, data, rules):
    """Return the value of the pickle at the start of the bytes `data`, and its length. Raises FormatError."""
    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a string may hold escapes that mean nothing
            value = _run(pickletools.genops(stream), rules)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    except (ValueError, TypeError, LookupError) as error:
        reason = f"its end is not within {MAX_PICKLE} bytes" if len(data) == MAX_PICKLE else error
        raise FormatError(f"{path}: its pickle is damaged: {reason}") from error
    return value, stream.tell()


def _run(operations, rules):
    """Return the value that the operations of a pickle build.

    The machine has a stack, marks (the places on the stack at which an operation's arguments begin), and a memo of
    values that are needed again.
    """
    stack, marks, memo = [], [], {}

    def pop(count):
        if not 0 <= count <= len(stack):
            raise ValueError("too few values on the stack")
        values = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return values

    for operation, argument, _ in operations:
        match operation.name:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(operation.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(operation.name[-1]))))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop(len(stack) - marks.pop())))
            case "APPEND" | "APPENDS":
                items = pop(1 if operation.name == "APPEND" else len(stack) - marks.pop())
                _of_type(list, stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS":
                items = pop(2 if operation.name == "SETITEM" else len(stack) - marks.pop())
                _set_items(_of_type(dict, stack[-1]), items[::2], items[1::2])
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(rules.named(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                stack.append(rules.named(".".join(pop(2))))
            case "BINPERSID":
                stack.append(rules.persistent(*pop(1)))
            case "REDUCE":
                function, arguments = pop(2)
                stack.append(rules.call(_of_type(Global, function), arguments))
            case "BUILD":  # attributes of a dictionary (a state_dict's _metadata); nobody needs them
                pop(1)
                _of_type(dict, stack[-1])
            case "STOP":
                return pop(1)[0]
            case name:
                what = f"{name} {argument!r}" if isinstance(argument, str) else name
                raise FormatError(f"its pickle uses {what}, which {rules.needed_by}; nothing was run")
    raise ValueError("it has no end")


def _of_type(kind, value):
    """Return `value`. Raises ValueError unless its type is `kind`."""
    if type(value) is not kind:
        raise ValueError(f"a value of type {type_name(value)} where another belongs")
    return value


def type_name(value):
    """Return the name of a value's type, for a message."""
    return type(value).__name__.strip("_")


def _set_items(target, keys, values):
    for key, value in zip(keys, values, strict=True):
        if type(key) not in (str, int) or key in target:  # a deeply nested tuple would take very long to hash
            raise ValueError(f"the name of an entry occurs twice or is of type {type_name(key)}")
        target[key] = value
