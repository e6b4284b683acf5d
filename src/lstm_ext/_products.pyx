"""The products that every pass is made of: packing, matrix products, weight gradients.

Design
------
- A product consists of tiles, each one call of a leaf kernel (kernels.h). Its tasks, which the threads of a region
  share, are a panel of columns and a part of the rows. Without a region it runs on the calling thread, as part of
  another loop's task.
- A sum that is computed in blocks continues from its stored partial result, so no block size changes a bit.

Notation: B batch, T steps, I input_dim, H hidden_dim, gates in the order i, f, g, o.
"""
import math
import sys

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memcpy, memset

import numpy as np

from lstm_ext._kernels cimport (
    CACHE_LINE, TILE_VECTORS, kernels, lanes, matmul, outer, real, tile_rows, transpose, zeros_f32, zeros_f64,
)
from lstm_ext._threads cimport Region, parallel_for, team_task

cdef enum:
    OUTER_COLUMNS = 192  # columns of dy in a block of a weight gradient: 192 KB in float32 with OUTER_ROWS


def check_allocatable(str what, *factors):
    """Raise if a product of sizes, in elements of eight bytes, is more than a machine can address."""
    if math.prod(factors) > sys.maxsize // 16:
        sizes = " x ".join([str(n) if n <= sys.maxsize else f"more than {sys.maxsize}" for n in factors])
        raise ValueError(f"{what} would have {sizes} elements; expected a size that memory can hold")


def aligned_empty(tuple shape, dtype):
    """Return an uninitialised array that starts on a cache line."""
    check_allocatable("a work array", *shape)
    cdef Py_ssize_t size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + CACHE_LINE, np.uint8)
    cdef Py_ssize_t start = -buffer.ctypes.data % CACHE_LINE
    return buffer[start:start + size].view(dtype).reshape(shape)


cdef int get_buffer(array, Py_buffer *view) except -1:
    PyObject_GetBuffer(array, view, PyBUF_C_CONTIGUOUS)
    PyBuffer_Release(view)
    return 0


cdef void *first_byte(array) except NULL:
    cdef Py_buffer view
    get_buffer(array, &view)
    return view.buf


cdef Py_ssize_t panels_size(Py_ssize_t depth, Py_ssize_t columns, Py_ssize_t V) noexcept nogil:
    """The number of elements that `pack_panels` writes."""
    return depth * ceil_div(columns, V) * V


cdef struct CellPacking:
    # See `pack_cell`.
    const kernels *table
    Py_ssize_t input_dim, hidden_dim
    const void *W
    const void *b
    void *packed


cdef void pack_block(const CellPacking *p, Py_ssize_t block, const real *tag) noexcept nogil:
    cdef Py_ssize_t V = lanes(p.table, tag), H = p.hidden_dim, K = H + p.input_dim, ld = TILE_VECTORS * V
    cdef Py_ssize_t units = min(V, H - block * V), g, row
    cdef const real *W
    cdef real *to
    for g in range(TILE_VECTORS):
        row = g * H + block * V
        W = <const real *> p.W + row * K
        to = <real *> p.packed + block * (1 + K) * ld + g * V
        if p.b != NULL:
            transpose(p.table, units, 1, <const real *> p.b + row, 1, to, ld)
        else:
            memset(to, 0, V * sizeof(real))
        transpose(p.table, units, p.input_dim, W + H, K, to + ld, ld)
        transpose(p.table, units, H, W, K, to + (1 + p.input_dim) * ld, ld)


cdef int pack_cell(
    Region *region, const kernels *table, Py_ssize_t input_dim, Py_ssize_t hidden_dim, const real *W, const real *b,
    real *packed,
) except -1 nogil:
    """Pack W (4 H, H + I) and b (4 H; NULL: zeros) for cell_forward.

    packed  (blocks of V units, 1 + I + H, 4 gates, V): bias, W_x and W_h, in the order in which they are summed
    """
    cdef CellPacking p
    p.table, p.input_dim, p.hidden_dim, p.W, p.b, p.packed = table, input_dim, hidden_dim, W, b, packed
    return parallel_for(
        region, <team_task> pack_block[real], &p, ceil_div(hidden_dim, lanes(table, W)),
        4. * PACK_WORK * hidden_dim * (1 + input_dim + hidden_dim),
    )


