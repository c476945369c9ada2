"""Regular expressions from a file, matched in bounded time.

Python's `re` tries one way after another. An expression such as ((\\w+)+\\.?)+! has so many ways to fail that the
search never ends, and nothing can stop `re` from outside. An adapter's file may hold such an expression. So `re` gets
only the expressions with few ways. Any other expression is matched here, from the tree that Python's own parser makes
of it: a step finds the set of all positions at which a part can end, once for each start. So the work never grows
exponentially with the length of a name.

A set has no order and no groups. So back-references, conditions, atomic groups and possessive repeats work only in an
expression that `re` can take. All others, also lookaheads and lookbehinds, mean the same in both.
"""

import functools
import itertools
import re
import warnings

from npgpt.runtime.errors import ConfigError

try:
    from re import _compiler, _parser
except ImportError:  # Python 3.10
    import sre_compile as _compiler
    import sre_parse as _parser

LONGEST = 100_000  # characters in an expression
NAME = 64  # characters in a name; every name of a module of GPT-2 is shorter
MOST_WAYS = 300_000  # `re` tries so many in some milliseconds
MOST_STEPS = 20_000  # for one name: a fifth of a second; a usual expression needs a few hundred
ORDERED = ("GROUPREF", "GROUPREF_EXISTS", "ATOMIC_GROUP", "POSSESSIVE_REPEAT")  # what a set cannot represent


@functools.lru_cache(maxsize=2048)
def compiled(text):
    """Return the Expression for the regular expression `text`. Raises ConfigError if it is not valid."""
    if len(text) > LONGEST:
        raise ConfigError(f"the regular expression {text[:60]!r}.. has {len(text):,} characters; {LONGEST:,} are "
                          "allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about syntax that may change its meaning in a later Python: "[[a]"
            return Expression(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{text!r} is not a regular expression: {error}") from error


class Expression:
    """A regular expression. Its methods raise ConfigError if it needs too many steps."""

    def __init__(self, text):
        self._text = text
        tree = _parser.parse(text)
        self._ordered = set()
        self._plan = self._planned(tree, tree.state.flags)
        self._re = re.compile(text) if _ways(self._plan) <= MOST_WAYS else None

    def match(self, name):
        """Tell whether the expression matches a beginning of `name`."""
        return bool(self._re.match(name)) if self._re and len(name) <= NAME else bool(self._all_ends(name))

    def fullmatch(self, name):
        """Tell whether the expression matches the whole `name`."""
        return bool(self._re.fullmatch(name)) if self._re and len(name) <= NAME else len(name) in self._all_ends(name)

    def _planned(self, tree, flags):
        """Return the plan of a tree of Python's parser: a tuple of (kind, ..) for its parts.

        ("text", pattern)                 characters, classes, anchors: a part with one end at the most
        ("any", plans)                    alternatives
        ("repeat", least, most, plan)
        ("look", wanted, width, plan)     a lookahead (width 0) or a lookbehind of `width` characters
        """
        plan, run = [], []
        for code, argument in [*tree, (None, None)]:
            kind = str(code)
            step = None if code is None else self._step(kind, argument, flags)
            if step is None and code is not None:
                run.append((code, argument))
                continue
            if run:
                plan.append(("text", _alone(run, flags)))
                run = []
            plan += step or ()
        return tuple(plan)

    def _step(self, kind, argument, flags):
        """Return the parts of a plan for one node of the tree, or None if the node is for "text"."""
        if kind in ORDERED:
            self._ordered.add(kind.lower().replace("_", " "))
        if kind == "GROUPREF":
            return ()
        if kind == "BRANCH":
            return (("any", tuple(self._planned(each, flags) for each in argument[1])),)
        if kind == "GROUPREF_EXISTS":
            return (("any", tuple(self._planned(each or (), flags) for each in argument[1:])),)
        if kind == "SUBPATTERN":
            _, added, removed, tree = argument
            if added & _parser.TYPE_FLAGS:
                flags &= ~_parser.TYPE_FLAGS
            return self._planned(tree, (flags | added) & ~removed)
        if kind == "ATOMIC_GROUP":
            return self._planned(argument, flags)
        if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, tree = argument
            return (("repeat", int(least), int(most), self._planned(tree, flags)),)
        if kind in ("ASSERT", "ASSERT_NOT"):
            direction, tree = argument
            return (("look", kind == "ASSERT", tree.getwidth()[0] if direction < 0 else 0, self._planned(tree, flags)),)
        return None

    def _all_ends(self, name):
        """Return the set of the positions in `name` at which a match that begins at 0 can end."""
        if self._ordered:
            raise ConfigError(f"the regular expression {self._text!r} has {' and '.join(sorted(self._ordered))} beside "
                              "many repeats, so it may take for ever to match; write it without them")
        found, steps = {}, itertools.count(1)

        def ends(plan, start):
            key = id(plan), start
            if key not in found:
                positions = {start}
                for part in plan:
                    positions = set().union(*(after(part, position) for position in positions))
                found[key] = positions
            return found[key]

        def after(part, start):
            if next(steps) > MOST_STEPS:
                raise ConfigError(f"the regular expression {self._text!r} takes more than {MOST_STEPS:,} steps to "
                                  "match; write it with fewer repeats")
            kind, *rest = part
            if kind == "text":
                match = rest[0].match(name, start)
                return {match.end()} if match else ()
            if kind == "any":
                return set().union(*(ends(plan, start) for plan in rest[0]))
            if kind == "repeat":
                return repeated(*rest, start)
            wanted, width, plan = rest
            return {start} if wanted == (start >= width and bool(ends(plan, start - width))) else ()

        def repeated(least, most, plan, start):
            reached, last = {start}, {start}
            for _ in range(min(least, len(name) + 1)):  # after so many, nothing new can be reached
                reached = last = set().union(*(ends(plan, position) for position in last))
            for _ in range(min(most, len(name) + 1 + least) - least):
                last = set().union(*(ends(plan, position) for position in last)) - reached
                if not last:
                    break
                reached = reached | last
            return reached

        try:
            return ends(self._plan, 0)
        except RecursionError as error:
            raise ConfigError(f"the regular expression {self._text!r} is nested too deeply") from error


def _alone(nodes, flags):
    """Return the compiled pattern of these nodes of a tree."""
    state = _parser.State()
    state.flags = flags
    return _compiler.compile(_parser.SubPattern(state, nodes), flags)


def _ways(plan):
    """Return a bound on the number of ways in which `re` can go through `plan` for a name of NAME characters."""
    ways = 1
    for kind, *rest in plan:
        if kind == "any":
            ways *= sum(map(_ways, rest[0]))
        elif kind == "look":
            ways *= _ways(rest[2])
        elif kind == "repeat":
            least, most, inner = rest
            if most <= 1:
                ways *= 1 + _ways(inner)
            elif least > NAME or not all(part[0] == "text" for part in inner):  # a repeat in a repeat
                return float("inf")
            else:
                ways *= min(most, NAME) - least + 1
        if ways > MOST_WAYS:
            return ways
    return ways
