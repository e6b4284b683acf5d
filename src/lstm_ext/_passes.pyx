"""The passes of one LSTM layer on arrays that the caller owns: forward, and backward through time.

Design
------
- Time runs outside, blocks of units and tiles of rows inside; a tile is one call of a leaf kernel (kernels.h).
- ``hx`` (slots, B, ld) holds the rows [h_{t-1} (H) | x_t (I)] of step t: the very operand of W. Step t writes h_t to
  the next slot, so t = 0 is no special case. T + 1 slots keep everything for the backward pass; two slots alternate.
- Where few units would leave lanes empty, groups of V sequences run with one sequence in each lane (``lanes_rows``).
- Sums keep the contract's order: bias, x, h; weight gradients t from the last to the first, b ascending. A sum that is
  cut goes on from its stored partial result, so no block size changes a bit.
- Nothing is allocated here and no Python object is touched; the caller owns every array (workspace.py).

Notation: B batch, T steps, I input_dim, H hidden_dim, gates in the order i, f, g, o.
"""
from libc.string cimport memcpy

from lstm_ext._kernels cimport (
    LANES_BYTES, SUM_BLOCK, TILE_VECTORS, cell_backward, cell_forward, kernels, lanes, lanes_backward, lanes_forward,
    real, table_at, tile_rows,
)
from lstm_ext._products cimport (
    LONGEST_TASK, OUTER_ROWS, PACK_WORK, cut, multiply, pack_cell, pack_panels, panels_size, parts, share_ahead, tiles,
    weight_gradient,
)
from lstm_ext._threads cimport Call, begin, end, recruit, share, team_task

cdef enum:
    MOST_LANES = 16

# What a unit's activations and their derivatives are worth in multiply-adds.
cdef double CELL_WORK = 100

# The least work of a step that threads meet for.
cdef double LEAST_STEP = 1e5

# Weights of so many bytes stay in the second-level cache beside a thread's rows.
cdef double CACHED_WEIGHTS = 512 * 1024


cdef inline Py_ssize_t block_count(Py_ssize_t rows) noexcept nogil:
    """How many blocks of units a tile takes: one row alone leaves multiply-adds waiting for one another."""
    return 2 if rows == 1 else 1


cdef inline Py_ssize_t rows_apart(
    const Call *call, Py_ssize_t batch, Py_ssize_t by_lanes, Py_ssize_t columns, Py_ssize_t hidden_dim,
    double step_work, Py_ssize_t steps, const real *tag,
) noexcept nogil:
    """Into how many parts to cut the batch so that each goes through at least so many steps by itself; 0 if the units
    should be cut instead.

    Threads then need not meet at every step, but each reads all weights (4H, columns). Those that run with the batch
    in the lanes always do so, and so does a batch whose steps are too small to be shared.
    """
    cdef Py_ssize_t least = 1 + <Py_ssize_t> (steps * step_work / LONGEST_TASK), threads = call.threads
    if by_lanes > 0:
        return min(max(threads, least), tiles(batch, MOST_LANES))
    if threads > 1 and batch < 4 * threads and step_work < LEAST_STEP:
        threads = 1
    if threads < least or (threads > 1 and batch < 4 * threads):
        return 0
    return threads if threads == 1 or 4. * hidden_dim * columns * sizeof(real) <= CACHED_WEIGHTS else 0


cdef void cell_tiles(
    const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t rows, Py_ssize_t j, Py_ssize_t j_end, const real *tag,
) noexcept nogil:
    """Step t of `rows` sequences from b on, blocks of units from j on."""
    cdef Py_ssize_t V = lanes(f.table, tag), H = f.hidden_dim, count = tiles(rows, tile_rows(f.table, tag)), i, r, u
    cdef Py_ssize_t blocks = block_count(rows), units = blocks * V
    cdef Py_ssize_t size = blocks * (1 + f.input_dim + H) * TILE_VECTORS * V
    cdef const real *hx = <const real *> f.hx + t % f.slots * f.slot + b * f.ld
    cdef const real *C_prev = <const real *> f.C + t % f.C_slots * f.C_slot + b * H
    cdef real *C = <real *> f.C + (t + 1) % f.C_slots * f.C_slot + b * H
    cdef real *h = <real *> f.hx + (t + 1) % f.slots * f.slot + b * f.ld
    cdef real *gates = <real *> f.gates + 4 * (t * f.C_slot + b * H) if f.gates != NULL else NULL
    cdef const real *packed
    for j in range(j, j_end):
        u = j * units
        packed = <const real *> f.packed + j * size
        for i in range(count):
            r = cut(rows, count, i)
            cell_forward(
                f.table, cut(rows, count, i + 1) - r, min(units, H - u), f.input_dim, H, hx + r * f.ld, f.ld, packed,
                C_prev + r * H + u, C + r * H + u, h + r * f.ld + u, gates + 4 * r * H + u if gates != NULL else NULL,
                share_ahead(packed, size, i, f.input_dim + H),
            )


