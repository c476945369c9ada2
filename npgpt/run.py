"""The folder of a training run: what was asked for, what happened, and what is needed to go on.

    config.json       every setting of the run
    metrics.jsonl     one line a step
    adapter/          the adapter, in PEFT's format; model/ instead, where all weights were trained
    state.safetensors the trained parameters, AdamW's moments and the steps done: what a resumed run starts from
"""

import json
from pathlib import Path

import numpy as np

from npgpt import safetensors
from npgpt.adapter import save_adapter
from npgpt.errors import FileError, FormatError
from npgpt.files import read_json, write_json
from npgpt.lora import adapted_layers


class Run:
    """A run folder. `create` makes one, `open` finds one."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.adapter = self.folder / "adapter"
        self.model = self.folder / "model"
        self._config = self.folder / "config.json"
        self._metrics = self.folder / "metrics.jsonl"
        self._state = self.folder / "state.safetensors"

    @classmethod
    def create(cls, folder):
        """Make the folder, and make sure now that it can be written. Raises FileError where it holds a run already."""
        run = cls(folder)
        if run._config.exists():
            raise FileError(f"{folder} holds a run already: name another --out, or go on with it by --resume")
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            run._metrics.write_text("")
        except OSError as error:
            raise FileError(f"cannot write into {folder}: {error.strerror or error}") from error
        return run

    @classmethod
    def open(cls, folder):
        """Return the run in `folder`. Raises FileError where there is none that can be resumed."""
        run = cls(folder)
        for path in (run._config, run._state):
            if not path.is_file():
                raise FileError(f"cannot resume {folder}: it has no {path.name}; a run that was stopped by Ctrl-C or "
                                "came to its end has one")
        return run

    def write_config(self, settings):
        write_json(self._config, settings)

    def read_config(self):
        return read_json(self._config)

    def log(self, step, **more):
        """Add a line to metrics.jsonl. step: a NamedTuple of figures."""
        try:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**step._asdict(), **more}) + "\n")
        except OSError as error:
            raise FileError(f"cannot write {self._metrics}: {error.strerror or error}") from error

    def save(self, model, opt):
        """Write the adapter (or the model, where it has none) and the state. Returns the folder of the first."""
        if adapted_layers(model):
            place = self.adapter
            save_adapter(model, place)
        else:
            place = self.model
            model.save_pretrained(place)
        tensors = {}
        for name, tensor in opt.params.items():
            tensors[f"parameter.{name}"] = tensor.data
            tensors[f"exp_avg.{name}"] = opt.m[name]
            tensors[f"exp_avg_sq.{name}"] = opt.v[name]
        tensors["steps"] = np.array(opt.steps)
        safetensors.write(self._state, tensors)
        return place

    def load_state(self, opt):
        """Set the parameters and moments of `opt` to those of the last save. Raises FormatError where they differ."""
        saved = safetensors.read(self._state)
        places = {"steps": np.array(opt.steps)}
        for name, tensor in opt.params.items():
            places[f"parameter.{name}"] = tensor.data
            places[f"exp_avg.{name}"] = opt.m[name]
            places[f"exp_avg_sq.{name}"] = opt.v[name]
        for what in ("shape", "dtype"):
            expected, found = ({name: getattr(array, what) for name, array in each.items()} for each in (places, saved))
            if found != expected:
                name = next(name for name in {**expected, **found} if expected.get(name) != found.get(name))
                raise FormatError(f"{self._state} is not of this run: {name} has {what} {found.get(name)}, where "
                                  f"{expected.get(name)} is right")
        if saved["steps"] < 0:
            raise FormatError(f"{self._state}: steps is {saved['steps']}; it must be at least 0")
        for name, array in saved.items():
            places[name][...] = array
        opt.steps = int(saved["steps"])
