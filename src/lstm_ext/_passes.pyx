"""The passes of one LSTM layer on arrays that the caller owns: packing, forward, backward, weight gradient.

Design
------
- Time runs outside, blocks of units and tiles of rows inside; a tile is one call of a leaf kernel (kernels.h).
- ``hx`` (slots, B, ld) holds the rows [h_{t-1} (H) | x_t (I)] of step t: the very operand of W. Step t writes h_t to
  the next slot, so t = 0 is no special case. T + 1 slots keep everything for the backward pass; two slots alternate.
- Sums keep the contract's order: bias, x, h; weight gradients t from the last to the first, b ascending. A sum that is
  cut goes on from its stored partial result, so no block size changes a bit.
- Nothing is allocated here and no Python object is touched; the caller owns every array (workspace.py).

Notation: B batch, T steps, I input_dim, H hidden_dim, gates in the order i, f, g, o.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.string cimport memcpy, memset

from lstm_ext._kernels cimport (
    SUM_BLOCK, TILE_VECTORS, all_finite, cell_backward, cell_forward, kernels, lanes, matmul, outer, real, table_at,
    tile_rows, zeros_f32, zeros_f64,
)
from lstm_ext._threads cimport Call, begin, end, recruit, share, team_task

# The block of dy that one pass of a weight gradient works on. A sum goes on from the stored partial result, so the
# numbers change no bit.
cdef enum:
    OUTER_ROWS = 256
    OUTER_COLUMNS = 192

# What a unit's activations and their derivatives are worth in multiply-adds, and the most of these that one task should
# have, for signals are looked for between tasks.
cdef double CELL_WORK = 100, LONGEST_TASK = 1e8

# Weights of so many bytes stay in the second-level cache beside a thread's rows.
cdef double CACHED_WEIGHTS = 512 * 1024


cdef inline Py_ssize_t tiles(Py_ssize_t n, Py_ssize_t tile) noexcept nogil:
    """How many tiles of up to `tile` elements cover n."""
    return (n + tile - 1) // tile


cdef inline Py_ssize_t cut(Py_ssize_t n, Py_ssize_t count, Py_ssize_t part) noexcept nogil:
    """Where a part begins if n things are cut into `count` parts as evenly as can be."""
    return n * part // count


cdef inline Py_ssize_t parts(const Call *call, Py_ssize_t n, Py_ssize_t least, Py_ssize_t others) noexcept nogil:
    """Into how many parts to cut n things, at least `least` in each, so that with `others` a thread has four tasks."""
    if call == NULL or call.threads == 1:
        return 1
    return max(1, min(n // least, tiles(4 * call.threads, others)))


cdef inline Py_ssize_t block_count(Py_ssize_t rows) noexcept nogil:
    """How many blocks of units a tile takes: one row alone leaves multiply-adds waiting for one another."""
    return 2 if rows == 1 else 1


cdef inline Py_ssize_t rows_apart(
    const Call *call, Py_ssize_t batch, Py_ssize_t columns, Py_ssize_t hidden_dim, const real *tag,
) noexcept nogil:
    """Into how many parts to cut the batch so that each goes through the steps by itself; 0 if it should not.

    Threads then need not meet at every step, but each reads all weights (4H, columns).
    """
    if call == NULL or call.threads == 1:
        return 1
    if batch < 4 * call.threads or 4. * hidden_dim * columns * sizeof(real) > CACHED_WEIGHTS:
        return 0
    return call.threads


cdef inline Py_ssize_t panel_width(Py_ssize_t columns, Py_ssize_t V) noexcept nogil:
    """The lanes of the panel that serves the next `columns` columns: 1, 2 or 4 vectors."""
    if columns > 2 * V:
        return TILE_VECTORS * V
    return 2 * V if columns > V else V


cdef Py_ssize_t panels_size(Py_ssize_t depth, Py_ssize_t columns, Py_ssize_t V) noexcept nogil:
    """The elements that `pack_panels` writes."""
    cdef Py_ssize_t width = TILE_VECTORS * V, whole = columns // width * width
    return depth * (whole + (panel_width(columns - whole, V) if columns > whole else 0))


cdef void pack_cell(
    const kernels *table, Py_ssize_t input_dim, Py_ssize_t hidden_dim, const real *W, const real *b, real *packed,
) noexcept nogil:
    """packed (blocks, 1 + I + H, 4, V): for each V units their biases, W_x, W_h, as cell_forward sums them."""
    cdef Py_ssize_t V = lanes(table, W), K = hidden_dim + input_dim, block, u, units, g, j, k
    cdef const real *row
    cdef real *lane
    for block in range(tiles(hidden_dim, V)):
        u = block * V
        units = min(V, hidden_dim - u)
        if units < V:
            memset(packed, 0, (1 + K) * TILE_VECTORS * V * sizeof(real))
        for g in range(TILE_VECTORS):
            for j in range(units):
                row = W + (g * hidden_dim + u + j) * K
                lane = packed + g * V + j
                lane[0] = b[g * hidden_dim + u + j]
                lane += TILE_VECTORS * V
                for k in range(input_dim):
                    lane[k * TILE_VECTORS * V] = row[hidden_dim + k]
                lane += input_dim * TILE_VECTORS * V
                for k in range(hidden_dim):
                    lane[k * TILE_VECTORS * V] = row[k]
        packed += (1 + K) * TILE_VECTORS * V


cdef void pack_panels(
    const kernels *table, Py_ssize_t depth, Py_ssize_t columns, const real *B, Py_ssize_t row_stride,
    Py_ssize_t column_stride, real *panels,
) noexcept nogil:
    """panels: for each group of up to 4 V columns of B (depth, columns) an array (depth, width), padded with zeros."""
    cdef Py_ssize_t V = lanes(table, B), first = 0, width, count, k, j
    while first < columns:
        width = panel_width(columns - first, V)
        count = min(width, columns - first)
        for k in range(depth):
            for j in range(count):
                panels[j] = B[k * row_stride + (first + j) * column_stride]
            for j in range(count, width):
                panels[j] = 0
            panels += width
        first += width


cdef inline const real *start_of_sum(const real *partial, bint resumed) noexcept nogil:
    """Where a sum starts: at its stored partial result, or at zeros."""
    if resumed:
        return partial
    if real is float:
        return zeros_f32
    else:
        return zeros_f64


cdef inline const real *share_ahead(
    const real *panel, Py_ssize_t size, Py_ssize_t i, Py_ssize_t depth,
) noexcept nogil:
    """What the i-th tile on a panel fetches, a line for each k: its share of the next panel, until all is fetched."""
    cdef Py_ssize_t offset = i * depth * (64 // <Py_ssize_t> sizeof(real))
    return panel + size + offset if offset < size else panel


cdef struct Product:
    # C (rows, columns) = start + A B: see `multiply`.
    const kernels *table
    Py_ssize_t rows, columns, depth, lda, ld_start, ldc, row_parts
    const void *A
    const void *panels
    const void *start
    void *C


cdef void multiply_part(Product *p, Py_ssize_t index, const real *tag) noexcept nogil:
    """One panel's columns of one part of the rows."""
    cdef Py_ssize_t V = lanes(p.table, tag), panel = index // p.row_parts, part = index % p.row_parts
    cdef Py_ssize_t first = panel * TILE_VECTORS * V, width = panel_width(p.columns - first, V)
    cdef Py_ssize_t row = cut(p.rows, p.row_parts, part), rows = cut(p.rows, p.row_parts, part + 1) - row
    cdef Py_ssize_t count = tiles(rows, tile_rows(p.table, tag)), i, r
    cdef const real *weights = <const real *> p.panels + p.depth * first
    cdef const real *start = start_of_sum(<const real *> p.start + first, p.start != NULL)
    for i in range(count):
        r = row + cut(rows, count, i)
        matmul(
            p.table, row + cut(rows, count, i + 1) - r, min(width, p.columns - first), p.depth,
            <const real *> p.A + r * p.lda, p.lda, weights, width, start + r * p.ld_start, p.ld_start,
            <real *> p.C + r * p.ldc + first, p.ldc, share_ahead(weights, p.depth * width, i, p.depth),
        )


