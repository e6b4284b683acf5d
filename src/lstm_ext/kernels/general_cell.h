/* What cells with options are made of beyond products: their elementwise step, layer normalisation, masks of dropout.
   Included by leaf.h once for each type; the contracts are in kernels.h. Derivatives are in terms of the outputs. */

/* --- sums across elements --- */

#define D ((ptrdiff_t)(VECTOR_BYTES / sizeof(double)))
typedef double NAME(doubles) __attribute__((vector_size(VECTOR_BYTES)));
#define doubles NAME(doubles)

#if REAL_IS_DOUBLE
INLINE doubles NAME(load_doubles)(const real *p) { return NAME(load)(p); }
#else
typedef real NAME(half_unaligned) __attribute__((vector_size(VECTOR_BYTES / 2), aligned(sizeof(real)), may_alias));
INLINE doubles NAME(load_doubles)(const real *p)
{
    return __builtin_convertvector(*(const NAME(half_unaligned) *)p, doubles);
}
#endif

/* sum_j term(get(x, j), get(y, j)), j < n, in double. */
#define SUM_OF(term, n, x, y)                                                                                          \
    double sum = 0;                                                                                                    \
    for (ptrdiff_t begin = 0, j = 0; begin < (n); begin += SUM_BLOCK) {                                                \
        const ptrdiff_t end = begin + SUM_BLOCK < (n) ? begin + SUM_BLOCK : (n);                                       \
        doubles sums[LANES / D] = {{0}};                                                                               \
        for (; j + LANES <= end; j += LANES)                                                                           \
            UNROLL for (int l = 0; l < LANES / D; l++)                                                                 \
                sums[l] += term(NAME(load_doubles)((x) + j + l * D), NAME(load_doubles)((y) + j + l * D));             \
        double lanes[LANES];                                                                                           \
        UNROLL for (int l = 0; l < LANES; l++) lanes[l] = sums[l / D][l % D];                                          \
        for (ptrdiff_t l = 0; j < end; l++, j++)                                                                       \
            lanes[l] += term((double)(x)[j], (double)(y)[j]);                                                          \
        sum += NAME(add_lanes)(lanes);                                                                                 \
    }                                                                                                                  \
    return sum

INLINE double NAME(sum)(ptrdiff_t n, const real *x)
{
#define TERM(x, y) (x)
    SUM_OF(TERM, n, x, x);
#undef TERM
}

INLINE double NAME(sum_of_squares_about)(double mean, ptrdiff_t n, const real *x)
{
#define TERM(x, y) ((x) - mean) * ((y) - mean)
    SUM_OF(TERM, n, x, x);
#undef TERM
}

INLINE double NAME(sum_of_products)(ptrdiff_t n, const real *x, const real *y)
{
#define TERM(x, y) (x) * (y)
    SUM_OF(TERM, n, x, y);
#undef TERM
}

/* --- layer normalisation --- */

typedef struct {
    double mean, rstd;
} NAME(moments);

static NAME(moments) NAME(moments_of)(ptrdiff_t n, const real *x)
{
    const double mean = NAME(sum)(n, x) / (double)n;
    const double variance = NAME(sum_of_squares_about)(mean, n, x) / (double)n;
    return (NAME(moments)){mean, 1 / __builtin_sqrt(variance + 1e-5)};
}

INLINE vec NAME(normalized)(vec x, NAME(moments) of) { return (x - K(of.mean)) * K(of.rstd); }

static double NAME(normalize)(ptrdiff_t n, const real *x, real *xhat)
{
    const NAME(moments) of = NAME(moments_of)(n, x);
#define BODY(j, m) NAME(store_n)(xhat + j, NAME(normalized)(NAME(load_n)(x + j, m), of), m)
    EACH_VECTOR(n, BODY);
#undef BODY
    return of.rstd;
}

static void NAME(normalize_backward)(ptrdiff_t n, const real *xhat, double rstd, const real *gain, const real *dy,
                                     real *dx)
{
#define BODY(j, m) NAME(store_n)(dx + j, NAME(load_n)(gain + j, m) * NAME(load_n)(dy + j, m), m)
    EACH_VECTOR(n, BODY);
#undef BODY
    const double mean = NAME(sum)(n, dx) / (double)n, slope = NAME(sum_of_products)(n, dx, xhat) / (double)n;
#define BODY(j, m)                                                                                                     \
    NAME(store_n)                                                                                                      \
    (dx + j, K(rstd) * FMA(K(-slope), NAME(load_n)(xhat + j, m), NAME(load_n)(dx + j, m) - K(mean)), m)
    EACH_VECTOR(n, BODY);
#undef BODY
}

