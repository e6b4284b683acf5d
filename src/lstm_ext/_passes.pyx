"""The passes of one direction of one LSTM layer on arrays that the caller owns: forward, and backward through time.

Design
------
- Time runs outside, blocks of units and tiles of rows inside; a tile is one call of a leaf kernel (kernels.h).
- ``hx`` (slots, B, ld) holds the rows [h_{t-1} (R) | x_t (I)] of step t, the operand of W. Step t writes h_t to
  the next slot, so t = 0 is no special case. T + 1 slots keep everything for the backward pass; two slots alternate.
- Sequences of different lengths are sorted, the longest first: step t runs the first ``batch_sizes[t]`` of them. A
  direction that runs backwards reads each sequence's rows from its end; only the functions that load and store rows
  depend on it.
- The plain cell is fused in one kernel. A cell with options runs two products, z = b + W_x x + W_h h, then one kernel
  for each row, and a third product for the projection.
- Where few units would leave lanes empty, groups of V sequences run with one sequence in each lane (``lanes_rows``).
- Sums keep one order: bias, x, h; weight gradients t from the last to the first, b ascending. A sum that is computed in
  blocks continues from its stored partial result, so neither block sizes nor segments whose activations are computed
  again (``origin``, ``stop``) change a bit.
- Nothing is allocated here and no Python object is touched; the caller owns every array (_stack.pyx).

Notation: B batch, T steps, I input_dim, H hidden_dim, R state_dim, G gates, in the order i, f, g, o.
"""
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from lstm_ext._kernels cimport (
    LANES_BYTES, TILE_VECTORS, blend, cell_backward, cell_forward, cell_step, cell_step_backward, dropout, kernels,
    lanes, lanes_backward, lanes_forward, lanes_scratch, mask, normalize, normalize_backward, real, tile_rows,
)
from lstm_ext._products cimport (
    MAX_TASK_WORK, StepRows, apply_linear, batch_size_at, ceil_div, column_sums, multiply, num_tasks, part_begin,
    prefetch_share, weight_gradient, whole_lines,
)
from lstm_ext._threads cimport Region, parallel_for, team_task

cdef enum:
    MAX_LANES = 16  # of any instruction set: AVX-512 in float32
    MAX_LANES_TASKS = 64  # tasks of a loop with the batch in the lanes; each has scratch of its own
    CELL_WORK = 100  # the activations of a unit, or their derivatives, in multiply-adds
    MIN_SHARED_STEP = 100000  # multiply-adds of a step: below, synchronising at each step costs more than it saves
    MIN_SHARED_ROWS = 8  # rows of a batch: below, threads can share the units of its steps only
    MIN_ROWS_PER_THREAD = 4  # fewer would leave most of a tile empty
    CACHED_WEIGHTS = 512 * 1024  # bytes: half of a second-level cache of 1 MB, which also holds a thread's rows


cdef inline Py_ssize_t live_rows(const Cell *cell, Py_ssize_t t) noexcept nogil:
    return batch_size_at(cell.batch_sizes, cell.batch, t)


cdef inline Py_ssize_t time_of(const Cell *cell, Py_ssize_t b, Py_ssize_t t, bint backwards) noexcept nogil:
    """The row of a sequence that step t reads or writes, counted from the sequence's first."""
    if not backwards:
        return t
    return (cell.lengths[b] if cell.lengths != NULL else cell.steps) - 1 - t


cdef inline bint is_uniform(const Cell *cell, const Rows *rows, bint backwards) noexcept nogil:
    """Whether the rows of one step have a constant stride."""
    return rows.first == NULL and not (backwards and cell.lengths != NULL)


cdef inline Py_ssize_t slot_of(const Cell *cell, Py_ssize_t t, Py_ssize_t slots) noexcept nogil:
    """(t - origin) % slots, without a division where every step has a slot."""
    cdef Py_ssize_t slot = t - cell.origin
    return slot if slot < slots else slot % slots


cdef inline real *hx_at(const Cell *cell, Py_ssize_t t, Py_ssize_t b, const real *tag) noexcept nogil:
    return <real *> cell.hx + slot_of(cell, t, cell.slots) * cell.slot + b * cell.ld


cdef inline real *h_at(const Cell *cell, Py_ssize_t t, Py_ssize_t b, const real *tag) noexcept nogil:
    """h_{t-1} without its mask."""
    return <real *> cell.h + slot_of(cell, t, cell.slots) * cell.h_slot + b * cell.ld_h


cdef inline real *C_at(const Cell *cell, Py_ssize_t t, Py_ssize_t b, const real *tag) noexcept nogil:
    """C_{t-1}."""
    return <real *> cell.C + slot_of(cell, t, cell.C_slots) * cell.C_slot + b * cell.hidden_dim


cdef inline Py_ssize_t kept_row(const Cell *cell, Py_ssize_t t, Py_ssize_t b) noexcept nogil:
    """The row of the arrays that keep something of every step."""
    return (t - cell.origin) * cell.kept + b


cdef inline real *gates_at(const Cell *cell, Py_ssize_t t, Py_ssize_t b, const real *tag) noexcept nogil:
    if cell.gate_values == NULL:
        return NULL
    return <real *> cell.gate_values + kept_row(cell, t, b) * cell.gates * cell.hidden_dim


