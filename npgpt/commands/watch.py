"""A progress bar for a run, and Ctrl-C or SIGTERM that waits for the end of a step."""

import contextlib
import os
import signal
import time

from tqdm import tqdm

from npgpt.commands import start
from npgpt.training.fit import smoothed


@contextlib.contextmanager
def handled(handler):
    """Inside this block Ctrl-C and SIGTERM call `handler(number, frame)`; with signal.SIG_IGN they have no effect."""
    before = [(number, signal.signal(number, handler)) for number in start.SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


class Stop:
    """What Ctrl-C and SIGTERM do within `handled(stop.press)`: the first sets `asked`, the next interrupts as usual."""

    asked = False

    def press(self, number, frame):
        if start.repeated(number):
            return
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        with contextlib.suppress(OSError):  # nobody may read standard error; and no print inside a signal handler
            os.write(2, b"\nstopping after this step; %s once more stops at once\n"
                     % (b"Ctrl-C" if start.by_ctrl_c() else b"SIGTERM"))


class Bar:
    """A progress bar: loss, its running mean, speed, the time that is left, and what else takes time."""

    def __init__(self, done, total, quiet):
        self._bar, self._figures = tqdm(total=total, initial=done, unit="step", disable=quiet), ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Leave the bar as it is; what is printed later stands below it."""
        self._bar.close()

    def steps(self, steps):
        """Yield what `fit` yields, and show it in the bar."""
        losses, tokens, seconds, val_loss = [], 0, 0.0, None
        self._bar.unpause()  # the time that is left is estimated from here on
        for step, measured in steps:
            losses.append(step.loss)
            tokens, seconds = tokens + step.tokens, seconds + step.seconds
            val_loss = val_loss if measured is None else measured
            held_out = "" if val_loss is None else f", held out {val_loss:.3f}"
            *_, mean = smoothed(losses[-200:])
            self._figures = f"loss {step.loss:.3f}, mean {mean:.3f}{held_out}, {tokens / seconds:,.0f} tokens/s"
            self._bar.set_postfix_str(self._figures, refresh=False)
            self._bar.update()
            yield step, measured

    @contextlib.contextmanager
    def busy(self, words):
        """Inside this block, show in words what takes the time. Gives progress(part), which adds how much is done."""
        shown = time.monotonic()

        def progress(part):
            nonlocal shown
            if time.monotonic() >= shown + 1:
                shown = time.monotonic()
                self._bar.set_postfix_str(f"{words}, {part:.0%}")

        self._bar.set_postfix_str(words)
        yield progress
        self._bar.set_postfix_str(self._figures)
