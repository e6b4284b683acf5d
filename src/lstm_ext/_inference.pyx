"""Inference: predictions, and streams that advance step by step.

Design
------
- Nothing is kept but the last h and C: two slots of rows [h | x] alternate, and C is updated in place.
- A call takes arrays as they are where it can, and allocates its outputs and one scratch array, so threads can share a
  network.
- Weights are packed in each prediction, for they may have been changed; a stream's once, when it begins.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.string cimport memcpy, memset

from numpy import empty, ndarray, zeros

from lstm_ext._kernels cimport TILE_VECTORS, all_finite, kernels, real, table_at
from lstm_ext._passes cimport Forward, emit_outputs, lanes_rows, run_forward, shared_work
from lstm_ext._products cimport pack_cell, pack_panels, panels_size, tiles
from lstm_ext._threads cimport Call, begin, end, recruit


cdef struct Inference:
    # A network's sizes, how many sequences run side by side, and where the parts of one scratch array begin: the packed
    # cell, the packed head, the head's bias, two slots of rows [h | x] that are `ld` apart, and C.
    Py_ssize_t input_dim, hidden_dim, output_dim, batch, head, b_y, hx, ld, C, size


cdef int lay_out(int isa, tuple sizes, Py_ssize_t batch, Py_ssize_t itemsize, Inference *at) except -1:
    """Every part begins on a cache line if the first does; a row has an odd number of them, so that no stack of rows
    falls into one set of the cache.
    """
    cdef const kernels *table = table_at(isa)
    cdef Py_ssize_t V = table.f32.lanes if itemsize == sizeof(float) else table.f64.lanes, line = 64 // itemsize, K
    at.input_dim, at.hidden_dim, at.output_dim = sizes
    at.batch = batch
    K = at.input_dim + at.hidden_dim
    at.head = tiles(at.hidden_dim, V) * (1 + K) * TILE_VECTORS * V
    at.b_y = at.head + tiles(panels_size(at.hidden_dim, at.output_dim, V), line) * line
    at.hx = at.b_y + tiles(at.output_dim, line) * line
    at.ld = (tiles(K, line) | 1) * line
    at.C = at.hx + 2 * batch * at.ld
    at.size = at.C + batch * at.hidden_dim + line  # one line more, to begin on one
    return 0


cdef inline void *first_line(void *scratch) noexcept nogil:
    """The first cache line's beginning at or after an address."""
    return <char *> scratch + (-<Py_ssize_t> scratch & 63)


cdef int pack_network(
    Call *call, const kernels *table, const Inference *at, const real *parameters, real *packed,
) except -1 nogil:
    """Pack the network's flat vector: cell, head, and the head's bias as it is."""
    cdef const real *b = parameters + 4 * at.hidden_dim * (at.hidden_dim + at.input_dim)
    cdef const real *W_y = b + 4 * at.hidden_dim
    pack_cell(call, table, at.input_dim, at.hidden_dim, parameters, b, packed)
    pack_panels(call, table, at.hidden_dim, at.output_dim, W_y, 1, at.hidden_dim, packed + at.head)
    memcpy(packed + at.b_y, W_y + at.output_dim * at.hidden_dim, at.output_dim * sizeof(real))
    return 0


cdef Forward forward_of(
    const kernels *table, const Inference *at, const real *packed, real *hx, real *C,
) noexcept nogil:
    """What is the same for every batch that a network runs; packed from `pack_network`."""
    cdef Forward f
    f.table, f.input_dim, f.hidden_dim, f.output_dim = table, at.input_dim, at.hidden_dim, at.output_dim
    f.hx, f.slots, f.slot, f.ld = hx, 2, at.batch * at.ld, at.ld
    f.C, f.C_slots, f.C_slot = C, 1, 0
    f.packed, f.packed_y, f.b_y = packed, packed + at.head, packed + at.b_y
    f.first, f.gates, f.H, f.Y, f.by_lanes = NULL, NULL, NULL, NULL, 0
    return f


cdef inline Py_ssize_t start_of(const Py_ssize_t *offsets, Py_ssize_t length, Py_ssize_t n) noexcept nogil:
    """Where sequence n begins: by the table of offsets, or by the length that all have."""
    return offsets[n] if offsets != NULL else n * length