cdef void mask_counter(
    const Cell *cell, const Drop *drop, Py_ssize_t b, Py_ssize_t t, uint32_t *counter,
) noexcept nogil:
    """Set the counter of a row's masks: n, t, stream."""
    counter[0] = <uint32_t> (cell.masks.mask_rows[b] if cell.masks.mask_rows != NULL else b)
    counter[1], counter[2] = <uint32_t> (cell.masks.first_step + t), drop.stream


cdef inline Py_ssize_t block_count(Py_ssize_t rows) noexcept nogil:
    """The number of blocks of units in a tile: a single row takes two, which hides the latency of multiply-adds."""
    return 2 if rows == 1 else 1


cdef inline Py_ssize_t lanes_tasks(Py_ssize_t batch) noexcept nogil:
    """The maximum number of tasks of a loop that runs with the batch in the lanes."""
    return min(ceil_div(batch, MAX_LANES), <Py_ssize_t> MAX_LANES_TASKS)


cdef inline Py_ssize_t task_scratch(
    const kernels *table, Py_ssize_t input_dim, Py_ssize_t hidden_dim, const real *tag,
) noexcept nogil:
    """The elements of one task's scratch: whole cache lines, so that no two tasks write to one line."""
    return whole_lines(lanes_scratch(input_dim, hidden_dim) * lanes(table, tag), sizeof(real))


cdef inline real *scratch_of(const Cell *cell, Py_ssize_t task, const real *tag) noexcept nogil:
    return <real *> cell.scratch + task * task_scratch(cell.table, cell.input_dim, cell.hidden_dim, tag)


cdef inline Py_ssize_t scratch_of_tasks(
    const kernels *table, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim, bint keep, const real *tag,
) noexcept nogil:
    if lanes_rows(table, batch, input_dim, hidden_dim, keep, tag) == 0:
        return 0
    return lanes_tasks(batch) * task_scratch(table, input_dim, hidden_dim, tag)


cdef Py_ssize_t lanes_scratch_size(
    const kernels *table, Py_ssize_t itemsize, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim, bint keep,
) noexcept nogil:
    """The elements of all tasks' scratch, for batches of up to `batch` sequences; 0 if none runs in the lanes."""
    if itemsize == sizeof(float):
        return scratch_of_tasks(table, batch, input_dim, hidden_dim, keep, <const float *> NULL)
    return scratch_of_tasks(table, batch, input_dim, hidden_dim, keep, <const double *> NULL)


cdef inline Py_ssize_t row_parts(
    const Region *region, Py_ssize_t batch, Py_ssize_t by_lanes, Py_ssize_t columns, Py_ssize_t hidden_dim,
    double step_work, Py_ssize_t steps, const real *tag,
) noexcept nogil:
    """The number of parts of the batch that can run `steps` steps without synchronising; 0: divide the units instead.

    Each thread then reads all weights (4 H, columns). Batches in the lanes are always divided by rows, and so are those
    whose steps are too small to be shared.
    """
    cdef Py_ssize_t needed = 1 + <Py_ssize_t> (steps * step_work / MAX_TASK_WORK), threads = region.threads
    if by_lanes > 0:
        return min(max(threads, needed), lanes_tasks(batch))
    if threads > 1 and batch < MIN_ROWS_PER_THREAD * threads and step_work < MIN_SHARED_STEP:
        threads = 1
    if threads < needed or (threads > 1 and batch < MIN_ROWS_PER_THREAD * threads):
        return 0
    return threads if threads == 1 or 4. * hidden_dim * columns * sizeof(real) <= CACHED_WEIGHTS else 0


cdef void cell_tiles(
    const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t rows, Py_ssize_t j, Py_ssize_t j_end, const real *tag,
) noexcept nogil:
    """Run step t of `rows` sequences from b on, for the blocks of units [j, j_end)."""
    cdef const Cell *cell = &f.cell
    cdef Py_ssize_t V = lanes(cell.table, tag), H = cell.hidden_dim, count = ceil_div(rows, tile_rows(cell.table, tag))
    cdef Py_ssize_t blocks = block_count(rows), units = blocks * V, i, r, u
    cdef Py_ssize_t size = blocks * (1 + cell.input_dim + H) * TILE_VECTORS * V
    cdef const real *hx = hx_at(cell, t, b, tag)
    cdef const real *C_prev = C_at(cell, t, b, tag)
    cdef real *C = C_at(cell, t + 1, b, tag)
    cdef real *h = hx_at(cell, t + 1, b, tag)
    cdef real *gates = gates_at(cell, t, b, tag)
    cdef const real *packed
    for j in range(j, j_end):
        u = j * units
        packed = <const real *> f.packed + j * size
        for i in range(count):
            r = part_begin(rows, count, i)
            cell_forward(
                cell.table, part_begin(rows, count, i + 1) - r, min(units, H - u), cell.input_dim, H, hx + r * cell.ld,
                cell.ld, packed, C_prev + r * H + u, C + r * H + u, h + r * cell.ld + u,
                gates + 4 * r * H + u if gates != NULL else NULL, prefetch_share(packed, size, i, cell.input_dim + H),
            )


cdef void load_inputs(const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t b_end, const real *tag) noexcept nogil:
    """Write x_t of some sequences next to h_{t-1}, with its dropout."""
    cdef const Cell *cell = &f.cell
    cdef real *x = hx_at(cell, t, 0, tag) + cell.state_dim
    cdef Py_ssize_t time
    cdef uint32_t[3] counter
    for b in range(b, min(b_end, live_rows(cell, t))):
        time = time_of(cell, b, t, cell.x_backwards)
        if cell.drop_x.threshold == 0:
            memcpy(x + b * cell.ld, row_at(&cell.x, b, time, tag), cell.input_dim * sizeof(real))
        else:
            mask_counter(cell, &cell.drop_x, b, time, counter)
            dropout(
                cell.table, cell.input_dim, cell.masks.key, counter, cell.drop_x.threshold, <real> cell.drop_x.scale,
                row_at(&cell.x, b, time, tag), x + b * cell.ld,
            )


