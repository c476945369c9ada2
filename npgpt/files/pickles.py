"""Pickles, read without running what is in them.

A pickle is a program: to unpickle one can do anything. Here nothing is unpickled. Its operations are interpreted by
`interpret`, which knows only those that put values together: None, numbers, strings, lists, tuples, dicts. A name in
the pickle stays a name, and is neither looked up nor imported; what may be named, called and referred to at all is up
to a Rules, which by default allows nothing.

Source: pickletools in Python's library.
"""

import io
import pickletools
import warnings

from npgpt.runtime.errors import FileError, FormatError

MAX_PICKLE = 4_000_000  # bytes; that of a file of GPT-2 XL has about a tenth of a million


class Global(str):
    """A name that the pickle refers to, such as "torch.FloatStorage"; not the thing of that name."""


class Rules:
    """What a pickle may do beside putting plain values together: nothing. `needed_by` is for messages."""

    needed_by = "no file of plain values needs"

    def named(self, name):
        """Return what the name "module.name" stands for. Raises FormatError where it is not allowed."""
        raise FormatError(f"its pickle names {name!r}, which {self.needed_by}; nothing was run")

    def persistent(self, description):
        """Return what a persistent id refers to."""
        raise FormatError(f"its pickle refers to something outside, which {self.needed_by}; nothing was run")

    def call(self, function, arguments):
        """Return what a Global would return for the tuple of arguments."""
        raise ValueError(f"{function} cannot be called")  # nothing could be named that might be


def read(path):
    """Return the value of the pickle that is the file `path`: None, numbers, strings, lists, tuples and dicts.

    Raises FileError where the file cannot be read, FormatError where it is no such pickle, or names anything.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_PICKLE + 1)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    value, length = interpret(path, data[:MAX_PICKLE], Rules())
    if length < len(data):
        raise FormatError(f"{path}: more follows the end of its pickle")
    return value


def interpret(path, data, rules):
    """Return the value of the pickle at the start of the bytes `data`, and its length. Raises FormatError."""
    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in a string that mean nothing
            value = _run(pickletools.genops(stream), rules)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    except (ValueError, TypeError, LookupError) as error:
        reason = f"its end is not within {MAX_PICKLE} bytes" if len(data) == MAX_PICKLE else error
        raise FormatError(f"{path}: its pickle is damaged: {reason}") from error
    return value, stream.tell()


def _run(operations, rules):
    """Return the value that the operations of a pickle put together.

    There is a stack, marks that say where on it the arguments of an operation begin, and a memo of values that are
    needed again.
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
            case "BUILD":  # attributes of a dictionary (of a state_dict: _metadata); nobody needs them
                pop(1)
                _of_type(dict, stack[-1])
            case "STOP":
                return pop(1)[0]
            case name:
                what = f"{name} {argument!r}" if isinstance(argument, str) else name
                raise FormatError(f"its pickle uses {what}, which {rules.needed_by}; nothing was run")
    raise ValueError("it has no end")


def _of_type(kind, value):
    if type(value) is not kind:
        raise ValueError(f"a value of type {type_name(value)} where another belongs")
    return value


def type_name(value):
    """The name of a value's type, for a message."""
    return type(value).__name__.strip("_")


def _set_items(target, keys, values):
    for key, value in zip(keys, values, strict=True):
        if type(key) not in (str, int) or key in target:  # both hash in no time; a tuple can be nested without end
            raise ValueError(f"an entry's name is there twice or is of type {type_name(key)}")
        target[key] = value
