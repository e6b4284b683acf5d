from lstm_ext._kernels cimport CACHE_LINE, TILE_VECTORS, kernels, real
from lstm_ext._threads cimport Region

cdef enum:
    OUTER_ROWS = 256  # of dy, which one pass of a weight gradient works on
    PACK_WORK = 10  # what it takes to move a number, in multiply-adds
    LONGEST_TASK = 30000000  # multiply-adds that one task should have at most: signals are looked for between tasks


cdef inline Py_ssize_t ceil_div(Py_ssize_t n, Py_ssize_t tile) noexcept nogil:
    """How many tiles of up to `tile` elements cover n."""
    return (n + tile - 1) // tile


cdef inline Py_ssize_t whole_lines(Py_ssize_t n, Py_ssize_t itemsize) noexcept nogil:
    """n elements, rounded up to whole cache lines."""
    cdef Py_ssize_t line = CACHE_LINE // itemsize
    return ceil_div(n, line) * line


cdef inline Py_ssize_t odd_lines(Py_ssize_t n, Py_ssize_t itemsize) noexcept nogil:
    """n elements, rounded up to an odd number of cache lines: rows with this stride fall into all sets of the cache."""
    cdef Py_ssize_t line = CACHE_LINE // itemsize
    return (ceil_div(n, line) | 1) * line


cdef inline Py_ssize_t part_begin(Py_ssize_t n, Py_ssize_t count, Py_ssize_t part) noexcept nogil:
    """Where a part begins if n things are cut into `count` parts as evenly as can be."""
    return n * part // count


cdef inline Py_ssize_t num_tasks(
    const Region *region, Py_ssize_t n, Py_ssize_t least, Py_ssize_t others, double work,
) noexcept nogil:
    """Into how many parts to cut n things, at least `least` in each, so that with `others` a thread has four tasks, and
    that no task of so much work is too long.
    """
    if region == NULL:
        return 1
    cdef Py_ssize_t wanted = ceil_div(4 * region.threads, others) if region.threads > 1 else 1
    return max(1, min(n // least, max(wanted, 1 + <Py_ssize_t> (work / (<double> others * LONGEST_TASK)))))


cdef inline Py_ssize_t panel_width(Py_ssize_t columns, Py_ssize_t V) noexcept nogil:
    """The lanes of the panel that serves the next `columns` columns: up to four vectors."""
    return min(<Py_ssize_t> TILE_VECTORS, ceil_div(columns, V)) * V


cdef inline const real *prefetch_share(
    const real *panel, Py_ssize_t size, Py_ssize_t i, Py_ssize_t depth,
) noexcept nogil:
    """What the i-th tile on a panel fetches, a line for each k: its share of the next panel, until all is fetched."""
    cdef Py_ssize_t offset = i * depth * (CACHE_LINE // <Py_ssize_t> sizeof(real))
    return panel + size + offset if offset < size else panel


cdef Py_ssize_t panels_size(Py_ssize_t depth, Py_ssize_t columns, Py_ssize_t V) noexcept nogil

cdef int pack_cell(
    Region *region, const kernels *table, Py_ssize_t input_dim, Py_ssize_t hidden_dim, const real *W, const real *b,
    real *packed,
) except -1 nogil

cdef int pack_panels(
    Region *region, const kernels *table, Py_ssize_t depth, Py_ssize_t columns, const real *B, Py_ssize_t row_stride,
    Py_ssize_t column_stride, real *panels,
) except -1 nogil

cdef int multiply(
    Region *region, const kernels *table, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t depth, const real *A,
    Py_ssize_t lda, const real *panels, const real *start, Py_ssize_t ld_start, real *C, Py_ssize_t ldc,
) except -1 nogil

cdef struct StepRows:
    # Rows of which step t has the first `batch_sizes[t]`, or `batch` if batch_sizes is NULL: row (t, b) at
    # data + (t - origin) * slot + b * ld.
    const void *data
    Py_ssize_t ld, slot, origin, batch
    const Py_ssize_t *batch_sizes


cdef inline Py_ssize_t batch_size_at(const Py_ssize_t *batch_sizes, Py_ssize_t batch, Py_ssize_t t) noexcept nogil:
    """How many sequences, the first of a batch, have a step t."""
    return batch_sizes[t] if batch_sizes != NULL else batch


cdef int weight_gradient(
    Region *region, const kernels *table, Py_ssize_t n, Py_ssize_t outputs, const real *dy, Py_ssize_t ld_dy,
    Py_ssize_t columns, const StepRows *x, Py_ssize_t t, bint accumulate, real *dW, Py_ssize_t ld_dW, real *db,
    real *panels,
) except -1 nogil

cdef int column_sums(
    Region *region, const kernels *table, Py_ssize_t n, Py_ssize_t columns, const real *terms, Py_ssize_t ld,
    bint accumulate, real *sums,
) except -1 nogil