cdef int apply_head(
    Region *region, const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t b_end, real *Y, Py_ssize_t ld,
) except -1 nogil:
    """Compute the outputs of step t for some sequences; Y (B, O) has the row stride ld."""
    return apply_linear(
        region, f.cell.table, b_end - b, f.output_dim, f.cell.state_dim, hx_at(&f.cell, t + 1, b, Y), f.cell.ld,
        <const real *> f.packed_y, <const real *> f.b_y, Y + b * ld, ld,
    )


cdef void store_outputs(const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t b_end, const real *tag) noexcept nogil:
    """Store the outputs of step t for some sequences, where the caller wants them."""
    cdef const Cell *cell = &f.cell
    cdef Py_ssize_t R = cell.state_dim, end = min(b_end, live_rows(cell, t)), u
    cdef const real *h
    cdef real *to
    if f.Y != NULL:
        apply_head(NULL, f, t, b, b_end, <real *> f.Y + t * f.output_dim, cell.steps * f.output_dim)
    if f.H.data == NULL:
        return
    for b in range(b, end):
        h = h_at(cell, t + 1, b, tag)
        to = row_at(&f.H, b, time_of(cell, b, t, f.H_backwards), tag)
        if not f.H_adds:
            memcpy(to, h, R * sizeof(real))
            continue
        for u in range(R):
            to[u] += h[u]


cdef Py_ssize_t lanes_rows(
    const kernels *table, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim, bint keep, const real *tag,
) noexcept nogil:
    """The number of sequences that run with the batch in the lanes, the first of a batch: whole groups of V, or all.

    A group of n sequences costs H vectors of work, and an eighth more for a backward pass, which transposes dz; with
    the units in the lanes it costs n ceil(H / V). It reads all weights at every step, so they must fit into a part of
    the second-level cache.
    """
    cdef Py_ssize_t V = lanes(table, tag), blocks = ceil_div(hidden_dim, V), rest = batch % V
    cdef Py_ssize_t bytes = blocks * (1 + input_dim + hidden_dim) * TILE_VECTORS * V * <Py_ssize_t> sizeof(real)
    cdef Py_ssize_t cost = hidden_dim + hidden_dim // 8 if keep else hidden_dim
    if bytes > LANES_BYTES or cost > V * blocks:
        return 0
    return batch if cost <= rest * blocks else batch - rest


cdef inline Py_ssize_t row_part_begin(
    Py_ssize_t batch, Py_ssize_t by_lanes, Py_ssize_t V, Py_ssize_t count, Py_ssize_t part,
) noexcept nogil:
    """The row at which a part begins; no group of lanes is divided."""
    cdef Py_ssize_t b = part_begin(batch, count, part)
    return min(by_lanes, ceil_div(b, V) * V) if b < by_lanes else b


cdef void forward_lanes(
    const Forward *f, Py_ssize_t task, Py_ssize_t b, Py_ssize_t b_end, const real *tag,
) noexcept nogil:
    """Run the loop's steps of the sequences [b, b_end), whole groups, with lanes_forward.

    For each group of n <= V sequences from b on, C[t, b:b + n] is an array (H, n), and gates[t, b:b + n] an array
    (H, 4, n). All steps run in one call, unless the caller wants the output of each and two slots of hx would lose it.
    """
    cdef const Cell *cell = &f.cell
    cdef Py_ssize_t V = lanes(cell.table, tag), t, n, count, s
    cdef Py_ssize_t x_step = cell.x.step_stride * cell.x.width
    cdef bint all_slots = cell.slots > cell.stop - cell.origin
    cdef Py_ssize_t max_steps = 1 if not all_slots and (f.H.data != NULL or f.Y != NULL) else f.end - f.begin
    cdef Py_ssize_t[MAX_LANES] first
    cdef real *hx
    while b < b_end:
        n = min(V, b_end - b)
        t = f.begin
        while t < f.end:
            count = min(max_steps, f.end - t)
            for s in range(n):
                first[s] = (
                    row_at(&cell.x, b + s, time_of(cell, b + s, t, cell.x_backwards), tag) - <real *> cell.x.data
                )
            hx = hx_at(cell, t, b, tag)
            lanes_forward(
                cell.table, count, n, cell.input_dim, cell.hidden_dim, <const real *> cell.x.data, first,
                -x_step if cell.x_backwards else x_step, <const real *> f.packed, <const real *> hx,
                hx_at(cell, t + count, b, tag), cell.ld, hx if all_slots else NULL, cell.slot, C_at(cell, t, b, tag),
                cell.C_slot if cell.C_slots > 1 else 0, gates_at(cell, t, b, tag), scratch_of(cell, task, tag),
            )
            for s in range(t, min(t + count, cell.stop - 1)):
                store_outputs(f, s, b, b + n, tag)
            t += count
        b += n