cdef int multiply(
    Call *call, const kernels *table, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t depth, const real *A,
    Py_ssize_t lda, const real *panels, const real *start, Py_ssize_t ld_start, real *C, Py_ssize_t ldc,
) except -1 nogil:
    """C = start + A B: A (rows, depth), B (depth, columns) packed by `pack_panels`; start NULL for 0, or C.

    ld_start 0 repeats one row of start.
    """
    cdef Product p
    cdef Py_ssize_t count = tiles(columns, TILE_VECTORS * lanes(table, A))
    p.table, p.rows, p.columns, p.depth = table, rows, columns, depth
    p.A, p.lda, p.panels, p.C, p.ldc = A, lda, panels, C, ldc
    p.start, p.ld_start = start, ld_start if start != NULL else 0
    p.row_parts = parts(call, rows, tile_rows(table, A), count)
    return share(
        call, <team_task> multiply_part[real], &p, count * p.row_parts, <double> rows * columns * depth,
    )


cdef struct OuterProduct:
    # dW (outputs, columns) += dy^T x and db (outputs) += sum of dy over `depth` rows: see `weight_gradient`.
    const kernels *table
    Py_ssize_t depth, outputs, columns, ld_dy, batch, t, b, ld_hx, slot, row_parts, output_parts
    const void *dy
    const void *hx
    void *panels
    void *dW
    void *db
    bint accumulate


