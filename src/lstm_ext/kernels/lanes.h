/* The plain cell with one sequence in each lane and weights broadcast, for layers of few units, whose vectors of units
   would have empty lanes. Included by leaf.h once for each type; the contracts are in kernels.h.

   A panel (columns, V) has one vector for each column. Rows become panels and back by transposing squares of 16-byte
   vectors, which every set has. Lanes past the last row repeat the first row and are never stored. */
#define SQUARE (16 / (ptrdiff_t)sizeof(real))
#define LANES_TILE 3 /* units */

typedef real NAME(square_row) __attribute__((vector_size(16)));
typedef real NAME(square_row_unaligned) __attribute__((vector_size(16), aligned(sizeof(real)), may_alias));
#define square_row NAME(square_row)
#define LOAD_ROW(p) ((square_row) * (const NAME(square_row_unaligned) *)(p))
#define STORE_ROW(p, x) (*(NAME(square_row_unaligned) *)(p) = (NAME(square_row_unaligned))(x))

/* Elements of a and b; those of b are numbered after those of a. */
#if defined(__clang__)
#define SHUFFLE_SQUARE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef bits NAME(square_index) __attribute__((vector_size(16)));
#define SHUFFLE_SQUARE(a, b, ...) __builtin_shuffle(a, b, (NAME(square_index)){__VA_ARGS__})
#endif

INLINE void NAME(turn_square)(square_row *s)
{
#if REAL_IS_DOUBLE
    square_row first = SHUFFLE_SQUARE(s[0], s[1], 0, 2);
    s[1] = SHUFFLE_SQUARE(s[0], s[1], 1, 3);
    s[0] = first;
#else
    square_row a = SHUFFLE_SQUARE(s[0], s[1], 0, 4, 1, 5), b = SHUFFLE_SQUARE(s[0], s[1], 2, 6, 3, 7);
    square_row c = SHUFFLE_SQUARE(s[2], s[3], 0, 4, 1, 5), d = SHUFFLE_SQUARE(s[2], s[3], 2, 6, 3, 7);
    s[0] = SHUFFLE_SQUARE(a, c, 0, 1, 4, 5);
    s[1] = SHUFFLE_SQUARE(a, c, 2, 3, 6, 7);
    s[2] = SHUFFLE_SQUARE(b, d, 0, 1, 4, 5);
    s[3] = SHUFFLE_SQUARE(b, d, 2, 3, 6, 7);
#endif
}

/* panel[k][l] = x[offsets[l] + k], k < columns, l < V. */
INLINE void NAME(rows_to_panel)(ptrdiff_t columns, const real *x, const ptrdiff_t *offsets, real *panel)
{
    for (ptrdiff_t l = 0; l < V; l += SQUARE) {
        ptrdiff_t k = 0;
        for (; k + SQUARE <= columns; k += SQUARE) {
            square_row s[SQUARE];
            UNROLL for (int i = 0; i < SQUARE; i++) s[i] = LOAD_ROW(x + offsets[l + i] + k);
            NAME(turn_square)(s);
            UNROLL for (int i = 0; i < SQUARE; i++) STORE_ROW(panel + (k + i) * V + l, s[i]);
        }
        for (; k < columns; k++)
            UNROLL for (int i = 0; i < SQUARE; i++) panel[k * V + l + i] = x[offsets[l + i] + k];
    }
}

/* y[l * ld + k] = panel[k][l], k < columns, l < rows; whole squares of columns are read and written. */
INLINE void NAME(panel_to_padded_rows)(ptrdiff_t rows, ptrdiff_t columns, const real *panel, real *y, ptrdiff_t ld)
{
    for (ptrdiff_t l = 0; l < rows; l += SQUARE) {
        const ptrdiff_t left = rows - l;
        real *y_l = y + l * ld;
        for (ptrdiff_t k = 0; k < columns; k += SQUARE) {
            square_row s[SQUARE];
            UNROLL for (int i = 0; i < SQUARE; i++) s[i] = LOAD_ROW(panel + (k + i) * V + l);
            NAME(turn_square)(s);
            if (left >= SQUARE)
                UNROLL for (int i = 0; i < SQUARE; i++) STORE_ROW(y_l + i * ld + k, s[i]);
            else
                for (int i = 0; i < left; i++)
                    STORE_ROW(y_l + i * ld + k, s[i]);
        }
    }
}