/* --- the cell --- */

/* i, f, g from their pre-activations. */
INLINE void NAME(activate_ifg)(const cell_options *options, vec *z)
{
    if (options->gate_activation == GATE_SIGMOID && options->cell_activation == CELL_TANH)
        NAME(activate_gates)(3, z);
    else
        EACH(3)
            z[l] = l == 2 ? NAME(activation)(options->cell_activation, z[l]) : NAME(gate)(options->gate_activation, z[l]);
}

INLINE vec NAME(clipped)(const cell_options *options, vec c)
{
    return NAME(max)(K(-options->clip), NAME(min)(K(options->clip), c));
}

/* gain * xhat + shift. */
INLINE vec NAME(scaled)(ptrdiff_t units, vec xhat, const real *gain, const real *shift)
{
    return FMA(NAME(load_n)(gain, units), xhat, NAME(load_n)(shift, units));
}

INLINE vec NAME(mix)(vec p, vec a, vec b) { return FMA(p, a, (K(1) - p) * b); }

/* i, [f,] g and C of `units` units from the one that every pointer points at; c out. Apart from their outputs, for the
   processor sees too few operations ahead to overlap chains as long as both. */
INLINE void NAME(cell_step_states)(const cell_options *options, ptrdiff_t units, ptrdiff_t hidden_dim, real *z,
                                   const real *peepholes, const real *C_prev, const real *zone, real *C, real *c)
{
    const int coupled = options->gates == 3;
    const ptrdiff_t at_g = (options->gates - 2) * hidden_dim, at_f = coupled ? 0 : hidden_dim;
    const vec before = NAME(load_n)(C_prev, units);
    vec gate[3] = {NAME(load_n)(z, units), NAME(load_n)(z + at_f, units), NAME(load_n)(z + at_g, units)};
    if (peepholes) {
        gate[0] = FMA(NAME(load_n)(peepholes, units), before, gate[0]);
        gate[1] = FMA(NAME(load_n)(peepholes + at_f, units), before, gate[1]);
    }
    NAME(activate_ifg)(options, gate);
    const vec f = coupled ? K(1) - gate[0] : gate[1];
    const vec c_t = NAME(clipped)(options, FMA(f, before, gate[0] * gate[2]));
    NAME(store_n)(z, gate[0], units);
    if (!coupled)
        NAME(store_n)(z + at_f, f, units);
    NAME(store_n)(z + at_g, gate[2], units);
    if (zone || options->zoneout != 0)
        NAME(store_n)(C, NAME(mix)(zone ? NAME(load_n)(zone, units) : K(options->zoneout), before, c_t), units);
    else
        NAME(store_n)(C, c_t, units);
    NAME(store_n)(c, c_t, units);
}

/* m (in: c) and o (in: z_o). */
INLINE void NAME(cell_step_outputs)(const cell_options *options, ptrdiff_t units, const real *p_o, const real *gain,
                                    const real *shift, NAME(moments) of, real *o, real *m)
{
    const vec c = NAME(load_n)(m, units), z_o = NAME(load_n)(o, units);
    const vec normed = gain ? NAME(scaled)(units, NAME(normalized)(c, of), gain, shift) : c;
    const vec o_t = NAME(gate)(options->gate_activation, p_o ? FMA(NAME(load_n)(p_o, units), c, z_o) : z_o);
    NAME(store_n)(o, o_t, units);
    NAME(store_n)(m, o_t * NAME(activation)(options->cell_activation, normed), units);
}

static void NAME(cell_step)(const cell_options *options, ptrdiff_t hidden_dim, real *z, const real *C_prev,
                            const real *zone, real *C, real *m)
{
    const cell_options own = *options; /* which no store changes */
    const real *peepholes = own.peepholes, *gain = own.gain_C, *shift = own.shift_C;
    const real *p_o = peepholes ? peepholes + (own.gates - 2) * hidden_dim : NULL;
    real *o = z + (own.gates - 1) * hidden_dim;
#define BODY(u, n)                                                                                                     \
    NAME(cell_step_states)(&own, n, hidden_dim, z + u, peepholes ? peepholes + u : NULL, C_prev + u,                   \
                           zone ? zone + u : NULL, C + u, m + u)
    EACH_VECTOR(hidden_dim, BODY);
#undef BODY
    const NAME(moments) of = gain ? NAME(moments_of)(hidden_dim, m) : (NAME(moments)){0, 1};
#define BODY(u, n)                                                                                                     \
    NAME(cell_step_outputs)(&own, n, p_o ? p_o + u : NULL, gain ? gain + u : NULL, gain ? shift + u : NULL, of, o + u, \
                            m + u)
    EACH_VECTOR(hidden_dim, BODY);
#undef BODY
}

