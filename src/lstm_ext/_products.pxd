from lstm_ext._kernels cimport TILE_VECTORS, kernels, real
from lstm_ext._threads cimport Call

cdef enum:
    OUTER_ROWS = 256  # of dy, which one pass of a weight gradient works on
    PACK_WORK = 10  # what it takes to move a number, in multiply-adds
    LONGEST_TASK = 30000000  # multiply-adds that one task should have at most: signals are looked for between tasks


cdef inline Py_ssize_t tiles(Py_ssize_t n, Py_ssize_t tile) noexcept nogil:
    """How many tiles of up to `tile` elements cover n."""
    return (n + tile - 1) // tile


cdef inline Py_ssize_t cut(Py_ssize_t n, Py_ssize_t count, Py_ssize_t part) noexcept nogil:
    """Where a part begins if n things are cut into `count` parts as evenly as can be."""
    return n * part // count


cdef inline Py_ssize_t parts(
    const Call *call, Py_ssize_t n, Py_ssize_t least, Py_ssize_t others, double work,
) noexcept nogil:
    """Into how many parts to cut n things, at least `least` in each, so that with `others` a thread has four tasks, and
    that no task of so much work is too long.
    """
    if call == NULL:
        return 1
    cdef Py_ssize_t wanted = tiles(4 * call.threads, others) if call.threads > 1 else 1
    return max(1, min(n // least, max(wanted, 1 + <Py_ssize_t> (work / (<double> others * LONGEST_TASK)))))


cdef inline Py_ssize_t panel_width(Py_ssize_t columns, Py_ssize_t V) noexcept nogil:
    """The lanes of the panel that serves the next `columns` columns: up to four vectors."""
    return min(<Py_ssize_t> TILE_VECTORS, tiles(columns, V)) * V


cdef inline const real *share_ahead(
    const real *panel, Py_ssize_t size, Py_ssize_t i, Py_ssize_t depth,
) noexcept nogil:
    """What the i-th tile on a panel fetches, a line for each k: its share of the next panel, until all is fetched."""
    cdef Py_ssize_t offset = i * depth * (64 // <Py_ssize_t> sizeof(real))
    return panel + size + offset if offset < size else panel


cdef Py_ssize_t panels_size(Py_ssize_t depth, Py_ssize_t columns, Py_ssize_t V) noexcept nogil

cdef int pack_cell(
    Call *call, const kernels *table, Py_ssize_t input_dim, Py_ssize_t hidden_dim, const real *W, const real *b,
    real *packed,
) except -1 nogil

cdef int pack_panels(
    Call *call, const kernels *table, Py_ssize_t depth, Py_ssize_t columns, const real *B, Py_ssize_t row_stride,
    Py_ssize_t column_stride, real *panels,
) except -1 nogil

cdef int multiply(
    Call *call, const kernels *table, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t depth, const real *A,
    Py_ssize_t lda, const real *panels, const real *start, Py_ssize_t ld_start, real *C, Py_ssize_t ldc,
) except -1 nogil

cdef struct Slots:
    # Rows of which step t has the first `live[t]`, or `batch` if live is NULL: row (t, b) at
    # data + (t - origin) * slot + b * ld.
    const void *data
    Py_ssize_t ld, slot, origin, batch
    const Py_ssize_t *live


cdef inline Py_ssize_t live_rows(const Py_ssize_t *live, Py_ssize_t batch, Py_ssize_t t) noexcept nogil:
    """How many sequences, the first of a batch, have a step t."""
    return live[t] if live != NULL else batch


cdef int weight_gradient(
    Call *call, const kernels *table, Py_ssize_t n, Py_ssize_t outputs, const real *dy, Py_ssize_t ld_dy,
    Py_ssize_t columns, const Slots *x, Py_ssize_t t, bint accumulate, real *dW, Py_ssize_t ld_dW, real *db,
    real *panels,
) except -1 nogil

cdef int column_sums(
    Call *call, const kernels *table, Py_ssize_t n, Py_ssize_t columns, const real *terms, Py_ssize_t ld,
    bint accumulate, real *sums,
) except -1 nogil