/* The same, but only `columns` columns are written. */
INLINE void NAME(panel_to_rows)(ptrdiff_t rows, ptrdiff_t columns, const real *panel, real *y, ptrdiff_t ld)
{
    const ptrdiff_t whole = columns / SQUARE * SQUARE;
    NAME(panel_to_padded_rows)(rows, whole, panel, y, ld);
    for (ptrdiff_t k = whole; k < columns; k++)
        for (ptrdiff_t l = 0; l < rows; l++)
            y[l * ld + k] = panel[k * V + l];
}

/* The offset of each lane's row; lanes past the last row take the first one. */
INLINE void NAME(row_offsets)(ptrdiff_t rows, ptrdiff_t ld, ptrdiff_t *offsets)
{
    for (ptrdiff_t l = 0; l < V; l++)
        offsets[l] = l < rows ? l * ld : 0;
}

/* The size of the next tile, at most `maximum` of the `left` columns, such that no tile is much smaller than others. */
INLINE ptrdiff_t NAME(tile_size)(ptrdiff_t left, ptrdiff_t maximum)
{
    ptrdiff_t count = (left + maximum - 1) / maximum;
    return (left + count - 1) / count;
}

#define LANES_MULTIPLY_ADD(U, z, depth, w, panel)                                                                      \
    for (ptrdiff_t k = 0; k < (depth); k++, w += TILE_VECTORS * V) {                                                   \
        vec s_ = NAME(load)((panel) + k * V);                                                                          \
        UNROLL for (int j = 0; j < U; j++) UNROLL for (int g = 0; g < TILE_VECTORS; g++)                               \
            z[j][g] = FMA(NAME(broadcast)(w[g * V + j]), s_, z[j][g]);                                                 \
    }

/* U units, a constant; w points at the first one's bias in its block. Several units at once have enough chains of
   multiply-adds to hide their latency, and their elementwise halves overlap. */
INLINE void NAME(lanes_units)(const int U, ptrdiff_t rows, ptrdiff_t input_dim, ptrdiff_t hidden_dim, const real *w,
                              const real *hx, const real *C_prev, real *C, real *h, real *gates)
{
    vec z[LANES_TILE][TILE_VECTORS], c[LANES_TILE];
    UNROLL for (int j = 0; j < U; j++) UNROLL for (int g = 0; g < TILE_VECTORS; g++)
        z[j][g] = NAME(broadcast)(w[g * V + j]);
    w += TILE_VECTORS * V;
    LANES_MULTIPLY_ADD(U, z, input_dim, w, hx + hidden_dim * V);
    LANES_MULTIPLY_ADD(U, z, hidden_dim, w, hx);
    UNROLL for (int j = 0; j < U; j++) {
        NAME(activate_gates)(4, z[j]);
        c[j] = FMA(z[j][1], NAME(load_n)(C_prev + j * rows, rows), z[j][0] * z[j][2]);
        NAME(store_n)(C + j * rows, c[j], rows);
        if (gates)
            UNROLL for (int g = 0; g < TILE_VECTORS; g++)
                NAME(store_n)(gates + (j * TILE_VECTORS + g) * rows, z[j][g], rows);
    }
    NAME(vtanh_side_by_side)(U, c);
    UNROLL for (int j = 0; j < U; j++) NAME(store)(h + j * V, z[j][3] * c[j]);
}

/* One step of one group; hx (H + I, V), h (H, V). */
INLINE void NAME(lanes_step)(ptrdiff_t rows, ptrdiff_t input_dim, ptrdiff_t hidden_dim, const real *packed,
                             const real *hx, const real *C_prev, real *C, real *h, real *gates)
{
    const ptrdiff_t size = (1 + input_dim + hidden_dim) * TILE_VECTORS * V;
    for (ptrdiff_t first = 0; first < hidden_dim; first += V, packed += size) {
        const ptrdiff_t end = first + V < hidden_dim ? first + V : hidden_dim;
        for (ptrdiff_t u = first, units; u < end; u += units) {
            units = NAME(tile_size)(end - u, LANES_TILE);
#define UNITS(U)                                                                                                       \
    NAME(lanes_units)(U, rows, input_dim, hidden_dim, packed + (u - first), hx, C_prev + u * rows, C + u * rows,       \
                      h + u * V, gates ? gates + u * TILE_VECTORS * rows : NULL)
            if (units == 3)
                UNITS(3);
            else if (units == 2)
                UNITS(2);
            else
                UNITS(1);
#undef UNITS
        }
    }
}