cdef void pack_rows_part(OuterProduct *p, Py_ssize_t index, const real *tag) noexcept nogil:
    """Pack a part of the rows of hx into panels: from (t, b) on with the batch ascending, then the steps descending.

    Lanes past the columns keep what they hold: nothing that they give is stored.
    """
    cdef Py_ssize_t V = lanes(p.table, tag), r = cut(p.depth, p.row_parts, index), first, width
    cdef Py_ssize_t t = p.t - (p.b + r) // p.batch, b = (p.b + r) % p.batch
    cdef real *panels = <real *> p.panels
    cdef const real *row
    for r in range(r, cut(p.depth, p.row_parts, index + 1)):
        row = <const real *> p.hx + t * p.slot + b * p.ld_hx
        first = 0
        while first < p.columns:
            width = panel_width(p.columns - first, V)
            memcpy(panels + first * p.depth + r * width, row + first, min(width, p.columns - first) * sizeof(real))
            first += width
        b += 1
        if b == p.batch:
            b = 0
            t -= 1


cdef void outer_part(OuterProduct *p, Py_ssize_t index, const real *tag) noexcept nogil:
    """One panel's columns of one part of the outputs; with the first panel also that part of the bias."""
    cdef Py_ssize_t V = lanes(p.table, tag), tile = tile_rows(p.table, tag)
    cdef Py_ssize_t panels = tiles(p.columns, TILE_VECTORS * V), panel = index % panels, part = index // panels
    cdef Py_ssize_t first = panel * TILE_VECTORS * V, width = panel_width(p.columns - first, V)
    cdef Py_ssize_t columns = min(width, p.columns - first), count = tiles(p.outputs, tile), i, j
    cdef Py_ssize_t start = tile * cut(count, p.output_parts, part)
    cdef Py_ssize_t stop = min(p.outputs, tile * cut(count, p.output_parts, part + 1))
    cdef const real *x = <const real *> p.panels + p.depth * first
    cdef const real *dy = <const real *> p.dy
    cdef real *dW = <real *> p.dW
    cdef real *db = <real *> p.db
    cdef real one = 1
    i = start
    while i < stop:
        outer(
            p.table, min(tile, stop - i), columns, p.depth, dy + i, p.ld_dy, x, width,
            start_of_sum(<const real *> dW + i * p.columns + first, p.accumulate), p.columns if p.accumulate else 0,
            dW + i * p.columns + first, p.columns,
        )
        i += tile
    if panel > 0:
        return
    for j in range(tiles(stop - start, TILE_VECTORS * V)):
        i = start + j * TILE_VECTORS * V
        outer(
            p.table, 1, min(TILE_VECTORS * V, stop - i), p.depth, &one, 0, dy + i, p.ld_dy,
            start_of_sum(<const real *> db + i, p.accumulate), 0, db + i, 0,
        )


cdef int weight_gradient(
    Call *call, const kernels *table, Py_ssize_t n, Py_ssize_t batch, Py_ssize_t outputs, const real *dy,
    Py_ssize_t ld_dy, Py_ssize_t columns, const real[:, :, ::1] hx, Py_ssize_t t, bint accumulate, real *dW, real *db,
    real *panels,
) except -1 nogil:
    """dW = (dW or 0) + dy^T x, db = (db or 0) + sum of dy, over n rows.

    Row r of dy (n, outputs) belongs to row hx[t - r // batch, r % batch, :columns]: steps descend, the batch ascends.
    dW (outputs, columns), db (outputs); dy is readable 4 V past its end; panels is scratch of
    panels_size(OUTER_ROWS, columns). Cut so that a block of dy (depth, OUTER_COLUMNS) stays in the second-level cache
    while the panels of x pass by.
    """
    cdef Py_ssize_t tile = tile_rows(table, dy), count = tiles(columns, TILE_VECTORS * lanes(table, dy)), start = 0
    cdef OuterProduct p
    p.table, p.batch, p.outputs, p.columns, p.ld_dy = table, batch, outputs, columns, ld_dy
    p.hx, p.ld_hx, p.slot, p.panels = &hx[0, 0, 0], hx.shape[2], hx.shape[1] * hx.shape[2], panels
    p.dW, p.db, p.accumulate = dW, db, accumulate
    p.output_parts = max(tiles(outputs, OUTER_COLUMNS), parts(call, tiles(outputs, tile), 4, count))
    while start < n:
        p.dy = dy + start * ld_dy
        p.depth = min(OUTER_ROWS, n - start)
        p.t, p.b = t - start // batch, start % batch
        p.row_parts = parts(call, p.depth, 16, 1)
        share(call, <team_task> pack_rows_part[real], &p, p.row_parts, 4. * p.depth * columns)
        share(
            call, <team_task> outer_part[real], &p, count * p.output_parts, <double> p.depth * outputs * columns,
        )
        p.accumulate = True
        start += OUTER_ROWS
    return 0


