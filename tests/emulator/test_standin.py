"""The stand-in for CuPy: what it shares with the real one, and that it catches what a GPU would let pass."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from launch import require, require_compiler

from emulator import standin
from emulator.standin import likeness

SEEDS = range(20)
N = 1000

SCALE = """
extern "C" __global__ void scale(const double *in, double factor, int n, double *out)
{
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        out[i] = __dmul_rn(in[i], factor);
}
"""

Program = Callable[[Any, Any], np.ndarray]


def modules() -> tuple[ModuleType, ModuleType]:
    return importlib.import_module("cupy"), importlib.import_module("cupyx")


def outcomes(program: Program) -> set[bytes]:
    """The different results of a program over all seeds."""
    results = set()
    for seed in SEEDS:
        with standin.installed(seed):
            results.add(program(*modules()).tobytes())
    return results


@pytest.fixture
def controller() -> Iterator[standin.Machine]:
    with standin.installed() as controller:
        yield controller


@pytest.fixture
def cupy(controller: standin.Machine) -> Any:
    return modules()[0]


@pytest.fixture
def cupyx(controller: standin.Machine) -> Any:
    return modules()[1]


def test_every_name_and_signature_is_one_of_cupy() -> None:
    require(importlib.util.find_spec("cupy") is not None, "cupy")
    assert likeness.differences() == []


def test_real_cupy_comes_back() -> None:
    before = {name: module for name, module in sys.modules.items() if name.startswith("cupy")}
    with standin.installed():
        assert importlib.import_module("cupy").RawModule.__module__.startswith("emulator")
    assert {name: module for name, module in sys.modules.items() if name.startswith("cupy")} == before


def test_modules_are_imported_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpucal.backends.numpy_ as old

    with standin.installed(fresh=("gpucal.backends.numpy_",)):
        within = importlib.import_module("gpucal.backends.numpy_")
        assert within is not old
    assert importlib.import_module("gpucal.backends.numpy_") is not within
    monkeypatch.setitem(sys.modules, "gpucal.backends.numpy_", old)
    monkeypatch.setattr("gpucal.backends.numpy_", old)


def pipeline(cupy: Any, cupyx: Any, *, waits: bool = True, dependency: bool = True, sync: bool = True) -> np.ndarray:
    """Blocks go up on one stream and down on another, through one pinned buffer each way."""
    up, down = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    source, target = cupyx.empty_pinned(N), cupyx.empty_pinned((3, N))
    used = cupy.cuda.Event()
    for block in range(3):
        if waits:
            used.synchronize()
        source[...] = np.arange(N) + block
        with up:
            there = cupy.empty(N)
            there.set(source)
            used.record()
            doubled = there * 2.0 + 1.0
            ready = up.record()
        if dependency:
            down.wait_event(ready)
        doubled.get(down, out=target[block], blocking=False)
        up.wait_event(down.record())  # before the memory of this block is taken for the next
    if sync:
        down.synchronize()
    return target.copy()


def test_a_correct_program_gives_the_same_bits_whatever_the_order() -> None:
    expected = np.arange(N) * 2.0 + 1.0 + 2.0 * np.arange(3)[:, None]
    assert outcomes(pipeline) == {expected.tobytes()}


@pytest.mark.parametrize("left_out", ["waits", "dependency", "sync"])
def test_what_is_not_waited_for_shows(left_out: str) -> None:
    assert len(outcomes(lambda cupy, cupyx: pipeline(cupy, cupyx, **{left_out: False}))) > 1


def test_a_pinned_buffer_is_read_late_and_others_at_once(cupy: Any, cupyx: Any) -> None:
    for source, seen in ((cupyx.empty_pinned(8), 2.0), (np.empty(8), 1.0)):
        array = cupy.empty(8)
        source.fill(1.0)
        array.set(source)
        source.fill(2.0)
        np.testing.assert_array_equal(array.get(), seen)
    source = cupyx.empty_pinned(8)
    source.fill(1.0)
    array = cupy.asarray(source)  # through a buffer of its own
    source.fill(2.0)
    np.testing.assert_array_equal(array.get(), 1.0)


def test_a_pinned_buffer_freed_too_early_is_poison(cupy: Any, cupyx: Any) -> None:
    source, array = cupyx.zeros_pinned((2, 8)), cupy.empty(8)
    array.set(source[1])
    del source
    assert np.isnan(array.get()).all()


def test_nothing_is_there_before_it_is_waited_for(cupy: Any, cupyx: Any) -> None:
    stream, out = cupy.cuda.Stream(), cupyx.empty_pinned(8)
    with stream:
        given = cupy.full(8, 3.0).get(out=out, blocking=False)
        own = cupy.full(8, 4.0).get(blocking=False)
    assert given is out
    assert np.isnan([out, own]).all()
    assert not stream.done
    stream.synchronize()
    assert stream.done
    assert (out + own == 7.0).all()


def test_freed_memory_is_taken_by_its_own_stream_while_another_uses_it() -> None:
    def program(cupy: Any, cupyx: Any, *, mend: bool) -> np.ndarray:
        mine, other = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
        with mine:
            array = cupy.full(N, 5.0)
            ready = mine.record()
        other.wait_event(ready)
        with other:
            result = array + 1.0
        if mend:
            mine.wait_event(other.record())
        del array
        mine.synchronize()
        return result.get(other)

    assert len(outcomes(lambda cupy, cupyx: program(cupy, cupyx, mend=False))) == 2
    assert outcomes(lambda cupy, cupyx: program(cupy, cupyx, mend=True)) == {np.full(N, 6.0).tobytes()}


@pytest.mark.parametrize("non_blocking", [False, True])
def test_the_null_stream_and_blocking_streams_wait_for_each_other(non_blocking: bool) -> None:
    def program(cupy: Any, cupyx: Any) -> np.ndarray:
        array = cupy.zeros(N)
        with cupy.cuda.Stream(non_blocking=non_blocking):
            array += 1.0
        array *= 3.0
        return array.get()

    results = outcomes(program)
    assert np.full(N, 3.0).tobytes() in results
    assert (len(results) > 1) is non_blocking


def test_polling_gets_there(cupy: Any) -> None:
    stream, before = cupy.cuda.Stream(), cupy.cuda.Event()
    with stream:
        cupy.zeros(8)
        event = stream.record()
    assert before.done
    for done in (lambda: event.done, lambda: stream.done):
        assert any(done() for _ in range(10))
    assert cupy.cuda.get_elapsed_time(event, event) == 0.0
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="NotReady"):
        cupy.cuda.get_elapsed_time(before, event)


def test_threads_have_their_own_stream_and_device() -> None:
    with standin.installed(seed=3, devices=2) as controller:
        cupy, cupyx = modules()
        results = np.zeros((4, 20))

        def work(number: int) -> None:
            with cupy.cuda.Device(number % 2), cupy.cuda.Stream(non_blocking=True) as stream:
                source = cupyx.empty_pinned(N)
                for turn in range(20):
                    source.fill(number + turn)
                    array = cupy.empty(N)
                    array.set(source)
                    results[number, turn] = array.sum().get(stream)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert cupy.cuda.Device().id == 0
        assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null
        gc.collect()
        controller.drain()
        assert [cupy.get_default_memory_pool().used_bytes(), controller.pending] == [0, 0]
    np.testing.assert_array_equal(results, N * np.add.outer(np.arange(4), np.arange(20)))


def test_memory_starts_poisoned(cupy: Any, cupyx: Any) -> None:
    for dtype in (np.float64, np.float32):
        assert np.isnan(cupy.empty(5, dtype).get()).all()
        assert np.isnan(cupyx.empty_pinned((2, 2), dtype)).all()
    assert (cupy.empty(5, np.uint16).get() > 40_000).all()
    assert cupyx.empty_pinned((2, 3), order="F").flags.f_contiguous


def test_memory_is_limited_and_counted() -> None:
    with standin.installed(memory=10_000) as controller:
        cupy, _ = modules()
        array, pool = cupy.empty(1000), cupy.get_default_memory_pool()
        with pytest.raises(
            cupy.cuda.memory.OutOfMemoryError, match=r"allocating 2,048 bytes \(allocated so far: 8,192"
        ):
            cupy.empty(250)
        assert (pool.used_bytes(), pool.total_bytes(), cupy.cuda.Device().mem_info) == (8192, 8192, (1808, 10_000))
        view = array[::2]
        del array
        assert pool.used_bytes() == 8192
        del view
        assert (pool.used_bytes(), pool.free_bytes(), controller.memory[0].peak) == (0, 8192, 8192)
        pool.free_all_blocks()
        assert (pool.total_bytes(), cupy.cuda.Device().mem_info) == (0, (10_000, 10_000))
        assert controller.allocations == 2


def test_allocations_fail_in_turn(controller: standin.Machine, cupy: Any, cupyx: Any) -> None:
    def program() -> float:
        return float((cupy.zeros(4) + cupy.asarray(np.ones(4))).sum())

    before = controller.allocations
    assert program() == 4.0
    for n in range(1, controller.allocations - before + 1):
        controller.fail_allocation(n)
        with pytest.raises(MemoryError, match="Out of memory allocating"):
            program()
        assert program() == 4.0
    controller.fail_allocation(2, times=2)
    cupy.zeros(4)
    for _ in range(2):
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            cupy.zeros(4)
    cupy.zeros(4)
    controller.fail_pinned(2)
    cupyx.empty_pinned(4)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="out of memory"):
        cupyx.empty_pinned(4)
    assert controller.pinned_allocations == 2


def test_what_a_device_says(controller: standin.Machine, cupy: Any) -> None:
    assert not controller.touched
    runtime, device = cupy.cuda.runtime, cupy.cuda.Device(0)
    assert not controller.touched
    assert runtime.getDeviceCount() == 1
    properties = runtime.getDeviceProperties(0)
    assert (properties["name"], properties["major"], properties["minor"]) == (b"Stand-in T4", 7, 5)
    assert (properties["totalGlobalMem"], device.compute_capability) == (2**31, "75")
    assert cupy.cuda.nvrtc.getVersion() == (12, 9)
    assert controller.touched


@pytest.mark.parametrize(
    ("status", "message"), [(35, "driver version is insufficient"), (100, "no CUDA-capable device")]
)
def test_without_a_device_or_its_driver(status: int, message: str) -> None:
    with standin.installed(devices=0, status=status):
        cupy, cupyx = modules()
        compiled = cupy.RawModule(code=SCALE).get_function
        calls = cupy.cuda.runtime.getDeviceCount, cupy.cuda.Stream, lambda: cupy.empty(1), lambda: cupyx.empty_pinned(1)
        for call in (*calls, lambda: compiled("scale")):
            with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=message):
                call()


def test_without_a_compiler() -> None:
    with standin.installed(nvrtc=False), pytest.raises(RuntimeError, match="nvrtc"):
        modules()[0].RawModule(code=SCALE).get_function("scale")


def test_cuda_does_not_survive_a_fork(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy.zeros(1)
    with monkeypatch.context() as child:
        child.setattr("os.getpid", lambda: -1)
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="initialization error"):
            cupy.zeros(1)


def test_memoize(cupy: Any) -> None:
    remembered = cupy.memoize(for_each_device=True)(lambda n: [n])
    assert remembered(1) is remembered(1) is not remembered(2)


def scaled(cupy: Any, cupyx: Any) -> np.ndarray:
    require_compiler()
    scale = cupy.RawModule(code=SCALE).get_function("scale")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        source, out = cupy.asarray(np.arange(float(N))), cupy.empty(N)
        scale((3,), (64,), (source, np.float64(0.1), np.int32(N), out))
        return out.get(stream)


def test_a_kernel_runs_from_its_source() -> None:
    assert outcomes(scaled) == {(np.arange(N) * 0.1).tobytes()}


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (None, None, "scale takes 4 arguments, got 3"),
        (1, 0.1, "argument 1 of scale must be float64, got float"),
        (2, 8, "argument 2 of scale must be int32, got int"),
        (2, np.int64(8), "argument 2 of scale must be int32, got int64"),
        (0, "cupy.zeros(8, np.float32)", r"argument 0 of scale must be const float64\*, got float32\*"),
        (3, "cupy.zeros(16)[::2]", "argument 3 of scale is not contiguous"),
        (0, np.zeros(8), "argument 0 of scale is in host memory"),
    ],
)
def test_arguments_of_a_kernel_are_checked(position: int | None, value: Any, message: str, cupy: Any) -> None:
    require_compiler()
    scale = cupy.RawModule(code=SCALE).get_function("scale")
    arguments = [cupy.zeros(8), np.float64(2.0), np.int32(8), cupy.empty(8)]
    scale((1,), (32,), arguments)
    if position is None:
        arguments.pop()
    else:
        arguments[position] = eval(value, {"cupy": cupy, "np": np}) if isinstance(value, str) else value
    with pytest.raises(TypeError, match=message):
        scale((1,), (32,), tuple(arguments))


def test_launches_modules_and_sources_are_checked(controller: standin.Machine, cupy: Any) -> None:
    require_compiler()
    with pytest.raises(TypeError, match=r"options.*expected tuple, got list"):
        cupy.RawModule(code=SCALE, options=["-DN=1"])
    with pytest.raises(cupy.cuda.compiler.CompileException, match="nothing_of_the_kind"):
        cupy.RawModule(code=SCALE.replace("factor)", "nothing_of_the_kind)")).get_function("scale")
    defined = cupy.RawModule(code=SCALE.replace("factor)", "FACTOR)"), options=("-DFACTOR=(factor+1)",))
    scale, out = defined.get_function("scale"), cupy.zeros(8)
    arguments = cupy.ones(8), np.float64(1.0), np.int32(8), out
    for grid, block in (((0,), (32,)), ((1,), (2048,)), ((1, 70_000), (32,)), ((1,), (64, 64))):
        with pytest.raises(cupy.cuda.driver.CUDADriverError, match="invalid argument"):
            scale(grid, block, arguments)
    scale((1,), (32,), arguments)
    assert out.sum().item() == 16.0
    controller.spoil("scale")
    scale((1,), (32,), arguments)
    assert out.sum().item() == 17.0
    assert controller.launches == 2


def test_a_kernel_on_another_devices_array() -> None:
    require_compiler()
    with standin.installed(devices=2):
        cupy, _ = modules()
        scale, arguments = cupy.RawModule(code=SCALE).get_function("scale"), (cupy.ones(8), np.float64(1), np.int32(8))
        with cupy.cuda.Device(1), pytest.raises(ValueError, match="different from the current device"):
            scale((1,), (32,), (*arguments, cupy.ones(8)))
