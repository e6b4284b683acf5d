"""Heads: from the outputs of the top layer to features, and from features to the network's outputs; and back.

Design
------
- A readout says what the features are: the outputs of every step, which stay where the top layer left them ("steps");
  the last states ("last"); or one row for each sequence, pooled over its live steps. They stand in slots (`StepRows`);
  every readout but "steps" has one slot.
- A readout that pools is a row of `POOLS`: its two passes over a sequence. A new one needs its name in `READOUTS`, its
  kind in `Readout` and its row, and nothing else of the compiled half.
- Outputs are packed in the order in which weight gradients are summed: steps from the last to the first, the sequences
  that have the step ascending.
- Without a linear layer the outputs are the features themselves.

Notation as in _stack.pyx, and O outputs.
"""
cimport cython
from libc.string cimport memcpy, memset

import numpy as np

from lstm_ext._kernels cimport CACHE_LINE, TILE_VECTORS, lanes_of, real, table_at
from lstm_ext._passes cimport Rows, row_at
from lstm_ext._products cimport (
    OUTER_ROWS, apply_linear, batch_size_at, first_byte, num_tasks, pack_panels, panels_size, part_begin,
    weight_gradient,
)
from lstm_ext._stack cimport Batch, StackData, layer_outputs, length_of
from lstm_ext._threads cimport Region, parallel_for, team_task

from lstm_ext._products import aligned_empty


@cython.auto_pickle(False)
cdef class Head:
    """The readout and the linear layer of an architecture, and the arrays of their passes.

    Parameters
    ----------
    isa : int
        The instruction set that the arrays are packed for (`_kernels.current`).
    architecture : Architecture
        Its readout is the head's.
    dtype : numpy.dtype
    steps, batch : int
        Maximum number of steps and of sequences in a batch.
    parameter_count : int
        The length of the flat vector, which the head's weights end.
    keep : bool
        Whether a backward pass follows.
    measure : bool
        Whether to find the size of the arrays without making them; nothing can be run then.

    Attributes
    ----------
    outputs, doutputs : ndarray (maximum number of rows, O)
        The outputs and dL/d outputs.
    bytes : int
        Size of all arrays.
    needs_steps : bool
        Whether the stack must keep the top layer's outputs of every step.
    """

    def __init__(
        self, int isa, architecture, dtype, Py_ssize_t steps, Py_ssize_t batch, Py_ssize_t parameter_count, *,
        bint keep, bint measure=False,
    ):
        cdef HeadData *head = &self.data
        self.arrays, self.bytes, self.measures = [], 0, measure
        self.made_for = isa, architecture, dtype, steps, batch, keep
        head.table, head.readout = table_at(isa), READOUTS[architecture.readout]
        head.pool = pool_of(head.readout)
        self.needs_steps = head.readout != READOUT_LAST
        head.features, head.is_linear = architecture.features, architecture.output_dim is not None
        head.output_dim = architecture.output_dim if head.is_linear else head.features
        head.b_offset = parameter_count - head.output_dim
        head.W_offset = head.b_offset - head.output_dim * head.features
        cdef Py_ssize_t F = head.features, output_dim = head.output_dim, itemsize = dtype.itemsize
        cdef Py_ssize_t V = lanes_of(head.table, itemsize)
        cdef Py_ssize_t rows = batch * steps if head.readout == READOUT_STEPS else batch
        head.outputs = self.array(rows * output_dim, dtype)
        head.doutputs = self.array(rows * output_dim, dtype)
        if head.is_linear:
            head.packed = self.array(panels_size(F, output_dim, V), dtype)
        if head.readout != READOUT_STEPS:
            head.pooled = self.array(batch * F, dtype)
            if keep:
                head.dpooled = self.array(batch * F, dtype)
        if head.pool != NULL:
            head.pool_scratch = self.array(batch * F * head.pool.scratch, np.dtype(np.uint8))
        if keep and head.is_linear:
            head.packed_backward = self.array(panels_size(output_dim, F, V), dtype)
            head.panels = self.array(panels_size(OUTER_ROWS, F, V), dtype)
        if not measure:
            self.outputs, self.doutputs = (
                array[:rows * output_dim].reshape(rows, output_dim) for array in self.arrays[:2]
            )

    cdef void *array(self, Py_ssize_t size, dtype) except NULL:
        """An uninitialised array that starts on a cache line and can be read 4 vectors past its end."""
        size += TILE_VECTORS * CACHE_LINE // <Py_ssize_t> dtype.itemsize
        self.bytes += size * <Py_ssize_t> dtype.itemsize
        if self.measures:
            return <void *> self
        array = aligned_empty((size,), dtype)
        self.arrays.append(array)
        return first_byte(array)