cdef struct Forward:
    # A batch of sequences on its way through the steps: see `sequence_forward`.
    const kernels *table
    Py_ssize_t steps, batch, input_dim, hidden_dim, ld, slot, slots, C_slot, C_slots, H_steps
    Py_ssize_t begin, end, row_parts, unit_parts  # the loop under way
    const Py_ssize_t *first
    const void *rows
    const void *packed
    void *hx
    void *C
    void *gates
    void *H


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
    for b in range(b, b_end):
        memcpy(x + b * f.ld, <const real *> f.rows + (f.first[b] + t) * f.input_dim, f.input_dim * sizeof(real))


cdef void emit(const Forward *f, Py_ssize_t t, Py_ssize_t b, Py_ssize_t b_end, const real *tag) noexcept nogil:
    """Write h_t of some sequences to H."""
    cdef const real *h = <const real *> f.hx + (t + 1) % f.slots * f.slot
    cdef Py_ssize_t H = f.hidden_dim
    if f.H != NULL:
        for b in range(b, b_end):
            memcpy(<real *> f.H + (b * f.H_steps + t) * H, h + b * f.ld, H * sizeof(real))


cdef void forward_part(const Forward *f, Py_ssize_t index, const real *tag) noexcept nogil:
    """A part of the rows and of the units, for the loop's steps.

    It also does for an equal share of the rows what a step leaves and what the next one finds. Where the units are
    cut, there is but one step: h_t is there when all parts are done.
    """
    cdef Py_ssize_t part = index % f.row_parts, unit_part = index // f.row_parts, count = f.row_parts * f.unit_parts, t
    cdef Py_ssize_t b = cut(f.batch, f.row_parts, part), rows = cut(f.batch, f.row_parts, part + 1) - b
    cdef Py_ssize_t blocks = tiles(f.hidden_dim, block_count(rows) * lanes(f.table, tag))
    cdef Py_ssize_t own = cut(f.batch, count, index), own_end = cut(f.batch, count, index + 1)
    for t in range(f.begin, f.end):
        if t > 0:
            emit(f, t - 1, own, own_end, tag)
        if t + 1 < f.steps:
            fetch(f, t + 1, own, own_end, tag)
        cell_tiles(
            f, t, b, rows, cut(blocks, f.unit_parts, unit_part), cut(blocks, f.unit_parts, unit_part + 1), tag,
        )


cdef double forward_work(
    Py_ssize_t steps, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim,
) noexcept nogil:
    """The multiply-adds of a batch's way through the steps."""
    return <double> steps * batch * hidden_dim * (4 * (input_dim + hidden_dim) + CELL_WORK)


