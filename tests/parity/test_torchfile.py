"""Files that this machine's torch writes, in both of its formats, against what torch reads from them."""

import collections

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from npgpt.files import torchfile
from npgpt.runtime.errors import FormatError

FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}, "protocol 4": {"pickle_protocol": 4}}
DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


@pytest.fixture(params=FORMATS)
def round_trip(request, tmp_path):
    """round_trip(state): what torchfile reads, and what torch reads, from the file that torch writes of the state."""

    def check(state):
        path = tmp_path / "pytorch_model.bin"
        torch.save(state, path, **FORMATS[request.param])
        ours, theirs = torchfile.read(path), torch.load(path, weights_only=False)
        assert list(ours) == list(theirs)
        for name, tensor in theirs.items():
            wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            array = wide.detach().numpy()
            assert ours[name].dtype == array.dtype, name
            assert ours[name].shape == array.shape, name
            np.testing.assert_array_equal(ours[name], array)
            if array.size:
                assert ours[name].strides == array.strides, name
        return ours

    return check


def test_every_dtype(round_trip):
    values = 100 * torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    round_trip({str(dtype): values.to(dtype) for dtype in DTYPES})


def test_views_and_shared_storages(round_trip):
    grid = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    scalar, empty = grid[2, 3, 4], grid[:, 4:]
    views = {"T": grid.permute(2, 0, 1), "part": grid[1:, ::2, 3], "scalar": scalar, "empty": empty, "grid": grid}
    ours = round_trip({**views, "none": torch.zeros(0, 5), "other": grid.clone()})
    for name in ("T", "part", "scalar"):
        assert np.shares_memory(ours[name], ours["grid"])
    assert not np.shares_memory(ours["other"], ours["grid"])


def test_the_state_of_a_module(round_trip):
    """An OrderedDict with _metadata, tied parameters and a buffer."""
    module = torch.nn.Module()
    module.wte, module.norm = torch.nn.Embedding(11, 4), torch.nn.BatchNorm1d(4)
    module.head = torch.nn.Linear(4, 11, bias=False)
    module.head.weight = module.wte.weight
    state = module.state_dict()
    assert type(state) is collections.OrderedDict and state._metadata
    ours = round_trip(state)
    assert np.shares_memory(ours["head.weight"], ours["wte.weight"])
    round_trip(dict(module.named_parameters()))


def test_a_checkpoint_gives_its_tensors(tmp_path):
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.ckpt"
        checkpoint = {"epoch": 1, "loss": 0.5, "optimizer": optimizer.state_dict(), "state_dict": module.state_dict()}
        torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
        ours = torchfile.read(path)
        assert list(ours) == ["weight", "bias"]
        np.testing.assert_array_equal(ours["weight"], module.weight.detach().numpy())


def test_what_is_no_file_of_tensors_is_refused_by_name(tmp_path):
    path = tmp_path / "x.bin"
    for value, message in (
        (torch.nn.Linear(2, 2), "names 'torch.nn.modules.linear.Linear'"),
        ({"w": torch.zeros(2).to_sparse()}, "names 'torch._utils._rebuild_sparse_tensor'"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "names 'torch.ComplexFloatStorage'"),
        ({"w": torch.zeros(2).expand(3, 2)}, "does not fit"),
        ({"w": torch.zeros(2).numpy()}, "names 'numpy"),
        ({"w": torch.Size([2])}, "names 'torch.Size'"),
    ):
        for options in FORMATS.values():
            torch.save(value, path, **options)
            with pytest.raises(FormatError, match=message):
                torchfile.read(path)