/* f C_prev + i g, before the clip. */
INLINE vec NAME(cell_sum)(const cell_options *options, ptrdiff_t units, ptrdiff_t hidden_dim, const real *gates,
                          const real *C_prev)
{
    const int coupled = options->gates == 3;
    const vec i = NAME(load_n)(gates, units), g = NAME(load_n)(gates + (options->gates - 2) * hidden_dim, units);
    const vec f = coupled ? K(1) - i : NAME(load_n)(gates + hidden_dim, units);
    return FMA(f, NAME(load_n)(C_prev, units), i * g);
}

/* From m = o act(n(c)) to o's pre-activation; returns dL/dn(c). */
INLINE vec NAME(output_gradient)(const cell_options *options, vec normed, vec o, vec dm, vec dC, vec *dz_o)
{
    const vec y = NAME(activation)(options->cell_activation, normed);
    *dz_o = (dm * y) * NAME(gate_slope)(options->gate_activation, o);
    return FMA(dm * o, NAME(activation_slope)(options->cell_activation, y), dC);
}

/* With layer norm: dz's last row is that of o, its second dL/dc by way of m. Its first is scratch. */
static void NAME(normed_backward)(const cell_options *options, ptrdiff_t hidden_dim, const real *gates,
                                  const real *C_prev, const real *dm, real *dz, real *c, real *dn)
{
    const real *gain = options->gain_C, *shift = options->shift_C, *o = gates + (options->gates - 1) * hidden_dim;
    real *dz_o = dz + (options->gates - 1) * hidden_dim;
#define BODY(u, n)                                                                                                     \
    NAME(store_n)(c + u, NAME(clipped)(options, NAME(cell_sum)(options, n, hidden_dim, gates + u, C_prev + u)), n)
    EACH_VECTOR(hidden_dim, BODY);
#undef BODY
    const double rstd = NAME(normalize)(hidden_dim, c, dz);
#define BODY(u, n)                                                                                                     \
    do {                                                                                                               \
        vec dz_u;                                                                                                      \
        NAME(store_n)(dn + u, NAME(output_gradient)(options,                                                           \
            NAME(scaled)(n, NAME(load_n)(dz + u, n), gain + u, shift + u), NAME(load_n)(o + u, n),                     \
            NAME(load_n)(dm + u, n), K(0), &dz_u), n);                                                                 \
        NAME(store_n)(dz_o + u, dz_u, n);                                                                              \
    } while (0)
    EACH_VECTOR(hidden_dim, BODY);
#undef BODY
    NAME(normalize_backward)(hidden_dim, dz, rstd, gain, dn, dz + hidden_dim);
}