cdef void option_row(const Forward *f, Py_ssize_t t, Py_ssize_t b, const real *tag) noexcept nogil:
    """Compute the gates, C_t, and h_t or the row that is projected to it, from the products with x and h."""
    cdef const Cell *cell = &f.cell
    cdef Py_ssize_t H = cell.hidden_dim, GH = cell.gates * H, R = cell.state_dim, row = kept_row(cell, t, b), j
    cdef real *z = gates_at(cell, t, b, tag)
    cdef real *zone = NULL
    cdef real *x
    cdef real *h
    cdef uint32_t[3] counter
    if cell.norm_x != NULL:
        x, h = <real *> cell.norm_x + row * GH, <real *> cell.norm_h + row * GH
        cell.deviations[2 * row] = normalize(cell.table, GH, x, x)
        cell.deviations[2 * row + 1] = normalize(cell.table, GH, h, h)
        for j in range(GH):
            z[j] = (<const real *> f.gain_x)[j] * x[j] + (<const real *> f.gain_h)[j] * h[j]
            if f.bias != NULL:
                z[j] += (<const real *> f.bias)[j]
    if cell.zone != NULL:
        zone = <real *> cell.zone + row * (R + H)
        mask_counter(cell, &cell.zone_h, b, t, counter)
        mask(cell.table, R, cell.masks.key, counter, cell.zone_h.threshold, <real> 1, <real> 0, zone)
        zone += R
        mask_counter(cell, &cell.zone_C, b, t, counter)
        mask(cell.table, H, cell.masks.key, counter, cell.zone_C.threshold, <real> 1, <real> 0, zone)
    cell_step(
        cell.table, cell.options, H, z, C_at(cell, t, b, tag), zone, C_at(cell, t + 1, b, tag),
        <real *> cell.m + row * H if cell.m != NULL else h_at(cell, t + 1, b, tag),
    )


cdef void finish_row(const Forward *f, Py_ssize_t t, Py_ssize_t b, const real *tag) noexcept nogil:
    """Apply zoneout to h_t, and its mask for the next step."""
    cdef const Cell *cell = &f.cell
    cdef Py_ssize_t R = cell.state_dim, j
    cdef real *h = h_at(cell, t + 1, b, tag)
    cdef real *masked = hx_at(cell, t + 1, b, tag)
    cdef const real *zone = NULL
    if cell.zone != NULL:
        zone = <real *> cell.zone + kept_row(cell, t, b) * (R + cell.hidden_dim)
    if zone != NULL or cell.zoneout_h > 0:
        blend(cell.table, R, zone, <real> cell.zoneout_h, h_at(cell, t, b, tag), h, h)
    if cell.h_mask != NULL:
        for j in range(R):
            masked[j] = h[j] * (<const real *> cell.h_mask)[b * R + j]


cdef void option_rows_part(const Forward *f, Py_ssize_t index, const real *tag) noexcept nogil:
    cdef Py_ssize_t n = live_rows(&f.cell, f.begin), b
    for b in range(part_begin(n, f.row_tasks, index), part_begin(n, f.row_tasks, index + 1)):
        option_row(f, f.begin, b, tag)


cdef void finish_rows_part(const Forward *f, Py_ssize_t index, const real *tag) noexcept nogil:
    cdef Py_ssize_t n = live_rows(&f.cell, f.begin), b
    for b in range(part_begin(n, f.row_tasks, index), part_begin(n, f.row_tasks, index + 1)):
        finish_row(f, f.begin, b, tag)


cdef int option_products(
    Region *region, const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t rows, const real *tag,
) except -1 nogil:
    """z = b + W_x x + W_h h of some sequences; with layer norm, the two products separately and without b."""
    cdef const Cell *cell = &f.cell
    cdef Py_ssize_t GH = cell.gates * cell.hidden_dim, row = kept_row(cell, t, b)
    cdef const real *hx = hx_at(cell, t, b, tag)
    cdef real *z_x = gates_at(cell, t, b, tag)
    cdef real *z_h = z_x
    cdef const real *start = <const real *> f.bias
    if cell.norm_x != NULL:
        z_x, z_h, start = <real *> cell.norm_x + row * GH, <real *> cell.norm_h + row * GH, NULL
    multiply(
        region, cell.table, rows, GH, cell.input_dim, hx + cell.state_dim, cell.ld, <const real *> f.panels_x, start, 0,
        z_x, GH,
    )
    return multiply(
        region, cell.table, rows, GH, cell.state_dim, hx, cell.ld, <const real *> f.panels_h,
        <const real *> z_h if cell.norm_x == NULL else NULL, GH, z_h, GH,
    )


cdef int project(
    Region *region, const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t rows, const real *tag,
) except -1 nogil:
    """h_t = W_r m of some sequences, if there is a projection."""
    cdef const Cell *cell = &f.cell
    if cell.m == NULL:
        return 0
    return multiply(
        region, cell.table, rows, cell.state_dim, cell.hidden_dim,
        <const real *> cell.m + kept_row(cell, t, b) * cell.hidden_dim, cell.hidden_dim, <const real *> f.panels_r,
        <const real *> NULL, 0, h_at(cell, t + 1, b, tag), cell.ld_h,
    )


