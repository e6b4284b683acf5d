"""The leaf kernels' instruction set, their kinds by name, and the activations on arrays.

The instruction set is chosen at import: the widest that this machine runs, or the one that the environment variable
``LSTM_EXT_ISA`` names. Tests reach single kernels through `table_at`, which Cython exports in ``__pyx_capi__``.
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

GATE_ACTIVATIONS = {gate_activation_name(kind).decode(): kind for kind in range(GATE_KINDS)}
CELL_ACTIVATIONS = {cell_activation_name(kind).decode(): kind for kind in range(CELL_KINDS)}
LOSSES = {traits_of_loss(kind).name.decode(): kind for kind in range(LOSS_KINDS)}
OPTIMIZERS = {traits_of_optimizer(kind).name.decode(): kind for kind in range(OPTIMIZER_KINDS)}

cdef int _current = 0


def takes_labels(int loss) -> bool:
    """Return whether a kind of loss has one class index as the target of a row, not numbers."""
    return traits_of_loss(loss).takes_labels


def optimizer_sizes(int optimizer) -> tuple[int, int, int]:
    """Return the minimum and maximum number of moments that a kind of optimizer keeps, and its number of powers."""
    cdef const optimizer_traits *traits = traits_of_optimizer(optimizer)
    return traits.min_moments, traits.max_moments, traits.powers


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
    """Use another instruction set from now on, in every thread.

    Calls under way, tapes, stream states and trainings keep the set that they began with. Only tests call it after the
    import; the choice is a variable of this module, so they cannot make it elsewhere.

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