cdef int run_sequences(
    Call *call, const kernels *table, const Inference *at, const real *packed, real *hx, Py_ssize_t first,
    Py_ssize_t last, const real *rows, const Py_ssize_t *offsets, Py_ssize_t length, bint every_step, real *Y,
) except -1 nogil:
    """Run sequences `first` to `last - 1` from zero states. Neighbours of one length run side by side.

    packed  from `pack_network`
    hx      scratch for the states, from at.hx to at.size
    rows    (sum T, I); sequence n begins at start_of(offsets, length, n)
    Y       (sum T, O) if every_step, else (N, O); out
    """
    cdef Forward f = forward_of(table, at, packed, hx, hx + at.C - at.hx)
    cdef Py_ssize_t n = first, start, b
    cdef real *y
    while n < last:
        start = start_of(offsets, length, n)
        f.steps, f.batch = start_of(offsets, length, n + 1) - start, 1
        for b in range(1, min(at.batch, last - n)):
            if start_of(offsets, length, n + b + 1) != start + (b + 1) * f.steps:
                break
            f.batch += 1
        f.rows = rows + start * at.input_dim
        f.by_lanes = lanes_rows(table, f.batch, at.input_dim, at.hidden_dim, False, packed)
        y = Y + (start if every_step else n) * at.output_dim
        f.Y = y if every_step else NULL
        memset(f.C, 0, f.batch * at.hidden_dim * sizeof(real))
        for b in range(f.batch):
            memset(hx + b * at.ld, 0, at.hidden_dim * sizeof(real))
        run_forward(call, &f, packed)
        if every_step:
            emit_outputs(call, &f, f.steps - 1, 0, f.batch, y + (f.steps - 1) * at.output_dim, f.steps * at.output_dim)
        else:
            emit_outputs(call, &f, f.steps - 1, 0, f.batch, y, at.output_dim)
        n += f.batch
    return 0


cdef int run_network(
    int threads, const kernels *table, const Inference *at, const real *parameters, real *scratch, Py_ssize_t N,
    const real *rows, const Py_ssize_t *offsets, Py_ssize_t length, bint every_step, real *Y,
) except -1 nogil:
    """Pack the weights and run N sequences; arguments as for `run_sequences`."""
    cdef Call call
    begin(&call, threads)
    try:
        pack_network(&call, table, at, parameters, scratch)
        run_sequences(
            &call, table, at, <const real *> scratch, scratch + at.hx, 0, N, rows, offsets, length, every_step, Y,
        )
    finally:
        end(&call)
    return 0


