"""Layers of cells in one or two directions: the whole LSTM except for its head.

Design
------
- A layer runs through all steps before the next one does. Its outputs are rows in slots of h; where two directions are
  merged or slots are used again, they are an array of their own. The layer above loads them from there.
- Every cell's arrays are laid out once, for the maximum number of steps and sequences; a pass allocates nothing.
- With segments of fewer steps than T, only the activations of one segment are kept at a time, and the states at the
  beginning of every segment; the backward pass computes the other activations again. The bits are the same.
- Dropout masks are functions of counters (Philox), so they are not stored: each pass that needs one draws it again.

Notation as in _passes.pyx, and F features, the width of a layer's outputs.
"""
cimport cython
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import numpy as np

from lstm_ext._kernels cimport CACHE_LINE, TILE_VECTORS, are_finite, dropout, lanes_of, mask, philox_key, real, table_at
from lstm_ext._passes cimport (
    Backward, Cell, Drop, Rows, copy_states, mask_counter, no_rows, store_outputs, lanes_rows, lanes_scratch_size,
    run_backward, run_forward, shared_work,
)
from lstm_ext._products cimport (
    OUTER_ROWS, batch_size_at, ceil_div, column_sums, first_byte, num_tasks, odd_lines, pack_cell, pack_panels,
    panels_size, part_begin, whole_lines,
)
from lstm_ext._threads cimport Region, begin_region, end_region, recruit, parallel_for, team_task

from lstm_ext import _kernels
from lstm_ext._products import aligned_empty, check_allocatable

cdef enum:
    MAX_ARRAYS = 64  # arrays of a cell: an upper bound, so that no sum of sizes overflows

cdef enum:  # kinds of dropout masks
    INPUT_DROPOUT = 0
    RECURRENT_DROPOUT = 1
    ZONEOUT_H = 2
    ZONEOUT_C = 3
    WEIGHT_DROPOUT = 4
    KINDS = 8


cdef Drop make_drop(double probability, Py_ssize_t cell, int kind):
    cdef Drop drop
    drop.threshold = <uint32_t> (probability * 4294967296.0)
    drop.stream = <uint32_t> (KINDS * cell + kind)
    drop.scale = 1 / (1 - probability)
    return drop


cdef inline bint runs_in_lanes(const StackedCell *d) noexcept nogil:
    """Whether a cell may run sequences of one length with the batch in the lanes."""
    return d.fused and d.f.cell.drop_x.threshold == 0


def check_stack(str what, architecture, steps, batch):
    """Raise if the arrays of a stack and a head for these numbers of steps and sequences could not be addressed."""
    made = architecture
    widths = made.input_dim + made.gates * made.hidden_dim + made.features + (made.output_dim or 0)
    check_allocatable(what, MAX_ARRAYS, len(made.cells), steps + 1, batch, widths)


