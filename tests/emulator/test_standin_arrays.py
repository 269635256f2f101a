"""Arrays of the stand-in: NumPy's values, and nothing that moves from host to device or between devices by itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from emulator import standin


@pytest.fixture
def cupy() -> Iterator[Any]:
    with standin.installed():
        yield importlib.import_module("cupy")


EXPRESSIONS: tuple[Callable[[Any, Any, Any], Any], ...] = (
    lambda xp, a, b: a * 2 + b - 1 / (b + 1),
    lambda xp, a, b: np.float64(3) * a,
    lambda xp, a, b: xp.where((a > 1) & ~(b < 1) | (b == 3), a, xp.nan),
    lambda xp, a, b: a.T[1:, None, ::2].reshape(-1),
    lambda xp, a, b: xp.ascontiguousarray(a.T),
    lambda xp, a, b: a[..., -1].sum(),
    lambda xp, a, b: xp.sum(a.reshape(3, 2, 2), axis=1, keepdims=True),
    lambda xp, a, b: xp.maximum(a, 0).astype(np.float32),
    lambda xp, a, b: b.astype(xp.uint16) / 2,
    lambda xp, a, b: a.transpose(1, 0).copy(),
    lambda xp, a, b: (a > 1).any(axis=0),
    lambda xp, a, b: a[a > 1],
    lambda xp, a, b: a[1, 2] + xp.full_like(b, 3),
)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_arithmetic_is_numpys(expression: Callable[[Any, Any, Any], Any], cupy: Any) -> None:
    a, b = np.linspace(-2, 3, 12).reshape(3, 4), np.arange(4.0)
    ours, theirs = expression(cupy, cupy.asarray(a), cupy.asarray(b)), expression(np, a, b)
    result = cupy.asnumpy(ours)
    np.testing.assert_array_equal(result, theirs)
    assert (type(ours), result.dtype) == (cupy.ndarray, theirs.dtype)


def test_elements_are_set_and_layouts_kept(cupy: Any) -> None:
    a = np.linspace(-2, 3, 12).reshape(3, 4)
    x = cupy.asarray(a)
    for array, row in ((x, cupy.asarray(a[2])), (a, a[2].copy())):
        array[array > 1], array[0], array[1, ::2] = 9.0, row, -1
        array[2:] += 1
    np.testing.assert_array_equal(x.get(order="F"), a)
    np.testing.assert_array_equal(x.T.get(out=np.empty((4, 3))), a.T)
    assert (x.shape, x.ndim, x.size, x.nbytes, x.itemsize, len(x)) == ((3, 4), 2, 12, 96, 8, 3)
    assert x.data.ptr % 512 == 0
    assert (x.flags.c_contiguous, x.T.flags.c_contiguous) == (True, False)


@pytest.mark.parametrize(
    ("implicit", "error", "message"),
    [
        (lambda x: np.asarray(x), TypeError, r"Implicit conversion to a NumPy array is not allowed\. Please use"),
        (lambda x: np.ones(8)[x], TypeError, "Implicit conversion|only integer"),
        (lambda x: x + np.ones(8), TypeError, "Unsupported type <class 'numpy.ndarray'>"),
        (lambda x: np.ones(8) + x, TypeError, "Unsupported type <class 'numpy.ndarray'>"),
        (lambda x: x.__setitem__(slice(4), np.ones(4)), TypeError, "Unsupported type <class 'numpy.ndarray'>"),
        (lambda x: x.fill(np.ones(8)), ValueError, "Non-scalar"),
        (lambda x: x[np.ones(8, bool)], IndexError, "index of type ndarray"),
        (lambda x: x.set([1.0] * 8), TypeError, r"Only numpy\.ndarray"),
        (lambda x: x.set(np.ones(8, np.float32)), TypeError, "float32 array cannot be set to float64 array"),
        (lambda x: x.set(np.ones(4)), ValueError, "Shape mismatch"),
        (lambda x: x[::2].set(np.ones(4)), RuntimeError, "non-contiguous"),
        (lambda x: x.get(out=np.ones(8, int)), TypeError, "cannot be obtained"),
        (lambda x: x.get(out=np.ones(16)[::2]), RuntimeError, "non-contiguous"),
        (lambda x: x[:3].__setitem__(..., x), ValueError, "broadcast"),
    ],
)
def test_host_and_device_do_not_mix(
    implicit: Callable[[Any], Any], error: type[Exception], message: str, cupy: Any
) -> None:
    with pytest.raises(error, match=message):
        implicit(cupy.zeros(8))


def test_another_devices_array_raises() -> None:
    with standin.installed(devices=2):
        cupy = importlib.import_module("cupy")
        here, stream = cupy.ones(4), cupy.cuda.Stream()
        with cupy.cuda.Device(1) as device:
            there = cupy.ones(4)
            assert (device.id, there.device.id, cupy.cuda.runtime.getDevice()) == (1, 1, 1)
            for use in (lambda: here + there, lambda: here.fill(0), lambda: here.copy(), lambda: there + here[:2]):
                with pytest.raises(ValueError, match=r"resides \(0\) is different from the current device \(1\)"):
                    use()
            with pytest.raises(ValueError, match="array of device 1 copied on a stream of device 0"):
                there.get(stream)
            with pytest.raises(RuntimeError, match="stream of device 0 used while device 1 is current"):
                stream.use()
            assert here.get(stream).sum() == 4
        assert cupy.cuda.Device().id == 0
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="invalid device ordinal"):
            cupy.cuda.Device(2).use()