cdef void fetch(const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t b_end, const real *tag) noexcept nogil:
    """Put x_t of some sequences beside h_{t-1}."""
    cdef real *x = <real *> f.hx + t % f.slots * f.slot + f.hidden_dim
    cdef Py_ssize_t row
    for b in range(b, b_end):
        row = t + (f.first[b] if f.first != NULL else b * f.steps)
        memcpy(x + b * f.ld, <const real *> f.rows + row * f.input_dim, f.input_dim * sizeof(real))


cdef int emit_outputs(
    Call *call, const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t b_end, real *Y, Py_ssize_t ld,
) except -1 nogil:
    """The outputs of step t for some sequences; Y (B, O) rows ld apart."""
    return multiply(
        call, f.table, b_end - b, f.output_dim, f.hidden_dim,
        <const real *> f.hx + (t + 1) % f.slots * f.slot + b * f.ld, f.ld, <const real *> f.packed_y,
        <const real *> f.b_y, 0, Y + b * ld, ld,
    )


cdef void emit(const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t b_end, const real *tag) noexcept nogil:
    """Write what is kept of step t for some sequences."""
    cdef const real *h = <const real *> f.hx + (t + 1) % f.slots * f.slot
    cdef Py_ssize_t H = f.hidden_dim
    if f.Y != NULL:
        emit_outputs(NULL, f, t, b, b_end, <real *> f.Y + t * f.output_dim, f.steps * f.output_dim)
    if f.H != NULL:
        for b in range(b, b_end):
            memcpy(<real *> f.H + (b * f.H_steps + t) * H, h + b * f.ld, H * sizeof(real))


cdef Py_ssize_t lanes_rows(
    const kernels *table, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim, bint keep, const real *tag,
) noexcept nogil:
    """How many sequences, the first of a batch, run with the batch in the lanes: whole groups of V, or all.

    A group of n sequences costs H vectors of work, and an eighth more if its gates are kept for a backward pass, which
    turns dz into rows; with the units in the lanes it costs n ceil(H / V). It reads all weights again at each step, so
    they must fit into a part of the second-level cache.
    """
    cdef Py_ssize_t V = lanes(table, tag), blocks = tiles(hidden_dim, V), rest = batch % V
    cdef Py_ssize_t bytes = blocks * (1 + input_dim + hidden_dim) * TILE_VECTORS * V * <Py_ssize_t> sizeof(real)
    cdef Py_ssize_t cost = hidden_dim + hidden_dim // 8 if keep else hidden_dim
    if bytes > LANES_BYTES or cost > V * blocks:
        return 0
    return batch if cost <= rest * blocks else batch - rest


cdef inline Py_ssize_t row_cut(
    Py_ssize_t batch, Py_ssize_t by_lanes, Py_ssize_t V, Py_ssize_t count, Py_ssize_t part,
) noexcept nogil:
    """Where a part of the rows begins if no group of lanes is cut."""
    cdef Py_ssize_t b = cut(batch, count, part)
    return min(by_lanes, tiles(b, V) * V) if b < by_lanes else b


