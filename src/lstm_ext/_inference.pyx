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

from lstm_ext._kernels cimport CACHE_LINE, TILE_VECTORS, all_finite, are_finite, kernels, real, table_at
from lstm_ext._passes cimport (
    Cell, Forward, Rows, apply_head, lanes_rows, lanes_scratch_size, run_forward, shared_work,
)
from lstm_ext._products cimport ceil_div, multiply, odd_lines, pack_cell, pack_panels, panels_size, whole_lines
from lstm_ext._stack cimport Batch, StackData, LayerStack, States, layers_forward, pack_layers
from lstm_ext._threads cimport Region, begin_region, end_region, recruit

from lstm_ext._products import aligned_empty


cdef struct NetworkLayout:
    # A network's sizes, how many sequences run side by side, and where the parts of one scratch array begin: the packed
    # cell, the packed head, the head's bias, two slots of rows [h | x] that are `ld` apart, C, and the passes' scratch.
    Py_ssize_t input_dim, hidden_dim, output_dim, batch, head, b_y, hx, ld, C, scratch, size


cdef int lay_out(
    int isa, tuple sizes, Py_ssize_t batch, Py_ssize_t itemsize, bint by_lanes, NetworkLayout *layout,
) except -1:
    """Lay the parts out, each on a cache line if the first is."""
    cdef const kernels *table = table_at(isa)
    cdef Py_ssize_t V = table.f32.lanes if itemsize == sizeof(float) else table.f64.lanes, K
    layout.input_dim, layout.hidden_dim, layout.output_dim = sizes
    layout.batch = batch
    K = layout.input_dim + layout.hidden_dim
    layout.head = ceil_div(layout.hidden_dim, V) * (1 + K) * TILE_VECTORS * V
    layout.b_y = layout.head + whole_lines(panels_size(layout.hidden_dim, layout.output_dim, V), itemsize)
    layout.hx = layout.b_y + whole_lines(layout.output_dim, itemsize)
    layout.ld = odd_lines(K, itemsize)
    layout.C = layout.hx + 2 * batch * layout.ld
    layout.scratch = layout.C + whole_lines(batch * layout.hidden_dim, itemsize)
    layout.size = layout.scratch + CACHE_LINE // itemsize  # one line more, to begin on one
    if by_lanes:
        layout.size += lanes_scratch_size(table, itemsize, batch, layout.input_dim, layout.hidden_dim, False)
    return 0


cdef inline void *first_line(void *scratch) noexcept nogil:
    """The first cache line's beginning at or after an address."""
    return <char *> scratch + (-<Py_ssize_t> scratch & (CACHE_LINE - 1))


cdef int pack_network(
    Region *region, const kernels *table, const NetworkLayout *layout, const real *parameters, real *packed,
) except -1 nogil:
    """Pack the network's flat vector: cell, head, and the head's bias as it is."""
    cdef const real *b = parameters + 4 * layout.hidden_dim * (layout.hidden_dim + layout.input_dim)
    cdef const real *W_y = b + 4 * layout.hidden_dim
    pack_cell(region, table, layout.input_dim, layout.hidden_dim, parameters, b, packed)
    pack_panels(region, table, layout.hidden_dim, layout.output_dim, W_y, 1, layout.hidden_dim, packed + layout.head)
    memcpy(packed + layout.b_y, W_y + layout.output_dim * layout.hidden_dim, layout.output_dim * sizeof(real))
    return 0


cdef Forward forward_of(
    const kernels *table, const NetworkLayout *layout, const real *packed, real *hx, real *C,
) noexcept nogil:
    """What is the same for every batch that a network runs; packed from `pack_network`."""
    cdef Forward f
    cdef Cell *cell = &f.cell
    memset(&f, 0, sizeof(f))
    cell.table, cell.input_dim, cell.gates = table, layout.input_dim, 4
    cell.hidden_dim = cell.state_dim = layout.hidden_dim
    cell.hx = cell.h = hx
    cell.slots, cell.ld, cell.ld_h = 2, layout.ld, layout.ld
    cell.slot = cell.h_slot = layout.batch * layout.ld
    cell.C, cell.C_slots = C, 1
    cell.x.width, cell.x.step_stride = layout.input_dim, 1
    f.packed, f.packed_y, f.b_y, f.output_dim = packed, packed + layout.head, packed + layout.b_y, layout.output_dim
    return f


