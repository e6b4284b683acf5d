"""Fixtures that choose the instruction set, and put back what was chosen before."""

import pytest

from lstm_ext import _kernels

FMA_ISAS = [name for name in _kernels.available_isas() if name != "baseline"]


@pytest.fixture
def restored_isa():
    before = _kernels.isa()
    yield
    _kernels.use_isa(before)


@pytest.fixture(params=_kernels.available_isas())
def isa(request, restored_isa):
    """Use each instruction set in turn, and return its name."""
    _kernels.use_isa(request.param)
    return request.param


@pytest.fixture(params=[FMA_ISAS[0], "baseline"] if FMA_ISAS else ["baseline"])
def rounding_isa(request, restored_isa):
    """Use the widest instruction set, then the baseline, and return its name.

    For comparisons with the oracle: the other sets have the widest one's bits, which `assert_same_on_every_fma_isa`
    checks on the same problems.
    """
    _kernels.use_isa(request.param)
    return request.param


@pytest.fixture
def slowest_isa(restored_isa):
    """Use the narrowest instruction set, on which long work is quickly found."""
    _kernels.use_isa(_kernels.available_isas()[-1])


@pytest.fixture
def assert_same_on_every_fma_isa(restored_isa):
    """Return a check that ``results()``, an iterable of arrays, has the same bits on every set.

    All sets but the baseline have the fused multiply-add, and promise equal bits.
    """
    if len(FMA_ISAS) < 2:
        pytest.skip("this machine has one instruction set with fused multiply-adds")

    def check(results):
        first = None
        for name in FMA_ISAS:
            _kernels.use_isa(name)
            bits = [array.tobytes() for array in results()]
            first = first or bits
            for k, (ours, theirs) in enumerate(zip(bits, first, strict=True)):
                assert ours == theirs, f"result {k} differs between {name} and {FMA_ISAS[0]}"

    return check