cdef void forward_part(const Forward *f, Py_ssize_t index, const real *tag) noexcept nogil:
    """Run a part of the rows and of the units through the loop's steps.

    It also stores the outputs of the step before, and loads the inputs of the next one, for an equal part of the rows.
    Where the units are divided, the loop has one step, because the next one needs h_t of all parts.
    """
    cdef const Cell *cell = &f.cell
    cdef Py_ssize_t V = lanes(cell.table, tag), part = index % f.row_tasks, unit_part = index // f.row_tasks, t, row
    cdef Py_ssize_t b = row_part_begin(cell.batch, cell.by_lanes, V, f.row_tasks, part)
    cdef Py_ssize_t b_end = row_part_begin(cell.batch, cell.by_lanes, V, f.row_tasks, part + 1)
    cdef Py_ssize_t own = b, own_end = b_end, blocks, rows
    if f.unit_tasks > 1:
        own = part_begin(cell.batch, f.row_tasks * f.unit_tasks, index)
        own_end = part_begin(cell.batch, f.row_tasks * f.unit_tasks, index + 1)
    elif b < cell.by_lanes:
        forward_lanes(f, index, b, min(b_end, cell.by_lanes), tag)
        b = own = min(b_end, cell.by_lanes)
    if b == b_end:
        return
    for t in range(f.begin, f.end):
        if t > cell.origin:
            store_outputs(f, t - 1, own, own_end, tag)
        if t + 1 < cell.stop:
            load_inputs(f, t + 1, own, own_end, tag)
        rows = min(b_end, live_rows(cell, t)) - b
        if rows <= 0:
            continue
        if cell.options == NULL:
            blocks = ceil_div(cell.hidden_dim, block_count(rows) * V)
            cell_tiles(
                f, t, b, rows, part_begin(blocks, f.unit_tasks, unit_part),
                part_begin(blocks, f.unit_tasks, unit_part + 1), tag,
            )
            continue
        option_products(NULL, f, t, b, rows, tag)
        for row in range(b, b + rows):
            option_row(f, t, row, tag)
        project(NULL, f, t, b, rows, tag)
        for row in range(b, b + rows):
            finish_row(f, t, row, tag)


cdef double forward_work(
    Py_ssize_t steps, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim,
) noexcept nogil:
    """The multiply-adds of the forward pass of a batch."""
    return <double> steps * batch * hidden_dim * (4 * (input_dim + hidden_dim) + CELL_WORK)


cdef double shared_work(
    Py_ssize_t steps, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim, bint backward,
) noexcept nogil:
    """The multiply-adds that threads can share: all but small steps of few rows, which depend on one another."""
    cdef double work = forward_work(steps, batch, input_dim, hidden_dim), gradient = 0
    if backward:
        gradient = 4. * steps * batch * hidden_dim * (input_dim + hidden_dim)
        work *= 2
    return gradient if batch < MIN_SHARED_ROWS and work < steps * <double> MIN_SHARED_STEP else gradient + work


cdef int run_forward(Region *region, Forward *f, const real *tag) except -1 nogil:
    """Run the steps from the cell's origin to its stop; the outputs of the last one are not stored.

    The first slots hold h_{origin-1}, masked if there is a mask, and C_{origin-1}.
    """
    cdef Cell *cell = &f.cell
    cdef Py_ssize_t chunk = 1, K = cell.input_dim + cell.state_dim, blocks
    cdef double step_work = forward_work(1, cell.batch, cell.input_dim, cell.hidden_dim)
    f.unit_tasks, f.row_tasks = 1, row_parts(region, cell.batch, cell.by_lanes, K, cell.hidden_dim, step_work, 1, tag)
    load_inputs(f, cell.origin, cell.by_lanes, cell.batch, tag)
    if f.row_tasks == 0 and cell.options != NULL:
        return run_option_steps(region, f, step_work, tag)
    if f.row_tasks > 0:
        chunk = max(1, <Py_ssize_t> (f.row_tasks * MAX_TASK_WORK / step_work))
    else:
        blocks = ceil_div(cell.hidden_dim, block_count(cell.batch) * lanes(cell.table, tag))
        f.unit_tasks, f.row_tasks = blocks, num_tasks(region, cell.batch, tile_rows(cell.table, tag), blocks, step_work)
    f.end = cell.origin
    while f.end < cell.stop:
        f.begin, f.end = f.end, min(f.end + chunk, cell.stop)
        parallel_for(
            region, <team_task> forward_part[real], f, f.row_tasks * f.unit_tasks, (f.end - f.begin) * step_work,
        )
    return 0


cdef int run_option_steps(Region *region, Forward *f, double step_work, const real *tag) except -1 nogil:
    """Run a cell with options step by step; threads share each product and the rows."""
    cdef Cell *cell = &f.cell
    cdef Py_ssize_t t, rows
    cdef double row_work = cell.batch * cell.hidden_dim * CELL_WORK
    for t in range(cell.origin, cell.stop):
        rows, f.begin = live_rows(cell, t), t
        f.row_tasks = num_tasks(region, rows, 1, 1, row_work)
        if t > cell.origin:
            store_outputs(f, t - 1, 0, cell.batch, tag)
        if t + 1 < cell.stop:
            load_inputs(f, t + 1, 0, cell.batch, tag)
        option_products(region, f, t, 0, rows, tag)
        parallel_for(region, <team_task> option_rows_part[real], f, f.row_tasks, row_work)
        project(region, f, t, 0, rows, tag)
        parallel_for(region, <team_task> finish_rows_part[real], f, f.row_tasks, rows * cell.state_dim)
    return 0


cdef void gates_backward(const Backward *w, Py_ssize_t b, Py_ssize_t b_end, const real *tag) noexcept nogil:
    """Compute dz of some sequences in the loop's last step."""
    cdef const Cell *cell = &w.cell
    cdef Py_ssize_t H = cell.hidden_dim, t = w.end - 1
    for b in range(b, min(b_end, live_rows(cell, t))):
        if cell.options == NULL:
            cell_backward(
                cell.table, H, gates_at(cell, t, b, tag), C_at(cell, t, b, tag), C_at(cell, t + 1, b, tag),
                <const real *> w.dh + b * H, <real *> w.dC + b * H, <real *> w.dz + (w.row + b) * w.ld_dz,
            )
        else:
            option_row_backward(w, t, b, tag)


