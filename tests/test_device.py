"""The sums on a torch device beside plain numpy's."""

import builtins
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import write_adapter, write_full
from lazy_streams import lazy_streams
from numpy.testing import assert_allclose, assert_array_equal
from pandas.testing import assert_frame_equal

import wdecomp
from wdecomp.decomposition import Sums, device, require_device
from wdecomp.decomposition.device import DeviceSums, Staging
from wdecomp.dtypes import widen
from wdecomp.errors import DeviceError, MissingExtraError, WdecompError
from wdecomp.scan import measure

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, ON_CUDA])
on_each_device = pytest.mark.parametrize("on", ["cpu", CUDA])

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SHAPE = (13, 29)
WHOLE = slice(0, SHAPE[0]), slice(0, SHAPE[1])


def _stored(weight: torch.Tensor) -> np.ndarray:
    if weight.dtype == torch.bfloat16:
        return weight.view(torch.int16).numpy().view(np.uint16)
    return weight.view(torch.int16).numpy() if weight.dtype == torch.float16 else weight.numpy()


def _block(seed: int, dtype: torch.dtype, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    random = torch.Generator().manual_seed(seed)
    return _stored(torch.randn(shape, generator=random, dtype=torch.float64).to(dtype))


def zeros(shape: tuple[int, int]) -> Sums:
    return Sums(*(np.zeros((3, size)) for size in shape))


def add(
    sums: Sums, base: np.ndarray, second: np.ndarray, share: float, outputs: slice, inputs: slice
) -> None:
    """The same in plain numpy."""
    w0, t = (widen(block).astype(np.float64) for block in (base, second))
    with np.errstate(all="ignore"):
        d = t - share * w0
        terms = np.stack([w0 * w0, d * w0, d * d])
        sums.output[:, outputs] += terms.sum(2)
        sums.input[:, inputs] += terms.sum(1)


def _added(base: np.ndarray, second: np.ndarray, share: float) -> Sums:
    sums = zeros(base.shape)
    add(sums, base, second, share, *(slice(0, size) for size in base.shape))
    return sums


def _on(on: str, base: np.ndarray, second: np.ndarray, share: float) -> Sums:
    sums = DeviceSums(base.shape, on)
    sums.add(base, second, share, *(slice(0, size) for size in base.shape))
    return sums.total()


def _agree(found: Sums, expected: Sums) -> None:
    """To 1e-12 of each sum; of what b's terms could add up to, since they cancel."""
    for ours, theirs in ((found.output, expected.output), (found.input, expected.input)):
        assert ours.dtype == np.float64
        a, b, c = theirs
        assert_allclose(ours[[0, 2]], theirs[[0, 2]], rtol=1e-12)
        assert np.all(np.abs(ours[1] - b) <= 1e-12 * np.sqrt(a * c))


@on_each_device
@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("second", DTYPES, ids=str)
@pytest.mark.parametrize("base", DTYPES, ids=str)
def test_all_dtypes_give_the_kernels_sums(
    base: torch.dtype, second: torch.dtype, share: float, on: str
) -> None:
    w0, t = _block(0, base), _block(1, second)
    _agree(_on(on, w0, t, share), _added(w0, t, share))


@on_each_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_stored_number_keeps_its_value(dtype: torch.dtype, on: str) -> None:
    tiny, largest = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    weights = torch.tensor([[tiny / 4, -tiny, 1 / 3, largest]], dtype=torch.float64).to(dtype)
    w0, ones = _stored(weights), np.ones((1, 4))
    found = _on(on, w0, ones, 0.0)
    assert_array_equal(found.input[1], widen(w0).astype(np.float64)[0])


@on_each_device
@pytest.mark.parametrize("turned", [(True, True), (True, False), (False, True)], ids=str)
def test_transposed_blocks_are_the_same_blocks(turned: tuple[bool, bool], on: str) -> None:
    blocks = _block(0, torch.bfloat16), _block(1, torch.float32)
    w0, t = (np.asfortranarray(x) if f else x for x, f in zip(blocks, turned, strict=True))
    _agree(_on(on, w0, t, 1.0), _added(*blocks, 1.0))


@on_each_device
def test_parts_of_larger_arrays_are_taken_alone(on: str) -> None:
    w0, t = _block(0, torch.float16), _block(1, torch.bfloat16)
    parts = [(x[2:9, 3:20], x.T[3:20, 2:9], x[2:9:2, 3:20:4]) for x in (w0, t)]
    for base, second in zip(*parts, strict=True):
        _agree(_on(on, base, second, 1.0), _added(base.copy(), second.copy(), 1.0))


@on_each_device
def test_blocks_at_offsets_accumulate(on: str) -> None:
    w0, t = _block(0, torch.bfloat16), _block(1, torch.float32)
    sums = DeviceSums(SHAPE, on)
    for rows in (slice(0, 5), slice(5, 6), slice(6, 13)):
        for columns in (slice(0, 17), slice(17, 29)):
            sums.add(w0[rows, columns], t[rows, columns], 1.0, rows, columns)
    _agree(sums.total(), _added(w0, t, 1.0))


@on_each_device
def test_a_total_stays_what_it_was_and_more_can_be_added(on: str) -> None:
    w0, t = _block(0, torch.float32), _block(1, torch.float32)
    sums = DeviceSums(SHAPE, on)
    before = sums.total()
    sums.add(w0, t, 1.0, *WHOLE)
    once = sums.total()
    sums.add(w0, t, 1.0, *WHOLE)
    twice = sums.total()
    _agree(once, _added(w0, t, 1.0))
    assert_allclose(twice.output, 2 * once.output, rtol=1e-15)
    assert not before.input.any()


@on_each_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_buffers_may_be_overwritten_at_once(dtype: torch.dtype, on: str) -> None:
    shape = (64, 96) if on == "cpu" else (1024, 4096)  # copies that take a while
    sums, expected = DeviceSums(shape, on), zeros(shape)
    at = tuple(slice(0, size) for size in shape)
    w0, t = _block(0, dtype, shape), _block(1, dtype, shape)
    for _ in range(10):
        w0[:], t[:] = np.roll(w0, 1, 1), np.roll(t, 5, 0)
        add(expected, w0, t, 1.0, *at)
        sums.add(w0, t, 1.0, *at)
        t[:] = 0
    _agree(sums.total(), expected)


@on_each_device
def test_blocks_of_growing_and_shrinking_size_do_not_meet(on: str) -> None:
    shape = (40, 64) if on == "cpu" else (2000, 3000)
    w0, t = _block(0, torch.float32, shape), _block(1, torch.bfloat16, shape)
    sums, expected = DeviceSums(shape, on), zeros(shape)
    for i in range(1, 41):
        rows, columns = slice(0, shape[0] * (i * 7 % 41) // 41), slice(0, shape[1] * i // 41)
        sums.add(w0[rows, columns], t[rows, columns], 1.0, rows, columns)
        add(expected, w0[rows, columns], t[rows, columns], 1.0, rows, columns)
    _agree(sums.total(), expected)


@on_each_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_stays_in_its_row_and_column(
    value: float, side: int, dtype: torch.dtype, on: str
) -> None:
    pair = [torch.ones(SHAPE, dtype=dtype), torch.full(SHAPE, 3.0, dtype=dtype)]
    pair[side][4, 21] = value
    w0, t = map(_stored, pair)
    for share in (0.0, 1.0):
        found, expected = _on(on, w0, t, share), _added(w0, t, share)
        assert_array_equal(found.output, expected.output)
        assert_array_equal(found.input, expected.input)
        broken = [~np.isfinite(sums).all(0) for sums in (found.output, found.input)]
        assert [list(np.flatnonzero(x)) for x in broken] == [[4], [21]]


@on_each_device
def test_arrays_may_be_read_only(on: str) -> None:
    w0, t = _block(0, torch.bfloat16), _block(1, torch.float64)
    expected = _added(w0, t, 1.0)
    w0.flags.writeable = t.flags.writeable = False
    _agree(_on(on, w0, t, 1.0), expected)


@on_each_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_held_base_is_taken_once_for_all_runs(
    order: Any, dtype: torch.dtype, on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fills = []
    fill = device._fill
    monkeypatch.setattr(device, "_fill", lambda *x: (fills.append(x[1]), fill(*x)))
    shapes = [SHAPE, (7, 29), (13, 11), SHAPE]
    staging, expected = Staging(on), [zeros(shape) for shape in shapes]
    sums = [DeviceSums(shape, staging) for shape in shapes]
    block = np.empty(SHAPE, _block(0, dtype).dtype, order)
    for step in range(3):
        block[:] = _block(step, dtype)
        with staging.holding(block):
            for run, (outputs, inputs) in enumerate(shapes):
                at = slice(0, outputs), slice(0, inputs)
                t = _block(10 * step + run, torch.bfloat16)[at]
                sums[run].add(block[at], t, 1.0, *at)
                add(expected[run], block[at], t, 1.0, *at)
    assert len(fills) == 3 * (1 + len(shapes))
    for ours, theirs in zip(sums, expected, strict=True):
        _agree(ours.total(), theirs)


@on_each_device
def test_only_what_is_held_is_taken_for_it(on: str) -> None:
    staging = Staging(on)
    sums, expected = DeviceSums(SHAPE, staging), zeros(SHAPE)
    block, t = _block(0, torch.float32), _block(1, torch.float32)
    like = _block(2, torch.float32)
    square, small = block[:7, :7], (slice(0, 7), slice(0, 7))
    with staging.holding(square):
        for base, at in ((like, WHOLE), (block, WHOLE), (square.T, small), (square, small)):
            sums.add(base, t[at], 1.0, *at)
            add(expected, base.copy(), t[at], 1.0, *at)
    block[:] = like  # held no longer: the same memory is another block
    sums.add(square, t[small], 1.0, *small)
    add(expected, square, t[small], 1.0, *small)
    _agree(sums.total(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("seed", [None, *range(5)])
def test_no_stream_overtakes_what_it_must_wait_for(
    seed: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lazy_streams(monkeypatch, seed) as lazy:
        monkeypatch.setattr(device, "_HostLane", lambda: device._CudaLane("cpu"))
        staging, expected = Staging("cpu"), [zeros(SHAPE) for _ in range(3)]
        sums = [DeviceSums(SHAPE, staging) for _ in expected]
        w0, t = _block(0, dtype), _block(1, dtype)
        for step in range(9):
            at = slice(0, 1 + (5 * step) % 13), slice(step, 29 - step)
            w0[:], t[:] = _block(step, dtype), 0
            with staging.holding(w0[at]):
                for run in range(3):
                    t[:] = _block(100 + 10 * step + run, dtype)
                    sums[run].add(w0[at], t[at], 1.0, *at)
                    add(expected[run], w0[at].copy(), t[at].copy(), 1.0, *at)
            w0[:] = 0
        assert sum(len(stream.queue) - stream.done for stream in lazy.streams) > 100
        lazy.drain()
        found = [each.total() for each in sums]
    for ours, theirs in zip(found, expected, strict=True):
        _agree(ours, theirs)


def _checkpoints(folder: Path) -> list[Path]:
    """A base, and beside it full weights, an adapter with magnitudes, and weights that vanish."""
    random = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(3)]
    base = {name: torch.randn(70, 300, generator=random).bfloat16() for name in names}
    tuned = {n: (w + 0.01 * torch.randn(w.shape, generator=random)).half() for n, w in base.items()}
    gone = {name: w.float() for name, w in tuned.items()}
    for weight in gone.values():
        weight[5] *= 1e-9
    factors = {
        name.removesuffix(".weight"): (
            torch.randn(4, 300, generator=random),
            torch.randn(70, 4, generator=random) / 100,
        )
        for name in names
    }
    magnitudes = {name: torch.rand(70, generator=random) + 15 for name in factors}
    return [
        write_full(folder / "base", base),
        write_full(folder / "ft", tuned),
        write_full(folder / "gone", gone),
        write_adapter(folder / "dora", factors, magnitudes),
    ]


@pytest.mark.parametrize("on", ["numpy", "cpu", CUDA])
def test_tables_are_those_of_the_kernel(
    on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *tuned = _checkpoints(tmp_path)
    expected = wdecomp.compare(base, *tuned, columns="both")
    if on == "cpu":  # torch's, not the kernel
        monkeypatch.setattr(
            measure, "sums_on", lambda _, *which: device.SharedDeviceSums(*which, "cpu")
        )
    found = wdecomp.compare(base, *tuned, columns="both", device=on)
    for table in ("modules", "facts"):
        left, right = getattr(found, table), getattr(expected, table)
        assert_frame_equal(left, right, check_exact=False, rtol=1e-6, atol=1e-9)
    for run in ("ft", "gone", "dora"):
        for axis in ("output", "input"):
            left, right = (results.columns(run, axis=axis) for results in (found, expected))
            assert_frame_equal(left, right, check_exact=False, rtol=1e-5, atol=1e-6)


def test_a_device_that_is_not_there_ends_the_command_before_it_begins(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    base, *tuned = map(str, _checkpoints(tmp_path))
    command = ["compare", base, *tuned, "--device", "cuda", "-o", str(tmp_path / "results")]
    ran = subprocess.run(
        [sys.executable, "-m", "wdecomp", *command], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [f"wdecomp: --device cuda: {NONE}"]
    assert not (tmp_path / "results").exists()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees no second CUDA device")
def test_the_device_that_is_named_does_the_work() -> None:
    w0, t = _block(0, torch.bfloat16), _block(1, torch.float32)
    _agree(_on("cuda:1", w0, t, 1.0), _added(w0, t, 1.0))
    assert torch.cuda.max_memory_allocated("cuda:1") > 0


def _cuda(count: int) -> Callable[[pytest.MonkeyPatch], None]:
    def there(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return there


def _without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    imports = builtins.__import__

    def refusing(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "torch":
            raise ImportError(name)
        return imports(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refusing)


NONE = "torch sees no CUDA device. Use --device cpu."
NO_TORCH = (
    "torch is not installed, a device other than cpu needs it. "
    "Install it: pip install 'torch>=2.6', or use --device cpu."
)
BEYOND = (
    "torch sees no such device, expected one of cuda:0 to cuda:1. Use one of these or --device cpu."
)
NO_DEVICE = "is no device, expected cpu, numpy, cuda or cuda:N. Use --device cpu."
MPS = "has no float64, in which the sums are formed. Use --device cpu."


@pytest.mark.parametrize(
    ("name", "given", "error", "message"),
    [
        ("cuda", _without_torch, MissingExtraError, NO_TORCH),
        ("cuda", _cuda(0), DeviceError, NONE),
        ("cuda:0", _cuda(0), DeviceError, NONE),
        ("cuda:2", _cuda(2), DeviceError, BEYOND),
        ("cuda:99999999999", _cuda(2), DeviceError, BEYOND),
        *((name, _cuda(1), DeviceError, MPS) for name in ("mps", "mps:0")),
        *(
            (name, _cuda(1), DeviceError, NO_DEVICE)
            for name in (
                "",
                "gpu",
                "CUDA",
                "cuda:",
                "cuda:-1",
                "cuda:٠",
                "cuda:0 ",
                "meta",
                "cpu:0",
            )
        ),
    ],
)
def test_what_is_no_device_is_refused_in_one_line(
    name: str,
    given: Callable[[pytest.MonkeyPatch], None],
    error: type[WdecompError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given(monkeypatch)
    with pytest.raises(error) as caught:
        require_device(name)
    assert str(caught.value) == f"--device {name}: {message}"


@pytest.mark.parametrize(
    ("name", "given"),
    [("cpu", _without_torch), ("cuda", _cuda(1)), ("cuda:0", _cuda(1)), ("cuda:1", _cuda(2))],
)
def test_devices_that_are_there_are_let_pass(
    name: str, given: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch)
    require_device(name)
