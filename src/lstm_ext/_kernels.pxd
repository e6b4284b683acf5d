# The table of leaf kernels (contracts in kernels.h), and its typed face: one inline function for each kernel, which
# picks float or double.
from libc.stdint cimport uint32_t, uint64_t

# Cython chooses the float or the double version of a function by its arguments. Functions whose other arguments are
# void pointers take a `tag`: a typed pointer that is never read.
ctypedef fused real:
    float
    double


cdef extern from "kernels.h" nogil:
    enum:
        TILE_VECTORS
        SUM_BLOCK
        LANES_BYTES
        ACTIVATION_TANH, ACTIVATION_IDENTITY, ACTIVATION_RELU

    Py_ssize_t lanes_scratch(Py_ssize_t, Py_ssize_t)

    ctypedef struct cell_options:
        int gates, hard, activation
        double clip, zoneout
        const void *peepholes
        const void *gain_C
        const void *shift_C

    ctypedef struct kernels_float:
        Py_ssize_t lanes, tile_rows
        void (*sigmoid)(Py_ssize_t, const float *, float *) noexcept nogil
        void (*tanh)(Py_ssize_t, const float *, float *) noexcept nogil
        void (*matmul)(Py_ssize_t, Py_ssize_t, Py_ssize_t, const float *, Py_ssize_t, const float *, Py_ssize_t,
                       const float *, Py_ssize_t, float *, Py_ssize_t, const float *) noexcept nogil
        void (*outer)(Py_ssize_t, Py_ssize_t, Py_ssize_t, const float *, Py_ssize_t, const float *, Py_ssize_t,
                      const float *, Py_ssize_t, float *, Py_ssize_t) noexcept nogil
        void (*transpose)(Py_ssize_t, Py_ssize_t, const float *, Py_ssize_t, float *, Py_ssize_t) noexcept nogil
        void (*cell_forward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const float *, Py_ssize_t, const float *,
                             const float *, float *, float *, float *, const float *) noexcept nogil
        void (*cell_backward)(Py_ssize_t, const float *, const float *, const float *, const float *, float *,
                              float *) noexcept nogil
        void (*lanes_forward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const float *, const Py_ssize_t *,
                              Py_ssize_t, const float *, const float *, float *, Py_ssize_t, float *, Py_ssize_t,
                              float *, Py_ssize_t, float *, float *) noexcept nogil
        void (*lanes_backward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, const float *, const float *, Py_ssize_t,
                               const float *, const float *, Py_ssize_t, Py_ssize_t, bint, bint, float *, float *,
                               float *, Py_ssize_t, Py_ssize_t, float *) noexcept nogil
        void (*cell_step)(const cell_options *, Py_ssize_t, float *, const float *, const float *, float *,
                          float *) noexcept nogil
        void (*cell_step_backward)(const cell_options *, Py_ssize_t, const float *, const float *, const float *,
                                   const float *, float *, float *, float *, float *) noexcept nogil
        double (*normalize)(Py_ssize_t, const float *, float *) noexcept nogil
        void (*normalize_backward)(Py_ssize_t, const float *, double, const float *, const float *,
                                   float *) noexcept nogil
        void (*blend)(Py_ssize_t, const float *, float, const float *, const float *, float *) noexcept nogil
        void (*mask)(Py_ssize_t, const uint32_t *, const uint32_t *, uint32_t, float, float, float *) noexcept nogil
        void (*dropout)(Py_ssize_t, const uint32_t *, const uint32_t *, uint32_t, float, const float *,
                        float *) noexcept nogil
        bint (*are_finite)(Py_ssize_t, const float *) noexcept nogil
        double (*sum_of_squares)(Py_ssize_t, const float *) noexcept nogil
        double (*squared_error)(Py_ssize_t, const float *, const float *, double, float *) noexcept nogil
        double (*cross_entropy)(Py_ssize_t, const float *, Py_ssize_t, double, float *) noexcept nogil
        void (*sgd)(Py_ssize_t, float *, const float *, float *, double, double, double) noexcept nogil
        void (*adam)(Py_ssize_t, float *, const float *, float *, float *, double, double, double, double, double,
                     double) noexcept nogil

    ctypedef struct kernels_double:
        Py_ssize_t lanes, tile_rows
        void (*sigmoid)(Py_ssize_t, const double *, double *) noexcept nogil
        void (*tanh)(Py_ssize_t, const double *, double *) noexcept nogil
        void (*matmul)(Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *, Py_ssize_t, const double *, Py_ssize_t,
                       const double *, Py_ssize_t, double *, Py_ssize_t, const double *) noexcept nogil
        void (*outer)(Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *, Py_ssize_t, const double *, Py_ssize_t,
                      const double *, Py_ssize_t, double *, Py_ssize_t) noexcept nogil
        void (*transpose)(Py_ssize_t, Py_ssize_t, const double *, Py_ssize_t, double *, Py_ssize_t) noexcept nogil
        void (*cell_forward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *, Py_ssize_t,
                             const double *, const double *, double *, double *, double *,
                             const double *) noexcept nogil
        void (*cell_backward)(Py_ssize_t, const double *, const double *, const double *, const double *, double *,
                              double *) noexcept nogil
        void (*lanes_forward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *, const Py_ssize_t *,
                              Py_ssize_t, const double *, const double *, double *, Py_ssize_t, double *, Py_ssize_t,
                              double *, Py_ssize_t, double *, double *) noexcept nogil
        void (*lanes_backward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *, const double *, Py_ssize_t,
                               const double *, const double *, Py_ssize_t, Py_ssize_t, bint, bint, double *, double *,
                               double *, Py_ssize_t, Py_ssize_t, double *) noexcept nogil
        void (*cell_step)(const cell_options *, Py_ssize_t, double *, const double *, const double *, double *,
                          double *) noexcept nogil
        void (*cell_step_backward)(const cell_options *, Py_ssize_t, const double *, const double *, const double *,
                                   const double *, double *, double *, double *, double *) noexcept nogil
        double (*normalize)(Py_ssize_t, const double *, double *) noexcept nogil
        void (*normalize_backward)(Py_ssize_t, const double *, double, const double *, const double *,
                                   double *) noexcept nogil
        void (*blend)(Py_ssize_t, const double *, double, const double *, const double *, double *) noexcept nogil
        void (*mask)(Py_ssize_t, const uint32_t *, const uint32_t *, uint32_t, double, double, double *) noexcept nogil
        void (*dropout)(Py_ssize_t, const uint32_t *, const uint32_t *, uint32_t, double, const double *,
                        double *) noexcept nogil
        bint (*are_finite)(Py_ssize_t, const double *) noexcept nogil
        double (*sum_of_squares)(Py_ssize_t, const double *) noexcept nogil
        double (*squared_error)(Py_ssize_t, const double *, const double *, double, double *) noexcept nogil
        double (*cross_entropy)(Py_ssize_t, const double *, Py_ssize_t, double, double *) noexcept nogil
        void (*sgd)(Py_ssize_t, double *, const double *, double *, double, double, double) noexcept nogil
        void (*adam)(Py_ssize_t, double *, const double *, double *, double *, double, double, double, double, double,
                     double) noexcept nogil

    ctypedef struct kernels:
        const char *name
        const kernels_float *f32
        const kernels_double *f64

    const kernels *const all_kernels[]
    bint kernels_runnable(const kernels *)


