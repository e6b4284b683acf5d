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
    """Return the index of the instruction set in use, which the passes take."""
    return _current


def isa_index(name: str) -> int:
    """Return the index of an instruction set.

    Raises
    ------
    ValueError
        If this machine, or this build, does not have the set.
    """
    cdef int j = 0
    while all_kernels[j] != NULL:
        if all_kernels[j].name.decode() == name and kernels_runnable(all_kernels[j]):
            return j
        j += 1
    raise ValueError(f"instruction set {name!r} is not available here; expected one of {', '.join(available_isas())}")


def use_isa(name: str) -> None:
    """Use another instruction set from now on, in every thread: for tests alone.

    What is under way, and every tape, stream state and training, keeps the set that it began with.

    Raises
    ------
    ValueError
        As for `isa_index`.
    """
    global _current
    _current = isa_index(name)


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


cdef const real *start_of(const real[::1] x) noexcept:
    if x is None:
        return NULL
    return &x[0]


cdef cell_options options_of(int gates, bint hard, int activation, double clip, double zoneout):
    """Return options without arrays."""
    cdef cell_options options
    options.gates, options.hard, options.activation = gates, hard, activation
    options.clip, options.zoneout = clip, zoneout
    options.peepholes = options.gain_C = options.shift_C = NULL
    return options


def apply_cell_step(
    real[::1] z, const real[::1] C_prev, const real[::1] zone, real[::1] C, real[::1] m, int gates, bint hard,
    int activation, double clip, double zoneout, const real[::1] peepholes, const real[::1] gain_C,
    const real[::1] shift_C,
):
    """Do ``cell_step`` (its contract is in kernels.h) on flat arrays; those that it lets be absent may be None."""
    cdef cell_options options = options_of(gates, hard, activation, clip, zoneout)
    options.peepholes, options.gain_C, options.shift_C = start_of(peepholes), start_of(gain_C), start_of(shift_C)
    cell_step(table_at(_current), &options, C.shape[0], &z[0], &C_prev[0], start_of(zone), &C[0], &m[0])


def apply_cell_step_backward(
    const real[::1] z, const real[::1] C_prev, const real[::1] zone, const real[::1] dm, real[::1] dC, real[::1] dz,
    real[::1] c, real[::1] dn, int gates, bint hard, int activation, double clip, double zoneout,
    const real[::1] peepholes, const real[::1] gain_C, const real[::1] shift_C,
):
    """Do ``cell_step_backward`` likewise; ``z`` holds the gates."""
    cdef cell_options options = options_of(gates, hard, activation, clip, zoneout)
    options.peepholes, options.gain_C, options.shift_C = start_of(peepholes), start_of(gain_C), start_of(shift_C)
    cell_step_backward(
        table_at(_current), &options, dC.shape[0], &z[0], &C_prev[0], start_of(zone), &dm[0], &dC[0], &dz[0], &c[0],
        NULL if dn is None else &dn[0],
    )


def apply_normalize(const real[::1] x, real[::1] xhat) -> float:
    """Write ``x`` normalised to ``xhat``, which may be ``x``, and return ``1 / sqrt(var(x) + 1e-5)``."""
    return normalize(table_at(_current), x.shape[0], &x[0], &xhat[0])


def apply_normalize_backward(
    const real[::1] xhat, double rstd, const real[::1] gain, const real[::1] dy, real[::1] dx,
):
    """Write to ``dx``, which may be ``dy``, the gradient of ``gain * xhat`` with regard to what was normalised."""
    normalize_backward(table_at(_current), xhat.shape[0], &xhat[0], rstd, &gain[0], &dy[0], &dx[0])


def apply_blend(const real[::1] a, const real[::1] b, real[::1] y, double p, const real[::1] mask):
    """Write ``mask * a + (1 - mask) * b`` to ``y``, which may be ``a`` or ``b``; no mask is ``p`` everywhere."""
    blend(table_at(_current), y.shape[0], start_of(mask), <real> p, &a[0], &b[0], &y[0])


def apply_mask(
    const uint32_t[::1] key, const uint32_t[::1] counter, uint32_t threshold, double dropped, double kept, real[::1] y,
):
    """Write to ``y``, for each word of Philox, ``dropped`` if it is below the threshold, else ``kept``."""
    mask(table_at(_current), y.shape[0], &key[0], &counter[0], threshold, <real> dropped, <real> kept, &y[0])


def apply_dropout(
    const uint32_t[::1] key, const uint32_t[::1] counter, uint32_t threshold, double scale, const real[::1] x,
    real[::1] y,
):
    """Write ``scale * x`` to ``y``, which may be ``x``, but 0 where such a word is below the threshold."""
    dropout(table_at(_current), y.shape[0], &key[0], &counter[0], threshold, <real> scale, &x[0], &y[0])


def dropout_key(uint64_t seed, uint64_t update) -> tuple[int, int]:
    """Return the key of the masks of a training's update."""
    cdef uint32_t[2] key
    philox_key(seed, update, key)
    return key[0], key[1]


cdef bint all_finite(const Py_buffer *view) noexcept nogil:
    if view.itemsize == sizeof(float):
        return are_finite(table_at(_current), view.len // 4, <const float *> view.buf)
    return are_finite(table_at(_current), view.len // 8, <const double *> view.buf)


def is_finite(array) -> bool:
    """Whether a C-contiguous array of float32 or float64 holds neither NaN nor Inf."""
    cdef Py_buffer view
    cdef bint finite
    PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS)
    with nogil:
        finite = all_finite(&view)
    PyBuffer_Release(&view)
    return finite


cdef Py_ssize_t row_not_finite(
    const real *rows, Py_ssize_t width, Py_ssize_t N, const Py_ssize_t *first, const Py_ssize_t *lengths,
) noexcept nogil:
    cdef const kernels *table = table_at(_current)
    cdef Py_ssize_t n, row
    for n in range(N):
        if are_finite(table, lengths[n] * width, rows + first[n] * width):
            continue
        for row in range(first[n], first[n] + lengths[n]):
            if not are_finite(table, width, rows + row * width):
                return row
    return -1


def find_not_finite(const real[:, ::1] rows, const Py_ssize_t[::1] first, const Py_ssize_t[::1] lengths) -> int:
    """Return the first row with a NaN or Inf of the first sequence that has one, or -1; only their rows are read.

    first, lengths  (N): sequence n is rows[first[n] : first[n] + lengths[n]]
    """
    cdef Py_ssize_t row
    with nogil:
        row = row_not_finite(&rows[0, 0], rows.shape[1], first.shape[0], &first[0], &lengths[0])
    return row