cdef void forward_lanes(const Forward *f, Py_ssize_t b, Py_ssize_t b_end, const real *tag) noexcept nogil:
    """The loop's steps of sequences from b on, whole groups, by lanes_forward.

    As in `sequence_forward`, but for each group of n <= V sequences, from b on, C[t, b:b + n] is an array (H, n), and
    gates[t, b:b + n] an array (H, 4, n). The steps run in one call, unless something is kept of each that two slots of
    hx would lose.
    """
    cdef Py_ssize_t V = lanes(f.table, tag), H = f.hidden_dim, t, n, count, s
    cdef bint all_slots = f.slots > f.steps
    cdef Py_ssize_t most = 1 if not all_slots and (f.H != NULL or f.Y != NULL) else f.end - f.begin
    cdef Py_ssize_t[MOST_LANES] first
    cdef real *now
    cdef real *C
    while b < b_end:
        n = min(V, b_end - b)
        for s in range(n):
            first[s] = f.first[b + s] if f.first != NULL else (b + s) * f.steps
        t = f.begin
        while t < f.end:
            count = min(most, f.end - t)
            now = <real *> f.hx + t % f.slots * f.slot + b * f.ld
            C = <real *> f.C + t % f.C_slots * f.C_slot + b * H
            lanes_forward(
                f.table, count, n, f.input_dim, H, <const real *> f.rows + t * f.input_dim, first,
                f.input_dim, <const real *> f.packed, <const real *> now,
                <real *> f.hx + (t + count) % f.slots * f.slot + b * f.ld, f.ld,
                now if all_slots else NULL, f.slot, C, f.C_slot if f.C_slots > 1 else 0,
                <real *> f.gates + 4 * (t * f.C_slot + b * H) if f.gates != NULL else NULL,
            )
            for s in range(t, min(t + count, f.steps - 1)):
                emit(f, s, b, b + n, tag)
            t += count
        b += n


cdef void forward_part(const Forward *f, Py_ssize_t index, const real *tag) noexcept nogil:
    """A part of the rows and of the units, for the loop's steps.

    It also does for an equal share of the rows what a step leaves and what the next one finds. Where the units are
    cut, there is but one step: h_t is there when all parts are done.
    """
    cdef Py_ssize_t V = lanes(f.table, tag), part = index % f.row_parts, unit_part = index // f.row_parts, t
    cdef Py_ssize_t b = row_cut(f.batch, f.by_lanes, V, f.row_parts, part)
    cdef Py_ssize_t b_end = row_cut(f.batch, f.by_lanes, V, f.row_parts, part + 1)
    cdef Py_ssize_t own = b, own_end = b_end, blocks
    if f.unit_parts > 1:
        own = cut(f.batch, f.row_parts * f.unit_parts, index)
        own_end = cut(f.batch, f.row_parts * f.unit_parts, index + 1)
    elif b < f.by_lanes:
        forward_lanes(f, b, min(b_end, f.by_lanes), tag)
        b = own = min(b_end, f.by_lanes)
    if b == b_end:
        return
    blocks = tiles(f.hidden_dim, block_count(b_end - b) * V)
    for t in range(f.begin, f.end):
        if t > 0:
            emit(f, t - 1, own, own_end, tag)
        if t + 1 < f.steps:
            fetch(f, t + 1, own, own_end, tag)
        cell_tiles(
            f, t, b, b_end - b, cut(blocks, f.unit_parts, unit_part), cut(blocks, f.unit_parts, unit_part + 1), tag,
        )


cdef double forward_work(
    Py_ssize_t steps, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim,
) noexcept nogil:
    """The multiply-adds of a batch's way through the steps."""
    return <double> steps * batch * hidden_dim * (4 * (input_dim + hidden_dim) + CELL_WORK)


cdef double shared_work(
    Py_ssize_t steps, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim, bint backward,
) noexcept nogil:
    """The multiply-adds that threads can share: not those of small steps of few rows, which depend on one another."""
    cdef double work = forward_work(steps, batch, input_dim, hidden_dim), gradient = 0
    if backward:
        gradient = 4. * steps * batch * hidden_dim * (input_dim + hidden_dim)
        work *= 2
    return gradient if batch < 8 and work < steps * LEAST_STEP else gradient + work


cdef int run_forward(Call *call, Forward *f, const real *tag) except -1 nogil:
    """Run all steps of a batch whose arrays and sizes are set; the last step is not emitted."""
    cdef Py_ssize_t chunk = 1, K = f.input_dim + f.hidden_dim, blocks
    cdef double step_work = forward_work(1, f.batch, f.input_dim, f.hidden_dim)
    f.unit_parts, f.row_parts = 1, rows_apart(call, f.batch, f.by_lanes, K, f.hidden_dim, step_work, 1, tag)
    if f.row_parts > 0:
        chunk = max(1, <Py_ssize_t> (f.row_parts * LONGEST_TASK / step_work))
    else:
        blocks = tiles(f.hidden_dim, block_count(f.batch) * lanes(f.table, tag))
        f.unit_parts, f.row_parts = blocks, parts(call, f.batch, tile_rows(f.table, tag), blocks, step_work)
    fetch(f, 0, f.by_lanes, f.batch, tag)
    f.end = 0
    while f.end < f.steps:
        f.begin, f.end = f.end, min(f.end + chunk, f.steps)
        share(
            call, <team_task> forward_part[real], f, f.row_parts * f.unit_parts, (f.end - f.begin) * step_work,
        )
    return 0


