"""Gradients held against finite differences: npgpt's own, and those of any function you write.

A derivation is right when the slope it claims along a direction v is the slope that is there. For an output y with a
gradient c arriving at it, the slope of L = sum(c * y) along v is

    <g, v>                                          by the derivation, g the gradient that `backward` returns
    sum(c * (y(x + h v) - y(x - h v))) / 2h         by measuring, h = 1e-5, in float64: right to about h^2 = 1e-10

and the two must agree within 1e-7 |g|. What the check would miss, and how it is made not to:
- c is random. With c all ones a wrong softmax passes: the sum of a row is 1 whatever the scores are.
- v is first g / |g|, where the slope is |g| itself and a wrong factor shows at full size, then three random unit
  vectors, where a wrong direction shows. A single element taken at random would mostly look past either.
- The error is relative to |g|, so that small gradients are held to the same standard as large ones.
- A gradient that vanishes agrees with anything nearby. It fails: change the inputs until there is something to check.
- The measured values come from the path that records nothing, so that path is checked against the recorded one too.
"""

import dataclasses
import inspect
import math
from typing import NamedTuple

import numpy as np

from npgpt.autograd import Tensor, backward, no_grad
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.seeding import generator

STEP = 1e-5     # h
BOUND = 1e-7    # largest error that passes, relative to |g|
HEADING = f"{'argument':<26} {'analytic':>15} {'numeric':>15} {'relative error':>14}  verdict"


class Row(NamedTuple):
    """What was found for one argument, along the direction where the two slopes differ most."""

    argument: str
    direction: str
    analytic: float
    numeric: float
    error: float        # |numeric - analytic| / |g|, or infinite where nothing could be compared
    verdict: str        # "passed", or what is wrong

    @property
    def passed(self):
        return self.verdict == "passed"

    def __str__(self):
        return f"{self.argument:<26} {self.analytic:>15.8g} {self.numeric:>15.8g} {self.error:>14.1e}  {self.verdict}"


@dataclasses.dataclass(frozen=True)
class Report:
    """A row for each argument. print(report) shows them as a table."""

    rows: list[Row]

    @property
    def passed(self):
        return all(row.passed for row in self.rows)

    @property
    def worst(self):
        """The largest relative error."""
        return max(row.error for row in self.rows)

    def __str__(self):
        return "\n".join([HEADING, *map(str, self.rows)])


def gradcheck(f, inputs, seed=0):
    """Check the gradients of `f` at `inputs`.

    f       function of as many Tensors as there are inputs, returning a Tensor of any shape, built from `npgpt.ops` or
            with a rule of its own. Equal inputs must give equal outputs: a random generator is made inside f.
    inputs  list of arrays or Tensors, each turned into a trainable leaf in float64. Ids, targets and other things that
            have no gradient are not inputs; f gets them from where it is defined.
    seed    of the cotangent and of the directions

    Returns a Report: .passed, .worst, .rows, and as a string the table. The verdict of a row that fails names the
    direction and the ratio analytic / numeric, which often names the bug: 2 or 1/2, a missing 1/N, -1.

    An operation of one's own, with a mistake in its rule:

        >>> import numpy as np, npgpt
        >>> from npgpt.autograd import record
        >>> def cube(x):
        ...     return record("cube", x.data * x.data * x.data, (x,), lambda dy: (6 * x.data * x.data * dy,))
        >>> report = npgpt.gradcheck(cube, [np.array([0.5, -1.0, 2.0])])
        >>> report.passed
        False
        >>> report.rows[0].verdict
        'FAILED along its gradient: analytic / numeric = 2'
    """
    leaves = [Tensor(np.asarray(x.data if isinstance(x, Tensor) else x, np.float64), trainable=True) for x in inputs]
    parameters = inspect.signature(f).parameters.values()
    names = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD][:len(leaves)]
    if len(names) < len(leaves):  # f takes *args
        names = [f"input {i}" for i in range(len(leaves))]
    return check_parameters(lambda: f(*leaves), dict(zip(names, leaves, strict=True)), seed)


def check_parameters(f, tensors, seed=0):
    """Check the gradients of f(), a function of no argument, at each of `tensors`: a whole model by parameter name.

    f        function returning a Tensor, such as lambda: model.loss(batch)
    tensors  dict name -> trainable Tensor in float64 that f reads, such as model.trainable_parameters(). Their data is
             replaced during the check and put back at its end.

    Returns a Report, as `gradcheck` does.
    """
    output = f()
    if not isinstance(output, Tensor) or output.dtype != np.float64:
        raise ConfigError(f"the function returned {output!r}: gradcheck needs a Tensor in float64")
    if not tensors:
        raise ConfigError("there is nothing to check: no input was given")
    if not np.allclose(_values(f), output.data, rtol=1e-12, atol=1e-12, equal_nan=True):
        raise ConfigError("the function returned two different results for the same inputs, the second time with "
                          "nothing recorded: if it draws random numbers, make the generator inside it")
    cotangent = generator(seed, "gradcheck cotangent").standard_normal(output.shape)
    rounding = np.finfo(np.float64).eps / STEP * np.linalg.norm(cotangent * output.data)
    gradients = backward(output, cotangent) if output.record else {}
    rng = generator(seed, "gradcheck directions")

    def slope(tensor, v):
        data = tensor.data
        try:
            tensor.data = data + STEP * v
            change = _values(f)
            tensor.data = data - STEP * v
            change = change - _values(f)
        finally:
            tensor.data = data
        return float(np.vdot(cotangent, change)) / (2 * STEP)

    return Report([_row(name, tensor, gradients.get(tensor), slope, rounding, rng) for name, tensor in tensors.items()])


def _values(f):
    with no_grad():
        return f().data


def _row(name, tensor, gradient, slope, rounding, rng):
    """Compare one argument's gradient with the slopes. rounding: a gradient below it can't be told from rounding."""
    size = None if gradient is None else float(np.linalg.norm(gradient))
    problem = ("no gradient came back" if size is None else "the gradient is not finite" if not math.isfinite(size)
               else "the gradient vanishes, so that nothing was checked" if size <= rounding else None)
    if problem:
        return Row(name, "none", math.nan, math.nan, math.inf, f"FAILED: {problem}")
    draws = rng.standard_normal((3, *tensor.shape))
    directions = {"its gradient": gradient / size}
    directions |= {f"random direction {i}": v / np.linalg.norm(v) for i, v in enumerate(draws, 1)}
    rows = []
    for direction, v in directions.items():
        analytic, numeric = float(np.vdot(gradient, v)), slope(tensor, v)
        error = abs(numeric - analytic) / size
        error = math.inf if math.isnan(error) else error
        ratio = analytic / numeric if numeric else math.inf
        verdict = "passed" if error <= BOUND else f"FAILED along {direction}: analytic / numeric = {ratio:.6g}"
        rows.append(Row(name, direction, analytic, numeric, error, verdict))
    return max(rows, key=lambda row: row.error)