cdef struct PoolTask:
    # Pooling over the steps of a batch, or its backward pass.
    const HeadData *head
    const Batch *batch
    Py_ssize_t first_step, num_tasks  # how many steps of the sequences were pooled before
    Rows rows  # outputs of the top layer, or their gradients
    team_task pool  # of the task and a sequence


cdef inline real *top_row(const Rows *rows, Py_ssize_t b, Py_ssize_t t, const real *tag) noexcept nogil:
    return <real *> rows.data + (t * rows.step_stride + b) * rows.width


cdef void pool_mean(const PoolTask *p, Py_ssize_t b, const real *tag) noexcept nogil:
    """pooled = 1/T sum_t h_t, T being the steps up to now; the sums are kept in double."""
    cdef Py_ssize_t F = p.head.features, t, u
    cdef const real *h
    cdef real *pooled = <real *> p.head.pooled + b * F
    cdef double *sums = <double *> p.head.pool_scratch + b * F
    if p.first_step == 0:
        memset(sums, 0, F * sizeof(double))
    for t in range(length_of(p.batch, b)):
        h = top_row(&p.rows, b, t, tag)
        for u in range(F):
            sums[u] += h[u]
    for u in range(F):
        pooled[u] = <real> (sums[u] / (p.first_step + length_of(p.batch, b)))


cdef void pool_mean_backward(const PoolTask *p, Py_ssize_t b, const real *tag) noexcept nogil:
    """dh_t = dpooled / T."""
    cdef Py_ssize_t F = p.head.features, t, u
    cdef const real *dpooled = <const real *> p.head.dpooled + b * F
    cdef real *dh
    cdef real length = <real> length_of(p.batch, b)
    for t in range(length_of(p.batch, b)):
        dh = top_row(&p.rows, b, t, tag)
        for u in range(F):
            dh[u] = dpooled[u] / length


cdef void pool_max(const PoolTask *p, Py_ssize_t b, const real *tag) noexcept nogil:
    """pooled = max_t h_t of each feature; the first step that has it is kept."""
    cdef Py_ssize_t F = p.head.features, t, u
    cdef const real *h
    cdef real *pooled = <real *> p.head.pooled + b * F
    cdef Py_ssize_t *winners = <Py_ssize_t *> p.head.pool_scratch + b * F
    if p.first_step == 0:
        memset(winners, 0, F * sizeof(Py_ssize_t))
        memcpy(pooled, top_row(&p.rows, b, 0, tag), F * sizeof(real))
    for t in range(length_of(p.batch, b)):
        h = top_row(&p.rows, b, t, tag)
        for u in range(F):
            if h[u] > pooled[u]:
                pooled[u], winners[u] = h[u], p.first_step + t


cdef void pool_max_backward(const PoolTask *p, Py_ssize_t b, const real *tag) noexcept nogil:
    """dh_t = dpooled at the step that won, and 0 at the others."""
    cdef Py_ssize_t F = p.head.features, t, u
    cdef const real *dpooled = <const real *> p.head.dpooled + b * F
    cdef const Py_ssize_t *winners = <const Py_ssize_t *> p.head.pool_scratch + b * F
    cdef real *dh
    for t in range(length_of(p.batch, b)):
        dh = top_row(&p.rows, b, t, tag)
        for u in range(F):
            dh[u] = dpooled[u] if winners[u] == t else 0


READOUTS = {"last": READOUT_LAST, "steps": READOUT_STEPS, "mean": READOUT_MEAN, "max": READOUT_MAX}

cdef Pool[READOUT_COUNT] POOLS  # NULL for readouts that do not pool
POOLS[<int> READOUT_MEAN] = Pool(
    <team_task> pool_mean[float], <team_task> pool_mean[double],
    <team_task> pool_mean_backward[float], <team_task> pool_mean_backward[double], sizeof(double),
)
POOLS[<int> READOUT_MAX] = Pool(
    <team_task> pool_max[float], <team_task> pool_max[double],
    <team_task> pool_max_backward[float], <team_task> pool_max_backward[double], sizeof(Py_ssize_t),
)


