"""Inference: predictions, and streams that advance step by step.

Design
------
- Nothing is kept but the last h and C: two slots of rows [h | x] alternate, and C is updated in place.
- Two routes: `infer` for a plain network and an array that it takes as it is, `ForwardPass` for everything else.
- A call allocates its outputs and its work arrays, so threads can share a network.
- Weights are packed once in each prediction, for they may have been changed; a stream's once, when it begins.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.string cimport memcpy, memset

from numpy import empty, ndarray, zeros

from lstm_ext._heads cimport READOUT_STEPS, Head, HeadData, head_forward, head_rows, pack_head
from lstm_ext._kernels cimport (
    CACHE_LINE, TILE_VECTORS, all_finite, are_finite, kernels, lanes_of, philox_key, real, table_at,
)
from lstm_ext._passes cimport (
    Cell, Forward, Rows, apply_head, copy_states, lanes_rows, lanes_scratch_size, no_rows, run_forward, shared_work,
    store_outputs,
)
from lstm_ext._products cimport (
    apply_linear, ceil_div, first_byte, get_buffer, odd_lines, pack_cell, pack_panels, panels_size, whole_lines,
)
from lstm_ext._stack cimport (
    Batch, Chunk, LayerStack, StackData, States, indices_of, inputs_are_finite, layers_forward, pack_layers, rows_of,
    stack_work, states_of, take_chunk,
)
from lstm_ext._threads cimport Region, begin_region, end_region, recruit


cdef enum:  # how a prediction ended
    INPUTS_NOT_FINITE
    OUTPUTS_NOT_FINITE
    FINITE


cdef struct NetworkLayout:
    # A network's sizes, how many sequences run side by side, and where the parts of one scratch array begin: the packed
    # cell, the packed head, the head's bias, two slots of rows [h | x] of stride `ld`, C, and the passes' scratch.
    Py_ssize_t input_dim, hidden_dim, output_dim, batch, head, b_y, hx, ld, C, scratch, size


cdef int lay_out(
    int isa, tuple sizes, Py_ssize_t batch, Py_ssize_t itemsize, bint by_lanes, NetworkLayout *layout,
) except -1:
    """Lay the parts out, each on a cache line if the first is."""
    cdef const kernels *table = table_at(isa)
    cdef Py_ssize_t V = lanes_of(table, itemsize), K
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
    if layout.output_dim == 0:  # a layer alone
        return 0
    pack_panels(region, table, layout.hidden_dim, layout.output_dim, W_y, 1, layout.hidden_dim, packed + layout.head)
    memcpy(packed + layout.b_y, W_y + layout.output_dim * layout.hidden_dim, layout.output_dim * sizeof(real))
    return 0


cdef Forward forward_of(
    const kernels *table, const NetworkLayout *layout, const real *packed, real *hx, real *C,
) noexcept nogil:
    """Return the fields that are the same for every batch; packed from `pack_network`."""
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


cdef struct PlainRun:
    # What the quick route runs: N sequences of `steps` steps, and where their results go.
    Py_ssize_t N, steps
    const void *X  # (N, steps, I)
    bint checked  # whether X is known to be finite
    # With a head:
    bint every_step
    void *Y  # (N, steps, O) if every_step, else (N, O)
    # For the layer alone:
    const void *h0  # (N, H), or NULL for zeros; C0 likewise
    const void *C0
    void *H  # (N, steps, H), or NULL
    void *h_T
    void *C_T


cdef void begin_sequences(const Cell *cell, const PlainRun *run, Py_ssize_t n, const real *tag) noexcept nogil:
    """Put the initial states of the sequences from n on into the first slot."""
    cdef Py_ssize_t H = cell.hidden_dim, b
    for b in range(cell.batch):
        if run.h0 != NULL:
            memcpy(<real *> cell.h + b * cell.ld_h, <const real *> run.h0 + (n + b) * H, H * sizeof(real))
        else:
            memset(<real *> cell.h + b * cell.ld_h, 0, H * sizeof(real))
        if run.C0 != NULL:
            copy_states(cell, 0, b, <real *> run.C0 + (n + b) * H, True, tag)
    if run.C0 == NULL:
        memset(cell.C, 0, cell.batch * H * sizeof(real))


cdef void end_sequences(const Forward *f, const PlainRun *run, Py_ssize_t n, const real *tag) noexcept nogil:
    """Store the last step's outputs, and the last states, of the sequences from n on."""
    cdef const Cell *cell = &f.cell
    cdef Py_ssize_t H = cell.hidden_dim, b
    store_outputs(f, run.steps - 1, 0, cell.batch, tag)
    for b in range(cell.batch):
        memcpy(
            <real *> run.h_T + (n + b) * H, <const real *> run.H + ((n + b + 1) * run.steps - 1) * H, H * sizeof(real),
        )
        copy_states(cell, run.steps, b, <real *> run.C_T + (n + b) * H, False, tag)