cdef int sequence_forward(
    Call *call, const kernels *table, Py_ssize_t steps, const real[:, ::1] rows, const Py_ssize_t[::1] first,
    const real[::1] packed, real[:, :, ::1] hx, real[:, :, ::1] C, real[:, :, ::1] gates, real[:, :, ::1] H,
) except -1 nogil:
    """Run T steps of a batch; sequence b reads x_t from rows[first[b] + t].

    hx     (slots, >= B, ld)  in: h_0 in slot 0; step t reads slot t mod slots and writes h_t to the next
    C      (C slots, >= B, H) likewise; one slot is updated in place
    packed                    from `pack_cell`
    gates  (T, >= B, 4 H)     out: i, f, g, o of every step; nothing is kept if it is empty
                              C and gates of the first `lanes_rows` sequences are laid out as forward_lanes says
    H      (B, T, H)          out: every h_t; not wanted if it is empty
    """
    cdef Forward f
    f.table, f.steps, f.batch, f.input_dim, f.hidden_dim = table, steps, first.shape[0], rows.shape[1], C.shape[2]
    f.hx, f.slots, f.slot, f.ld = &hx[0, 0, 0], hx.shape[0], hx.shape[1] * hx.shape[2], hx.shape[2]
    f.C, f.C_slots, f.C_slot = &C[0, 0, 0], C.shape[0], C.shape[1] * C.shape[2]
    f.rows, f.first, f.packed = &rows[0, 0], &first[0], &packed[0]
    f.gates = &gates[0, 0, 0] if gates.shape[0] > 0 else NULL
    f.H, f.H_steps, f.Y = &H[0, 0, 0] if H.shape[0] > 0 else NULL, H.shape[1], NULL
    f.by_lanes = lanes_rows(table, f.batch, f.input_dim, f.hidden_dim, f.gates != NULL, &packed[0])
    run_forward(call, &f, &packed[0])
    emit(&f, steps - 1, 0, f.batch, &packed[0])
    return 0


cdef struct Backward:
    # A batch of sequences on its way back through the steps: see `sequence_backward`.
    const kernels *table
    Py_ssize_t steps, batch, input_dim, hidden_dim, C_slot, ld_dz, dH_steps, dX_steps, by_lanes
    Py_ssize_t begin, end, row_parts  # the loop under way: its steps, from the last
    Py_ssize_t slot  # of dz, for its last step
    const void *C
    const void *gates
    const void *packed_h
    const void *packed_x
    const void *dH
    void *dh
    void *dC
    void *dX
    void *dz
    bint want_dh0


cdef void gates_backward(const Backward *w, Py_ssize_t b, Py_ssize_t b_end, const real *tag) noexcept nogil:
    """dz of some sequences in the loop's last step."""
    cdef Py_ssize_t H = w.hidden_dim, t = w.end - 1
    cdef const real *C = <const real *> w.C + t * w.C_slot
    cdef const real *gates = <const real *> w.gates + 4 * t * w.C_slot
    cdef real *dz = <real *> w.dz + w.slot * w.batch * w.ld_dz
    for b in range(b, b_end):
        cell_backward(
            w.table, H, gates + 4 * b * H, C + b * H, C + w.C_slot + b * H, <const real *> w.dh + b * H,
            <real *> w.dC + b * H, dz + b * w.ld_dz,
        )


cdef void gates_backward_part(const Backward *w, Py_ssize_t index, const real *tag) noexcept nogil:
    gates_backward(w, cut(w.batch, w.row_parts, index), cut(w.batch, w.row_parts, index + 1), tag)