/* `units` units from the one that every pointer points at; with layer norm after normed_backward. */
INLINE void NAME(cell_step_backward_units)(const cell_options *options, ptrdiff_t units, ptrdiff_t hidden_dim,
                                           const real *gates, const real *peepholes, const real *C_prev,
                                           const real *zone, const real *dm, real *dC, real *dz, real *c)
{
    for (int g = 0; g < options->gates; g++) /* of a later row */
        __builtin_prefetch(gates + (ROWS_AHEAD * options->gates + g) * hidden_dim);
    __builtin_prefetch(C_prev + ROWS_AHEAD * hidden_dim);
    const int gate = options->gate_activation, coupled = options->gates == 3, zoned = zone || options->zoneout != 0;
    const ptrdiff_t at_o = (options->gates - 1) * hidden_dim, at_g = at_o - hidden_dim;
    const vec i = NAME(load_n)(gates, units), g = NAME(load_n)(gates + at_g, units);
    const vec o = NAME(load_n)(gates + at_o, units), before = NAME(load_n)(C_prev, units);
    const vec f = coupled ? K(1) - i : NAME(load_n)(gates + hidden_dim, units);
    const vec sum = NAME(cell_sum)(options, units, hidden_dim, gates, C_prev), c_t = NAME(clipped)(options, sum);
    const vec p = zone ? NAME(load_n)(zone, units) : K(options->zoneout), dC_t = NAME(load_n)(dC, units);
    vec dz_o, dc = zoned ? (K(1) - p) * dC_t : dC_t;
    if (options->gain_C) {
        dz_o = NAME(load_n)(dz + at_o, units);
        dc = dc + NAME(load_n)(dz + hidden_dim, units);
    } else
        dc = NAME(output_gradient)(options, c_t, o, NAME(load_n)(dm, units), dc, &dz_o);
    if (peepholes)
        dc = FMA(NAME(load_n)(peepholes + at_g, units), dz_o, dc);
    dc = WHERE(c_t == sum, dc);
    const vec slope_i = NAME(gate_slope)(gate, i);
    const vec dz_g = (dc * i) * NAME(activation_slope)(options->cell_activation, g);
    const vec dz_f = (dc * before) * NAME(gate_slope)(gate, f);
    const vec dz_i = coupled ? (dc * (g - before)) * slope_i : (dc * g) * slope_i;
    vec dC_prev = dc * f;
    if (zoned)
        dC_prev = FMA(p, dC_t, dC_prev);
    if (peepholes) {
        dC_prev = FMA(NAME(load_n)(peepholes, units), dz_i, dC_prev);
        if (!coupled)
            dC_prev = FMA(NAME(load_n)(peepholes + hidden_dim, units), dz_f, dC_prev);
    }
    NAME(store_n)(dz, dz_i, units);
    if (!coupled)
        NAME(store_n)(dz + hidden_dim, dz_f, units);
    NAME(store_n)(dz + at_g, dz_g, units);
    NAME(store_n)(dz + at_o, dz_o, units);
    NAME(store_n)(dC, dC_prev, units);
    NAME(store_n)(c, c_t, units);
}

static void NAME(cell_step_backward)(const cell_options *options, ptrdiff_t hidden_dim, const real *gates,
                                     const real *C_prev, const real *zone, const real *dm, real *dC, real *dz, real *c,
                                     real *dn)
{
    const cell_options own = *options; /* which no store changes */
    const real *peepholes = own.peepholes;
    if (own.gain_C)
        NAME(normed_backward)(options, hidden_dim, gates, C_prev, dm, dz, c, dn);
#define BODY(u, n)                                                                                                     \
    NAME(cell_step_backward_units)(&own, n, hidden_dim, gates + u, peepholes ? peepholes + u : NULL, C_prev + u,    \
                                   zone ? zone + u : NULL, dm + u, dC + u, dz + u, c + u)
    EACH_VECTOR(hidden_dim, BODY);
#undef BODY
}

static void NAME(blend)(ptrdiff_t n, const real *mask, real p, const real *a, const real *b, real *y)
{
#define BODY(j, m)                                                                                                     \
    NAME(store_n)                                                                                                      \
    (y + j, NAME(mix)(mask ? NAME(load_n)(mask + j, m) : K(p), NAME(load_n)(a + j, m), NAME(load_n)(b + j, m)), m)
    EACH_VECTOR(n, BODY);
#undef BODY
}

/* --- masks of dropout --- */

#define WORD_VECTORS (4 * D / V) /* that hold the words of D blocks */

/* x0 y0 x2 y2 ..., or the odd ones of both. */
#if VECTOR_BYTES == 64
#define PAIRS(x, y, odd) \
    SHUFFLE_LONGS(x, y, odd, 8 + odd, 2 + odd, 10 + odd, 4 + odd, 12 + odd, 6 + odd, 14 + odd)
#define BLOCK_ORDER 0, 4, 1, 5, 2, 6, 3, 7
#elif VECTOR_BYTES == 32
#define PAIRS(x, y, odd) SHUFFLE_LONGS(x, y, odd, 4 + odd, 2 + odd, 6 + odd)
#define BLOCK_ORDER 0, 2, 1, 3
#else
#define PAIRS(x, y, odd) SHUFFLE_LONGS(x, y, odd, 2 + odd)
#define BLOCK_ORDER 0, 1
#endif

#if defined(__clang__)
#define SHUFFLE_LONGS(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE_LONGS(x, y, ...) __builtin_shuffle(x, y, (longs){__VA_ARGS__})
#endif

typedef struct {
    longs keys[PHILOX_ROUNDS][2], counter[4];
} NAME(stream);

