"""Check gradients by finite differences: npgpt's own gradients, and the gradients of any function you write.

A derivation is right if its slope along a direction v equals the measured slope. Let y be the output and c the gradient
that arrives at it. The slope of L = sum(c * y) along v is

    <g, v>                                          by the derivation; g is the gradient that `backward` returns
    sum(c * (y(x + h v) - y(x - h v))) / 2h         by measurement; h = 1e-5, float64, error about h^2 = 1e-10

The two must agree within 1e-7 |g|. The check is made so that it does not miss mistakes:
- c is random. If c were all ones, a wrong softmax would pass: the sum of a row is 1 for any scores.
- v is first g / |g|: its slope is |g|, and a wrong factor shows at full size. Then v is each of three random unit
  vectors: they show a wrong direction. A single random element would miss most mistakes of both kinds.
- The error is relative to |g|, so that small gradients meet the same standard as large ones.
- A gradient that vanishes fails, because it would agree with any small slope. Change the inputs in that case.
- The measured values come from runs that record nothing, so these runs are compared with the recorded run.

Why not scipy.optimize.check_grad: scipy is a download of some 35 MB, and its differences are one-sided (error about h).
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
    """The result for one argument, along the direction with the largest error."""

    argument: str
    direction: str
    analytic: float
    numeric: float
    error: float        # |numeric - analytic| / |g|, or infinity if there was nothing to compare
    verdict: str        # "passed", or the problem

    @property
    def passed(self):
        return self.verdict == "passed"

    def __str__(self):
        return f"{self.argument:<26} {self.analytic:>15.8g} {self.numeric:>15.8g} {self.error:>14.1e}  {self.verdict}"


@dataclasses.dataclass(frozen=True)
class Report:
    """The results: a Row for each argument. print(report) shows a table."""

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

    f       function that takes one Tensor for each input and returns a Tensor of any shape. It uses `npgpt.ops` or its
            own rule. Equal inputs must give equal outputs, so make a random generator inside f.
    inputs  list of arrays or Tensors; each becomes a trainable leaf in float64. Ids, targets and other values without a
            gradient are not inputs: f takes them from its surroundings.
    seed    of the cotangent c and of the directions v

    Returns a Report: .passed, .worst, .rows; str(report) is the table. The verdict of a row that failed names the
    direction and the ratio analytic / numeric. The ratio often shows the bug: 2 or 1/2, a missing 1/N, -1.

    Example: your own operation, with a mistake in its rule:

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
    """Check the gradients of f(), a function without arguments, with respect to each of `tensors`.

    f        function that returns a Tensor, such as lambda: model.loss(batch)
    tensors  dict name -> trainable Tensor in float64 that f reads, such as model.trainable_parameters(). The check
             replaces their data for a while and restores it at the end.
    seed     as for `gradcheck`

    Returns a Report, as `gradcheck` does.
    """
    output = f()
    if not isinstance(output, Tensor) or output.dtype != np.float64:
        raise ConfigError(f"the function returned {output!r}: gradcheck needs a Tensor in float64")
    if not tensors:
        raise ConfigError("there is nothing to check: give gradcheck at least one input")
    if not np.allclose(_values(f), output.data, rtol=1e-12, atol=1e-12, equal_nan=True):
        raise ConfigError("the function returned two different results for the same inputs, first with recording and "
                          "then without; if it draws random numbers, make the generator inside it")
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
    """Compare the gradient of one argument with the slopes. A gradient below `rounding` may be only rounding."""
    size = None if gradient is None else float(np.linalg.norm(gradient))
    problem = ("no gradient came back" if size is None else "the gradient is not finite" if not math.isfinite(size)
               else "the gradient vanishes, so nothing was checked" if size <= rounding else None)
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