cdef int run_sequences(
    Region *region, const kernels *table, const NetworkLayout *layout, const PlainRun *run, const real *packed,
    real *hx,
) except -1 nogil:
    """Run all sequences, but stop before a batch whose X is not finite.

    packed  from `pack_network`
    hx      scratch, from layout.hx to layout.size
    """
    cdef Forward f = forward_of(table, layout, packed, hx, hx + layout.C - layout.hx)
    cdef Cell *cell = &f.cell
    cdef bint finite = True
    cdef Py_ssize_t n = 0, steps = run.steps, size = steps * layout.input_dim, output_dim = layout.output_dim
    cdef Py_ssize_t stride = steps * output_dim if run.every_step else output_dim
    cdef const real *X
    cdef real *Y
    cell.steps = cell.stop = cell.x.sequence_stride = steps
    cell.scratch = hx + layout.scratch - layout.hx
    f.H.width, f.H.step_stride, f.H.sequence_stride = layout.hidden_dim, 1, steps
    while n < run.N:
        cell.batch = min(layout.batch, run.N - n)
        X, Y = <const real *> run.X + n * size, <real *> run.Y + n * stride
        if not run.checked and not are_finite(table, cell.batch * size, X):
            return INPUTS_NOT_FINITE
        cell.x.data = <void *> X
        cell.by_lanes = lanes_rows(table, cell.batch, layout.input_dim, layout.hidden_dim, False, packed)
        begin_sequences(cell, run, n, packed)
        if run.H != NULL:
            f.H.data = <real *> run.H + n * steps * layout.hidden_dim
            run_forward(region, &f, packed)
            end_sequences(&f, run, n, packed)
        else:
            f.Y = Y if run.every_step else NULL
            run_forward(region, &f, packed)
            apply_head(region, &f, steps - 1, 0, cell.batch, Y + stride - output_dim, stride)
            finite = finite and are_finite(table, cell.batch * stride, Y)
        n += cell.batch
    return FINITE if finite else OUTPUTS_NOT_FINITE


cdef int run_network(
    int threads, const kernels *table, const NetworkLayout *layout, const PlainRun *run, const real *parameters,
    real *scratch,
) except -1 nogil:
    """Pack the weights and run all sequences."""
    cdef Region region
    begin_region(&region, threads)
    try:
        pack_network(&region, table, layout, parameters, scratch)
        return run_sequences(&region, table, layout, run, <const real *> scratch, scratch + layout.hx)
    finally:
        end_region(&region)


cdef int run_plain(
    int isa, int threads, const NetworkLayout *layout, const PlainRun *run, const Py_buffer *weights, dtype,
) except -1:
    """Run all sequences in a new scratch array."""
    cdef int outcome
    cdef const kernels *table = table_at(isa)
    scratch = empty(layout.size, dtype)
    cdef void *work = first_line(first_byte(scratch))
    threads = recruit(threads, shared_work(run.steps, run.N, layout.input_dim, layout.hidden_dim, False))
    with nogil:
        if weights.itemsize == sizeof(float):
            outcome = run_network[float](threads, table, layout, run, <const float *> weights.buf, <float *> work)
        else:
            outcome = run_network[double](threads, table, layout, run, <const double *> weights.buf, <double *> work)
    return outcome