INLINE void NAME(open_stream)(NAME(stream) *stream, const uint32_t *key, const uint32_t *counter)
{
    for (uint32_t round = 0; round < PHILOX_ROUNDS; round++) {
        stream->keys[round][0] = NAME(broadcast_long)(key[0] + round * PHILOX_W0);
        stream->keys[round][1] = NAME(broadcast_long)(key[1] + round * PHILOX_W1);
    }
    stream->counter[0] = (longs){BLOCK_ORDER};
    for (int l = 1; l < 4; l++)
        stream->counter[l] = NAME(broadcast_long)(counter[l - 1]);
}

/* The words of the next D blocks. Each lane of 64 bits makes a block; the upper halves hold what no product sees. */
INLINE void NAME(next_words)(NAME(stream) *stream, bitvec *words)
{
    const longs M0 = NAME(broadcast_long)(PHILOX_M0), M1 = NAME(broadcast_long)(PHILOX_M1);
    const longs lower = NAME(broadcast_long)(0xffffffff);
    longs c0 = stream->counter[0], c1 = stream->counter[1], c2 = stream->counter[2], c3 = stream->counter[3];
    stream->counter[0] = c0 + (uint64_t)D;
    UNROLL for (int round = 0; round < PHILOX_ROUNDS; round++) {
        const longs p0 = NAME(multiply_lower)(c0, M0), p1 = NAME(multiply_lower)(c2, M1);
        c0 = (p1 >> 32) ^ c1 ^ stream->keys[round][0];
        c2 = (p0 >> 32) ^ c3 ^ stream->keys[round][1];
        c1 = p1;
        c3 = p0;
    }
    const longs x = (c0 & lower) | (c1 << 32), y = (c2 & lower) | (c3 << 32);
    const longs pairs[2] = {PAIRS(x, y, 0), PAIRS(x, y, 1)};
#if REAL_IS_DOUBLE
    UNROLL for (int l = 0; l < 2; l++) {
        const bitvec even = (bitvec)(pairs[l] & lower), odd = (bitvec)(pairs[l] >> 32);
        words[2 * l] = INTERLEAVE(even, odd, 0);
        words[2 * l + 1] = INTERLEAVE(even, odd, 1);
    }
#else
    UNROLL for (int l = 0; l < 2; l++) words[l] = (bitvec)pairs[l];
#endif
}

/* body(j, n, below) for each vector of n elements, `below` the lanes whose word is below the threshold. */
#define EACH_WORDS(count, key, counter, threshold, body)                                                               \
    do {                                                                                                               \
        NAME(stream) stream_;                                                                                          \
        bitvec words_[WORD_VECTORS];                                                                                   \
        NAME(open_stream)(&stream_, key, counter);                                                                     \
        ptrdiff_t j_ = 0;                                                                                              \
        for (; j_ + 4 * D <= (count); j_ += 4 * D) {                                                                   \
            NAME(next_words)(&stream_, words_);                                                                        \
            UNROLL for (int l = 0; l < WORD_VECTORS; l++) body(j_ + l * V, V, (words_[l] < (bits)(threshold)));        \
        }                                                                                                              \
        if (j_ < (count)) {                                                                                            \
            NAME(next_words)(&stream_, words_);                                                                        \
            UNROLL for (int l = 0; l < WORD_VECTORS; l++) if (j_ + l * V < (count))                                    \
                body(j_ + l * V, (count) - j_ - l * V, (words_[l] < (bits)(threshold)));                               \
        }                                                                                                              \
    } while (0)

static void NAME(mask)(ptrdiff_t n, const uint32_t *key, const uint32_t *counter, uint32_t threshold, real dropped,
                       real kept, real *y)
{
    const bitvec change = (bitvec)K(kept) ^ (bitvec)K(dropped);
#define BODY(j, m, below) NAME(store_n)(y + j, (vec)((bitvec)K(kept) ^ (bitvec)WHERE(below, change)), m)
    EACH_WORDS(n, key, counter, threshold, BODY);
#undef BODY
}

static void NAME(dropout)(ptrdiff_t n, const uint32_t *key, const uint32_t *counter, uint32_t threshold, real scale,
                          const real *x, real *y)
{
#define BODY(j, m, below) NAME(store_n)(y + j, WHERE(~below, K(scale) * NAME(load_n)(x + j, m)), m)
    EACH_WORDS(n, key, counter, threshold, BODY);
#undef BODY
}