cdef int run_forward(Call *call, Forward *f, const real *tag) except -1 nogil:
    """Run all steps of a batch whose arrays and sizes are set."""
    cdef Py_ssize_t chunk = 1, blocks = tiles(f.hidden_dim, block_count(f.batch) * lanes(f.table, tag))
    cdef double step_work = forward_work(1, f.batch, f.input_dim, f.hidden_dim)
    f.row_parts, f.unit_parts = rows_apart(call, f.batch, f.input_dim + f.hidden_dim, f.hidden_dim, tag), 1
    if f.row_parts == 0 or step_work > f.row_parts * LONGEST_TASK:
        f.row_parts, f.unit_parts = parts(call, f.batch, tile_rows(f.table, tag), blocks), blocks
    else:
        chunk = <Py_ssize_t> (f.row_parts * LONGEST_TASK / step_work)
    fetch(f, 0, 0, f.batch, tag)
    f.end = 0
    while f.end < f.steps:
        f.begin, f.end = f.end, min(f.end + chunk, f.steps)
        share(
            call, <team_task> forward_part[real], f, f.row_parts * f.unit_parts, (f.end - f.begin) * step_work,
        )
    emit(f, f.steps - 1, 0, f.batch, tag)
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
    H      (B, T, H)          out: every h_t; not wanted if it is empty
    """
    cdef Forward f
    f.table, f.steps, f.batch, f.input_dim, f.hidden_dim = table, steps, first.shape[0], rows.shape[1], C.shape[2]
    f.hx, f.slots, f.slot, f.ld = &hx[0, 0, 0], hx.shape[0], hx.shape[1] * hx.shape[2], hx.shape[2]
    f.C, f.C_slots, f.C_slot = &C[0, 0, 0], C.shape[0], C.shape[1] * C.shape[2]
    f.rows, f.first, f.packed = &rows[0, 0], &first[0], &packed[0]
    f.gates = &gates[0, 0, 0] if gates.shape[0] > 0 else NULL
    f.H, f.H_steps = &H[0, 0, 0] if H.shape[0] > 0 else NULL, H.shape[1]
    return run_forward(call, &f, &packed[0])


cdef int step_forward(
    Call *call, const kernels *table, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim,
    const real *packed, const real *hx, Py_ssize_t ld, const real *C_prev, real *C, real *h, real *gates,
) except -1 nogil:
    """One step of B sequences: hx (B, ld) holds [h_prev | x], h goes to rows ld apart; arguments as for the kernel."""
    cdef Forward f
    f.table, f.steps, f.batch, f.input_dim, f.hidden_dim = table, 1, batch, input_dim, hidden_dim
    f.hx, f.slots, f.slot, f.ld = <void *> hx, 2, h - hx, ld
    f.C, f.C_slots, f.C_slot = <void *> C_prev, 2, C - C_prev
    f.packed, f.gates, f.H = packed, gates, NULL
    f.begin, f.end, f.row_parts = 0, 1, 1
    f.unit_parts = tiles(hidden_dim, block_count(batch) * lanes(table, packed))
    share(
        call, <team_task> forward_part[real], &f, f.unit_parts,
        forward_work(1, batch, input_dim, hidden_dim),
    )
    return 0


cdef struct Backward:
    # A batch of sequences on its way back through the steps: see `sequence_backward`.
    const kernels *table
    Py_ssize_t batch, input_dim, hidden_dim, C_slot, ld_dz, dH_steps, dX_steps
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


cdef void gates_backward_part(const Backward *w, Py_ssize_t index, const real *tag) noexcept nogil:
    """dz of a part of the rows in the loop's last step."""
    cdef Py_ssize_t H = w.hidden_dim, t = w.end - 1, b
    cdef const real *C = <const real *> w.C + t * w.C_slot
    cdef const real *gates = <const real *> w.gates + 4 * t * w.C_slot
    cdef real *dz = <real *> w.dz + w.slot * w.batch * w.ld_dz
    for b in range(cut(w.batch, w.row_parts, index), cut(w.batch, w.row_parts, index + 1)):
        cell_backward(
            w.table, H, gates + 4 * b * H, C + b * H, C + w.C_slot + b * H, <const real *> w.dh + b * H,
            <real *> w.dC + b * H, dz + b * w.ld_dz,
        )


cdef int state_backward(
    Call *call, const Backward *w, Py_ssize_t b, Py_ssize_t rows, const real *tag,
) except -1 nogil:
    """dh of the step before the loop's last, and dX of it, for `rows` sequences from b on, of dz."""
    cdef Py_ssize_t H = w.hidden_dim, t = w.end - 1
    cdef const real *dz = <const real *> w.dz + (w.slot * w.batch + b) * w.ld_dz
    cdef const real *start = NULL
    if t > 0 or w.want_dh0:
        if w.dH != NULL and t > 0:
            start = <const real *> w.dH + (b * w.dH_steps + t - 1) * H
        multiply(
            call, w.table, rows, H, 4 * H, dz, w.ld_dz, <const real *> w.packed_h, start, w.dH_steps * H,
            <real *> w.dh + b * H, H,
        )
    if w.dX != NULL:
        multiply(
            call, w.table, rows, w.input_dim, 4 * H, dz, w.ld_dz, <const real *> w.packed_x, <const real *> NULL, 0,
            <real *> w.dX + (b * w.dX_steps + t) * w.input_dim, w.dX_steps * w.input_dim,
        )
    return 0


cdef void backward_part(const Backward *w, Py_ssize_t index, const real *tag) noexcept nogil:
    """A part of the rows, for all of the loop's steps."""
    cdef Backward step = w[0]
    cdef Py_ssize_t b = cut(w.batch, w.row_parts, index)
    while step.end > w.begin:
        gates_backward_part(&step, index, tag)
        state_backward(NULL, &step, b, cut(w.batch, w.row_parts, index + 1) - b, tag)
        step.end -= 1
        step.slot += 1