cdef bint begin_plain(
    int isa, Py_ssize_t batch_size, tuple sizes, Py_ssize_t itemsize, X, NetworkLayout *layout, PlainRun *run,
) except -1:
    """Lay out a run of X (N, T, I); return whether X can be taken as it is, if it is finite."""
    cdef Py_buffer view
    cdef Py_ssize_t shape[3]
    if not get_array(X, &view, itemsize, 3, shape):
        return False
    memset(run, 0, sizeof(PlainRun))
    run.N, run.steps, run.X = shape[0], shape[1], view.buf
    lay_out(isa, sizes, min(run.N, batch_size), itemsize, True, layout)
    return shape[2] == layout.input_dim and view.len > 0


def infer(int isa, int threads, Py_ssize_t batch_size, tuple sizes, parameters, X, bint checked, bint every_step):
    """Run N sequences from zero states; return (outputs, whether they are finite), or None if X cannot be taken as it
    is.

    An X that is not `checked` is checked here, each batch before it runs, so an X from a file is read once.

    batch_size  the maximum number of sequences that run side by side
    parameters  the flat vector of a plain network of `sizes`
    X           (N, T, I): a finite C-contiguous array of the parameters' dtype
    outputs     (N, O), or of every step (N, T, O)
    """
    cdef NetworkLayout layout
    cdef PlainRun run
    cdef Py_buffer weights
    get_buffer(parameters, &weights)
    if not begin_plain(isa, batch_size, sizes, weights.itemsize, X, &layout, &run):
        return None
    dtype = parameters.dtype
    cdef tuple shape = (run.N, layout.output_dim)
    if every_step:
        shape = (run.N, run.steps, layout.output_dim)
    Y = empty(shape, dtype)
    run.checked, run.every_step, run.Y = checked, every_step, first_byte(Y)
    cdef int outcome = run_plain(isa, threads, &layout, &run, &weights, dtype)
    return None if outcome == INPUTS_NOT_FINITE else (Y, outcome == FINITE)


def infer_layer(int isa, int threads, Py_ssize_t batch_size, tuple sizes, parameters, X, h0, C0):
    """Run N sequences through a plain layer; return H (N, T, H), h_T and C_T (N, H), or None if X, h0 or C0 cannot be
    taken as it is.

    Arguments as for `infer`; h0 and C0 (N, H) may be None, for zeros.
    """
    cdef NetworkLayout layout
    cdef PlainRun run
    cdef Py_buffer weights
    get_buffer(parameters, &weights)
    if not begin_plain(isa, batch_size, (*sizes, 0), weights.itemsize, X, &layout, &run):
        return None
    cdef Py_ssize_t N = run.N
    if not get_states(h0, &run.h0, N, layout.hidden_dim, weights.itemsize):
        return None
    if not get_states(C0, &run.C0, N, layout.hidden_dim, weights.itemsize):
        return None
    dtype, shape = parameters.dtype, (N, layout.hidden_dim)
    H, h_T, C_T = empty((N, run.steps, layout.hidden_dim), dtype), empty(shape, dtype), empty(shape, dtype)
    run.H, run.h_T, run.C_T = first_byte(H), first_byte(h_T), first_byte(C_T)
    if run_plain(isa, threads, &layout, &run, &weights, dtype) == INPUTS_NOT_FINITE:
        return None
    return H, h_T, C_T


cdef bint get_states(array, const void **states, Py_ssize_t N, Py_ssize_t width, Py_ssize_t itemsize) except -1:
    """Get given states (N, width), NULL for None; return whether they can be taken as they are."""
    cdef Py_buffer view
    cdef Py_ssize_t shape[2]
    states[0] = NULL
    if array is None:
        return True
    if not get_array(array, &view, itemsize, 2, shape) or shape[0] != N or shape[1] != width:
        return False
    states[0] = view.buf
    return all_finite(&view)


cdef struct Run:
    # See `ForwardPass.run`.
    StackData *s
    HeadData *head  # NULL: the outputs are those of the top layer
    const Py_ssize_t *first  # of all sequences: the row of X at which each begins, and its steps
    const Py_ssize_t *lengths
    const Py_ssize_t *members
    const void *parameters
    Py_ssize_t N, batch, steps, sequence_stride
    bint checked, is_packed, in_order, keeps_states
    Rows x, H, Y
    States initial, last