cdef int run_sequences(
    Region *region, const kernels *table, const NetworkLayout *layout, const real *packed, real *hx, Py_ssize_t N,
    Py_ssize_t steps, const real *X, bint every_step, real *Y,
) except -1 nogil:
    """Run N sequences (steps, I) from zero states; return 0 at the first batch that is not finite, or 1.

    packed  from `pack_network`
    hx      scratch, from layout.hx to layout.size
    Y       (N, steps, O) if every_step, else (N, O); out
    """
    cdef Forward f = forward_of(table, layout, packed, hx, hx + layout.C - layout.hx)
    cdef Cell *cell = &f.cell
    cdef Py_ssize_t n = 0, b, apart = steps * layout.output_dim if every_step else layout.output_dim
    cdef real *y
    cell.steps = cell.stop = cell.x.sequence_stride = steps
    cell.scratch = hx + layout.scratch - layout.hx
    while n < N:
        cell.batch = min(layout.batch, N - n)
        cell.x.data = <void *> (X + n * steps * layout.input_dim)
        if not are_finite(table, cell.batch * steps * layout.input_dim, X + n * steps * layout.input_dim):
            return 0
        cell.by_lanes = lanes_rows(table, cell.batch, layout.input_dim, layout.hidden_dim, False, packed)
        f.Y = Y + n * apart if every_step else NULL
        memset(cell.C, 0, cell.batch * layout.hidden_dim * sizeof(real))
        for b in range(cell.batch):
            memset(hx + b * layout.ld, 0, layout.hidden_dim * sizeof(real))
        run_forward(region, &f, packed)
        y = Y + n * apart + (apart - layout.output_dim)
        apply_head(region, &f, steps - 1, 0, cell.batch, y, apart)
        n += cell.batch
    return 1


cdef int run_network(
    int threads, const kernels *table, const NetworkLayout *layout, const real *parameters, real *scratch, Py_ssize_t N,
    Py_ssize_t steps, const real *X, bint every_step, real *Y,
) except -1 nogil:
    """Pack the weights and run N sequences; arguments as for `run_sequences`."""
    cdef Region region
    begin_region(&region, threads)
    try:
        pack_network(&region, table, layout, parameters, scratch)
        return run_sequences(
            &region, table, layout, <const real *> scratch, scratch + layout.hx, N, steps, X, every_step, Y,
        )
    finally:
        end_region(&region)


def infer(int isa, int threads, Py_ssize_t batch_size, tuple sizes, parameters, X, bint every_step):
    """Run N sequences from zero states and return their outputs; None if X cannot be taken as it is.

    Every batch is checked before it is run, so that an X from a file is read once.

    batch_size  the most sequences that run side by side
    parameters  the flat vector of a plain network of `sizes`
    X           (N, T, I): a finite C-contiguous array of the parameters' dtype
    returned    (N, O), or of every step (N, T, O)
    """
    cdef Py_buffer weights, view
    cdef Py_ssize_t shape[3]
    cdef int finite
    cdef NetworkLayout layout
    get_buffer(parameters, &weights)
    if not get_array(X, &view, weights.itemsize, 3, shape):
        return None
    cdef Py_ssize_t N = shape[0], steps = shape[1]
    lay_out(isa, sizes, min(N, batch_size), weights.itemsize, True, &layout)
    if shape[2] != layout.input_dim or view.len == 0:
        return None
    Y = empty((*X.shape[:2 if every_step else 1], layout.output_dim), parameters.dtype)
    scratch = empty(layout.size, parameters.dtype)
    cdef const kernels *table = table_at(isa)
    cdef void *y = first_byte(Y)
    cdef void *work = first_line(first_byte(scratch))
    threads = recruit(threads, shared_work(steps, N, layout.input_dim, layout.hidden_dim, False))
    with nogil:
        if weights.itemsize == sizeof(float):
            finite = run_network[float](
                threads, table, &layout, <const float *> weights.buf, <float *> work, N, steps,
                <const float *> view.buf, every_step, <float *> y,
            )
        else:
            finite = run_network[double](
                threads, table, &layout, <const double *> weights.buf, <double *> work, N, steps,
                <const double *> view.buf, every_step, <double *> y,
            )
    return Y if finite else None


