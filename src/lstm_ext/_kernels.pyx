"""The leaf kernels' instruction set, and the activations on arrays.

The set is chosen once, at import: the widest that this machine runs, or the one that the environment variable
``LSTM_EXT_ISA`` names.
"""
import os

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBuffer_Release, PyObject_GetBuffer

cdef extern from *:
    """
    #ifdef __clang__
    #define BUILD_COMPILER __VERSION__
    #else
    #define BUILD_COMPILER "GCC " __VERSION__
    #endif
    #ifdef Py_LIMITED_API
    #define BUILD_TARGET "the limited API, headers of CPython " PY_VERSION
    #else
    #define BUILD_TARGET "CPython " PY_VERSION
    #endif
    """
    const char *BUILD_COMPILER
    const char *BUILD_TARGET
    const int CYTHON_HEX_VERSION

cdef int _current = 0


cdef const kernels *table_at(int isa) noexcept nogil:
    return all_kernels[isa]


def available_isas() -> tuple[str, ...]:
    """Return the names of the instruction sets that this build holds and this machine runs, the widest first."""
    names = []
    cdef Py_ssize_t j = 0
    while all_kernels[j] != NULL:
        if kernels_runnable(all_kernels[j]):
            names.append(all_kernels[j].name.decode())
        j += 1
    return tuple(names)


def isa() -> str:
    """Return the name of the instruction set in use."""
    return table_at(_current).name.decode()


def current() -> int:
    """Return the position of the instruction set in use, for the passes."""
    return _current


def use_isa(name: str) -> None:
    """Use another instruction set from now on, in every thread: for tests and ``verify``.

    What is under way, and every tape, stream state and training, keeps the set that it began with.

    Raises
    ------
    ValueError
        If this machine, or this build, does not have the set.
    """
    global _current
    cdef int j = 0
    while all_kernels[j] != NULL:
        if all_kernels[j].name.decode() == name and kernels_runnable(all_kernels[j]):
            _current = j
            return
        j += 1
    raise ValueError(f"instruction set {name!r} is not available here; expected one of {', '.join(available_isas())}")


def build() -> dict[str, str]:
    """Return what compiled this extension, and for what."""
    cython = [str(CYTHON_HEX_VERSION >> shift & 255) for shift in (24, 16, 8)]
    return {"compiler": BUILD_COMPILER.decode(), "Cython": ".".join(cython), "built for": BUILD_TARGET.decode()}


def _choose() -> None:
    wanted = os.environ.get("LSTM_EXT_ISA", "")
    try:
        use_isa(wanted or available_isas()[0])
    except ValueError as error:
        raise ImportError(f"LSTM_EXT_ISA: {error}") from None


_choose()


def apply_sigmoid(const real[::1] x, real[::1] y):
    """Write ``sigmoid(x)`` to ``y``, of the same length; ``y`` may be ``x``."""
    cdef unsigned long long denormals
    if x.shape[0] == 0:
        return
    with nogil:
        denormals = denormals_flush()
        sigmoid(table_at(_current), x.shape[0], &x[0], &y[0])
        denormals_restore(denormals)


def apply_tanh(const real[::1] x, real[::1] y):
    """Write ``tanh(x)`` to ``y``, of the same length; ``y`` may be ``x``."""
    cdef unsigned long long denormals
    if x.shape[0] == 0:
        return
    with nogil:
        denormals = denormals_flush()
        tanh(table_at(_current), x.shape[0], &x[0], &y[0])
        denormals_restore(denormals)


ctypedef unsigned int word
ctypedef unsigned long long long_word
ctypedef fused bits:
    word
    long_word


cdef bint no_exponent_is_full(const bits *x, Py_ssize_t n, bits exponent) noexcept nogil:
    """Whether all are finite: a NaN or an Inf has every bit of its exponent set."""
    cdef bits found = 0
    cdef Py_ssize_t j
    for j in range(n):
        found |= (x[j] & exponent) == exponent
    return not found


cdef bint all_finite(const Py_buffer *view) noexcept nogil:
    if view.itemsize == sizeof(float):
        return no_exponent_is_full[word](<const word *> view.buf, view.len // 4, 0x7f800000)
    return no_exponent_is_full[long_word](<const long_word *> view.buf, view.len // 8, 0x7ff0000000000000)


def is_finite(array) -> bool:
    """Whether a C-contiguous array of float32 or float64 holds neither NaN nor Inf."""
    cdef Py_buffer view
    cdef bint finite
    PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS)
    with nogil:
        finite = all_finite(&view)
    PyBuffer_Release(&view)
    return finite