cdef const Pool *pool_of(int readout) noexcept nogil:
    return &POOLS[readout] if POOLS[readout].forward_f32 != NULL else NULL


POOLED = tuple([name for name, kind in READOUTS.items() if pool_of(kind) != NULL])


cdef void pool_part(const PoolTask *p, Py_ssize_t index, const void *tag) noexcept nogil:
    cdef Py_ssize_t size = p.batch.size, b
    for b in range(part_begin(size, p.num_tasks, index), part_begin(size, p.num_tasks, index + 1)):
        p.pool(<void *> p, b, NULL)


cdef int run_pooling(
    Region *region, team_task pool, const HeadData *head, const Batch *batch, Py_ssize_t first_step, const Rows *rows,
) except -1 nogil:
    cdef PoolTask p
    cdef double work = <double> batch.size * batch.steps * head.features
    p.pool, p.head, p.batch, p.first_step, p.rows = pool, head, batch, first_step, rows[0]
    p.num_tasks = num_tasks(region, batch.size, 1, 1, work)
    return parallel_for(region, <team_task> pool_part, &p, p.num_tasks, work)


cdef void gather_last(
    const HeadData *head, const StackData *s, Py_ssize_t begin, Py_ssize_t end, const real *tag,
) noexcept nogil:
    """The last states of the top layer's cells, merged."""
    cdef Py_ssize_t R = s.state_dim, F = head.features, b, u
    cdef const real *forward = <const real *> s.cells[s.count - 2].h_T
    cdef const real *reverse = <const real *> s.cells[s.count - 1].h_T
    cdef real *to
    for b in range(begin, end):
        to = <real *> head.pooled + b * F
        memcpy(to, forward + b * R, R * sizeof(real))
        if not s.sums:
            memcpy(to + R, reverse + b * R, R * sizeof(real))
            continue
        for u in range(R):
            to[u] += reverse[b * R + u]


cdef int find_features(
    Region *region, HeadData *head, const StackData *s, const Batch *batch, Py_ssize_t first_step, Py_ssize_t begin,
    const real *tag,
) except -1 nogil:
    """Set where the features are; gather or pool those that are no rows of the stack."""
    cdef Rows rows
    cdef team_task pool
    cdef StepRows *x = &head.x
    cdef Py_ssize_t t
    head.begin, head.slots, head.rows = begin, 1, batch.size - begin
    x.origin, x.batch_sizes, x.batch, x.ld, x.slot = 0, NULL, batch.size - begin, head.features, 0
    x.data = <real *> head.pooled + begin * head.features
    if head.readout == READOUT_LAST and s.directions == 2:
        gather_last(head, s, begin, batch.size, tag)
    elif head.readout == READOUT_LAST:
        x.data = <const real *> s.cells[s.count - 1].h_T + begin * head.features
    elif head.readout == READOUT_STEPS:
        rows = layer_outputs(s, s.layers - 1, tag)
        x.data, x.ld, x.slot, x.batch_sizes = rows.data, rows.width, rows.step_stride * rows.width, batch.batch_sizes
        head.slots, head.rows = batch.steps, 0
        for t in range(batch.steps):
            head.rows += batch_size_at(x.batch_sizes, x.batch, t)
    elif head.pool != NULL:
        rows = layer_outputs(s, s.layers - 1, tag)
        pool = head.pool.forward_f32 if real is float else head.pool.forward_f64
        run_pooling(region, pool, head, batch, first_step, &rows)
    return 0


cdef int pack_head(Region *region, const HeadData *head, const real *parameters) except -1 nogil:
    """Pack W_y, if there is one, for head_forward and head_rows."""
    if head.packed == NULL:
        return 0
    return pack_panels(
        region, head.table, head.features, head.output_dim, parameters + head.W_offset, 1, head.features,
        <real *> head.packed,
    )