cdef extern from "runtime.h" nogil:
    enum:
        CACHE_LINE  # bytes

    unsigned long long denormals_flush()
    void denormals_restore(unsigned long long)
    double wall_seconds()
    const float zeros_f32[]
    const double zeros_f64[]


cdef extern from "philox.h" nogil:
    void philox_key(uint64_t, uint64_t, uint32_t *)


# The table at an index of all_kernels, which `current` returns. Arrays are packed for one table: whoever makes them
# keeps the index, so that use_isa in another thread changes nothing under way.
cdef const kernels *table_at(int isa) noexcept nogil

# Whether a buffer of float or double holds neither NaN nor Inf.
cdef bint all_finite(const Py_buffer *view) noexcept nogil


cdef inline Py_ssize_t lanes(const kernels *table, const real *tag) noexcept nogil:
    if real is float:
        return table.f32.lanes
    else:
        return table.f64.lanes


cdef inline Py_ssize_t tile_rows(const kernels *table, const real *tag) noexcept nogil:
    if real is float:
        return table.f32.tile_rows
    else:
        return table.f64.tile_rows


cdef inline void sigmoid(const kernels *table, Py_ssize_t n, const real *x, real *y) noexcept nogil:
    if real is float:
        table.f32.sigmoid(n, x, y)
    else:
        table.f64.sigmoid(n, x, y)


cdef inline void tanh(const kernels *table, Py_ssize_t n, const real *x, real *y) noexcept nogil:
    if real is float:
        table.f32.tanh(n, x, y)
    else:
        table.f64.tanh(n, x, y)