cdef struct PanelPacking:
    # See `pack_panels`.
    const kernels *table
    Py_ssize_t depth, columns, row_stride, column_stride
    const void *B
    void *panels


cdef void pack_panel(const PanelPacking *p, Py_ssize_t panel, const real *tag) noexcept nogil:
    cdef Py_ssize_t V = lanes(p.table, tag), column = panel * TILE_VECTORS * V, j, k
    cdef Py_ssize_t width = panel_width(p.columns - column, V), count = min(width, p.columns - column)
    cdef const real *source = <const real *> p.B + column * p.column_stride
    cdef real *to = <real *> p.panels + column * p.depth
    if p.row_stride == 1:
        for j in range(width // V):
            transpose(
                p.table, max(0, min(V, count - j * V)), p.depth, source + j * V * p.column_stride, p.column_stride,
                to + j * V, width,
            )
        return
    for k in range(p.depth):
        memcpy(to, source + k * p.row_stride, count * sizeof(real))
        memset(to + count, 0, (width - count) * sizeof(real))
        to += width


cdef int pack_panels(
    Region *region, const kernels *table, Py_ssize_t depth, Py_ssize_t columns, const real *B, Py_ssize_t row_stride,
    Py_ssize_t column_stride, real *panels,
) except -1 nogil:
    """Pack B (depth, columns) for `multiply`: each group of up to 4 V columns as an array (depth, width).

    Columns past the last are zeros. One of the strides is 1.
    """
    cdef PanelPacking p
    p.table, p.depth, p.columns, p.B, p.panels = table, depth, columns, B, panels
    p.row_stride, p.column_stride = row_stride, column_stride
    return parallel_for(
        region, <team_task> pack_panel[real], &p, ceil_div(columns, TILE_VECTORS * lanes(table, B)),
        <double> PACK_WORK * depth * columns,
    )


cdef inline const real *start_of_sum(const real *partial, bint resumed) noexcept nogil:
    """Where a sum starts: from its stored partial result, or from zeros."""
    if resumed:
        return partial
    if real is float:
        return zeros_f32
    else:
        return zeros_f64


cdef struct Product:
    # C (rows, columns) = start + A B: see `multiply`.
    const kernels *table
    Py_ssize_t rows, columns, depth, lda, ld_start, ldc, row_tasks
    const void *A
    const void *panels
    const void *start
    void *C


cdef void multiply_part(Product *p, Py_ssize_t index, const real *tag) noexcept nogil:
    """Compute one panel's columns of one part of the rows."""
    cdef Py_ssize_t V = lanes(p.table, tag), panel = index // p.row_tasks, part = index % p.row_tasks
    cdef Py_ssize_t first = panel * TILE_VECTORS * V, width = panel_width(p.columns - first, V)
    cdef Py_ssize_t row = part_begin(p.rows, p.row_tasks, part), rows = part_begin(p.rows, p.row_tasks, part + 1) - row
    cdef Py_ssize_t count = ceil_div(rows, tile_rows(p.table, tag)), i, r
    cdef const real *weights = <const real *> p.panels + p.depth * first
    cdef const real *start = start_of_sum(<const real *> p.start + first, p.start != NULL)
    for i in range(count):
        r = row + part_begin(rows, count, i)
        matmul(
            p.table, row + part_begin(rows, count, i + 1) - r, min(width, p.columns - first), p.depth,
            <const real *> p.A + r * p.lda, p.lda, weights, width, start + r * p.ld_start, p.ld_start,
            <real *> p.C + r * p.ldc + first, p.ldc, prefetch_share(weights, p.depth * width, i, p.depth),
        )


cdef int multiply(
    Region *region, const kernels *table, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t depth, const real *A,
    Py_ssize_t lda, const real *panels, const real *start, Py_ssize_t ld_start, real *C, Py_ssize_t ldc,
) except -1 nogil:
    """C (rows, columns) = start + A B, with A (rows, depth) and B (depth, columns) packed by `pack_panels`.

    start     (rows, columns); NULL: zeros; may be C
    ld_start  0 repeats one row of start
    """
    cdef Product p
    cdef double work = <double> rows * columns * depth
    cdef Py_ssize_t count = ceil_div(columns, TILE_VECTORS * lanes(table, A))
    p.table, p.rows, p.columns, p.depth = table, rows, columns, depth
    p.A, p.lda, p.panels, p.C, p.ldc = A, lda, panels, C, ldc
    p.start, p.ld_start = start, ld_start if start != NULL else 0
    p.row_tasks = num_tasks(region, rows, tile_rows(table, A), count, work)
    return parallel_for(region, <team_task> multiply_part[real], &p, count * p.row_tasks, work)


cdef int apply_linear(
    Region *region, const kernels *table, Py_ssize_t rows, Py_ssize_t output_dim, Py_ssize_t features, const real *x,
    Py_ssize_t ld_x, const real *panels, const real *b, real *y, Py_ssize_t ld_y,
) except -1 nogil:
    """y (rows, O) = b_y + W_y x (rows, F), W_y packed by `pack_panels`; panels NULL, without a linear layer: y = x."""
    cdef Py_ssize_t row
    if panels != NULL:
        return multiply(region, table, rows, output_dim, features, x, ld_x, panels, b, 0, y, ld_y)
    for row in range(rows):
        memcpy(y + row * ld_y, x + row * ld_x, features * sizeof(real))
    return 0


cdef struct OuterProduct:
    # dW (outputs, columns) += dy^T x and db (outputs) += sum of dy over `depth` rows: see `weight_gradient`.
    const kernels *table
    Py_ssize_t depth, outputs, columns, ld_dy, ld_dW, t, b, row_tasks, output_parts
    Py_ssize_t ld_panel  # 0: that of packed panels
    StepRows x
    const void *dy
    void *panels
    void *dW
    void *db
    bint accumulate


cdef void advance(const StepRows *x, Py_ssize_t rows, Py_ssize_t *t, Py_ssize_t *b) noexcept nogil:
    """Advance (t, b) by some rows: the batch ascends, then the steps descend."""
    b[0] += rows
    while t[0] > x.origin and b[0] >= batch_size_at(x.batch_sizes, x.batch, t[0]):
        b[0] -= batch_size_at(x.batch_sizes, x.batch, t[0])
        t[0] -= 1


cdef void pack_rows_part(OuterProduct *p, Py_ssize_t index, const real *tag) noexcept nogil:
    """Pack a part of the rows of x into panels: from (t, b) on, the batch ascends, then the steps descend.

    Lanes past the columns are not written; no result of theirs is stored.
    """
    cdef Py_ssize_t V = lanes(p.table, tag), r = part_begin(p.depth, p.row_tasks, index), first, width
    cdef Py_ssize_t t = p.t, b = p.b
    cdef real *panels = <real *> p.panels
    cdef const real *row
    advance(&p.x, r, &t, &b)
    for r in range(r, part_begin(p.depth, p.row_tasks, index + 1)):
        row = <const real *> p.x.data + (t - p.x.origin) * p.x.slot + b * p.x.ld
        first = 0
        while first < p.columns:
            width = panel_width(p.columns - first, V)
            memcpy(panels + first * p.depth + r * width, row + first, min(width, p.columns - first) * sizeof(real))
            first += width
        advance(&p.x, 1, &t, &b)


cdef void sum_columns(
    const OuterProduct *p, Py_ssize_t i, Py_ssize_t stop, const real *tag,
) noexcept nogil:
    """Compute db of the outputs [i, stop)."""
    cdef Py_ssize_t width = TILE_VECTORS * lanes(p.table, tag)
    cdef real *db = <real *> p.db
    cdef real one = 1
    while i < stop:
        outer(
            p.table, 1, min(width, stop - i), p.depth, &one, 0, <const real *> p.dy + i, p.ld_dy,
            start_of_sum(<const real *> db + i, p.accumulate), 0, db + i, 0,
        )
        i += width


cdef void outer_part(OuterProduct *p, Py_ssize_t index, const real *tag) noexcept nogil:
    """Compute one panel's columns of one part of the outputs, and with the first panel that part of the bias."""
    cdef Py_ssize_t V = lanes(p.table, tag), tile = tile_rows(p.table, tag)
    cdef Py_ssize_t panels = ceil_div(p.columns, TILE_VECTORS * V), panel = index % panels, part = index // panels
    cdef Py_ssize_t first = panel * TILE_VECTORS * V, width = panel_width(p.columns - first, V)
    cdef Py_ssize_t columns = min(width, p.columns - first), count = ceil_div(p.outputs, tile), i
    cdef Py_ssize_t start = tile * part_begin(count, p.output_parts, part)
    cdef Py_ssize_t stop = min(p.outputs, tile * part_begin(count, p.output_parts, part + 1))
    cdef const real *x = <const real *> p.panels + p.depth * first
    cdef const real *dy = <const real *> p.dy
    cdef real *dW = <real *> p.dW
    i = start
    while i < stop:
        outer(
            p.table, min(tile, stop - i), columns, p.depth, dy + i, p.ld_dy, x,
            p.ld_panel if p.ld_panel > 0 else width,
            start_of_sum(<const real *> dW + i * p.ld_dW + first, p.accumulate), p.ld_dW if p.accumulate else 0,
            dW + i * p.ld_dW + first, p.ld_dW,
        )
        i += tile
    if panel == 0 and p.db != NULL:
        sum_columns(p, start, stop, tag)


cdef int weight_gradient(
    Region *region, const kernels *table, Py_ssize_t n, Py_ssize_t outputs, const real *dy, Py_ssize_t ld_dy,
    Py_ssize_t columns, const StepRows *x, Py_ssize_t t, bint accumulate, real *dW, Py_ssize_t ld_dW, real *db,
    real *panels,
) except -1 nogil:
    """dW = (dW or 0) + dy^T x, db = (db or 0) + sum of dy, over n rows.

    The work is divided so that a block of dy (depth, OUTER_COLUMNS) stays in the second-level cache while the panels of
    x pass by.

    dy      (n, outputs), readable 4 V past its end
    x       rows of `columns`, from (t, 0) on: the batch ascends, then the steps descend
    dW, db  (outputs, columns) with the row stride ld_dW, and (outputs) or NULL
    panels  scratch of panels_size(OUTER_ROWS, columns)
    """
    cdef Py_ssize_t V = lanes(table, dy), tile = tile_rows(table, dy), width = panel_width(columns, V), start = 0
    cdef Py_ssize_t count = ceil_div(columns, TILE_VECTORS * V)
    cdef OuterProduct p
    p.table, p.outputs, p.columns, p.ld_dy, p.ld_dW = table, outputs, columns, ld_dy, ld_dW
    p.x, p.t, p.b, p.panels = x[0], t, 0, panels
    p.dW, p.db, p.accumulate = dW, db, accumulate
    p.output_parts = max(ceil_div(outputs, OUTER_COLUMNS), num_tasks(region, ceil_div(outputs, tile), 2, count, 0))
    # Without packing, `outer` runs for each tile and step: cheaper than a copy of x if there are few tiles.
    cdef bint packs = columns > width or width > x.ld or 4 * ceil_div(outputs, tile) > x.batch
    p.ld_panel = 0 if packs else x.ld
    while start < n:
        p.dy = dy + start * ld_dy
        p.depth = min(OUTER_ROWS, n - start)
        if packs:
            p.row_tasks = num_tasks(region, p.depth, 16, 1, 0)
            parallel_for(region, <team_task> pack_rows_part[real], &p, p.row_tasks, 4. * p.depth * columns)
        else:
            p.depth = min(p.depth, batch_size_at(x.batch_sizes, x.batch, p.t) - p.b)
            p.panels = <void *> (<const real *> x.data + (p.t - x.origin) * x.slot + p.b * x.ld)
        parallel_for(
            region, <team_task> outer_part[real], &p, count * p.output_parts, <double> p.depth * outputs * columns,
        )
        p.accumulate = True
        start += p.depth
        advance(x, p.depth, &p.t, &p.b)
    return 0


cdef void sum_columns_part(OuterProduct *p, Py_ssize_t index, const real *tag) noexcept nogil:
    cdef Py_ssize_t width = TILE_VECTORS * lanes(p.table, tag)
    sum_columns(p, index * width, min(p.outputs, (index + 1) * width), tag)


cdef int column_sums(
    Region *region, const kernels *table, Py_ssize_t n, Py_ssize_t columns, const real *terms, Py_ssize_t ld,
    bint accumulate, real *sums,
) except -1 nogil:
    """sums (columns) = (sums or 0) + the rows of terms (n, columns), in order; terms is readable 4 V past its end."""
    cdef OuterProduct p
    p.table, p.depth, p.outputs, p.ld_dy, p.dy, p.db, p.accumulate = table, n, columns, ld, terms, sums, accumulate
    return parallel_for(
        region, <team_task> sum_columns_part[real], &p, ceil_div(columns, TILE_VECTORS * lanes(table, terms)),
        <double> n * columns,
    )