cdef inline void products(Py_ssize_t n, const real *x, const real *y, real *to) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(n):
        to[j] = x[j] * y[j]


cdef void option_row_backward(const Backward *w, Py_ssize_t t, Py_ssize_t b, const real *tag) noexcept nogil:
    """Compute dz, dC and the row's terms of the gradients of peepholes, gains and shift from dL/dm."""
    cdef const Cell *cell = &w.cell
    cdef Py_ssize_t H = cell.hidden_dim, G = cell.gates, GH = G * H, R = cell.state_dim, row = kept_row(cell, t, b), j
    cdef real *dz = <real *> w.dz + (w.row + b) * w.ld_dz
    cdef real *terms = <real *> w.terms + (w.row + b) * w.ld_terms if w.terms != NULL else NULL
    cdef real *c = <real *> w.c + b * H
    cdef const real *C_prev = C_at(cell, t, b, tag)
    cdef const real *zone = NULL
    cdef const real *norm_x = NULL
    cdef const real *norm_h = NULL
    cdef real *dn = terms + w.term_count - H if cell.norm_x != NULL else NULL
    if cell.zone != NULL:
        zone = <real *> cell.zone + row * (R + H) + R
    cell_step_backward(
        cell.table, cell.options, H, gates_at(cell, t, b, tag), C_prev, zone,
        <const real *> (w.dm if w.dm != NULL else w.dh) + b * H, <real *> w.dC + b * H, dz, c, dn,
    )
    if cell.options.peepholes != NULL:  # p_i and p_f see C_{t-1}, p_o the new c
        for j in range(G - 2):
            products(H, dz + j * H, C_prev, terms + j * H)
        products(H, dz + (G - 1) * H, c, terms + (G - 2) * H)
        terms += (G - 1) * H
    if cell.norm_x == NULL:
        return
    norm_x, norm_h = <const real *> cell.norm_x + row * GH, <const real *> cell.norm_h + row * GH
    products(GH, dz, norm_x, terms)
    products(GH, dz, norm_h, terms + GH)
    terms += 2 * GH
    normalize(cell.table, H, c, terms)
    products(H, terms, dn, terms)
    normalize_backward(
        cell.table, GH, norm_x, cell.deviations[2 * row], <const real *> w.gain_x, dz,
        <real *> w.dz_x + (w.row + b) * w.ld_dz,
    )
    normalize_backward(
        cell.table, GH, norm_h, cell.deviations[2 * row + 1], <const real *> w.gain_h, dz,
        <real *> w.dz_h + (w.row + b) * w.ld_dz,
    )


cdef int output_backward(
    Region *region, const Backward *w, Py_ssize_t b, Py_ssize_t b_end, const real *tag,
) except -1 nogil:
    """Compute dL/dm from dL/dh_t of some sequences in the loop's last step: zoneout and projection."""
    cdef const Cell *cell = &w.cell
    cdef Py_ssize_t R = cell.state_dim, H = cell.hidden_dim, t = w.end - 1, end = min(b_end, live_rows(cell, t)), row, j
    cdef const real *zone = NULL
    cdef real *dh
    cdef real *direct
    cdef real kept
    if w.direct != NULL:
        for row in range(b, end):
            dh, direct = <real *> w.dh + row * R, <real *> w.direct + row * R
            if cell.zone != NULL:
                zone = <real *> cell.zone + kept_row(cell, t, row) * (R + H)
            for j in range(R):
                kept = zone[j] if zone != NULL else <real> cell.zoneout_h
                direct[j] = kept * dh[j]
                dh[j] = (1 - kept) * dh[j]
    if cell.m == NULL or b >= end:
        return 0
    for row in range(b, end):
        memcpy(<real *> w.dr + (w.row + row) * w.ld_dr, <real *> w.dh + row * R, R * sizeof(real))
    return multiply(
        region, cell.table, end - b, H, R, <const real *> w.dh + b * R, R, <const real *> w.panels_r,
        <const real *> NULL, 0, <real *> w.dm + b * H, H,
    )


cdef void gates_backward_part(const Backward *w, Py_ssize_t index, const real *tag) noexcept nogil:
    cdef Py_ssize_t batch = w.cell.batch
    gates_backward(w, part_begin(batch, w.row_tasks, index), part_begin(batch, w.row_tasks, index + 1), tag)