cdef int head_forward(
    Region *region, HeadData *head, const StackData *s, const Batch *batch, Py_ssize_t first_step, Py_ssize_t begin,
    const real *parameters,
) except -1 nogil:
    """outputs = b_y + W_y x of the features of a batch that layers_forward has run, from its sequence `begin` on; after
    pack_head.

    first_step  the step of its sequences at which the batch begins; pooling continues from the steps before it
    begin       0 if every step has an output
    """
    cdef Py_ssize_t F = head.features, output_dim = head.output_dim, t = 0, rows
    cdef real *y = <real *> head.outputs
    cdef const real *x
    find_features(region, head, s, batch, first_step, begin, parameters)
    if head.rows == 0:
        return 0
    t = head.slots
    while t > 0:
        t -= 1
        x, rows = <const real *> head.x.data + t * head.x.slot, batch_size_at(head.x.batch_sizes, head.x.batch, t)
        apply_linear(
            region, head.table, rows, output_dim, F, x, head.x.ld, <const real *> head.packed,
            parameters + head.b_offset, y, output_dim,
        )
        y += rows * output_dim
    return 0


cdef int head_rows(
    Region *region, HeadData *head, const StackData *s, const Batch *batch, Py_ssize_t first_step, Py_ssize_t begin,
    const real *parameters, const Rows *Y,
) except -1 nogil:
    """As head_forward, but each output goes to its row of Y; `outputs` is scratch for those of one step."""
    cdef Py_ssize_t output_dim = head.output_dim, t, b, rows, ld = output_dim
    cdef bint in_place = Y.first == NULL
    cdef real *y = <real *> head.outputs
    find_features(region, head, s, batch, first_step, begin, parameters)
    if in_place:
        ld = Y.sequence_stride * output_dim
    for t in range(head.slots):
        rows = batch_size_at(head.x.batch_sizes, head.x.batch, t)
        if in_place:
            y = row_at(Y, begin, t, parameters)
        apply_linear(
            region, head.table, rows, output_dim, head.features, <const real *> head.x.data + t * head.x.slot,
            head.x.ld, <const real *> head.packed, parameters + head.b_offset, y, ld,
        )
        if in_place:
            continue
        for b in range(rows):
            memcpy(row_at(Y, begin + b, t, parameters), y + b * output_dim, output_dim * sizeof(real))
    return 0


cdef int head_backward(
    Region *region, const HeadData *head, const StackData *s, const Batch *batch, const real *parameters, Rows *dH,
    const real **dfinal, real *gradient,
) except -1 nogil:
    """dL/dW_y, dL/db_y, and the gradient of the features, after head_forward and with dL/d outputs in `doutputs`.

    dH        out: the gradients of the top layer's outputs, in the stack's array for them; data NULL: none
    dfinal    out: (B, F) those of the last states, or NULL
    gradient  the flat vector, in which the head's part is written
    """
    cdef Py_ssize_t F = head.features, output_dim = head.output_dim, t = head.slots, slot = s.batch * F, rows
    cdef const real *dy = <const real *> head.doutputs
    cdef real *to = <real *> head.dpooled + head.begin * F
    cdef team_task pool
    dH.first, dH.data, dH.width, dH.step_stride, dH.sequence_stride = NULL, NULL, F, s.batch, 1
    if head.readout != READOUT_LAST:
        dH.data = s.dmerged[s.layers - 1]
    if head.readout == READOUT_STEPS:
        to = <real *> dH.data
    if head.is_linear:
        weight_gradient(
            region, head.table, head.rows, output_dim, dy, output_dim, F, &head.x, head.slots - 1, False,
            gradient + head.W_offset, F, gradient + head.b_offset, <real *> head.panels,
        )
        pack_panels(region, head.table, output_dim, F, parameters + head.W_offset, F, 1, <real *> head.packed_backward)
    while t > 0:
        t -= 1
        rows = batch_size_at(head.x.batch_sizes, head.x.batch, t)
        apply_linear(
            region, head.table, rows, F, output_dim, dy, output_dim, <const real *> head.packed_backward,
            <const real *> NULL, to + t * slot, F,
        )
        dy += rows * output_dim
    dfinal[0] = NULL
    if head.readout == READOUT_LAST:
        memset(head.dpooled, 0, head.begin * F * sizeof(real))
        dfinal[0] = <const real *> head.dpooled
    elif head.pool != NULL:
        pool = head.pool.backward_f32 if real is float else head.pool.backward_f64
        run_pooling(region, pool, head, batch, 0, dH)
    return 0