cdef int advance_streams(
    int threads, const kernels *table, const NetworkLayout *layout, bint odd, real *packed, const real *x, real *y,
) except -1 nogil:
    """A step of B streams, an even or an odd one; x (B, I), y (B, O) out."""
    cdef Forward f = forward_of(table, layout, <const real *> packed, packed + layout.hx, packed + layout.C)
    cdef Region region
    cdef Cell *cell = &f.cell
    cell.x.data, cell.x.sequence_stride, cell.batch = <void *> x, 1, layout.batch
    cell.steps = cell.stop = 1
    if odd:
        cell.hx = cell.h = <real *> cell.hx + cell.slot
        cell.slot = cell.h_slot = -cell.slot
    begin_region(&region, threads)
    region.watches = False  # a step that is begun is ended
    try:
        run_forward(&region, &f, x)
        apply_head(&region, &f, 0, 0, layout.batch, y, layout.output_dim)
    finally:
        end_region(&region)
    return 0


@cython.auto_pickle(False)
cdef class Streams:
    """Where a network is in B streams: its weights as they were packed at the start, and the states.

    `h` and `C` are read-only copies of the states, (B, ...), or (cells, B, ...) of a network of several cells.

    One thread at a time may use it: while `LSTMNetwork.step` advances it, other threads get a RuntimeError.
    """

    cdef readonly object architecture, dtype
    cdef readonly Py_ssize_t batch, steps
    cdef Py_ssize_t itemsize, input_dim, output_dim
    cdef double work
    cdef int threads
    cdef bint busy
    cdef tuple shape

    def __init__(self, int threads, architecture, Py_ssize_t batch, parameters):
        self.threads, self.architecture, self.batch, self.dtype = threads, architecture, batch, parameters.dtype
        self.itemsize, self.input_dim = self.dtype.itemsize, architecture.input_dim
        self.output_dim = architecture.output_dim or architecture.features
        self.shape = (batch, self.output_dim)
        self.work = shared_work(1, batch, self.input_dim, architecture.hidden_dim, False)

    def __reduce__(self):
        raise TypeError("stream states are packed for this process; save the network instead")

    def advance(self, x, y):
        """Run one step on x (B, I), write the outputs to y (B, O), a new array if it is None, and return it.

        Nothing is done and None returned if x or y cannot be taken as they are: x finite, y writable and apart from x.
        """
        cdef Py_buffer X, Y
        if not self.get_rows(x, &X, self.input_dim) or not all_finite(&X):
            return None
        if y is None:
            y = empty(self.shape, self.dtype)
        if not self.get_rows(y, &Y, self.output_dim, PyBUF_WRITABLE):
            return None
        if <char *> X.buf < <char *> Y.buf + Y.len and <char *> Y.buf < <char *> X.buf + X.len:
            return None
        self.check_idle()
        self.busy = True
        try:
            self.run(recruit(self.threads, self.work), X.buf, Y.buf)
            self.steps += 1
        finally:
            self.busy = False
        return y

    @property
    def h(self):
        self.check_idle()
        return read_only(self.copy_h())

    @property
    def C(self):
        self.check_idle()
        return read_only(self.copy_C())

    cdef object copy_h(self):
        raise NotImplementedError

    cdef object copy_C(self):
        raise NotImplementedError

    cdef int check_idle(self) except -1:
        if self.busy:
            raise RuntimeError("state is being advanced by another thread; expected one thread at a time")
        return 0

    cdef int run(self, int threads, const void *x, void *y) except -1:
        """A step of all streams."""
        raise NotImplementedError

    cdef bint get_rows(self, object array, Py_buffer *view, Py_ssize_t columns, int flags=0) except -1:
        """Get an array's buffer if it is (B, columns) and of our type."""
        cdef Py_ssize_t shape[2]
        return (
            get_array(array, view, self.itemsize, 2, shape, flags) and shape[0] == self.batch and shape[1] == columns
        )