cdef int state_backward(
    Call *call, const Backward *w, Py_ssize_t b, Py_ssize_t b_end, const real *tag,
) except -1 nogil:
    """dh of the step before the loop's last, for some sequences, of dz."""
    cdef Py_ssize_t H = w.hidden_dim, t = w.end - 1
    cdef const real *dz = <const real *> w.dz + (w.slot * w.batch + b) * w.ld_dz
    cdef const real *start = NULL
    if t == 0 and not w.want_dh0:
        return 0
    if w.dH != NULL and t > 0:
        start = <const real *> w.dH + (b * w.dH_steps + t - 1) * H
    return multiply(
        call, w.table, b_end - b, H, 4 * H, dz, w.ld_dz, <const real *> w.packed_h, start, w.dH_steps * H,
        <real *> w.dh + b * H, H,
    )


cdef int input_backward(
    Call *call, const Backward *w, Py_ssize_t b, Py_ssize_t b_end, const real *tag,
) except -1 nogil:
    """dX of the loop's last step, if it is wanted, for some sequences, of dz."""
    if w.dX == NULL:
        return 0
    return multiply(
        call, w.table, b_end - b, w.input_dim, 4 * w.hidden_dim,
        <const real *> w.dz + (w.slot * w.batch + b) * w.ld_dz, w.ld_dz, <const real *> w.packed_x,
        <const real *> NULL, 0, <real *> w.dX + (b * w.dX_steps + w.end - 1) * w.input_dim,
        w.dX_steps * w.input_dim,
    )


cdef void backward_lanes(const Backward *w, Py_ssize_t b, Py_ssize_t b_end, const real *tag) noexcept nogil:
    """The loop's steps, but for dX, of sequences from b on, whole groups that forward_lanes ran.

    Between two loops dh[b:b + n] and dC[b:b + n] of a group are arrays (H, n).
    """
    cdef Py_ssize_t V = lanes(w.table, tag), H = w.hidden_dim, n
    cdef const real *dH = NULL
    while b < b_end:
        n = min(V, b_end - b)
        if w.dH != NULL:
            dH = <const real *> w.dH + (b * w.dH_steps + w.begin) * H
        lanes_backward(
            w.table, w.end - w.begin, n, H, <const real *> w.gates + 4 * (w.begin * w.C_slot + b * H),
            <const real *> w.C + w.begin * w.C_slot + b * H, w.C_slot, <const real *> w.packed_h, dH, w.dH_steps * H,
            w.begin == 0, w.end == w.steps, <real *> w.dh + b * H, <real *> w.dC + b * H,
            <real *> w.dz + b * w.ld_dz, w.ld_dz, w.batch * w.ld_dz,
        )
        b += n


cdef void backward_part(const Backward *w, Py_ssize_t index, const real *tag) noexcept nogil:
    """A part of the rows, for all of the loop's steps."""
    cdef Backward step = w[0]
    cdef Py_ssize_t V = lanes(w.table, tag), first = row_cut(w.batch, w.by_lanes, V, w.row_parts, index)
    cdef Py_ssize_t b_end = row_cut(w.batch, w.by_lanes, V, w.row_parts, index + 1), b = first
    if b < w.by_lanes:
        b = min(b_end, w.by_lanes)
        backward_lanes(w, first, b, tag)
    while step.end > w.begin and (b < b_end or w.dX != NULL):
        if b < b_end:
            gates_backward(&step, b, b_end, tag)
            state_backward(NULL, &step, b, b_end, tag)
        input_backward(NULL, &step, first, b_end, tag)
        step.end -= 1
        step.slot += 1


cdef int run_backward(Call *call, Backward *w, const real *tag) except -1 nogil:
    """dz, dh, dC and dX of the steps [begin, end), dz from slot 0 on."""
    cdef double gates_work = w.batch * w.hidden_dim * CELL_WORK
    cdef double step_work = 4. * w.batch * w.hidden_dim * w.hidden_dim + gates_work
    cdef Py_ssize_t steps = w.end - w.begin
    w.slot = 0
    w.row_parts = rows_apart(call, w.batch, w.by_lanes, w.hidden_dim, w.hidden_dim, step_work, steps, tag)
    if w.row_parts > 0:
        return share(call, <team_task> backward_part[real], w, w.row_parts, steps * step_work)
    while w.end > w.begin:
        w.row_parts = parts(call, w.batch, 1, 1, gates_work)
        share(call, <team_task> gates_backward_part[real], w, w.row_parts, gates_work)
        state_backward(call, w, 0, w.batch, tag)
        input_backward(call, w, 0, w.batch, tag)
        w.end -= 1
        w.slot += 1
    return 0