cdef int state_backward(
    Region *region, const Backward *w, Py_ssize_t b, Py_ssize_t b_end, const real *tag,
) except -1 nogil:
    """Compute dh of the step before the loop's last from dz of some sequences."""
    cdef const Cell *cell = &w.cell
    cdef Py_ssize_t R = cell.state_dim, t = w.end - 1, row, j, ld_start = R, rows = min(b_end, live_rows(cell, t)) - b
    cdef real *dh = <real *> w.dh + b * R
    cdef real *to = dh
    cdef const real *start = NULL
    cdef const real *given
    cdef bint outside = w.dH.data != NULL and t > 0
    if rows <= 0 or (t == 0 and not w.want_dh0):
        return 0
    if outside and w.direct == NULL and cell.h_mask == NULL and is_uniform(cell, &w.dH, w.dH_backwards):
        start = row_at(&w.dH, b, time_of(cell, b, t - 1, w.dH_backwards), tag)
        ld_start = w.dH.sequence_stride * w.dH.width
    elif outside or w.direct != NULL:
        start = dh
        for row in range(rows):
            if w.direct != NULL:
                memcpy(dh + row * R, <const real *> w.direct + (b + row) * R, R * sizeof(real))
            if not outside:
                continue
            given = row_at(&w.dH, b + row, time_of(cell, b + row, t - 1, w.dH_backwards), tag)
            for j in range(R):
                dh[row * R + j] = dh[row * R + j] + given[j] if w.direct != NULL else given[j]
    if cell.h_mask != NULL:
        to = <real *> w.product + b * max(R, cell.input_dim)
    multiply(
        region, cell.table, rows, R, cell.gates * cell.hidden_dim,
        <const real *> (w.dz_h if w.dz_h != NULL else w.dz) + (w.row + b) * w.ld_dz, w.ld_dz,
        <const real *> w.panels_h, start if cell.h_mask == NULL else NULL, ld_start, to, R,
    )
    if cell.h_mask != NULL:
        for j in range(rows * R):
            to[j] *= (<const real *> cell.h_mask)[b * R + j]
            dh[j] = dh[j] + to[j] if start != NULL else to[j]
    return 0


cdef int input_backward(
    Region *region, const Backward *w, Py_ssize_t b, Py_ssize_t b_end, const real *tag,
) except -1 nogil:
    """Compute dX of the loop's last step from dz of some sequences, if the caller wants it."""
    cdef const Cell *cell = &w.cell
    cdef Py_ssize_t input_dim = cell.input_dim, t = w.end - 1, rows = min(b_end, live_rows(cell, t)) - b
    cdef Py_ssize_t ld = input_dim, row, j
    cdef real *to
    cdef real *dx
    if w.dX.data == NULL or rows <= 0:
        return 0
    cdef bint uniform = is_uniform(cell, &w.dX, cell.x_backwards)
    if uniform:
        to, ld = row_at(&w.dX, b, time_of(cell, b, t, cell.x_backwards), tag), w.dX.sequence_stride * w.dX.width
    else:
        to = <real *> w.product + b * max(cell.state_dim, input_dim)
    multiply(
        region, cell.table, rows, input_dim, cell.gates * cell.hidden_dim,
        <const real *> (w.dz_x if w.dz_x != NULL else w.dz) + (w.row + b) * w.ld_dz, w.ld_dz,
        <const real *> w.panels_x, <const real *> to if uniform and w.dX_adds else NULL, ld, to, ld,
    )
    if uniform:
        return 0
    for row in range(rows):
        dx = row_at(&w.dX, b + row, time_of(cell, b + row, t, cell.x_backwards), tag)
        for j in range(input_dim):
            dx[j] = dx[j] + to[row * input_dim + j] if w.dX_adds else to[row * input_dim + j]
    return 0


cdef void backward_lanes(
    const Backward *w, Py_ssize_t task, Py_ssize_t b, Py_ssize_t b_end, const real *tag,
) noexcept nogil:
    """Run the loop's steps, except for dX, of the sequences [b, b_end), whole groups that forward_lanes ran.

    Between two loops, dh[b:b + n] and dC[b:b + n] of a group are arrays (H, n). The rows of dH have a constant stride.
    """
    cdef const Cell *cell = &w.cell
    cdef Py_ssize_t V = lanes(cell.table, tag), H = cell.hidden_dim, n, dH_step = w.dH.step_stride * w.dH.width
    cdef const real *dH = NULL
    while b < b_end:
        n = min(V, b_end - b)
        if w.dH.data != NULL:
            dH = row_at(&w.dH, b, time_of(cell, b, w.begin, w.dH_backwards), tag)
        lanes_backward(
            cell.table, w.end - w.begin, n, H, gates_at(cell, w.begin, b, tag), C_at(cell, w.begin, b, tag),
            cell.C_slot, <const real *> w.panels_h, dH, w.dH.sequence_stride * w.dH.width,
            -dH_step if w.dH_backwards else dH_step, w.begin == 0, w.end == cell.steps, <real *> w.dh + b * H,
            <real *> w.dC + b * H, <real *> w.dz + b * w.ld_dz, w.ld_dz, cell.batch * w.ld_dz,
            scratch_of(cell, task, tag),
        )
        b += n


cdef void backward_part(const Backward *w, Py_ssize_t index, const real *tag) noexcept nogil:
    """Run a part of the rows through all of the loop's steps."""
    cdef Backward step = w[0]
    cdef const Cell *cell = &w.cell
    cdef Py_ssize_t V = lanes(cell.table, tag), first = row_part_begin(cell.batch, cell.by_lanes, V, w.row_tasks, index)
    cdef Py_ssize_t b_end = row_part_begin(cell.batch, cell.by_lanes, V, w.row_tasks, index + 1), b = first
    cdef bint has_outputs = w.direct != NULL or cell.m != NULL, want_dX = w.dX.data != NULL
    if b < cell.by_lanes:
        b = min(b_end, cell.by_lanes)
        backward_lanes(w, index, first, b, tag)
    while step.end > w.begin and (b < b_end or want_dX):
        if b < b_end:
            if has_outputs:
                output_backward(NULL, &step, b, b_end, tag)
            gates_backward(&step, b, b_end, tag)
            state_backward(NULL, &step, b, b_end, tag)
        if want_dX:
            input_backward(NULL, &step, first, b_end, tag)
        step.end -= 1
        step.row += live_rows(cell, step.end)