def infer(
    int isa, int threads, Py_ssize_t batch_size, tuple sizes, parameters, rows, const Py_ssize_t[::1] offsets,
    bint every_step,
):
    """Run N sequences from zero states and return their outputs; None if `rows` cannot be taken as it is.

    batch_size  the most sequences that run side by side
    parameters  the flat vector of a network of `sizes`
    rows        (N, T, I), or (sum T, I) with `offsets`: sequence n is rows[offsets[n]:offsets[n + 1]]; a finite
                C-contiguous array of the parameters' dtype
    returned    (N, O); or of every step (N, T, O), or (sum T, O) with `offsets`
    """
    cdef Py_buffer weights, X
    cdef Py_ssize_t shape[3]
    cdef bint ragged = offsets is not None, finite
    cdef int ndim = 2 if ragged else 3
    cdef Inference at
    get_buffer(parameters, &weights)
    if not get_array(rows, &X, weights.itemsize, ndim, shape):
        return None
    with nogil:
        finite = all_finite(&X)
    cdef Py_ssize_t N = offsets.shape[0] - 1 if ragged else shape[0], length = 0 if ragged else shape[1]
    cdef const Py_ssize_t *starts = &offsets[0] if ragged else NULL
    lay_out(isa, sizes, min(N, batch_size), weights.itemsize, &at)
    if shape[ndim - 1] != at.input_dim or X.len == 0 or not finite:
        return None
    Y = empty((*rows.shape[:ndim - 1], at.output_dim) if every_step else (N, at.output_dim), parameters.dtype)
    scratch = empty(at.size, parameters.dtype)
    cdef const kernels *table = table_at(isa)
    cdef void *y = first_byte(Y)
    cdef void *work = first_line(first_byte(scratch))
    cdef Py_ssize_t runs = 1, n  # of neighbours that have one length
    for n in range(1, N):
        runs += ragged and starts[n + 1] - starts[n] != starts[n] - starts[n - 1]
    cdef Py_ssize_t rows_in_all = X.len // (X.itemsize * at.input_dim)
    threads = recruit(threads, shared_work(rows_in_all * runs // N, N // runs, at.input_dim, at.hidden_dim, False))
    with nogil:
        if weights.itemsize == sizeof(float):
            run_network[float](
                threads, table, &at, <const float *> weights.buf, <float *> work, N, <const float *> X.buf, starts,
                length, every_step, <float *> y,
            )
        else:
            run_network[double](
                threads, table, &at, <const double *> weights.buf, <double *> work, N, <const double *> X.buf, starts,
                length, every_step, <double *> y,
            )
    return Y


cdef int advance_streams(
    int threads, const kernels *table, const Inference *at, bint odd, real *packed, const real *x, real *y,
) except -1 nogil:
    """A step of B streams, an even or an odd one; x (B, I), y (B, O) out."""
    cdef Forward f = forward_of(table, at, <const real *> packed, packed + at.hx, packed + at.C)
    cdef Call call
    f.rows, f.steps, f.batch = x, 1, at.batch
    if odd:
        f.hx, f.slot = <real *> f.hx + f.slot, -f.slot
    begin(&call, threads)
    call.watches = False  # a step that is begun is ended
    try:
        run_forward(&call, &f, x)
        emit_outputs(&call, &f, 0, 0, f.batch, y, at.output_dim)
    finally:
        end(&call)
    return 0


@cython.auto_pickle(False)
cdef class Streams:
    """The packed weights and the states of B streams, in one scratch array."""

    cdef readonly tuple sizes
    cdef readonly Py_ssize_t batch, steps
    cdef readonly object dtype, scratch
    cdef Py_ssize_t itemsize
    cdef int threads
    cdef tuple shape
    cdef const kernels *table
    cdef Inference at
    cdef void *packed

    def __init__(self, int isa, int threads, tuple sizes, Py_ssize_t batch, parameters):
        cdef Py_buffer weights
        get_buffer(parameters, &weights)
        lay_out(isa, sizes, batch, weights.itemsize, &self.at)
        self.threads = threads
        self.sizes, self.batch, self.dtype, self.shape = sizes, batch, parameters.dtype, (batch, self.at.output_dim)
        self.table, self.itemsize, self.scratch = table_at(isa), weights.itemsize, zeros(self.at.size, self.dtype)
        self.packed = first_line(first_byte(self.scratch))
        if self.itemsize == sizeof(float):
            pack_network[float](NULL, self.table, &self.at, <const float *> weights.buf, <float *> self.packed)
        else:
            pack_network[double](NULL, self.table, &self.at, <const double *> weights.buf, <double *> self.packed)

    def advance(self, x, y):
        """Run one step on x (B, I), write the outputs to y (B, O), a new array if it is None, and return it.

        Nothing is done and None returned if x or y cannot be taken as they are: x finite, y writable and apart from x.
        """
        cdef Py_buffer X, Y
        cdef int threads
        if not self.get_rows(x, &X, self.at.input_dim) or not all_finite(&X):
            return None
        if y is None:
            y = empty(self.shape, self.dtype)
        if not self.get_rows(y, &Y, self.at.output_dim, PyBUF_WRITABLE):
            return None
        if <char *> X.buf < <char *> Y.buf + Y.len and <char *> Y.buf < <char *> X.buf + X.len:
            return None
        threads = recruit(self.threads, shared_work(1, self.batch, self.at.input_dim, self.at.hidden_dim, False))
        with nogil:
            if self.itemsize == sizeof(float):
                advance_streams[float](
                    threads, self.table, &self.at, self.steps % 2, <float *> self.packed, <const float *> X.buf,
                    <float *> Y.buf,
                )
            else:
                advance_streams[double](
                    threads, self.table, &self.at, self.steps % 2, <double *> self.packed, <const double *> X.buf,
                    <double *> Y.buf,
                )
        self.steps += 1
        return y

    def state(self) -> tuple[int, int, int]:
        """Return the elements of scratch at which h and C begin, and those between two rows of h."""
        cdef Py_ssize_t first = (<char *> self.packed - <char *> first_byte(self.scratch)) // self.itemsize
        return first + self.at.hx + self.steps % 2 * self.batch * self.at.ld, first + self.at.C, self.at.ld

    cdef bint get_rows(self, object array, Py_buffer *view, Py_ssize_t columns, int flags=0) except -1:
        """Get an array's buffer if it is (B, columns) and of our type."""
        cdef Py_ssize_t shape[2]
        return (
            get_array(array, view, self.itemsize, 2, shape, flags) and shape[0] == self.batch and shape[1] == columns
        )


cdef int get_buffer(object array, Py_buffer *view) except -1:
    """Get the buffer of an array that we hold, and that therefore keeps its memory."""
    PyObject_GetBuffer(array, view, PyBUF_C_CONTIGUOUS)
    PyBuffer_Release(view)
    return 0


cdef void *first_byte(object array) except NULL:
    cdef Py_buffer view
    get_buffer(array, &view)
    return view.buf


cdef bint get_array(
    object array, Py_buffer *view, Py_ssize_t itemsize, int ndim, Py_ssize_t *shape, int flags=0,
) except -1:
    """Get an array's buffer and shape if it is a C-contiguous ndarray of floats of this size, with so many axes."""
    cdef char code = c"f" if itemsize == sizeof(float) else c"d"
    if type(array) is not ndarray:
        return False
    try:
        PyObject_GetBuffer(array, view, flags | PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    except (BufferError, TypeError, ValueError):
        return False
    cdef bint fits = view.ndim == ndim and view.format[0] == code and view.format[1] == 0
    if fits:
        memcpy(shape, view.shape, ndim * sizeof(Py_ssize_t))
    PyBuffer_Release(view)
    return fits