cdef inline void matmul(
    const kernels *table, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t depth, const real *A, Py_ssize_t lda,
    const real *panel, Py_ssize_t ld_panel, const real *start, Py_ssize_t ld_start, real *C, Py_ssize_t ldc,
    const real *ahead,
) noexcept nogil:
    if real is float:
        table.f32.matmul(rows, columns, depth, A, lda, panel, ld_panel, start, ld_start, C, ldc, ahead)
    else:
        table.f64.matmul(rows, columns, depth, A, lda, panel, ld_panel, start, ld_start, C, ldc, ahead)


cdef inline void outer(
    const kernels *table, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t depth, const real *A, Py_ssize_t lda,
    const real *panel, Py_ssize_t ld_panel, const real *start, Py_ssize_t ld_start, real *C, Py_ssize_t ldc,
) noexcept nogil:
    if real is float:
        table.f32.outer(rows, columns, depth, A, lda, panel, ld_panel, start, ld_start, C, ldc)
    else:
        table.f64.outer(rows, columns, depth, A, lda, panel, ld_panel, start, ld_start, C, ldc)


cdef inline void transpose(
    const kernels *table, Py_ssize_t rows, Py_ssize_t depth, const real *A, Py_ssize_t lda, real *B, Py_ssize_t ldb,
) noexcept nogil:
    if real is float:
        table.f32.transpose(rows, depth, A, lda, B, ldb)
    else:
        table.f64.transpose(rows, depth, A, lda, B, ldb)


cdef inline void cell_forward(
    const kernels *table, Py_ssize_t rows, Py_ssize_t units, Py_ssize_t input_dim, Py_ssize_t hidden_dim,
    const real *hx, Py_ssize_t ld_hx, const real *block, const real *C_prev, real *C, real *h, real *gates,
    const real *ahead,
) noexcept nogil:
    if real is float:
        table.f32.cell_forward(rows, units, input_dim, hidden_dim, hx, ld_hx, block, C_prev, C, h, gates, ahead)
    else:
        table.f64.cell_forward(rows, units, input_dim, hidden_dim, hx, ld_hx, block, C_prev, C, h, gates, ahead)


cdef inline void cell_backward(
    const kernels *table, Py_ssize_t hidden_dim, const real *gates, const real *C_prev, const real *C, const real *dh,
    real *dC, real *dz,
) noexcept nogil:
    if real is float:
        table.f32.cell_backward(hidden_dim, gates, C_prev, C, dh, dC, dz)
    else:
        table.f64.cell_backward(hidden_dim, gates, C_prev, C, dh, dC, dz)


cdef inline void lanes_forward(
    const kernels *table, Py_ssize_t steps, Py_ssize_t rows, Py_ssize_t input_dim, Py_ssize_t hidden_dim,
    const real *x, const Py_ssize_t *first, Py_ssize_t x_step, const real *packed, const real *h_prev, real *h,
    Py_ssize_t ld_h, real *hx, Py_ssize_t hx_step, real *C, Py_ssize_t C_step, real *gates, real *scratch,
) noexcept nogil:
    if real is float:
        table.f32.lanes_forward(
            steps, rows, input_dim, hidden_dim, x, first, x_step, packed, h_prev, h, ld_h, hx, hx_step, C, C_step,
            gates, scratch,
        )
    else:
        table.f64.lanes_forward(
            steps, rows, input_dim, hidden_dim, x, first, x_step, packed, h_prev, h, ld_h, hx, hx_step, C, C_step,
            gates, scratch,
        )


cdef inline void lanes_backward(
    const kernels *table, Py_ssize_t steps, Py_ssize_t rows, Py_ssize_t hidden_dim, const real *gates, const real *C,
    Py_ssize_t C_step, const real *panels, const real *dH, Py_ssize_t ld_dH, Py_ssize_t dH_step, bint begins, bint ends,
    real *dh, real *dC, real *dz, Py_ssize_t ld_dz, Py_ssize_t dz_step, real *scratch,
) noexcept nogil:
    if real is float:
        table.f32.lanes_backward(
            steps, rows, hidden_dim, gates, C, C_step, panels, dH, ld_dH, dH_step, begins, ends, dh, dC, dz,
            ld_dz, dz_step, scratch,
        )
    else:
        table.f64.lanes_backward(
            steps, rows, hidden_dim, gates, C, C_step, panels, dH, ld_dH, dH_step, begins, ends, dh, dC, dz,
            ld_dz, dz_step, scratch,
        )