cdef int run_backward(Call *call, Backward *w, const real *tag) except -1 nogil:
    """dz, dh, dC and dX of the steps [begin, end), dz from slot 0 on."""
    cdef double gates_work = w.batch * w.hidden_dim * CELL_WORK
    cdef double step_work = 4. * w.batch * w.hidden_dim * w.hidden_dim + gates_work
    w.slot, w.row_parts = 0, rows_apart(call, w.batch, w.hidden_dim, w.hidden_dim, tag)
    if w.row_parts > 0 and (w.end - w.begin) * step_work <= w.row_parts * LONGEST_TASK:
        return share(call, <team_task> backward_part[real], w, w.row_parts, (w.end - w.begin) * step_work)
    while w.end > w.begin:
        w.row_parts = parts(call, w.batch, 1, 1)
        share(call, <team_task> gates_backward_part[real], w, w.row_parts, gates_work)
        state_backward(call, w, 0, w.batch, tag)
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
    w.table, w.batch, w.input_dim, w.hidden_dim, w.want_dh0 = table, batch, input_dim, H, want_dh0
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
    """Return the number of elements of every array whose size is chosen here, for an instruction set."""
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
    }


def pack_cell_weights(int isa, const real[:, ::1] W, const real[:, ::1] b, real[::1] packed):
    """Pack W (4H, H + I) and b (4H, 1) for `forward` and `step`."""
    cdef Py_ssize_t hidden_dim = W.shape[0] // 4
    with nogil:
        pack_cell(table_at(isa), W.shape[1] - hidden_dim, hidden_dim, &W[0, 0], &b[0, 0], &packed[0])


def forward(
    int isa, int threads, Py_ssize_t steps, const real[:, ::1] rows, const Py_ssize_t[::1] first, const real[::1] packed,
    real[:, :, ::1] hx, real[:, :, ::1] C, real[:, :, ::1] gates, real[:, :, ::1] H,
):
    """Run `sequence_forward`."""
    cdef Call call
    threads = recruit(threads, forward_work(steps, first.shape[0], rows.shape[1], C.shape[2]))
    with nogil:
        begin(&call, threads)
        try:
            sequence_forward(&call, table_at(isa), steps, rows, first, packed, hx, C, gates, H)
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
    threads = recruit(threads, 2 * forward_work(steps, batch, K - hidden_dim, hidden_dim))
    with nogil:
        begin(&call, threads)
        try:
            pack_panels(table, 4 * hidden_dim, hidden_dim, &W[0, 0], K, 1, &packed_h[0])
            if packed_x.shape[0] > 0:
                pack_panels(table, 4 * hidden_dim, K - hidden_dim, &W[0, hidden_dim], K, 1, &packed_x[0])
            sequence_backward(
                &call, table, steps, batch, K - hidden_dim, hx, C, gates, packed_h, packed_x, dH, True, dh, dC, dX,
                &dW[0, 0], &db[0, 0], dz, panels,
            )
        finally:
            end(&call)


cdef struct Inference:
    # Where the parts of one scratch array begin: the packed weights, two slots of rows [h | x], and C.
    Py_ssize_t head, hx, ld, C, b_y, size


cdef Inference lay_out(
    const kernels *table, Py_ssize_t input_dim, Py_ssize_t hidden_dim, Py_ssize_t output_dim, Py_ssize_t batch,
    const real *tag,
) noexcept nogil:
    """Every part begins on a cache line if the first does; a row has an odd number of them, so that no stack of rows
    falls into one set of the cache.
    """
    cdef Py_ssize_t V = lanes(table, tag), line = 64 // sizeof(real), K = input_dim + hidden_dim
    cdef Inference at
    at.head = tiles(hidden_dim, V) * (1 + K) * TILE_VECTORS * V
    at.hx = at.head + tiles(panels_size(hidden_dim, output_dim, V), line) * line
    at.ld = (tiles(K, line) | 1) * line
    at.C = at.hx + 2 * batch * at.ld
    at.b_y = at.C + batch * hidden_dim
    at.size = at.b_y + output_dim + line  # one line more, to begin on one
    return at


cdef void pack_network(
    const kernels *table, Py_ssize_t input_dim, Py_ssize_t hidden_dim, Py_ssize_t output_dim, const real *parameters,
    const Inference *at, real *packed,
) noexcept nogil:
    """Pack the network's flat vector: cell, head, and the head's bias as it is."""
    cdef const real *bias = parameters + 4 * hidden_dim * (hidden_dim + input_dim)
    cdef const real *W_y = bias + 4 * hidden_dim
    pack_cell(table, input_dim, hidden_dim, parameters, bias, packed)
    pack_panels(table, hidden_dim, output_dim, W_y, 1, hidden_dim, packed + at.head)
    memcpy(packed + at.b_y, W_y + output_dim * hidden_dim, output_dim * sizeof(real))