@cython.auto_pickle(False)
cdef class LayerStack:
    """The layers of an architecture and the arrays of their passes.

    Parameters
    ----------
    isa : int
        The instruction set that the arrays are packed for (`_kernels.current`).
    architecture : Architecture
    dtype : numpy.dtype
    steps, batch : int
        The maximum numbers of steps and of sequences of a pass.
    keep : bool
        Whether a backward pass follows.
    want_dX, want_outputs : bool
        Whether the caller wants dL/dX, and every output of the top layer in addition to the last states.
    draws : bool
        Whether dropout masks may be drawn.
    segment : int
        The number of steps whose activations are kept at a time; 0: all.
    measure : bool
        Whether to find the size of the arrays without making them; nothing can be run then.
    gaps : list, optional
        For tests, which cannot know the layout otherwise: a list to which the bytes (begin, end) after each array are
        added, which passes may read but not write.

    Attributes
    ----------
    dtype : numpy.dtype
    bytes : int
        The size of all arrays.
    by_lanes : tuple of int
        For each cell, the number of sequences that ran with the batch in the lanes in the latest pass. For tests: the
        results do not show it.
    """

    def __cinit__(self, *_, **__):
        self.data.cells = NULL
        self.data.merged = self.data.dmerged = NULL

    def __init__(
        self, int isa, architecture, dtype, Py_ssize_t steps, Py_ssize_t batch, *, bint keep, bint want_dX=False,
        bint want_outputs=False, bint draws=False, Py_ssize_t segment=0, bint measure=False,
        list gaps=None,
    ):
        cdef StackData *s = &self.data
        cdef Py_ssize_t n
        self.dtype, options = dtype, architecture.options
        self.made_for, self.wants_outputs = (isa, architecture, dtype, steps, batch, keep), want_outputs
        s.table, s.layers, s.directions = table_at(isa), options.num_layers, architecture.directions
        s.count = s.layers * s.directions
        s.input_dim, s.hidden_dim, s.state_dim = architecture.input_dim, architecture.hidden_dim, architecture.state_dim
        s.gates, s.features = architecture.gates, architecture.features
        s.batch, s.steps = batch, steps
        s.segment = steps if not keep or segment == 0 else min(segment, steps)
        s.sums, s.go_backwards, s.keeps = options.bidirectional == "sum", options.go_backwards, keep
        s.draws = draws
        s.cells = <StackedCell *> calloc(s.count, sizeof(StackedCell))
        s.merged = <void **> calloc(s.layers, sizeof(void *))
        s.dmerged = <void **> calloc(s.layers, sizeof(void *))
        if s.cells == NULL or s.merged == NULL or s.dmerged == NULL:
            raise MemoryError()
        check_stack("a work array", architecture, steps, batch)
        s.parameter_count, offsets = architecture.cell_parameters, architecture.offsets
        for n in range(s.count):
            self.set_offsets(&s.cells[n], offsets[n], options)
            self.set_options(&s.cells[n], n, options)
        self.lay_out(options, dtype, want_dX, want_outputs)
        if not measure:
            self.gaps = gaps
            self.memory = aligned_empty((self.bytes,), np.dtype(np.uint8))
            self.arena = &self.memory[0]
            self.lay_out(options, dtype, want_dX, want_outputs)

    cdef int lay_out(self, options, dtype, bint want_dX, bint want_outputs) except -1:
        """Lay out all arrays in the arena; without one, find their size."""
        cdef StackData *s = &self.data
        cdef Chunk *chunk = &s.chunk
        cdef Py_ssize_t n, size = 0
        cdef void *scratch
        cdef bint all_slots = s.keeps and s.segment == s.steps
        self.bytes = 0
        chunk.first = <Py_ssize_t *> self.array(2 * s.batch + s.steps, np.dtype(np.intp))
        chunk.lengths, chunk.batch_sizes = chunk.first + s.batch, chunk.first + 2 * s.batch
        for n in range(s.count):
            self.allocate(&s.cells[n], dtype, options, want_dX or n >= s.directions)
            size = max(size, self.scratch_size(&s.cells[n], dtype.itemsize))
        scratch = self.array(size, dtype)  # one for all cells, because they run one after the other
        for n in range(s.count):
            s.cells[n].f.cell.scratch = scratch
        for n in range(s.layers):
            top = n == s.layers - 1
            if (not top or want_outputs) and (s.directions == 2 or not all_slots):
                if n < 2 or s.keeps:
                    s.merged[n] = self.array(s.steps * s.batch * s.features, dtype)
                else:  # two take turns: a layer reads what the one below it left
                    s.merged[n] = s.merged[n - 2]
            if s.keeps and (not top or want_outputs):
                s.dmerged[n] = self.array(s.steps * s.batch * s.features, dtype)
        return 0

    cdef Py_ssize_t scratch_size(self, const StackedCell *d, Py_ssize_t itemsize) noexcept:
        """The elements of scratch that a cell's passes need with the batch in the lanes."""
        cdef StackData *s = &self.data
        cdef const Cell *cell = &d.f.cell
        if not runs_in_lanes(d):
            return 0
        return lanes_scratch_size(s.table, itemsize, s.batch, cell.input_dim, s.hidden_dim, s.keeps)

    @property
    def by_lanes(self):
        cdef Py_ssize_t n
        return tuple([self.data.cells[n].f.cell.by_lanes for n in range(self.data.count)])

    def __dealloc__(self):
        free(self.data.cells)
        free(self.data.merged)
        free(self.data.dmerged)

    cdef int set_offsets(self, StackedCell *d, dict offsets, options) except -1:
        """Set where a cell's weights are in the flat vector; -1 for those that it does not have."""
        cdef Py_ssize_t H = self.data.hidden_dim, GH = self.data.gates * H
        d.W_offset, d.b_offset = offsets["W_i"], offsets.get("b_i", -1)
        d.gains_offset = offsets.get("gain_x", -1)
        d.terms_offset = offsets.get("p_i", d.gains_offset)
        d.W_r_offset, d.states_offset = offsets.get("W_r", -1), offsets.get("h_0", -1)
        d.w.term_count = (GH - H if options.peephole else 0) + (2 * GH + 2 * H if options.layer_norm else 0)
        return 0

    cdef int set_options(self, StackedCell *d, Py_ssize_t n, options) except -1:
        """Set the fields of a cell that follow from its options and its position in the stack."""
        cdef StackData *s = &self.data
        cdef Cell *cell = &d.f.cell
        cdef Py_ssize_t layer = n // s.directions, first_cell = layer * s.directions
        d.fused = not (
            options.peephole or options.layer_norm or options.coupled_gates or options.cell_clip is not None
            or s.state_dim < s.hidden_dim or options.gate_activation != "sigmoid" or options.cell_activation != "tanh"
            or max(options.zoneout) > 0 or (s.draws and options.recurrent_dropout > 0)
        )
        d.options.gates = s.gates
        d.options.gate_activation = _kernels.GATE_ACTIVATIONS[options.gate_activation]
        d.options.cell_activation = _kernels.CELL_ACTIVATIONS[options.cell_activation]
        d.options.clip = float("inf") if options.cell_clip is None else options.cell_clip
        if s.draws:
            cell.drop_x = make_drop(options.dropout if layer > 0 else 0, first_cell, INPUT_DROPOUT)
            d.drop_h = make_drop(options.recurrent_dropout, n, RECURRENT_DROPOUT)
            d.drop_W = make_drop(options.weight_dropout, n, WEIGHT_DROPOUT)
        cell.zone_h = make_drop(options.zoneout[0], n, ZONEOUT_H)
        cell.zone_C = make_drop(options.zoneout[1], n, ZONEOUT_C)
        cell.zoneout_h, d.options.zoneout = options.zoneout
        cell.table, cell.gates, cell.input_dim = s.table, s.gates, s.input_dim if layer == 0 else s.features
        cell.hidden_dim, cell.state_dim = s.hidden_dim, s.state_dim
        cell.options = NULL if d.fused else &d.options
        d.f.H_backwards = n % s.directions == 1
        cell.x_backwards = d.f.H_backwards != (s.go_backwards and layer == 0)
        return 0

    cdef int allocate(self, StackedCell *d, dtype, options, bint want_dX) except -1:
        """Lay out the arrays of a cell."""
        cdef StackData *s = &self.data
        cdef Cell *cell = &d.f.cell
        cdef Py_ssize_t itemsize = dtype.itemsize, B = s.batch, segment = s.segment, input_dim = cell.input_dim
        cdef Py_ssize_t V = lanes_of(s.table, itemsize)
        cdef Py_ssize_t H = s.hidden_dim, GH = s.gates * H, R = s.state_dim, rows, segments = ceil_div(s.steps, segment)
        cell.slots = segment + 1 if s.keeps else 2
        cell.ld = odd_lines(R + input_dim, itemsize)
        cell.slot = B * cell.ld
        cell.hx = cell.h = self.array(cell.slots * cell.slot, dtype)
        cell.h_slot, cell.ld_h = cell.slot, cell.ld
        if d.drop_h.threshold > 0:
            cell.h_slot, cell.ld_h = B * R, R
            cell.h = self.array(cell.slots * B * R, dtype)
            d.h_mask = self.array(B * R, dtype)
        cell.C_slots = segment + 1 if s.keeps else 1
        cell.C_slot = B * H if s.keeps else 0
        cell.C = self.array(cell.C_slots * B * H, dtype)
        cell.kept = B if s.keeps else 0
        rows = (segment if s.keeps else 1) * B
        if s.keeps or not d.fused:
            cell.gate_values = self.array(rows * GH, dtype)
        if R < H:
            cell.m = self.array(rows * H, dtype)
        if options.layer_norm:
            cell.norm_x, cell.norm_h = self.array(rows * GH, dtype), self.array(rows * GH, dtype)
            cell.deviations = <double *> self.array(2 * rows * 8 // itemsize, dtype)
        if s.draws and max(options.zoneout) > 0:
            d.zone = self.array(rows * (R + H), dtype)
        d.h_T = self.array(B * R, dtype)
        if segments > 1:
            d.saved_h, d.saved_C = self.array(segments * B * R, dtype), self.array(segments * B * H, dtype)

        if d.fused:
            d.packed = self.array(ceil_div(H, V) * (1 + input_dim + H) * TILE_VECTORS * V, dtype)
        else:
            d.panels_x = self.array(panels_size(input_dim, GH, V), dtype)
            d.panels_h = self.array(panels_size(R, GH, V), dtype)
        if R < H:
            d.panels_r = self.array(panels_size(H, R, V), dtype)
        if d.drop_W.threshold > 0:
            d.dropped_W = self.array(GH * (R + input_dim), dtype)
        d.f.packed, d.f.panels_x, d.f.panels_h, d.f.panels_r = d.packed, d.panels_x, d.panels_h, d.panels_r
        if s.keeps:
            self.allocate_backward(d, dtype, options, want_dX, V)
        return 0

    cdef int allocate_backward(self, StackedCell *d, dtype, options, bint want_dX, Py_ssize_t V) except -1:
        cdef StackData *s = &self.data
        cdef Backward *w = &d.w
        cdef Py_ssize_t itemsize = dtype.itemsize, B = s.batch, input_dim = d.f.cell.input_dim
        cdef Py_ssize_t H = s.hidden_dim, GH = s.gates * H, R = s.state_dim
        w.dz_rows = max(1, min(s.segment, <Py_ssize_t> OUTER_ROWS // B)) * B
        w.ld_dz = odd_lines(GH, itemsize)
        d.backward_h = self.array(panels_size(GH, R, V), dtype)
        w.panels_h = d.backward_h
        if want_dX:
            d.backward_x = self.array(panels_size(GH, input_dim, V), dtype)
        w.panels_x = d.backward_x
        w.dz = self.array(w.dz_rows * w.ld_dz, dtype)
        w.sums = self.array(panels_size(OUTER_ROWS, max(R + input_dim, H), V), dtype)
        w.dh, w.dC = self.array(B * R, dtype), self.array(B * H, dtype)
        w.product = self.array(B * max(R, input_dim), dtype)
        if d.fused:
            return 0
        w.c = self.array(B * H, dtype)
        if R < H:
            d.backward_r = self.array(panels_size(R, H, V), dtype)
            w.panels_r = d.backward_r
            w.ld_dr = whole_lines(R, itemsize)
            w.dr, w.dm = self.array(w.dz_rows * w.ld_dr, dtype), self.array(B * H, dtype)
        if options.layer_norm:
            w.dz_x, w.dz_h = self.array(w.dz_rows * w.ld_dz, dtype), self.array(w.dz_rows * w.ld_dz, dtype)
        if options.zoneout[0] > 0:
            w.direct = self.array(B * R, dtype)
        if d.terms_offset >= 0:
            w.ld_terms = whole_lines(w.term_count, itemsize)
            w.terms = self.array(w.dz_rows * w.ld_terms, dtype)
        return 0

    cdef void *array(self, Py_ssize_t size, dtype) except NULL:
        """An uninitialised array that starts on a cache line and can be read 4 vectors past its end."""
        cdef Py_ssize_t offset = self.bytes
        self.bytes += whole_lines(size * <Py_ssize_t> dtype.itemsize, 1) + TILE_VECTORS * CACHE_LINE
        if self.gaps is not None:
            self.gaps.append((offset + size * <Py_ssize_t> dtype.itemsize, self.bytes))
        return self.arena + offset if self.arena != NULL else <void *> self


cdef void take_chunk(
    Chunk *chunk, const Py_ssize_t *first, const Py_ssize_t *lengths, const Py_ssize_t *members, Py_ssize_t count,
    Py_ssize_t first_step, Py_ssize_t steps,
) noexcept nogil:
    """Set the chunk to up to `steps` steps, from `first_step` on, of those sequences of a batch that have not ended.

    first, lengths  of all sequences: the row of X at which each begins, and its steps
    members         (count) the batch's, the longest first
    """
    cdef Batch *batch = &chunk.batch
    cdef Py_ssize_t b = 0, n, length
    chunk.members, chunk.first_step = members, first_step
    chunk.rows = chunk.ended = 0
    while b < count:
        n = members[b]
        length = lengths[n] - first_step
        if length <= 0:
            break
        if length > steps:
            length = steps
            chunk.ended = b + 1
        chunk.first[b], chunk.lengths[b] = first[n] + first_step, length
        chunk.rows += length
        b += 1
    batch.size, batch.steps, batch.lengths, batch.batch_sizes = b, chunk.lengths[0], NULL, NULL
    if chunk.lengths[b - 1] < batch.steps:
        batch.lengths, batch.batch_sizes = chunk.lengths, chunk.batch_sizes
        count_live(b, chunk.lengths, chunk.batch_sizes)


cdef bint inputs_are_finite(const StackData *s, const Rows *x, const real *tag) noexcept nogil:
    """Whether the rows of X that the chunk reads are finite."""
    cdef const Chunk *chunk = &s.chunk
    cdef Py_ssize_t b
    for b in range(chunk.batch.size):
        if not are_finite(s.table, chunk.lengths[b] * x.width, <const real *> x.data + chunk.first[b] * x.width):
            return False
    return True


cdef void count_live(Py_ssize_t size, const Py_ssize_t *lengths, Py_ssize_t *batch_sizes) noexcept nogil:
    """batch_sizes[t]: how many sequences, the longest first, have more than t steps."""
    cdef Py_ssize_t t
    for t in range(lengths[0]):
        while lengths[size - 1] <= t:
            size -= 1
        batch_sizes[t] = size


cdef struct WeightDropout:
    StackedCell *d
    const Batch *batch
    const void *W
    void *to
    Py_ssize_t num_tasks


cdef void drop_weights_part(const WeightDropout *p, Py_ssize_t index, const real *tag) noexcept nogil:
    """Drop and scale the columns of h in some rows of W."""
    cdef const Cell *cell = &p.d.f.cell
    cdef Py_ssize_t R = cell.state_dim, K = R + cell.input_dim, rows = cell.gates * cell.hidden_dim, row
    cdef const real *W
    cdef real *to
    cdef uint32_t[3] counter
    for row in range(part_begin(rows, p.num_tasks, index), part_begin(rows, p.num_tasks, index + 1)):
        W, to = <const real *> p.W + row * K, <real *> p.to + row * K
        counter[0], counter[1], counter[2] = <uint32_t> row, 0, p.d.drop_W.stream
        dropout(
            cell.table, R, p.batch.masks.key, counter, p.d.drop_W.threshold, <real> p.d.drop_W.scale, W, to,
        )
        if W != to:
            memcpy(to + R, W + R, cell.input_dim * sizeof(real))


cdef int drop_weights(
    Region *region, StackedCell *d, const Batch *batch, const real *W, real *to,
) except -1 nogil:
    """to = W, its columns of h dropped and scaled; to may be W."""
    cdef WeightDropout p
    cdef double work = 4. * d.f.cell.gates * d.f.cell.hidden_dim * d.f.cell.state_dim
    p.d, p.batch, p.W, p.to = d, batch, W, to
    p.num_tasks = num_tasks(region, d.f.cell.gates * d.f.cell.hidden_dim, 8, 1, work)
    return parallel_for(region, <team_task> drop_weights_part[real], &p, p.num_tasks, work)


cdef int pack_layers(
    Region *region, StackData *s, const real *parameters, const Batch *batch, bint backward, bint want_dX,
) except -1 nogil:
    """Pack all weights for a forward pass, or for the backward pass that follows it with the same batch."""
    cdef Py_ssize_t H = s.hidden_dim, GH = s.gates * H, R = s.state_dim, input_dim, K, n
    cdef StackedCell *d
    cdef const real *W
    for n in range(s.count):
        d = &s.cells[n]
        input_dim = d.f.cell.input_dim
        K = R + input_dim
        W = parameters + d.W_offset
        if d.drop_W.threshold > 0:
            if not backward:
                drop_weights(region, d, batch, W, <real *> d.dropped_W)
            W = <const real *> d.dropped_W
        if backward:
            pack_panels(region, s.table, GH, R, W, K, 1, <real *> d.backward_h)
            if n >= s.directions or want_dX:
                pack_panels(region, s.table, GH, input_dim, W + R, K, 1, <real *> d.backward_x)
            if R < H:
                pack_panels(region, s.table, R, H, parameters + d.W_r_offset, H, 1, <real *> d.backward_r)
            continue
        if d.fused:
            pack_cell(
                region, s.table, input_dim, H, W, parameters + d.b_offset if d.b_offset >= 0 else NULL,
                <real *> d.packed,
            )
        else:
            pack_panels(region, s.table, input_dim, GH, W + R, 1, K, <real *> d.panels_x)
            pack_panels(region, s.table, R, GH, W, 1, K, <real *> d.panels_h)
        if R < H:
            pack_panels(region, s.table, H, R, parameters + d.W_r_offset, 1, H, <real *> d.panels_r)
    return 0


cdef Rows layer_outputs(const StackData *s, Py_ssize_t layer, const real *tag) noexcept nogil:
    """Return the outputs that a forward pass left of a layer: those of step t are the rows t B to t B + B."""
    cdef const Cell *cell = &s.cells[layer * s.directions].f.cell
    cdef Rows rows
    rows.first, rows.step_stride, rows.sequence_stride = NULL, s.batch, 1
    if s.merged[layer] != NULL:
        rows.data, rows.width = s.merged[layer], s.features
    else:
        rows.data, rows.width = <real *> cell.h + cell.h_slot, cell.ld_h
    return rows


cdef inline bint is_shared(const StackData *s, const Rows *rows) noexcept nogil:
    """Whether the outputs of a layer are the sum of two directions."""
    return s.directions == 2 and rows.width == s.state_dim


cdef inline Rows direction_part(const StackData *s, const Rows *rows, Py_ssize_t n, const real *tag) noexcept nogil:
    """Return one direction's part of a layer's outputs, or of their gradient."""
    cdef Rows part = rows[0]
    if rows.data != NULL and not is_shared(s, rows):
        part.data = <real *> part.data + n % s.directions * s.state_dim
    return part


cdef inline Py_ssize_t state_row(const Batch *batch, Py_ssize_t b) noexcept nogil:
    return batch.state_rows[b] if batch.state_rows != NULL else b


cdef void set_vectors(const StackData *s, StackedCell *d, const real *parameters) noexcept nogil:
    """Point to the weights that are not packed, in the vector of this pass."""
    cdef Py_ssize_t H = s.hidden_dim, GH = s.gates * H
    d.f.bias = parameters + d.b_offset if d.b_offset >= 0 else NULL
    if d.terms_offset >= 0:
        d.options.peepholes = parameters + d.terms_offset if d.terms_offset != d.gains_offset else NULL
    if d.gains_offset >= 0:
        d.f.gain_x, d.f.gain_h = parameters + d.gains_offset, parameters + d.gains_offset + GH
        d.options.gain_C = parameters + d.gains_offset + 2 * GH
        d.options.shift_C = parameters + d.gains_offset + 2 * GH + H


cdef void set_batch(
    StackData *s, StackedCell *d, const real *parameters, const Batch *batch, const Rows *x,
) noexcept nogil:
    """Set the fields of a cell that depend on the batch."""
    cdef Cell *cell = &d.f.cell
    cdef Py_ssize_t H = s.hidden_dim
    cdef const real *tag = parameters
    cell.batch, cell.steps, cell.lengths, cell.batch_sizes = batch.size, batch.steps, batch.lengths, batch.batch_sizes
    cell.masks, cell.x = batch.masks, x[0]
    cell.h_mask, cell.zone = d.h_mask, d.zone
    cell.by_lanes = 0
    if runs_in_lanes(d) and batch.lengths == NULL:
        cell.by_lanes = lanes_rows(s.table, batch.size, cell.input_dim, H, s.keeps, tag)
    set_vectors(s, d, parameters)


cdef void begin_states(
    StackData *s, Py_ssize_t n, const real *parameters, const Batch *batch, const States *initial,
) noexcept nogil:
    """Write the initial states to the first slots: those given, the learned ones, or zeros."""
    cdef StackedCell *d = &s.cells[n]
    cdef Cell *cell = &d.f.cell
    cdef Py_ssize_t R = s.state_dim, H = s.hidden_dim, b, row
    cdef const real *h_0 = parameters + d.states_offset if s.learned_h else NULL
    cdef const real *C_0 = parameters + d.states_offset + R if s.learned_C else NULL
    cdef real *h
    cdef uint32_t[3] counter
    cell.origin = 0
    if initial.C == NULL and C_0 == NULL:
        memset(cell.C, 0, batch.size * H * sizeof(real))
    for b in range(batch.size):
        h, row = <real *> cell.h + b * cell.ld_h, n * initial.rows + state_row(batch, b)
        if initial.h != NULL:
            h_0 = <const real *> initial.h + row * R
        if initial.C != NULL:
            C_0 = <const real *> initial.C + row * H
        if h_0 != NULL:
            memcpy(h, h_0, R * sizeof(real))
        else:
            memset(h, 0, R * sizeof(real))
        if C_0 != NULL:
            copy_states(cell, 0, b, <real *> C_0, True, parameters)
        if cell.h_mask != NULL:
            mask_counter(cell, &d.drop_h, b, -cell.masks.first_step, counter)
            mask(
                s.table, R, batch.masks.key, counter, d.drop_h.threshold, <real> 0, <real> d.drop_h.scale,
                <real *> d.h_mask + b * R,
            )
            mask_state(cell, b, parameters)


cdef void mask_state(const Cell *cell, Py_ssize_t b, const real *tag) noexcept nogil:
    """Write h of the first slot to hx, with its mask."""
    cdef Py_ssize_t R = cell.state_dim, j
    cdef const real *h = <const real *> cell.h + b * cell.ld_h
    cdef real *hx = <real *> cell.hx + b * cell.ld
    for j in range(R):
        hx[j] = h[j] * (<const real *> cell.h_mask)[b * R + j]


cdef void move_states(
    const StackedCell *d, Py_ssize_t from_slot, Py_ssize_t saved, bint save, const real *tag,
) noexcept nogil:
    """Save the states in a slot as the first ones of segment `saved`, or load those into the first slot."""
    cdef const Cell *cell = &d.f.cell
    cdef Py_ssize_t R = cell.state_dim, B = cell.kept, b
    cdef real *kept_h = <real *> d.saved_h + saved * B * R
    cdef real *kept_C = <real *> d.saved_C + saved * cell.C_slot
    cdef real *h
    if save:
        memcpy(kept_C, <const real *> cell.C + from_slot * cell.C_slot, cell.batch * cell.hidden_dim * sizeof(real))
        for b in range(cell.batch):
            h = <real *> cell.h + from_slot * cell.h_slot + b * cell.ld_h
            memcpy(kept_h + b * R, h, R * sizeof(real))
        return
    memcpy(cell.C, kept_C, cell.batch * cell.hidden_dim * sizeof(real))
    for b in range(cell.batch):
        memcpy(<real *> cell.h + b * cell.ld_h, kept_h + b * R, R * sizeof(real))
        if cell.h_mask != NULL:
            mask_state(cell, b, tag)


cdef void end_states(
    StackData *s, Py_ssize_t n, const Batch *batch, const States *last, const real *tag,
) noexcept nogil:
    """Store the last states of the sequences that end in the segment that has run."""
    cdef StackedCell *d = &s.cells[n]
    cdef Cell *cell = &d.f.cell
    cdef Py_ssize_t R = s.state_dim, H = s.hidden_dim, b, length, row
    cdef const real *h
    for b in range(batch.size):
        length = length_of(batch, b)
        if not cell.origin < length <= cell.stop:
            continue
        h = <const real *> cell.h + (length - cell.origin) % cell.slots * cell.h_slot + b * cell.ld_h
        memcpy(<real *> d.h_T + b * R, h, R * sizeof(real))
        if last.h != NULL:
            row = n * last.rows + state_row(batch, b)
            memcpy(<real *> last.h + row * R, h, R * sizeof(real))
            copy_states(cell, length, b, <real *> last.C + row * H, False, tag)


cdef int run_segments(
    Region *region, StackData *s, Py_ssize_t n, const Batch *batch, const States *last, const real *tag,
) except -1 nogil:
    """Run a cell forward through all its steps, a segment at a time, and save the states at the beginning of each."""
    cdef StackedCell *d = &s.cells[n]
    cdef Cell *cell = &d.f.cell
    cdef Py_ssize_t segment = s.segment, origin = 0
    while origin < batch.steps:
        cell.origin, cell.stop = origin, min(origin + segment, batch.steps)
        if d.saved_h != NULL:
            if origin > 0:
                move_states(d, segment, origin // segment, True, tag)
                move_states(d, 0, origin // segment, False, tag)
            else:
                move_states(d, 0, 0, True, tag)
        run_forward(region, &d.f, tag)
        store_outputs(&d.f, cell.stop - 1, 0, batch.size, tag)
        end_states(s, n, batch, last, tag)
        origin += segment
    return 0


cdef int layers_forward(
    Region *region, StackData *s, const real *parameters, const Batch *batch, const Rows *x, const States *initial,
    const Rows *H, const States *last,
) except -1 nogil:
    """Run all layers, with the weights as pack_layers left them.

    x        the inputs, rows of I
    initial  the initial states; NULL: learned ones, or zeros
    H        out: the top layer's outputs, rows of F, or of D R for each direction's own; data NULL: in the stack
    last     out: every cell's last states; NULL: not stored, h_T has the last h anyway
    """
    cdef Rows inputs = x[0], outputs
    cdef Py_ssize_t layer, n
    cdef StackedCell *d
    s.learned_h = s.cells[0].states_offset >= 0 and initial.h == NULL
    s.learned_C = s.cells[0].states_offset >= 0 and initial.C == NULL
    for layer in range(s.layers):
        outputs.data = NULL
        if layer == s.layers - 1 and H.data != NULL:
            outputs = H[0]
        elif s.merged[layer] != NULL:
            outputs = layer_outputs(s, layer, parameters)
        for n in range(layer * s.directions, (layer + 1) * s.directions):
            d = &s.cells[n]
            set_batch(s, d, parameters, batch, &inputs)
            d.f.H, d.f.H_adds = direction_part(s, &outputs, n, parameters), n % 2 == 1 and is_shared(s, &outputs)
            begin_states(s, n, parameters, batch, initial)
            run_segments(region, s, n, batch, last, parameters)
        if layer < s.layers - 1:
            inputs = layer_outputs(s, layer, parameters)
    return 0


cdef struct InputDropout:
    StackData *s
    const Batch *batch
    const Cell *cell
    void *rows


cdef void drop_inputs_part(const InputDropout *p, Py_ssize_t t, const real *tag) noexcept nogil:
    """Apply the masks of one step's inputs to their gradients."""
    cdef const Cell *cell = p.cell
    cdef Py_ssize_t F = p.s.features, b
    cdef real *row
    cdef uint32_t[3] counter
    for b in range(batch_size_at(p.batch.batch_sizes, p.batch.size, t)):
        row = <real *> p.rows + (t * p.s.batch + b) * F
        mask_counter(cell, &cell.drop_x, b, t, counter)
        dropout(
            cell.table, F, p.batch.masks.key, counter, cell.drop_x.threshold, <real> cell.drop_x.scale, row, row,
        )


cdef void begin_gradients(
    StackData *s, Py_ssize_t n, const Batch *batch, const real *dfinal, const States *dlast, const real *tag,
) noexcept nogil:
    """Set dh and dC after the last steps: the gradients of the last states, in the top layer also from the head."""
    cdef Backward *w = &s.cells[n].w
    cdef Py_ssize_t R = s.state_dim, H = s.hidden_dim, b, j, row
    cdef Py_ssize_t offset = 0 if s.sums else n % s.directions * R
    cdef real *dh = <real *> w.dh
    cdef real *dC = <real *> w.dC
    memset(dh, 0, batch.size * R * sizeof(real))
    memset(dC, 0, batch.size * H * sizeof(real))
    for b in range(batch.size):
        row = n * dlast.rows + state_row(batch, b)
        if dlast.h != NULL:
            memcpy(dh + b * R, <const real *> dlast.h + row * R, R * sizeof(real))
        if dlast.C != NULL:
            memcpy(dC + b * H, <const real *> dlast.C + row * H, H * sizeof(real))
        if dfinal != NULL and n >= s.count - s.directions:
            for j in range(R):
                dh[b * R + j] += dfinal[b * s.features + offset + j]


cdef int end_gradients(
    Region *region, StackData *s, Py_ssize_t n, const Batch *batch, const States *dinitial, real *gradient,
) except -1 nogil:
    """Store the gradients of the initial states, given or learned."""
    cdef StackedCell *d = &s.cells[n]
    cdef Py_ssize_t R = s.state_dim, H = s.hidden_dim, b, row
    cdef real *dh = <real *> d.w.dh
    cdef real *dC = <real *> d.w.dC
    cdef real *learned = gradient + d.states_offset
    if dinitial.h != NULL:
        for b in range(batch.size):
            row = n * dinitial.rows + state_row(batch, b)
            memcpy(<real *> dinitial.h + row * R, dh + b * R, R * sizeof(real))
            memcpy(<real *> dinitial.C + row * H, dC + b * H, H * sizeof(real))
    if d.states_offset < 0:
        return 0
    memset(learned, 0, (R + H) * sizeof(real))
    if s.learned_h:
        column_sums(region, s.table, batch.size, R, <const real *> dh, R, False, learned)
    if s.learned_C:
        column_sums(region, s.table, batch.size, H, <const real *> dC, H, False, learned + R)
    return 0


cdef int run_segments_backward(Region *region, StackData *s, StackedCell *d, const real *tag) except -1 nogil:
    """Run a cell backward through all its steps, computing the activations again that were not kept."""
    cdef Cell *cell = &d.f.cell
    cdef Py_ssize_t segment = s.segment, origin = (cell.steps - 1) // segment * segment
    d.f.H.data = NULL
    while origin >= 0:
        if origin != cell.origin:
            cell.origin, cell.stop = origin, min(origin + segment, cell.steps)
            move_states(d, 0, origin // segment, False, tag)
            run_forward(region, &d.f, tag)
        d.w.cell = cell[0]
        run_backward(region, &d.w, tag)
        origin -= segment
    return 0


cdef int layers_backward(
    Region *region, StackData *s, const real *parameters, const Batch *batch, const Rows *dH,
    const real *dfinal, const States *dlast, const States *dinitial, const Rows *dX, real *gradient,
) except -1 nogil:
    """Backpropagate through all layers, after layers_forward of the same batch and pack_layers.

    dH        gradients of the top layer's outputs; data NULL: none
    dfinal    (B, F) gradients of the last h that the head reads; NULL: none
    dlast     gradients of the last states; NULL: none
    dinitial  out: gradients of the initial states; NULL: not wanted
    dX        out: gradients of the inputs; data NULL: not wanted
    gradient  out: the cells' part of the flat gradient
    """
    cdef Rows dinputs, doutputs = dH[0]
    cdef Py_ssize_t layer = s.layers, n, k
    cdef StackedCell *d
    cdef InputDropout dropped
    while layer > 0:
        layer -= 1
        dinputs = dX[0]
        if layer > 0:
            dinputs.first = NULL
            dinputs.data, dinputs.width = s.dmerged[layer - 1], s.features
            dinputs.step_stride, dinputs.sequence_stride = s.batch, 1
        for k in range(s.directions):
            n = layer * s.directions + k
            d = &s.cells[n]
            d.w.dH, d.w.dH_backwards = direction_part(s, &doutputs, n, parameters), k == 1
            d.w.dX, d.w.dX_adds = dinputs, k == 1
            d.w.want_dh0 = dinitial.h != NULL or s.learned_h or s.learned_C
            d.w.dW = gradient + d.W_offset
            d.w.db = gradient + d.b_offset if d.b_offset >= 0 else NULL
            d.w.dterms = gradient + d.terms_offset if d.terms_offset >= 0 else NULL
            d.w.dW_r = gradient + d.W_r_offset if d.W_r_offset >= 0 else NULL
            set_vectors(s, d, parameters)
            d.w.gain_x, d.w.gain_h = d.f.gain_x, d.f.gain_h
            begin_gradients(s, n, batch, dfinal, dlast, parameters)
            run_segments_backward(region, s, d, parameters)
            if d.drop_W.threshold > 0:
                drop_weights(region, d, batch, gradient + d.W_offset, gradient + d.W_offset)
            end_gradients(region, s, n, batch, dinitial, gradient)
        d = &s.cells[layer * s.directions]
        if layer > 0 and d.f.cell.drop_x.threshold > 0:
            dropped.s, dropped.batch, dropped.cell, dropped.rows = s, batch, &d.f.cell, s.dmerged[layer - 1]
            parallel_for(
                region, <team_task> drop_inputs_part[real], &dropped, batch.steps,
                4. * batch.steps * batch.size * s.features,
            )
        doutputs = dinputs
    return 0


cdef double stack_work(const StackData *s, const Batch *batch, bint backward) noexcept nogil:
    """Return the multiply-adds of all layers that threads can share."""
    cdef double work = shared_work(batch.steps, batch.size, s.input_dim, s.hidden_dim, backward)
    return s.directions * (
        work + (s.layers - 1) * shared_work(batch.steps, batch.size, s.features, s.hidden_dim, backward)
    )


cdef const Py_ssize_t *indices_of(array) except NULL:
    """Where an array of indices that the caller holds begins."""
    if array.dtype != np.intp:
        raise TypeError
    return <const Py_ssize_t *> first_byte(array)


cdef States states_of(h, C):
    """h and C (cells, rows, ...); None for none."""
    cdef States states = no_states()
    if h is not None:
        states.h, states.rows = first_byte(h), h.shape[1]
    if C is not None:
        states.C, states.rows = first_byte(C), C.shape[1]
    return states


cdef Rows rows_of(array, const Py_ssize_t *first, Py_ssize_t stride=0):
    """The rows (n, width) of an array in which sequences begin at `first`, or every `stride` rows; no data for None."""
    cdef Rows rows = no_rows()
    rows.first, rows.step_stride, rows.sequence_stride = first, 1, stride
    if array is not None:
        rows.data, rows.width = first_byte(array), array.shape[1]
    return rows


cdef Rows rows_like(array, const StackData *s, sequences):
    """`rows_of` an array with one row for each row of X; where sequences have one length, with a constant stride.

    Backward passes with the batch in the lanes need the latter.
    """
    if sequences.same_length:
        return rows_of(array, NULL, len(sequences.rows) // len(sequences))
    return rows_of(array, s.chunk.first)


cdef int run_all_forward(
    int threads, StackData *s, const real *parameters, const Rows *X, const States *initial, const Rows *H,
    const States *last,
) except -1 nogil:
    cdef Region region
    begin_region(&region, threads)
    try:
        pack_layers(&region, s, parameters, &s.chunk.batch, False, False)
        layers_forward(&region, s, parameters, &s.chunk.batch, X, initial, H, last)
    finally:
        end_region(&region)
    return 0


def forward(
    LayerStack stack, int threads, sequences, members, seed, parameters, h0, C0, H, h_T, C_T,
):
    """Pack the weights and run `layers_forward` on all sequences; keep what `backward` needs.

    sequences    `Sequences` of the stack's dtype
    members      ndarray of int: the sequences, the longest first
    seed         of the masks, if the stack draws any
    parameters   the flat vector
    h0 (cells, N, R), C0 (cells, N, H)  each may be None
    H (rows, F)  the outputs, out
    h_T, C_T     the last states, out; may be h0 and C0
    """
    cdef StackData *s = &stack.data
    cdef Batch *batch = &s.chunk.batch
    cdef Py_ssize_t itemsize = stack.dtype.itemsize
    cdef void *weights = first_byte(parameters)
    stack.members = members
    take_chunk(
        &s.chunk, indices_of(sequences.first), indices_of(sequences.lengths), indices_of(members), len(members), 0,
        s.steps,
    )
    batch.state_rows = batch.masks.mask_rows = s.chunk.members
    philox_key(seed, 0, batch.masks.key)
    cdef Rows x = rows_like(sequences.rows, s, sequences), outputs = rows_like(H, s, sequences)
    cdef States initial = states_of(h0, C0), last = states_of(h_T, C_T)
    threads = recruit(threads, stack_work(s, batch, False))
    with nogil:
        if itemsize == sizeof(float):
            run_all_forward[float](threads, s, <const float *> weights, &x, &initial, &outputs, &last)
        else:
            run_all_forward[double](threads, s, <const double *> weights, &x, &initial, &outputs, &last)


cdef int run_all_backward(
    int threads, StackData *s, const real *parameters, const Rows *dH, const States *dlast, const States *dinitial,
    const Rows *dX, real *gradient,
) except -1 nogil:
    cdef Region region
    begin_region(&region, threads)
    try:
        pack_layers(&region, s, parameters, &s.chunk.batch, True, True)
        layers_backward(
            &region, s, parameters, &s.chunk.batch, dH, <const real *> NULL, dlast, dinitial, dX, gradient,
        )
    finally:
        end_region(&region)
    return 0


def backward(LayerStack stack, int threads, sequences, parameters, dH, dh_T, dC_T, dh0, dC0, dX, gradient):
    """Pack the weights and run `layers_backward` after `forward`.

    sequences              those of `forward`
    dH, dh_T, dC_T         as H, h_T and C_T of `forward`; each may be None
    dh0, dC0, dX, gradient  out; the gradient is added to
    """
    cdef StackData *s = &stack.data
    cdef Py_ssize_t itemsize = stack.dtype.itemsize
    cdef void *weights = first_byte(parameters)
    cdef void *to = first_byte(gradient)
    cdef Rows doutputs = rows_like(dH, s, sequences), dinputs = rows_like(dX, s, sequences)
    cdef States dlast = states_of(dh_T, dC_T), dinitial = states_of(dh0, dC0)
    threads = recruit(threads, stack_work(s, &s.chunk.batch, True))
    with nogil:
        if itemsize == sizeof(float):
            run_all_backward[float](
                threads, s, <const float *> weights, &doutputs, &dlast, &dinitial, &dinputs, <float *> to,
            )
        else:
            run_all_backward[double](
                threads, s, <const double *> weights, &doutputs, &dlast, &dinitial, &dinputs, <double *> to,
            )