/* `restrict` saves 2 % of a training step: the panels in the scratch overlap no other array. */
static void NAME(lanes_forward)(ptrdiff_t steps, ptrdiff_t rows, ptrdiff_t input_dim, ptrdiff_t hidden_dim,
                                const real *x, const ptrdiff_t *first, ptrdiff_t x_step, const real *packed,
                                const real *h_prev, real *h, ptrdiff_t ld_h, real *hx, ptrdiff_t hx_step, real *C,
                                ptrdiff_t C_step, real *gates, real *restrict scratch)
{
    const int adjoin = x_step == input_dim || x_step == -input_dim;
    const ptrdiff_t chunk = adjoin && input_dim < LANES_COLUMNS ? LANES_COLUMNS / input_dim : 1; /* steps */
    real *hx_panels[2]; /* whole squares of columns are read */
    hx_panels[0] = scratch;
    hx_panels[1] = hx_panels[0] + (hidden_dim + input_dim + SQUARE) * V;
    real *x_panel = hx_panels[1] + (hidden_dim + input_dim + SQUARE) * V;
    ptrdiff_t offsets[V];
    NAME(row_offsets)(rows, ld_h, offsets);
    NAME(rows_to_panel)(hidden_dim, h_prev, offsets, hx_panels[0]);
    for (ptrdiff_t l = 0; l < V; l++)
        offsets[l] = first[l < rows ? l : 0];
    for (ptrdiff_t t = 0; t < steps; t++) {
        const ptrdiff_t in_chunk = t % chunk, left = steps - (t - in_chunk), count = left < chunk ? left : chunk;
        const ptrdiff_t position = x_step < 0 ? count - 1 - in_chunk : in_chunk; /* in memory's order */
        real *hx_panel = hx_panels[t % 2], *C_t = C + t * C_step;
        if (in_chunk == 0)
            NAME(rows_to_panel)(count * input_dim, x + t * x_step - position * input_dim, offsets, x_panel);
        for (ptrdiff_t k = 0; k < input_dim; k++)
            NAME(store)(hx_panel + (hidden_dim + k) * V, NAME(load)(x_panel + (position * input_dim + k) * V));
        if (hx)
            NAME(panel_to_padded_rows)(rows, hidden_dim + input_dim, hx_panel, hx + t * hx_step, ld_h);
        NAME(lanes_step)(rows, input_dim, hidden_dim, packed, hx_panel, C_t, C_t + C_step, hx_panels[(t + 1) % 2],
                         gates ? gates + t * TILE_VECTORS * C_step : NULL);
    }
    NAME(panel_to_rows)(rows, hidden_dim, hx_panels[steps % 2], h, ld_h);
}

/* dh[j] += sum_k dz[k] * panel[k][j], k ascending, j < N. */
INLINE void NAME(lanes_product)(const int N, ptrdiff_t depth, const real *dz, const real *panel, ptrdiff_t ld_panel,
                                real *dh)
{
    vec acc[8];
    UNROLL for (int j = 0; j < N; j++) acc[j] = NAME(load)(dh + j * V);
    for (ptrdiff_t k = 0; k < depth; k++, panel += ld_panel) {
        vec s = NAME(load)(dz + k * V);
        UNROLL for (int j = 0; j < N; j++) acc[j] = FMA(s, NAME(broadcast)(panel[j]), acc[j]);
    }
    UNROLL for (int j = 0; j < N; j++) NAME(store)(dh + j * V, acc[j]);
}

/* dh (H, V) += dz (4 H, V) times W_h. */
static void NAME(lanes_products)(ptrdiff_t hidden_dim, const real *dz, const real *panels, real *dh)
{
    for (ptrdiff_t first = 0, width; first < hidden_dim; first += width) {
        const ptrdiff_t left = hidden_dim - first;
        const ptrdiff_t columns = left < TILE_VECTORS * V ? left : TILE_VECTORS * V;
        width = (columns + V - 1) / V * V;
        for (ptrdiff_t j = 0, n; j < columns; j += n) {
            n = NAME(tile_size)(columns - j, 8);
#define CASE(N)                                                                                                        \
    case N:                                                                                                            \
        NAME(lanes_product)(N, 4 * hidden_dim, dz, panels + j, width, dh + (first + j) * V);                           \
        break;
            switch (n) {
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
            }
#undef CASE
        }
        panels += 4 * hidden_dim * width;
    }
}

