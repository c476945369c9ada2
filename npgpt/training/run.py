"""The folder of a training run: its settings, its results, and the checkpoints from which it can resume.

    config.json       all settings of the run, fingerprints of its data and its base model, versions, machine
    metrics.jsonl     one line for each step
    results.json      held-out loss and samples, before and after training
    checkpoints/      step-N/ with the trained parameters, AdamW's moments and the number of steps
                      (state.safetensors), the configuration, and the adapter in PEFT's format
    report.html       all of this on one page, when the run has ended
    adapter/          the adapter, when the run has ended or was stopped; model/ if all weights were trained
    .lock             an empty file that the process locks which trains the run

A process may be killed at any moment. So every file except metrics.jsonl is written completely or not at all.
metrics.jsonl is complete up to each checkpoint; when a run resumes, it removes the lines after its checkpoint.
"""

import contextlib
import hashlib
import itertools
import json
import os
import warnings
from pathlib import Path

import numpy as np

from npgpt.adapters.peft import save_adapter
from npgpt.files import safetensors
from npgpt.files.atomic import new_folder, read_json, remove_folder, remove_leftovers, write_json
from npgpt.files.lock import lock
from npgpt.lora import adapted_layers
from npgpt.runtime.errors import FileError, FormatError


class Run:
    """The folder of a run. `create` and `create_anew` make a new one and lock it; `open` opens one that exists.

    The lock ends with the object, or with the process.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.tokenizer = None  # set this if the run added tokens: it is then saved with each adapter
        self.recipe = None     # set this to the data.Recipe of the run, which is saved with each adapter and model
        self.adapter = self.folder / "adapter"
        self.model = self.folder / "model"
        self.report = self.folder / "report.html"
        self._checkpoints = self.folder / "checkpoints"
        self._config = self.folder / "config.json"
        self._metrics = self.folder / "metrics.jsonl"
        self._results = self.folder / "results.json"

    @classmethod
    def create(cls, folder):
        """Make the folder, lock it, and check that it can be written.

        Raises FileError if it cannot be written, holds a run already, or is in use by another process.
        """
        run = cls(folder)
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot write into {folder}: {error.strerror or error}") from error
        if not run._config.exists():
            run.lock()
        if run._config.exists():  # also if another process has made a run here since
            raise FileError(f"{folder} holds a run already: name another --out, or continue this run with --resume")
        try:
            run._metrics.write_text("")
        except OSError as error:
            raise FileError(f"cannot write into {folder}: {error.strerror or error}") from error
        return run

    @classmethod
    def create_anew(cls, parent, name):
        """Make the folder `name` in `parent`, or `name`-2, -3, ... if that name is taken. Returns the Run.

        Two runs never get the same folder, even if they start at the same moment. Raises FileError if the folder
        cannot be written.
        """
        try:
            Path(parent).mkdir(parents=True, exist_ok=True)
            for number in itertools.count(1):
                folder = Path(parent, name if number == 1 else f"{name}-{number}")
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    return cls.create(folder)
        except FileError:
            raise
        except OSError as error:
            raise FileError(f"cannot write into {parent}: {error.strerror or error}") from error

    @classmethod
    def open(cls, folder):
        """Return the Run in `folder`. Raises FileError if there is none."""
        run = cls(folder)
        if not run._config.is_file():
            raise FileError(f"{folder} holds no run, because it has no config.json; name the folder of a run")
        return run

    def lock(self):
        """Keep other processes from training this run. Raises FileError if another process does that now."""
        lock(self.folder, self)

    def write_config(self, values):
        write_json(self._config, values)

    def read_config(self):
        return read_json(self._config)

    # What happened

    def log(self, step, **more):
        """Add a line to metrics.jsonl: the fields of `step`, a NamedTuple, and `more`."""
        try:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**step._asdict(), **more}) + "\n")
        except OSError as error:
            raise FileError(f"cannot write {self._metrics}: {error.strerror or error}") from error

    def metrics(self):
        """Return the lines of metrics.jsonl as a list of dicts, without an incomplete last line.

        Raises FileError if the file cannot be read, FormatError if a line does not come from a run.
        """
        return [values for _, values in self._metrics_lines()]

    def _metrics_lines(self):
        """Yield (position of the end of the line in the file, dict of the line)."""
        try:
            lines = self._metrics.read_bytes().split(b"\n")
        except OSError as error:
            raise FileError(f"cannot read {self._metrics}: {error.strerror or error}") from error
        end = 0
        for number, line in enumerate(lines[:-1], start=1):
            end += len(line) + 1
            try:
                values = json.loads(line)
                right = isinstance(values, dict) and isinstance(values["step"], int)
            except (ValueError, KeyError, RecursionError):
                right = False
            if not right:
                raise FormatError(f'{self._metrics}:{number}: expected a line of a run, {{"step": ..., ...}}')
            yield end, values

    def evaluations(self):
        """Return the measurements so far: [(step, val_loss), ...]."""
        return [(values["step"], values["val_loss"]) for values in self.metrics() if "val_loss" in values]

    def held_out(self):
        """Return the same with the loss before training as step 0, if it was measured."""
        before = self.results().get("before", {}).get("val_loss")
        return [*([] if before is None else [(0, before)]), *self.evaluations()]

    def record(self, moment, values):
        """Write `values` into results.json. moment: "before" or "after"."""
        write_json(self._results, self.results() | {moment: values})

    def results(self):
        """Return the contents of results.json: dict moment -> values."""
        return read_json(self._results) if self._results.exists() else {}

    # Checkpoints

    def steps(self):
        """Return the steps that have a checkpoint, in ascending order."""
        names = [path.name.removeprefix("step-") for path in self._checkpoints.glob("step-*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def checkpoint(self, step):
        """Return the folder of the checkpoint after step `step`."""
        return self._checkpoints / f"step-{step}"

    def save_checkpoint(self, model, opt):
        """Write a checkpoint, completely or not at all. Raises FileError if it cannot be written."""
        place = self.checkpoint(opt.steps)
        if not place.exists():
            with contextlib.suppress(OSError), self._metrics.open("rb") as file:
                os.fsync(file.fileno())  # the lines of its steps must be on the disk before the checkpoint
            with new_folder(place) as temporary:
                if adapted_layers(model):
                    self._save_adapter(model, temporary / "adapter")
                safetensors.write(temporary / "state.safetensors", {**_state(opt), "steps": np.array(opt.steps)})
                write_json(temporary / "config.json", self.read_config())

    def prune(self, keep, spare=()):
        """Remove old checkpoints. Warns if one cannot be removed.

        keep   keep this many of the newest, int >= 1
        spare  also keep the checkpoints after these steps
        """
        for step in self.steps()[:-keep]:
            if step not in spare:
                try:
                    remove_folder(self.checkpoint(step))
                except FileError as error:
                    warnings.warn(f"{error}; remove it by hand", stacklevel=2)

    def load_checkpoint(self, step, opt):
        """Set the parameters, moments and steps of `opt` from a checkpoint.

        Raises FormatError, and changes nothing, if the checkpoint has another configuration or does not fit.
        """
        folder = self.checkpoint(step)
        changed = difference(read_json(folder / "config.json"), self.read_config())
        if changed:
            raise FormatError(f"{self._config} has changed since {folder} was written: {changed}; a resumed run goes "
                              "on as it began")
        path = folder / "state.safetensors"
        places, saved = {**_state(opt), "steps": np.array(opt.steps)}, safetensors.read(path)
        for what in ("shape", "dtype"):
            expected, found = ({name: getattr(array, what) for name, array in each.items()} for each in (places, saved))
            if found != expected:
                name = next(name for name in {**expected, **found} if expected.get(name) != found.get(name))
                raise FormatError(f"{path} does not belong to this run: {name} has {what} {found.get(name)}, expected "
                                  f"{expected.get(name)}")
        if saved["steps"] != step:
            raise FormatError(f"{path}: steps is {saved['steps']}, expected {step}")
        for name, array in saved.items():
            places[name][...] = array
        opt.steps = step

    def resume(self, opt):
        """Go back to the newest checkpoint, or to the start if there is none: set `opt` and cut metrics.jsonl.

        Raises FormatError if the checkpoint does not fit or if metrics.jsonl lacks a step before it.
        """
        remove_leftovers(self.folder)
        steps = self.steps()
        if steps:
            self.load_checkpoint(steps[-1], opt)
        end, reached = 0, 0
        for line_end, values in self._metrics_lines():
            if values["step"] != reached + 1 or reached == opt.steps:
                break
            end, reached = line_end, reached + 1
        if reached < opt.steps:
            raise FormatError(f"{self._metrics} lacks step {reached + 1}, but its checkpoint is after step "
                              f"{opt.steps}: restore the file that this run wrote")
        try:
            os.truncate(self._metrics, end)
        except OSError as error:
            raise FileError(f"cannot write {self._metrics}: {error.strerror or error}") from error

    def save(self, model):
        """Write the result for the user: the adapter, or the model if it has no adapter. Returns its folder."""
        if adapted_layers(model):
            self._save_adapter(model, self.adapter)
            return self.adapter
        model.save_pretrained(self.model)
        if self.recipe is not None:
            self.recipe.save(self.model)
        return self.model

    def _save_adapter(self, model, folder):
        if self.tokenizer is not None:
            self.tokenizer.save(folder)
        if self.recipe is not None:
            self.recipe.save(folder)
        save_adapter(model, folder)  # last, because it writes the configuration last: the folder is then complete


def _state(opt):
    """Return a dict name -> array of everything that a step changes, except the number of steps."""
    arrays = {}
    for name, tensor in opt.params.items():
        arrays[f"parameter.{name}"] = tensor.data
        arrays[f"exp_avg.{name}"] = opt.m[name]
        arrays[f"exp_avg_sq.{name}"] = opt.v[name]
    return arrays


def fingerprint(arrays):
    """Return a hash of the arrays: their dtypes, shapes, bytes and order. 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()[:32]


def difference(before, now, name=""):
    """Return the first difference between two JSON objects, such as "lr was 0.1 and is 0.2", or None."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            if key not in before or key not in now:
                return f"{name}{key} is {'new' if key in now else 'missing'}"
            found = difference(before[key], now[key], f"{name}{key}.")
            if found:
                return found
        return None
    return None if before == now else f"{name[:-1]} was {before} and is {now}"