cdef int sequence_backward(
    Call *call, const kernels *table, Py_ssize_t steps, Py_ssize_t batch, Py_ssize_t input_dim,
    const real[:, :, ::1] hx, const real[:, :, ::1] C, const real[:, :, ::1] gates, const real[::1] packed_h,
    const real[::1] packed_x, const real[:, :, ::1] dH, bint want_dh0, real[:, ::1] dh, real[:, ::1] dC,
    real[:, :, ::1] dX, real *dW, real *db, real[:, ::1] dz, real[::1] panels,
) except -1 nogil:
    """Backpropagate through T steps of sequence_forward.

    hx, C, gates  as sequence_forward left them, T + 1 slots
    packed_h      panels of W_h (4H, H); packed_x: panels of W_x (4H, I), empty if dX is not wanted
    dH (>= B, >= T, H)  in: dL/dh_t of every step from outside; empty for none
    dh (>= B, H)     in: dL/dh_T beyond dH; out: dL/dh_0 if want_dh0, else undefined
    dC (>= B, H)     in: dL/dC_T; out: dL/dC_0
    dX (B, T, I)     out, unless empty
    dW (4H, H + I), db (4H)  out
    dz (rows, ld)    scratch for whole steps: rows >= B, readable 4 V past its last row
    panels           scratch of weight_gradient
    """
    cdef Py_ssize_t H = C.shape[2], chunk = max(1, min(steps, dz.shape[0] // batch)), last = steps, first, b, j
    cdef Backward w
    w.table, w.steps, w.batch, w.input_dim, w.hidden_dim, w.want_dh0 = table, steps, batch, input_dim, H, want_dh0
    w.by_lanes = lanes_rows(table, batch, input_dim, H, True, &packed_h[0])
    w.C, w.C_slot, w.gates = &C[0, 0, 0], C.shape[1] * H, &gates[0, 0, 0]
    w.packed_h, w.packed_x = &packed_h[0], &packed_x[0] if packed_x.shape[0] > 0 else NULL
    w.dH, w.dH_steps = &dH[0, 0, 0] if dH.shape[0] > 0 else NULL, dH.shape[1]
    w.dX, w.dX_steps = &dX[0, 0, 0] if dX.shape[0] > 0 else NULL, dX.shape[1]
    w.dh, w.dC, w.dz, w.ld_dz = &dh[0, 0], &dC[0, 0], &dz[0, 0], dz.shape[1]
    if w.dH != NULL:
        for b in range(batch):
            for j in range(H):
                dh[b, j] += dH[b, steps - 1, j]
    while last > 0:
        first = max(0, last - chunk)
        w.begin, w.end = first, last
        run_backward(call, &w, &dh[0, 0])
        weight_gradient(
            call, table, (last - first) * batch, batch, 4 * H, &dz[0, 0], w.ld_dz, H + input_dim, hx, last - 1,
            last < steps, dW, db, &panels[0],
        )
        last = first
    return 0


def packed_sizes(int isa, Py_ssize_t input_dim, Py_ssize_t hidden_dim, Py_ssize_t output_dim, dtype) -> dict:
    """Return the number of elements of every array whose size is chosen here, for an instruction set; chunk_rows are
    the rows of dz that wait for one product.
    """
    cdef const kernels *table = table_at(isa)
    cdef Py_ssize_t V = table.f32.lanes if dtype == "float32" else table.f64.lanes
    blocks = tiles(hidden_dim, V)
    return {
        "cell": blocks * (1 + input_dim + hidden_dim) * TILE_VECTORS * V,
        "h": panels_size(4 * hidden_dim, hidden_dim, V),
        "x": panels_size(4 * hidden_dim, input_dim, V),
        "head": panels_size(hidden_dim, output_dim, V),
        "head_backward": panels_size(output_dim, hidden_dim, V),
        "panels": panels_size(OUTER_ROWS, input_dim + hidden_dim, V),
        "sums": tiles(4 * hidden_dim * (1 + input_dim + hidden_dim) + output_dim * (1 + hidden_dim), SUM_BLOCK),
        "slack": TILE_VECTORS * V,
        "chunk_rows": OUTER_ROWS,
    }


def pack_cell_weights(int isa, int threads, const real[:, ::1] W, const real[:, ::1] b, real[::1] packed):
    """Pack W (4H, H + I) and b (4H, 1) for `forward`."""
    cdef Py_ssize_t hidden_dim = W.shape[0] // 4, input_dim = W.shape[1] - hidden_dim
    cdef Call call
    threads = recruit(threads, <double> PACK_WORK * W.shape[0] * W.shape[1])
    with nogil:
        begin(&call, threads)
        try:
            pack_cell(&call, table_at(isa), input_dim, hidden_dim, &W[0, 0], &b[0, 0], &packed[0])
        finally:
            end(&call)


cdef void copy_states(
    const kernels *table, Py_ssize_t batch, Py_ssize_t by_lanes, Py_ssize_t hidden_dim, real *states, real *C,
    bint load,
) noexcept nogil:
    """Copy rows (B, H) to a slot of C, or from it unless `load`: the first sequences are as forward_lanes says."""
    cdef Py_ssize_t V = lanes(table, C), b, lane, n, u
    cdef real *row
    cdef real *kept
    for b in range(batch):
        lane = b % V
        n = min(V, by_lanes - (b - lane))
        for u in range(hidden_dim):
            row = states + b * hidden_dim + u
            kept = C + (b - lane) * hidden_dim + u * n + lane if b < by_lanes else C + b * hidden_dim + u
            if load:
                kept[0] = row[0]
            else:
                row[0] = kept[0]


def forward(
    int isa, int threads, Py_ssize_t steps, const real[:, ::1] rows, const Py_ssize_t[::1] first,
    const real[::1] packed, real[:, :, ::1] hx, real[:, :, ::1] C, real[:, :, ::1] gates, real[:, :, ::1] H,
    real[:, ::1] states,
):
    """Run `sequence_forward`; states (B, H) holds C_0, and then C_T."""
    cdef Call call
    cdef const kernels *table = table_at(isa)
    cdef Py_ssize_t batch = first.shape[0], hidden_dim = C.shape[2]
    cdef Py_ssize_t by_lanes = lanes_rows(table, batch, rows.shape[1], hidden_dim, gates.shape[0] > 0, &packed[0])
    threads = recruit(threads, shared_work(steps, batch, rows.shape[1], hidden_dim, False))
    with nogil:
        begin(&call, threads)
        try:
            copy_states(table, batch, by_lanes, hidden_dim, &states[0, 0], &C[0, 0, 0], True)
            sequence_forward(&call, table, steps, rows, first, packed, hx, C, gates, H)
            copy_states(table, batch, by_lanes, hidden_dim, &states[0, 0], &C[steps % C.shape[0], 0, 0], False)
        finally:
            end(&call)


def backward(
    int isa, int threads, Py_ssize_t steps, Py_ssize_t batch, const real[:, ::1] W, const real[:, :, ::1] hx,
    const real[:, :, ::1] C, const real[:, :, ::1] gates, const real[:, :, ::1] dH, real[:, ::1] dh, real[:, ::1] dC,
    real[:, :, ::1] dX, real[:, ::1] dW, real[:, ::1] db, real[::1] packed_h, real[::1] packed_x, real[:, ::1] dz,
    real[::1] panels,
):
    """Pack the weights and run `sequence_backward`. W, dW (4H, H + I), db (4H, 1); dh comes back as dL/dh_0."""
    cdef Call call
    cdef const kernels *table = table_at(isa)
    cdef Py_ssize_t hidden_dim = C.shape[2], K = W.shape[1]
    threads = recruit(threads, shared_work(steps, batch, K - hidden_dim, hidden_dim, True))
    with nogil:
        begin(&call, threads)
        try:
            pack_panels(&call, table, 4 * hidden_dim, hidden_dim, &W[0, 0], K, 1, &packed_h[0])
            if packed_x.shape[0] > 0:
                pack_panels(
                    &call, table, 4 * hidden_dim, K - hidden_dim, &W[0, hidden_dim], K, 1, &packed_x[0],
                )
            sequence_backward(
                &call, table, steps, batch, K - hidden_dim, hx, C, gates, packed_h, packed_x, dH, True, dh, dC, dX,
                &dW[0, 0], &db[0, 0], dz, panels,
            )
        finally:
            end(&call)
