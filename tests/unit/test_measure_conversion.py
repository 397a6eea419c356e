"""Layout and integer input and output conversion of the adapters, in numpy alone."""

from __future__ import annotations

import numpy as np

from edgeft.runtimes.base import from_native, to_native


def test_integers_round_half_to_even_and_clip():
    spec = {"layout": "nk", "dtype": "int8", "scale": 0.5, "zero_point": -3}
    x = np.array([[0.25, 0.75, 1.25, -0.25, 1000.0, -1000.0]], np.float32)
    assert to_native(x, spec).tolist() == [[-3, -1, -1, -3, 127, -128]]
    assert to_native(x, spec | {"dtype": "uint8", "zero_point": 3}).tolist() == [[3, 5, 5, 3, 255, 0]]


def test_channels_last_is_contiguous_and_reversible():
    x = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    native = to_native(x, {"layout": "nhwc", "dtype": "float32"})
    assert native.shape == (2, 4, 5, 3) and native.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(native.transpose(0, 3, 1, 2), x)


def test_the_native_input_never_shares_memory_with_a_mapped_file(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    native = to_native(mapped, {"layout": "nk", "dtype": "float32"})
    assert native.flags.writeable and not np.shares_memory(native, mapped)


def test_outputs_become_real_values():
    spec = {"layout": "nk", "dtype": "uint8", "scale": 0.25, "zero_point": 128}
    real = from_native(np.array([[0, 128, 255]], np.uint8), spec)
    assert real.dtype == np.float32 and real.tolist() == [[-32.0, 0.0, 31.75]]
    assert from_native(np.array([[1.5]], np.float32), spec).tolist() == [[1.5]]