@cython.auto_pickle(False)
cdef class PlainStreams(Streams):
    """Streams of a plain network with a head: weights and states in one scratch array."""

    cdef object scratch
    cdef const kernels *table
    cdef NetworkLayout layout
    cdef void *packed

    def __init__(self, int isa, int threads, architecture, Py_ssize_t batch, parameters):
        cdef Py_buffer weights
        super().__init__(threads, architecture, batch, parameters)
        get_buffer(parameters, &weights)
        lay_out(isa, architecture.sizes, batch, weights.itemsize, False, &self.layout)
        self.table, self.scratch = table_at(isa), zeros(self.layout.size, self.dtype)
        self.packed = first_line(first_byte(self.scratch))
        if self.itemsize == sizeof(float):
            pack_network[float](NULL, self.table, &self.layout, <const float *> weights.buf, <float *> self.packed)
        else:
            pack_network[double](NULL, self.table, &self.layout, <const double *> weights.buf, <double *> self.packed)

    cdef int run(self, int threads, const void *x, void *y) except -1:
        cdef bint odd = self.steps % 2
        with nogil:
            if self.itemsize == sizeof(float):
                advance_streams[float](
                    threads, self.table, &self.layout, odd, <float *> self.packed, <const float *> x, <float *> y,
                )
            else:
                advance_streams[double](
                    threads, self.table, &self.layout, odd, <double *> self.packed, <const double *> x, <double *> y,
                )
        return 0

    cdef object copy_h(self):
        rows = self.rows(self.layout.hx + self.steps % 2 * self.batch * self.layout.ld, self.layout.ld)
        return rows[:, :self.layout.hidden_dim].copy()

    cdef object copy_C(self):
        return self.rows(self.layout.C, self.layout.hidden_dim).copy()

    cdef object rows(self, Py_ssize_t start, Py_ssize_t width):
        """B rows of the scratch array, as a view."""
        start += (<char *> self.packed - <char *> first_byte(self.scratch)) // self.itemsize
        return self.scratch[start:start + self.batch * width].reshape(self.batch, width)


cdef int advance_layers(
    int threads, StackData *s, const real *parameters, const real *packed, const real *b_y, Py_ssize_t output_dim,
    Py_ssize_t batch, const real *x, States *states, real *y,
) except -1 nogil:
    """A step of B streams through all layers; packed NULL: without a head."""
    cdef Region region
    cdef Batch one_step
    cdef Rows rows, no_rows
    cdef const real *h = <const real *> s.cells[s.count - 1].h_T
    memset(&one_step, 0, sizeof(one_step))
    memset(&no_rows, 0, sizeof(no_rows))
    rows = no_rows
    one_step.size, one_step.steps = batch, 1
    rows.data, rows.width, rows.step_stride, rows.sequence_stride = <void *> x, s.input_dim, 1, 1
    begin_region(&region, threads)
    region.watches = False
    try:
        layers_forward(&region, s, parameters, &one_step, &rows, states, &no_rows, states)
        if packed == NULL:
            memcpy(y, h, batch * s.features * sizeof(real))
        else:
            multiply(&region, s.table, batch, output_dim, s.features, h, s.features, packed, b_y, 0, y, output_dim)
    finally:
        end_region(&region)
    return 0