cdef int pack_run(Region *region, const Run *run, const real *parameters) except -1 nogil:
    if run.is_packed:
        return 0
    pack_layers(region, run.s, parameters, &run.s.chunk.batch, False, False)
    if run.head != NULL:
        pack_head(region, run.head, parameters)
    return 0


cdef int store_readout(
    Region *region, const Run *run, Py_ssize_t start, Py_ssize_t first_step, const real *parameters,
) except -1 nogil:
    """The head's outputs of a chunk that the layers have run."""
    cdef Rows Y = run.Y
    cdef bint every_step = run.head.readout == READOUT_STEPS
    cdef const Chunk *chunk = &run.s.chunk
    Y.step_stride = 1
    if run.in_order:  # rows of a constant stride are written in place
        Y.first, Y.sequence_stride = NULL, run.sequence_stride if every_step else 1
        Y.data = <real *> Y.data + (start * Y.sequence_stride + (first_step if every_step else 0)) * Y.width
    else:
        Y.first = run.members + start
        if every_step:
            Y.first = chunk.first
    return head_rows(
        region, run.head, run.s, &chunk.batch, first_step, 0 if every_step else chunk.ended, parameters, &Y,
    )


cdef int run_chunks(Region *region, Run *run, const real *parameters) except -1 nogil:
    """Run all batches, each chunk by chunk of its steps."""
    cdef Chunk *chunk = &run.s.chunk
    cdef Py_ssize_t start = 0, first_step, count
    pack_run(region, run, parameters)
    while start < run.N:
        count, first_step = min(run.batch, run.N - start), 0
        chunk.batch.masks.mask_rows = run.members + start
        chunk.batch.state_rows = run.members + start if run.keeps_states else NULL
        while first_step < run.lengths[run.members[start]]:
            take_chunk(chunk, run.first, run.lengths, run.members + start, count, first_step, run.steps)
            if not run.checked and not inputs_are_finite(run.s, &run.x, parameters):
                return INPUTS_NOT_FINITE
            chunk.batch.masks.first_step = first_step
            layers_forward(
                region, run.s, parameters, &chunk.batch, &run.x, &run.last if first_step > 0 else &run.initial,
                &run.H, &run.last,
            )
            if run.Y.data != NULL:
                store_readout(region, run, start, first_step, parameters)
            first_step += run.steps
        start += count
    return FINITE


