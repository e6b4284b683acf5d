from lstm_ext._kernels cimport CACHE_LINE, TILE_VECTORS, kernels, real
from lstm_ext._threads cimport Region

cdef enum:
    OUTER_ROWS = 256  # rows of dy in a block of a weight gradient: with OUTER_COLUMNS it fits the second-level cache
    PACK_WORK = 10  # the time to move a number, in multiply-adds
    MAX_TASK_WORK = 30000000  # multiply-adds, about 1 ms: signals are checked between tasks
    TASKS_PER_THREAD = 4  # small enough tasks that threads which come late leave theirs to the others


# Get the buffer of an array that the caller holds, and that therefore keeps its memory; or only where it begins.
cdef int get_buffer(array, Py_buffer *view) except -1
cdef void *first_byte(array) except NULL


cdef inline Py_ssize_t ceil_div(Py_ssize_t n, Py_ssize_t tile) noexcept nogil:
    """The number of tiles of up to `tile` elements that cover n."""
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
    """Where a part begins if n things are divided into `count` parts of almost equal size."""
    return n * part // count


cdef inline Py_ssize_t num_tasks(
    const Region *region, Py_ssize_t n, Py_ssize_t smallest, Py_ssize_t others, double work,
) noexcept nogil:
    """The number of parts to divide n things into for `parallel_for`, each of at least `smallest` things.

    others  the number of tasks that each part is divided into otherwise
    work    multiply-adds of all tasks
    """
    if region == NULL:
        return 1
    cdef Py_ssize_t wanted = ceil_div(TASKS_PER_THREAD * region.threads, others) if region.threads > 1 else 1
    return max(1, min(n // smallest, max(wanted, 1 + <Py_ssize_t> (work / (<double> others * MAX_TASK_WORK)))))


cdef inline Py_ssize_t panel_width(Py_ssize_t columns, Py_ssize_t V) noexcept nogil:
    """The width of the next panel where `columns` columns are left: up to TILE_VECTORS whole vectors."""
    return min(<Py_ssize_t> TILE_VECTORS, ceil_div(columns, V)) * V


cdef inline const real *prefetch_share(
    const real *panel, Py_ssize_t size, Py_ssize_t i, Py_ssize_t depth,
) noexcept nogil:
    """The part of the next panel that the i-th tile prefetches, a cache line for each k; then nothing new."""
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

cdef int apply_linear(
    Region *region, const kernels *table, Py_ssize_t rows, Py_ssize_t output_dim, Py_ssize_t features, const real *x,
    Py_ssize_t ld_x, const real *panels, const real *b, real *y, Py_ssize_t ld_y,
) except -1 nogil

cdef struct StepRows:
    # Step t has batch_sizes[t] rows, or `batch` if batch_sizes is NULL. Row (t, b) is at
    # data + (t - origin) * slot + b * ld.
    const void *data
    Py_ssize_t ld, slot, origin, batch
    const Py_ssize_t *batch_sizes


cdef inline Py_ssize_t batch_size_at(const Py_ssize_t *batch_sizes, Py_ssize_t batch, Py_ssize_t t) noexcept nogil:
    """The number of sequences of a batch that have a step t: the first ones."""
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