@cython.auto_pickle(False)
cdef class LayerStreams(Streams):
    """Streams of any network that runs forwards."""

    cdef LayerStack stack
    cdef object parameters, packed, h_of_cells, C_of_cells
    cdef States states
    cdef void *weights
    cdef void *head
    cdef Py_ssize_t b_offset

    def __init__(self, int isa, int threads, architecture, Py_ssize_t batch, parameters):
        super().__init__(threads, architecture, batch, parameters)
        options = architecture.options
        self.stack = LayerStack(isa, architecture, self.dtype, 1, batch, keep=False)
        cdef StackData *s = &self.stack.data
        cdef Py_ssize_t V = s.table.f32.lanes if self.itemsize == sizeof(float) else s.table.f64.lanes
        self.work = options.num_layers * self.work
        self.parameters = parameters.copy()  # biases and gains are read where they are
        self.packed = aligned_empty((panels_size(s.features, self.output_dim, V),), self.dtype)
        self.h_of_cells = zeros((s.count, batch, s.state_dim), self.dtype)
        self.C_of_cells = zeros((s.count, batch, s.hidden_dim), self.dtype)
        self.states.h, self.states.C = first_byte(self.h_of_cells), first_byte(self.C_of_cells)
        self.states.rows = batch
        self.weights = first_byte(self.parameters)
        self.head = NULL if architecture.output_dim is None else first_byte(self.packed)
        self.b_offset = len(parameters) - self.output_dim
        if options.learn_initial_state:
            self.take_learned_states()
        if self.itemsize == sizeof(float):
            pack_for_streams[float](
                s, <const float *> self.weights, <float *> self.head, self.b_offset, self.output_dim,
            )
        else:
            pack_for_streams[double](
                s, <const double *> self.weights, <double *> self.head, self.b_offset, self.output_dim,
            )

    cdef int take_learned_states(self) except -1:
        """Begin at the learned states."""
        cdef StackData *s = &self.stack.data
        cdef Py_ssize_t n, R = s.state_dim
        for n in range(s.count):
            offset = s.cells[n].states_offset
            self.h_of_cells[n] = self.parameters[offset:offset + R]
            self.C_of_cells[n] = self.parameters[offset + R:offset + R + s.hidden_dim]
        return 0

    cdef int run(self, int threads, const void *x, void *y) except -1:
        cdef StackData *s = &self.stack.data
        with nogil:
            if self.itemsize == sizeof(float):
                advance_layers[float](
                    threads, s, <const float *> self.weights, <const float *> self.head,
                    <const float *> self.weights + self.b_offset, self.output_dim, self.batch, <const float *> x,
                    &self.states, <float *> y,
                )
            else:
                advance_layers[double](
                    threads, s, <const double *> self.weights, <const double *> self.head,
                    <const double *> self.weights + self.b_offset, self.output_dim, self.batch, <const double *> x,
                    &self.states, <double *> y,
                )
        return 0

    cdef object copy_h(self):
        return (self.h_of_cells if len(self.h_of_cells) > 1 else self.h_of_cells[0]).copy()

    cdef object copy_C(self):
        return (self.C_of_cells if len(self.C_of_cells) > 1 else self.C_of_cells[0]).copy()


cdef int pack_for_streams(
    StackData *s, const real *parameters, real *head, Py_ssize_t b_offset, Py_ssize_t output_dim,
) except -1 nogil:
    """Pack the layers, and the head unless it is NULL."""
    cdef Batch batch
    memset(&batch, 0, sizeof(batch))
    pack_layers(NULL, s, parameters, &batch, False, False)
    if head != NULL:
        pack_panels(
            NULL, s.table, s.features, output_dim, parameters + b_offset - output_dim * s.features, 1, s.features, head,
        )
    return 0


def begin_streams(int isa, int threads, architecture, Py_ssize_t batch, parameters):
    """Return the streams of an architecture that runs forwards, at its initial states."""
    plain = architecture.is_plain and architecture.output_dim is not None
    return (PlainStreams if plain else LayerStreams)(isa, threads, architecture, batch, parameters)


cdef object read_only(object array):
    array.setflags(write=False)
    return array


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