cdef inline real *first_line(real *scratch) noexcept nogil:
    """The first cache line's beginning at or after an address."""
    return scratch + (-<Py_ssize_t> scratch & 63) // <Py_ssize_t> sizeof(real)


def inference_size(
    int isa, Py_ssize_t input_dim, Py_ssize_t hidden_dim, Py_ssize_t output_dim, Py_ssize_t batch, Py_ssize_t itemsize,
) -> int:
    """Return the elements of scratch that `infer` needs for so many sequences side by side."""
    if itemsize == sizeof(float):
        return lay_out[float](table_at(isa), input_dim, hidden_dim, output_dim, batch, zeros_f32).size
    return lay_out[double](table_at(isa), input_dim, hidden_dim, output_dim, batch, zeros_f64).size


def infer(
    int isa, int threads, Py_ssize_t batch_size, Py_ssize_t hidden_dim, const real[::1] parameters, const real[:, ::1] rows,
    const Py_ssize_t[::1] offsets, bint every_step, real[::1] scratch, real[:, ::1] Y,
):
    """Run N sequences from zero states and keep nothing but their outputs.

    parameters  the network's flat vector
    rows        (sum T, I); sequence n is rows[offsets[n]:offsets[n + 1]]. Neighbours of one length run side by side,
                up to `batch_size` of them
    scratch     from `inference_size`
    Y           (sum T, O) if every_step, else (N, O); out
    """
    cdef const kernels *table = table_at(isa)
    cdef Py_ssize_t N = offsets.shape[0] - 1, input_dim = rows.shape[1], output_dim = Y.shape[1], n = 0, b, t
    cdef Py_ssize_t batch, steps
    cdef Inference at = lay_out(table, input_dim, hidden_dim, output_dim, batch_size, &parameters[0])
    cdef real *packed = first_line(&scratch[0])
    cdef const real *b_y = packed + at.b_y
    cdef real *C = packed + at.C
    cdef real *now
    cdef real *then
    cdef Call call
    threads = recruit(threads, forward_work(1, rows.shape[0], input_dim, hidden_dim))
    with nogil:
        begin(&call, threads)
        try:
            pack_network(table, input_dim, hidden_dim, output_dim, &parameters[0], &at, packed)
            while n < N:
                steps = offsets[n + 1] - offsets[n]
                batch = 1
                while batch < batch_size and n + batch < N and offsets[n + batch + 1] - offsets[n + batch] == steps:
                    batch += 1
                then = packed + at.hx
                now = then + batch_size * at.ld
                memset(C, 0, batch * hidden_dim * sizeof(real))
                for b in range(batch):
                    memset(then + b * at.ld, 0, hidden_dim * sizeof(real))
                for t in range(steps):
                    now, then = then, now
                    for b in range(batch):
                        memcpy(now + b * at.ld + hidden_dim, &rows[offsets[n + b] + t, 0], input_dim * sizeof(real))
                    step_forward(
                        &call, table, batch, input_dim, hidden_dim, <const real *> packed, <const real *> now, at.ld,
                        <const real *> C, C, then, <real *> NULL,
                    )
                    if every_step:
                        multiply(
                            &call, table, batch, output_dim, hidden_dim, <const real *> then, at.ld,
                            <const real *> (packed + at.head), b_y, 0, &Y[offsets[n] + t, 0], steps * output_dim,
                        )
                if not every_step:
                    multiply(
                        &call, table, batch, output_dim, hidden_dim, <const real *> then, at.ld,
                        <const real *> (packed + at.head), b_y, 0, &Y[n, 0], output_dim,
                    )
                n += batch
        finally:
            end(&call)


cdef void *begin_streams(
    const kernels *table, Py_ssize_t hidden_dim, Py_ssize_t batch, const real[::1] parameters, real[::1] scratch,
    const Inference *at, Py_ssize_t input_dim, Py_ssize_t output_dim,
) noexcept:
    """Pack the weights, put the states to zero, and return where the scratch's first cache line begins."""
    cdef real *packed = first_line(&scratch[0])
    pack_network(table, input_dim, hidden_dim, output_dim, &parameters[0], at, packed)
    memset(packed + at.hx, 0, (at.b_y - at.hx) * sizeof(real))
    return packed