cdef inline void cell_step(
    const kernels *table, const cell_options *options, Py_ssize_t hidden_dim, real *z, const real *C_prev,
    const real *zone, real *C, real *m,
) noexcept nogil:
    if real is float:
        table.f32.cell_step(options, hidden_dim, z, C_prev, zone, C, m)
    else:
        table.f64.cell_step(options, hidden_dim, z, C_prev, zone, C, m)


cdef inline void cell_step_backward(
    const kernels *table, const cell_options *options, Py_ssize_t hidden_dim, const real *gates, const real *C_prev,
    const real *zone, const real *dm, real *dC, real *dz, real *c, real *dn,
) noexcept nogil:
    if real is float:
        table.f32.cell_step_backward(options, hidden_dim, gates, C_prev, zone, dm, dC, dz, c, dn)
    else:
        table.f64.cell_step_backward(options, hidden_dim, gates, C_prev, zone, dm, dC, dz, c, dn)


cdef inline double normalize(const kernels *table, Py_ssize_t n, const real *x, real *xhat) noexcept nogil:
    if real is float:
        return table.f32.normalize(n, x, xhat)
    else:
        return table.f64.normalize(n, x, xhat)


cdef inline void normalize_backward(
    const kernels *table, Py_ssize_t n, const real *xhat, double rstd, const real *gain, const real *dy, real *dx,
) noexcept nogil:
    if real is float:
        table.f32.normalize_backward(n, xhat, rstd, gain, dy, dx)
    else:
        table.f64.normalize_backward(n, xhat, rstd, gain, dy, dx)


cdef inline void blend(
    const kernels *table, Py_ssize_t n, const real *mask, real p, const real *a, const real *b, real *y,
) noexcept nogil:
    if real is float:
        table.f32.blend(n, mask, p, a, b, y)
    else:
        table.f64.blend(n, mask, p, a, b, y)


cdef inline void mask(
    const kernels *table, Py_ssize_t n, const uint32_t *key, const uint32_t *counter, uint32_t threshold, real dropped,
    real kept, real *y,
) noexcept nogil:
    if real is float:
        table.f32.mask(n, key, counter, threshold, dropped, kept, y)
    else:
        table.f64.mask(n, key, counter, threshold, dropped, kept, y)


cdef inline void dropout(
    const kernels *table, Py_ssize_t n, const uint32_t *key, const uint32_t *counter, uint32_t threshold, real scale,
    const real *x, real *y,
) noexcept nogil:
    if real is float:
        table.f32.dropout(n, key, counter, threshold, scale, x, y)
    else:
        table.f64.dropout(n, key, counter, threshold, scale, x, y)


cdef inline bint are_finite(const kernels *table, Py_ssize_t n, const real *x) noexcept nogil:
    if real is float:
        return table.f32.are_finite(n, x)
    else:
        return table.f64.are_finite(n, x)


cdef inline double sum_of_squares(const kernels *table, Py_ssize_t n, const real *x) noexcept nogil:
    if real is float:
        return table.f32.sum_of_squares(n, x)
    else:
        return table.f64.sum_of_squares(n, x)


cdef inline double squared_error(
    const kernels *table, Py_ssize_t n, const real *y, const real *target, double scale, real *dy,
) noexcept nogil:
    if real is float:
        return table.f32.squared_error(n, y, target, scale, dy)
    else:
        return table.f64.squared_error(n, y, target, scale, dy)


cdef inline double cross_entropy(
    const kernels *table, Py_ssize_t n, const real *logits, Py_ssize_t label, double scale, real *dlogits,
) noexcept nogil:
    if real is float:
        return table.f32.cross_entropy(n, logits, label, scale, dlogits)
    else:
        return table.f64.cross_entropy(n, logits, label, scale, dlogits)


cdef inline void sgd(
    const kernels *table, Py_ssize_t n, real *parameters, const real *gradient, real *velocity, double scale,
    double learning_rate, double momentum,
) noexcept nogil:
    if real is float:
        table.f32.sgd(n, parameters, gradient, velocity, scale, learning_rate, momentum)
    else:
        table.f64.sgd(n, parameters, gradient, velocity, scale, learning_rate, momentum)


cdef inline void adam(
    const kernels *table, Py_ssize_t n, real *parameters, const real *gradient, real *m, real *v, double scale,
    double step_size, double root_correction, double beta1, double beta2, double epsilon,
) noexcept nogil:
    if real is float:
        table.f32.adam(n, parameters, gradient, m, v, scale, step_size, root_correction, beta1, beta2, epsilon)
    else:
        table.f64.adam(n, parameters, gradient, m, v, scale, step_size, root_correction, beta1, beta2, epsilon)
