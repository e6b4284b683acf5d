/* The register tile that every pass is made of, and the row epilogues. Included by leaf.h once for each type; the
   contracts of the kernels are in kernels.h. */

/* The accumulators of one tile: R rows of N vectors. R and N are constants where this is inlined, so they are
   registers. */
#define LOAD_ROWS(R, N, acc, start, ld_start, columns)                                                                 \
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < N; j++)                                              \
        acc[r][j] = NAME(load_lanes)((start) + r * (ld_start), j, columns, N)

#define STORE_ROWS(R, N, acc, C, ldc, columns)                                                                         \
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < N; j++)                                              \
        NAME(store_lanes)((C) + r * (ldc), acc[r][j], j, columns, N)

/* acc[r][j] += sum_k A[r * row_stride + k * k_stride] * panel[k][j]. The row's broadcasts come first, then one
   vector of the panel at a time: the other order spills registers in Clang's AVX2 build (seen in its assembly). */
#define MULTIPLY_ADD(R, N, acc, depth, A, row_stride, k_stride, panel, ld_panel, ahead)                                \
    do {                                                                                                               \
        const real *a_ = (A), *p_ = (panel);                                                                           \
        const char *ahead_ = (const char *)(ahead);                                                                    \
        for (ptrdiff_t k_ = 0; k_ < (depth); k_++, a_ += (k_stride), p_ += (ld_panel), ahead_ += CACHE_LINE) {         \
            vec s_[R];                                                                                                 \
            __builtin_prefetch(ahead_, 0, 2);                                                                          \
            UNROLL for (int r = 0; r < R; r++) s_[r] = NAME(broadcast)(a_[r * (row_stride)]);                          \
            UNROLL for (int j = 0; j < N; j++) {                                                                       \
                vec w_ = NAME(load)(p_ + j * V);                                                                       \
                UNROLL for (int r = 0; r < R; r++) acc[r][j] = FMA(s_[r], w_, acc[r][j]);                              \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)

/* Vector j of a row of `columns` elements that fill up to N vectors: full rows take the short way. */
INLINE vec NAME(load_lanes)(const real *row, int j, ptrdiff_t columns, int N)
{
    return columns == N * V ? NAME(load)(row + j * V) : NAME(load_n)(row + j * V, columns - j * V);
}

INLINE void NAME(store_lanes)(real *row, vec x, int j, ptrdiff_t columns, int N)
{
    if (columns == N * V)
        NAME(store)(row + j * V, x);
    else
        NAME(store_n)(row + j * V, x, columns - j * V);
}

/* Calls body(R, N) with the constants for `rows` <= TILE_ROWS and the vectors that `columns` need. */
#define CASE_ROWS(body, R)                                                                                             \
    case R:                                                                                                            \
        if (columns > 3 * V)                                                                                           \
            body(R, 4);                                                                                                \
        else if (columns > 2 * V)                                                                                      \
            body(R, 3);                                                                                                \
        else if (columns > V)                                                                                          \
            body(R, 2);                                                                                                \
        else                                                                                                           \
            body(R, 1);                                                                                                \
        break;

#define MATMUL_BODY(R, N)                                                                                              \
    do {                                                                                                               \
        vec acc[R][N];                                                                                                 \
        LOAD_ROWS(R, N, acc, start, ld_start, columns);                                                                \
        MULTIPLY_ADD(R, N, acc, depth, A, lda, 1, panel, ld_panel, ahead);                                             \
        STORE_ROWS(R, N, acc, C, ldc, columns);                                                                        \
    } while (0)

#define OUTER_BODY(R, N)                                                                                               \
    do {                                                                                                               \
        vec acc[R][N];                                                                                                 \
        LOAD_ROWS(R, N, acc, start, ld_start, columns);                                                                \
        MULTIPLY_ADD(R, N, acc, depth, A, 1, lda, panel, ld_panel, panel);                                             \
        STORE_ROWS(R, N, acc, C, ldc, columns);                                                                        \
    } while (0)

static void NAME(matmul)(ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t depth, const real *A, ptrdiff_t lda,
                         const real *panel, ptrdiff_t ld_panel, const real *start, ptrdiff_t ld_start, real *C,
                         ptrdiff_t ldc, const real *ahead)
{
    switch (rows) {
        EACH_TILE_ROWS(CASE_ROWS, MATMUL_BODY)
    }
}

static void NAME(outer)(ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t depth, const real *A, ptrdiff_t lda,
                        const real *panel, ptrdiff_t ld_panel, const real *start, ptrdiff_t ld_start, real *C,
                        ptrdiff_t ldc)
{
    for (ptrdiff_t r = rows; r < 2 * rows; r++) /* the next tile's part of C */
        for (ptrdiff_t j = 0; j < columns; j += CACHE_LINE / (ptrdiff_t)sizeof(real))
            __builtin_prefetch(C + r * ldc + j);
    switch (rows) {
        EACH_TILE_ROWS(CASE_ROWS, OUTER_BODY)
    }
}

#define CELL_CASE(body, R)                                                                                             \
    case R: {                                                                                                          \
        vec acc[R][TILE_VECTORS];                                                                                      \
        LOAD_ROWS(R, TILE_VECTORS, acc, block, 0, TILE_VECTORS *V);                                                    \
        MULTIPLY_ADD(R, TILE_VECTORS, acc, input_dim, hx + hidden_dim, ld_hx, 1, W_x, TILE_VECTORS *V, ahead);         \
        MULTIPLY_ADD(R, TILE_VECTORS, acc, hidden_dim, hx, ld_hx, 1, W_h, TILE_VECTORS *V, ahead_h);                   \
        STORE_ROWS(R, TILE_VECTORS, acc, z, TILE_VECTORS *V, TILE_VECTORS *V);                                         \
        break;                                                                                                         \
    }

/* Columns k to k + n of the rows, n <= V. */
INLINE void NAME(transpose_block)(ptrdiff_t rows, ptrdiff_t n, const real *A, ptrdiff_t lda, real *B, ptrdiff_t ldb)
{
    vec block[V];
    UNROLL for (int j = 0; j < V; j++) block[j] = j < rows ? NAME(load_n)(A + j * lda, n) : K(0);
    NAME(transpose_square)(block);
    UNROLL for (int k = 0; k < V; k++) if (k < n) NAME(store)(B + k * ldb, block[k]);
}

static void NAME(transpose)(ptrdiff_t rows, ptrdiff_t depth, const real *A, ptrdiff_t lda, real *B, ptrdiff_t ldb)
{
    ptrdiff_t k = 0;
    if (rows * depth <= 2 * V) /* not worth a square */
        for (; k < depth; k++) {
            NAME(store)(B + k * ldb, K(0));
            for (ptrdiff_t j = 0; j < rows; j++)
                B[k * ldb + j] = A[j * lda + k];
        }
    if (rows == V)
        for (; k + V <= depth; k += V)
            NAME(transpose_block)(V, V, A + k, lda, B + k * ldb, ldb);
    for (; k < depth; k += V)
        NAME(transpose_block)(rows, depth - k < V ? depth - k : V, A + k, lda, B + k * ldb, ldb);
}

/* The gates i, f, g, o of V units, or the first n of these gates, from their pre-activations z (n), side by side. */
INLINE void NAME(activate_gates)(int n, vec *z)
{
    vec p[4], power[4];
    EACH(n) p[l] = l == 2 ? NAME(tanh_argument)(z[l]) : NAME(clamp)(z[l]);
    NAME(expm1_reduced)(n, p, power);
    EACH(n) z[l] = l == 2 ? NAME(tanh_of_reduced)(z[l], p[l], power[l]) : NAME(sigmoid_of_reduced)(p[l], power[l]);
}

/* The cell's elementwise half for n rows side by side: z (n, 4, V) holds the pre-activations of `units` <= V units. */
INLINE void NAME(cell_rows_side_by_side)(int n, ptrdiff_t units, ptrdiff_t hidden_dim, ptrdiff_t ld_h, const real *z,
                                         const real *C_prev, real *C, real *h, real *gates)
{
    vec c[4], o[4];
    UNROLL for (int r = 0; r < n; r++) {
        vec gate[4]; /* i, f, g, o */
        EACH(4) gate[l] = NAME(load)(z + (r * TILE_VECTORS + l) * V);
        NAME(activate_gates)(4, gate);
        c[r] = FMA(gate[1], NAME(load_n)(C_prev + r * hidden_dim, units), gate[0] * gate[2]);
        o[r] = gate[3];
        NAME(store_n)(C + r * hidden_dim, c[r], units);
        if (gates)
            EACH(4) NAME(store_n)(gates + (r * 4 + l) * hidden_dim, gate[l], units);
    }
    NAME(vtanh_side_by_side)(n, c);
    EACH(n) NAME(store_n)(h + l * ld_h, o[l] * c[l], units);
}

INLINE void NAME(cell_rows_of)(ptrdiff_t rows, ptrdiff_t units, ptrdiff_t hidden_dim, ptrdiff_t ld_h, const real *z,
                               const real *C_prev, real *C, real *h, real *gates)
{
#define ROWS(n)                                                                                                        \
    NAME(cell_rows_side_by_side)(n, units, hidden_dim, ld_h, z + r * TILE_VECTORS * V, C_prev + r * hidden_dim,        \
                                 C + r * hidden_dim, h + r * ld_h, gates ? gates + r * 4 * hidden_dim : NULL)
    ptrdiff_t r = 0;
    for (; r + 3 <= rows; r += 3)
        ROWS(3);
    if (rows - r == 2)
        ROWS(2);
    else if (rows - r == 1)
        ROWS(1);
#undef ROWS
}

INLINE void NAME(cell_rows)(ptrdiff_t rows, ptrdiff_t units, ptrdiff_t hidden_dim, ptrdiff_t ld_h, const real *z,
                            const real *C_prev, real *C, real *h, real *gates)
{
    if (units == V)
        NAME(cell_rows_of)(rows, V, hidden_dim, ld_h, z, C_prev, C, h, gates);
    else
        NAME(cell_rows_of)(rows, units, hidden_dim, ld_h, z, C_prev, C, h, gates);
}

/* One sequence, two blocks of units: enough chains of multiply-adds to hide their latency. */
static void NAME(cell_forward_pair)(ptrdiff_t units, ptrdiff_t input_dim, ptrdiff_t hidden_dim, const real *hx,
                                    const real *block, const real *C_prev, real *C, real *h, real *gates)
{
    const ptrdiff_t size = (1 + input_dim + hidden_dim) * TILE_VECTORS * V;
    vec acc[2][TILE_VECTORS];
    LOAD_ROWS(2, TILE_VECTORS, acc, block, size, TILE_VECTORS *V);
    const real *W = block + TILE_VECTORS * V, *x = hx + hidden_dim;
    for (ptrdiff_t k = 0; k < input_dim + hidden_dim; k++, W += TILE_VECTORS * V) {
        vec s = NAME(broadcast)(k < input_dim ? x[k] : hx[k - input_dim]);
        UNROLL for (int b = 0; b < 2; b++) UNROLL for (int j = 0; j < TILE_VECTORS; j++)
            acc[b][j] = FMA(s, NAME(load)(W + b * size + j * V), acc[b][j]);
    }
    real z[2 * TILE_VECTORS * V] __attribute__((aligned(VECTOR_BYTES)));
    STORE_ROWS(2, TILE_VECTORS, acc, z, TILE_VECTORS *V, TILE_VECTORS *V);
    NAME(cell_rows)(1, V, hidden_dim, 0, z, C_prev, C, h, gates);
    NAME(cell_rows)(1, units - V, hidden_dim, 0, z + TILE_VECTORS * V, C_prev + V, C + V, h + V,
                    gates ? gates + V : NULL);
}

static void NAME(cell_forward)(ptrdiff_t rows, ptrdiff_t units, ptrdiff_t input_dim, ptrdiff_t hidden_dim,
                               const real *hx, ptrdiff_t ld_hx, const real *block, const real *C_prev, real *C, real *h,
                               real *gates, const real *ahead)
{
    if (units > V) {
        NAME(cell_forward_pair)(units, input_dim, hidden_dim, hx, block, C_prev, C, h, gates);
        return;
    }
    const real *W_x = block + TILE_VECTORS * V, *W_h = W_x + input_dim * TILE_VECTORS * V;
    const char *ahead_h = (const char *)ahead + input_dim * CACHE_LINE;
    /* While the tile multiplies, prefetch the rows of the epilogue. */
    for (ptrdiff_t r = 0; r < rows; r++) {
        __builtin_prefetch(C_prev + r * hidden_dim);
        __builtin_prefetch(C + r * hidden_dim, 1);
        __builtin_prefetch(h + r * ld_hx, 1);
        for (int g = 0; gates && g < 4; g++)
            __builtin_prefetch(gates + (4 * r + g) * hidden_dim, 1);
    }
    real z[TILE_ROWS * TILE_VECTORS * V] __attribute__((aligned(VECTOR_BYTES)));
    switch (rows) {
        EACH_TILE_ROWS(CELL_CASE, )
    }
    NAME(cell_rows)(rows, units, hidden_dim, ld_hx, z, C_prev, C, h, gates);
}

/* The derivative of the cell's elementwise half: gates i, f, g, o; dC in: dL/dC_t, out: dL/dC_{t-1}; dz out. */
INLINE void NAME(cell_gradient)(const vec *gates, vec C_prev, vec C, vec dh, vec *dC, vec *dz)
{
    const vec one = K(1), i = gates[0], f = gates[1], g = gates[2], o = gates[3], tanh_C = NAME(vtanh)(C);
    vec dC_t = FMA(dh * o, FMA(-tanh_C, tanh_C, one), *dC);
    dz[0] = (dC_t * g) * FMA(-i, i, i);
    dz[1] = (dC_t * C_prev) * FMA(-f, f, f);
    dz[2] = (dC_t * i) * FMA(-g, g, one);
    dz[3] = (dh * tanh_C) * FMA(-o, o, o);
    *dC = dC_t * f;
}

#define ROWS_AHEAD 4

/* `units` units of one row, the first of which every pointer points at. */
INLINE void NAME(cell_backward_units)(ptrdiff_t units, ptrdiff_t hidden_dim, const real *gates, const real *C_prev,
                                      const real *C, const real *dh, real *dC, real *dz)
{
    for (int g = 0; g < 4; g++) /* of a later row */
        __builtin_prefetch(gates + (4 * ROWS_AHEAD + g) * hidden_dim);
    __builtin_prefetch(C_prev + ROWS_AHEAD * hidden_dim);
    vec saved[TILE_VECTORS], dz_t[TILE_VECTORS], dC_t = NAME(load_n)(dC, units);
    UNROLL for (int g = 0; g < TILE_VECTORS; g++) saved[g] = NAME(load_n)(gates + g * hidden_dim, units);
    NAME(cell_gradient)(saved, NAME(load_n)(C_prev, units), NAME(load_n)(C, units), NAME(load_n)(dh, units), &dC_t,
                        dz_t);
    UNROLL for (int g = 0; g < TILE_VECTORS; g++) NAME(store_n)(dz + g * hidden_dim, dz_t[g], units);
    NAME(store_n)(dC, dC_t, units);
}

static void NAME(cell_backward)(ptrdiff_t hidden_dim, const real *gates, const real *C_prev, const real *C,
                                const real *dh, real *dC, real *dz)
{
#define BODY(u, n) NAME(cell_backward_units)(n, hidden_dim, gates + u, C_prev + u, C + u, dh + u, dC + u, dz + u)
    EACH_VECTOR(hidden_dim, BODY);
#undef BODY
}