cdef int run_steps_backward(Region *region, Backward *w, const real *tag) except -1 nogil:
    """Compute dz, dh, dC and dX of the steps [begin, end); dz begins at row 0."""
    cdef const Cell *cell = &w.cell
    cdef double gates_work = cell.batch * cell.hidden_dim * CELL_WORK
    cdef double step_work = 4. * cell.batch * cell.hidden_dim * cell.state_dim + gates_work
    cdef Py_ssize_t steps = w.end - w.begin
    w.row = 0
    w.row_tasks = row_parts(
        region, cell.batch, cell.by_lanes, cell.state_dim, cell.hidden_dim, step_work, steps, tag,
    )
    if w.row_tasks > 0:
        return parallel_for(region, <team_task> backward_part[real], w, w.row_tasks, steps * step_work)
    while w.end > w.begin:
        w.row_tasks = num_tasks(region, cell.batch, 1, 1, gates_work)
        output_backward(region, w, 0, cell.batch, tag)
        parallel_for(region, <team_task> gates_backward_part[real], w, w.row_tasks, gates_work)
        state_backward(region, w, 0, cell.batch, tag)
        input_backward(region, w, 0, cell.batch, tag)
        w.end -= 1
        w.row += live_rows(cell, w.end)
    return 0


cdef int weight_gradients(
    Region *region, const Backward *w, Py_ssize_t n, Py_ssize_t t, bint accumulate, const real *tag,
) except -1 nogil:
    """Add the gradients of all weights over n rows from step t on."""
    cdef const Cell *cell = &w.cell
    cdef Py_ssize_t GH = cell.gates * cell.hidden_dim, R = cell.state_dim, K = R + cell.input_dim
    cdef real *sums = <real *> w.sums
    cdef StepRows x
    x.data, x.ld, x.slot = cell.hx, cell.ld, cell.slot
    x.origin, x.batch, x.batch_sizes = cell.origin, cell.batch, cell.batch_sizes
    if w.dz_h == NULL:
        weight_gradient(
            region, cell.table, n, GH, <const real *> w.dz, w.ld_dz, K, &x, t, accumulate, <real *> w.dW, K,
            <real *> w.db, sums,
        )
    else:
        weight_gradient(
            region, cell.table, n, GH, <const real *> w.dz_h, w.ld_dz, R, &x, t, accumulate, <real *> w.dW, K,
            <real *> NULL, sums,
        )
        x.data = <const real *> cell.hx + R
        weight_gradient(
            region, cell.table, n, GH, <const real *> w.dz_x, w.ld_dz, cell.input_dim, &x, t, accumulate,
            <real *> w.dW + R, K, <real *> NULL, sums,
        )
        if w.db != NULL:
            column_sums(region, cell.table, n, GH, <const real *> w.dz, w.ld_dz, accumulate, <real *> w.db)
    if w.dW_r != NULL:
        x.data, x.ld, x.slot = cell.m, cell.hidden_dim, cell.kept * cell.hidden_dim
        weight_gradient(
            region, cell.table, n, R, <const real *> w.dr, w.ld_dr, cell.hidden_dim, &x, t, accumulate,
            <real *> w.dW_r, cell.hidden_dim, <real *> NULL, sums,
        )
    if w.terms != NULL:
        column_sums(
            region, cell.table, n, w.term_count, <const real *> w.terms, w.ld_terms, accumulate, <real *> w.dterms,
        )
    return 0


cdef int run_backward(Region *region, Backward *w, const real *tag) except -1 nogil:
    """Backpropagate from the cell's stop to its origin, with the activations that run_forward left.

    The last segment runs first and begins the sums of the gradients; the others continue them.
    """
    cdef const Cell *cell = &w.cell
    cdef Py_ssize_t last = cell.stop, R = cell.state_dim, n, b, j
    cdef real *dh = <real *> w.dh
    cdef const real *given
    if w.dH.data != NULL and last == cell.steps:
        for b in range(cell.batch):
            n = cell.lengths[b] if cell.lengths != NULL else cell.steps
            given = row_at(&w.dH, b, time_of(cell, b, n - 1, w.dH_backwards), tag)
            for j in range(R):
                dh[b * R + j] += given[j]
    while last > cell.origin:
        w.begin = w.end = last
        n = 0
        while w.begin > cell.origin and (n == 0 or n + live_rows(cell, w.begin - 1) <= w.dz_rows):
            w.begin -= 1
            n += live_rows(cell, w.begin)
        last = w.begin
        b = w.end
        run_steps_backward(region, w, tag)
        weight_gradients(region, w, n, b - 1, b < cell.steps, tag)
    return 0


cdef void copy_states(
    const Cell *cell, Py_ssize_t t, Py_ssize_t b, real *state, bint load, const real *tag,
) noexcept nogil:
    """Copy a row (H) to C_{t-1} of sequence b, or from it unless `load`; groups are laid out as in forward_lanes."""
    cdef Py_ssize_t V = lanes(cell.table, tag), group, u, stride = 1
    cdef real *kept = C_at(cell, t, b, tag)
    if b < cell.by_lanes:
        group = b - b % V
        stride = min(V, cell.by_lanes - group)
        kept = C_at(cell, t, group, tag) + b % V
    for u in range(cell.hidden_dim):
        if load:
            kept[u * stride] = state[u]
        else:
            state[u] = kept[u * stride]