/* One step of one group backward, without the product: dz (4 H, V) out. */
INLINE void NAME(lanes_gradient)(ptrdiff_t rows, ptrdiff_t hidden_dim, const real *gates, const real *C_prev,
                                 const real *C, const real *dh, real *dC, real *dz)
{
    for (ptrdiff_t u = 0; u < hidden_dim; u++) {
        vec saved[TILE_VECTORS], dz_u[TILE_VECTORS], dC_u = NAME(load)(dC + u * V);
        UNROLL for (int g = 0; g < TILE_VECTORS; g++)
            saved[g] = NAME(load_n)(gates + (u * TILE_VECTORS + g) * rows, rows);
        NAME(cell_gradient)(saved, NAME(load_n)(C_prev + u * rows, rows), NAME(load_n)(C + u * rows, rows),
                            NAME(load)(dh + u * V), &dC_u, dz_u);
        NAME(store)(dC + u * V, dC_u);
        UNROLL for (int g = 0; g < TILE_VECTORS; g++) NAME(store)(dz + (g * hidden_dim + u) * V, dz_u[g]);
    }
}

/* A state is (rows, H) before a sequence's first step and after its last, (H, rows) between two calls. */
INLINE void NAME(load_state)(int outside, ptrdiff_t rows, ptrdiff_t hidden_dim, const real *state,
                             const ptrdiff_t *offsets, real *panel)
{
    if (outside)
        NAME(rows_to_panel)(hidden_dim, state, offsets, panel);
    else
        for (ptrdiff_t u = 0; u < hidden_dim; u++)
            NAME(store)(panel + u * V, NAME(load_n)(state + u * rows, rows));
}

INLINE void NAME(store_state)(int outside, ptrdiff_t rows, ptrdiff_t hidden_dim, const real *panel, real *state)
{
    if (outside)
        NAME(panel_to_rows)(rows, hidden_dim, panel, state, hidden_dim);
    else
        for (ptrdiff_t u = 0; u < hidden_dim; u++)
            NAME(store_n)(state + u * rows, NAME(load)(panel + u * V), rows);
}

static void NAME(lanes_backward)(ptrdiff_t steps, ptrdiff_t rows, ptrdiff_t hidden_dim, const real *gates,
                                 const real *C, ptrdiff_t C_step, const real *panels, const real *dH, ptrdiff_t ld_dH,
                                 ptrdiff_t dH_step, int begins, int ends, real *dh, real *dC, real *dz,
                                 ptrdiff_t ld_dz, ptrdiff_t dz_step, real *restrict scratch)
{
    real *dh_panel = scratch, *dC_panel = dh_panel + hidden_dim * V, *dz_panel = dC_panel + hidden_dim * V;
    ptrdiff_t offsets[V], dH_offsets[V];
    NAME(row_offsets)(rows, hidden_dim, offsets);
    NAME(row_offsets)(rows, ld_dH, dH_offsets);
    NAME(load_state)(ends, rows, hidden_dim, dh, offsets, dh_panel);
    NAME(load_state)(ends, rows, hidden_dim, dC, offsets, dC_panel);
    for (ptrdiff_t s = steps - 1; s >= 0; s--, dz += dz_step) {
        const real *C_prev = C + s * C_step;
        NAME(lanes_gradient)(rows, hidden_dim, gates + s * TILE_VECTORS * C_step, C_prev, C_prev + C_step, dh_panel,
                             dC_panel, dz_panel);
        NAME(panel_to_rows)(rows, TILE_VECTORS * hidden_dim, dz_panel, dz, ld_dz);
        if (dH && !(s == 0 && begins))
            NAME(rows_to_panel)(hidden_dim, dH + (s - 1) * dH_step, dH_offsets, dh_panel);
        else
            for (ptrdiff_t j = 0; j < hidden_dim; j++)
                NAME(store)(dh_panel + j * V, K(0));
        NAME(lanes_products)(hidden_dim, dz_panel, panels, dh_panel);
    }
    NAME(store_state)(begins, rows, hidden_dim, dh_panel, dh);
    NAME(store_state)(begins, rows, hidden_dim, dC_panel, dC);
}