cdef int advance_streams(
    const kernels *table, Py_ssize_t t, Py_ssize_t batch, Py_ssize_t input_dim, Py_ssize_t hidden_dim,
    Py_ssize_t output_dim, real *packed, const Inference *at, const real *x, real *y,
) except -1 nogil:
    """Step t of B streams: x (B, I), y (B, O) out."""
    cdef real *now = packed + at.hx + t % 2 * batch * at.ld
    cdef real *then = packed + at.hx + (t + 1) % 2 * batch * at.ld
    cdef real *C = packed + at.C
    cdef Py_ssize_t b
    cdef Call call
    begin(&call, 1)
    try:
        for b in range(batch):
            memcpy(now + b * at.ld + hidden_dim, x + b * input_dim, input_dim * sizeof(real))
        step_forward(
            &call, table, batch, input_dim, hidden_dim, <const real *> packed, <const real *> now, at.ld,
            <const real *> C, C, then, <real *> NULL,
        )
        multiply(
            &call, table, batch, output_dim, hidden_dim, <const real *> then, at.ld,
            <const real *> (packed + at.head), <const real *> (packed + at.b_y), 0, y, output_dim,
        )
    finally:
        end(&call)
    return 0


@cython.auto_pickle(False)
cdef class Streams:
    """The packed weights and the states of B streams, in one scratch array from `inference_size`."""

    cdef readonly tuple sizes
    cdef readonly Py_ssize_t batch, steps
    cdef readonly object scratch
    cdef Py_ssize_t input_dim, hidden_dim, output_dim, itemsize
    cdef const kernels *table
    cdef Inference at
    cdef void *packed

    def __init__(self, int isa, tuple sizes, Py_ssize_t batch, parameters, scratch):
        self.input_dim, self.hidden_dim, self.output_dim = self.sizes = sizes
        self.batch, self.scratch, self.itemsize, self.table = batch, scratch, scratch.itemsize, table_at(isa)
        if self.itemsize == sizeof(float):
            self.at = lay_out[float](
                self.table, self.input_dim, self.hidden_dim, self.output_dim, batch, zeros_f32,
            )
            self.packed = begin_streams[float](
                self.table, self.hidden_dim, batch, parameters, scratch, &self.at, self.input_dim, self.output_dim,
            )
        else:
            self.at = lay_out[double](
                self.table, self.input_dim, self.hidden_dim, self.output_dim, batch, zeros_f64,
            )
            self.packed = begin_streams[double](
                self.table, self.hidden_dim, batch, parameters, scratch, &self.at, self.input_dim, self.output_dim,
            )

    def advance(self, x, y) -> bool:
        """Write the outputs of one step to y (B, O); False, and nothing done, if x is not a finite array (B, I)."""
        cdef Py_buffer from_x, to_y
        if not self.get_rows(x, &from_x, self.input_dim, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT):
            return False
        try:
            if not all_finite(&from_x):
                return False
            if not self.get_rows(y, &to_y, self.output_dim, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE):
                raise ValueError("y is not as needed")
            try:
                self.run(from_x.buf, to_y.buf)
            finally:
                PyBuffer_Release(&to_y)
        finally:
            PyBuffer_Release(&from_x)
        self.steps += 1
        return True

    def state(self) -> tuple[int, int, int]:
        """Return the elements of scratch at which h and C begin, and those between two rows of h."""
        cdef Py_ssize_t first = (<char *> self.packed - <char *> first_byte(self.scratch)) // self.itemsize
        return first + self.at.hx + self.steps % 2 * self.batch * self.at.ld, first + self.at.C, self.at.ld

    cdef bint get_rows(self, object array, Py_buffer *view, Py_ssize_t columns, int flags) except -1:
        """Get an array's buffer if it is (B, columns) and of our type."""
        cdef char code = c"f" if self.itemsize == sizeof(float) else c"d"
        try:
            PyObject_GetBuffer(array, view, flags)
        except (BufferError, TypeError, ValueError):
            return False
        if (
            view.ndim == 2 and view.shape[0] == self.batch and view.shape[1] == columns
            and view.format[0] == code and view.format[1] == 0
        ):
            return True
        PyBuffer_Release(view)
        return False

    cdef int run(self, const void *x, void *y) except -1:
        with nogil:
            if self.itemsize == sizeof(float):
                advance_streams[float](
                    self.table, self.steps, self.batch, self.input_dim, self.hidden_dim, self.output_dim,
                    <float *> self.packed, &self.at, <const float *> x, <float *> y,
                )
            else:
                advance_streams[double](
                    self.table, self.steps, self.batch, self.input_dim, self.hidden_dim, self.output_dim,
                    <double *> self.packed, &self.at, <const double *> x, <double *> y,
                )
        return 0


cdef void *first_byte(object array) except NULL:
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS)
    PyBuffer_Release(&view)
    return view.buf