@cython.auto_pickle(False)
cdef class ForwardPass:
    """A forward pass through a network's layers, and its head if wanted, that keeps nothing for a backward pass.

    The weights are packed by the first `run`.

    Parameters
    ----------
    isa : int
    architecture : Architecture
    parameters : ndarray
        The flat vector. Biases and other weights that are not packed are read from it.
    batch, steps : int
        The number of sequences that run side by side, and the number of their steps that a layer runs at a time.
    has_head : bool
        Whether the outputs are those of the readout and the head, not those of the top layer.
    carries : bool
        Whether sequences may have more steps, and `run` gets no arrays for their last states.
    draws : bool
        Whether dropout masks are drawn.
    measure : bool
        Whether to find the size of the arrays without making them; nothing can be run then.

    The attribute `bytes` is the size of all arrays.
    """

    cdef LayerStack stack
    cdef Head head
    cdef object parameters, h, C
    cdef Run prepared  # what all runs have in common
    cdef readonly Py_ssize_t bytes

    def __init__(
        self, int isa, architecture, parameters, Py_ssize_t batch, Py_ssize_t steps, *, bint has_head, bint carries,
        bint draws=False, bint measure=False,
    ):
        dtype = parameters.dtype
        cdef Py_ssize_t carried = batch * len(architecture.cells) if carries else 0
        cdef Run *run = &self.prepared
        self.bytes = carried * (architecture.state_dim + architecture.hidden_dim) * dtype.itemsize
        if has_head:
            self.head = Head(isa, architecture, dtype, 1, batch, len(parameters), keep=False, measure=measure)
            self.bytes += self.head.bytes
        self.stack = LayerStack(
            isa, architecture, dtype, steps, batch, keep=False, want_outputs=has_head and self.head.needs_steps,
            draws=draws, measure=measure,
        )
        self.bytes += self.stack.bytes
        if measure:
            return
        memset(run, 0, sizeof(Run))
        self.parameters, run.parameters = parameters, first_byte(parameters)
        run.s, run.batch, run.steps = &self.stack.data, batch, steps
        if has_head:
            run.head = &self.head.data
        if carries:
            self.h = empty((len(architecture.cells), batch, architecture.state_dim), dtype)
            self.C = empty((len(architecture.cells), batch, architecture.hidden_dim), dtype)
            run.last.h, run.last.C, run.last.rows = first_byte(self.h), first_byte(self.C), batch

    def run(
        self, int threads, sequences, members, h0=None, C0=None, *, last=None, dropout_seed=None, H=None,
        Py_ssize_t H_begin=0, Y=None,
    ):
        """Run some sequences; return False if an X that is unchecked is not finite.

        members   ndarray of int: which sequences, the longest first, or in order if all have the same length
        h0, C0    (cells, all sequences, ...) the initial states
        last      (h, C) in the same form: the last states, out
        H         (rows, F or D R) the top layer's outputs, out: the first of its rows belongs to row `H_begin` of X
        Y         (rows, O) for "steps", else (all sequences, O), out
        """
        cdef Run run = self.prepared
        cdef Py_ssize_t longest = sequences.longest, itemsize = self.parameters.dtype.itemsize
        cdef Batch whole = run.s.chunk.batch
        cdef Region region
        cdef int outcome
        cdef double work
        run.first, run.lengths = indices_of(sequences.first), indices_of(sequences.lengths)
        run.members, run.N = indices_of(members), len(members)
        run.checked, run.in_order = not sequences.unchecked, sequences.same_length
        run.sequence_stride = len(sequences.rows) // len(sequences)
        run.x = rows_of(sequences.rows, run.s.chunk.first)
        if H is not None:
            run.H = rows_of(H, run.s.chunk.first)
            run.H.data = <char *> run.H.data - H_begin * run.H.width * itemsize
        if Y is not None:
            run.Y = rows_of(Y, NULL)
        run.initial = states_of(h0, C0)
        if last is not None:
            run.last, run.keeps_states = states_of(last[0], last[1]), True
        philox_key(dropout_seed or 0, 0, run.s.chunk.batch.masks.key)
        whole.size, whole.steps = min(run.batch, run.N), longest
        work = stack_work(run.s, &whole, False) * run.N / whole.size
        threads = recruit(threads, work)
        with nogil:
            begin_region(&region, threads)
            try:
                if itemsize == sizeof(float):
                    outcome = run_chunks[float](&region, &run, <const float *> run.parameters)
                else:
                    outcome = run_chunks[double](&region, &run, <const double *> run.parameters)
            finally:
                end_region(&region)
        self.prepared.is_packed = True
        return outcome == FINITE

    def apply_head(self, int threads, features, Y):
        """Y (n, O) = b_y + W_y x of rows of features (n, F), after a run."""
        cdef HeadData *head = self.prepared.head
        cdef Py_ssize_t n = len(features), itemsize = self.parameters.dtype.itemsize
        cdef const void *parameters = self.prepared.parameters
        cdef void *x = first_byte(features)
        cdef void *y = first_byte(Y)
        cdef Region region
        threads = recruit(threads, <double> n * head.features * head.output_dim)
        with nogil:
            begin_region(&region, threads)
            try:
                if itemsize == sizeof(float):
                    apply_linear[float](
                        &region, head.table, n, head.output_dim, head.features, <const float *> x, head.features,
                        <const float *> head.packed, <const float *> parameters + head.b_offset, <float *> y,
                        head.output_dim,
                    )
                else:
                    apply_linear[double](
                        &region, head.table, n, head.output_dim, head.features, <const double *> x, head.features,
                        <const double *> head.packed, <const double *> parameters + head.b_offset, <double *> y,
                        head.output_dim,
                    )
            finally:
                end_region(&region)


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
    """The state of B streams of a network: its weights, packed at the start, and h and C.

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

        Do nothing and return None if x or y cannot be taken as it is: x finite; y writable, without memory of x.
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
    int threads, StackData *s, HeadData *head, const real *parameters, Py_ssize_t batch, const real *x, States *states,
    real *y,
) except -1 nogil:
    """A step of B streams through all layers and the head."""
    cdef Region region
    cdef Batch one_step
    cdef Rows rows = no_rows(), nowhere = no_rows()
    memset(&one_step, 0, sizeof(one_step))
    one_step.size, one_step.steps = batch, 1
    rows.data, rows.width, rows.step_stride, rows.sequence_stride = <void *> x, s.input_dim, 1, 1
    begin_region(&region, threads)
    region.watches = False
    try:
        layers_forward(&region, s, parameters, &one_step, &rows, states, &nowhere, states)
        head.outputs = y
        head_forward(&region, head, s, &one_step, 0, 0, parameters)
    finally:
        end_region(&region)
    return 0


@cython.auto_pickle(False)
cdef class LayerStreams(Streams):
    """Streams of any network that runs forwards."""

    cdef LayerStack stack
    cdef Head head
    cdef object parameters, h_of_cells, C_of_cells
    cdef States states
    cdef void *weights

    def __init__(self, int isa, int threads, architecture, Py_ssize_t batch, parameters):
        super().__init__(threads, architecture, batch, parameters)
        options = architecture.options
        self.stack = LayerStack(isa, architecture, self.dtype, 1, batch, keep=False)
        self.head = Head(isa, architecture.with_readout("last"), self.dtype, 1, batch, len(parameters), keep=False)
        cdef StackData *s = &self.stack.data
        self.work = options.num_layers * self.work
        self.parameters = parameters.copy()  # biases and gains are read where they are
        self.h_of_cells = zeros((s.count, batch, s.state_dim), self.dtype)
        self.C_of_cells = zeros((s.count, batch, s.hidden_dim), self.dtype)
        self.states.h, self.states.C = first_byte(self.h_of_cells), first_byte(self.C_of_cells)
        self.states.rows = batch
        self.weights = first_byte(self.parameters)
        if options.learn_initial_state:
            self.take_learned_states()
        if self.itemsize == sizeof(float):
            pack_for_streams[float](s, &self.head.data, <const float *> self.weights)
        else:
            pack_for_streams[double](s, &self.head.data, <const double *> self.weights)

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
                    threads, s, &self.head.data, <const float *> self.weights, self.batch, <const float *> x,
                    &self.states, <float *> y,
                )
            else:
                advance_layers[double](
                    threads, s, &self.head.data, <const double *> self.weights, self.batch, <const double *> x,
                    &self.states, <double *> y,
                )
        return 0

    cdef object copy_h(self):
        return (self.h_of_cells if len(self.h_of_cells) > 1 else self.h_of_cells[0]).copy()

    cdef object copy_C(self):
        return (self.C_of_cells if len(self.C_of_cells) > 1 else self.C_of_cells[0]).copy()


cdef int pack_for_streams(StackData *s, const HeadData *head, const real *parameters) except -1 nogil:
    """Pack the layers and the head."""
    cdef Batch batch
    memset(&batch, 0, sizeof(batch))
    pack_layers(NULL, s, parameters, &batch, False, False)
    return pack_head(NULL, head, parameters)


def begin_streams(int isa, int threads, architecture, Py_ssize_t batch, parameters):
    """Return the streams of an architecture that runs forwards, at its initial states."""
    plain = architecture.is_plain and architecture.output_dim is not None
    return (PlainStreams if plain else LayerStreams)(isa, threads, architecture, batch, parameters)


cdef object read_only(object array):
    array.setflags(write=False)
    return array


cdef bint get_array(
    object array, Py_buffer *view, Py_ssize_t itemsize, int ndim, Py_ssize_t *shape, int flags=0,
) except -1:
    """Get an array's buffer and shape if it is a C-contiguous ndarray with `ndim` axes of floats of this size."""
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
