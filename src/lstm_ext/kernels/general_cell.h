/* Cells with options: their elementwise step and layer normalisation. Included by leaf.h once for each type; the
   contracts are in kernels.h. Derivatives are in terms of the outputs. */

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
            z[l] = l == 2 ? NAME(activation)(options->cell_activation, z[l])
                          : NAME(gate)(options->gate_activation, z[l]);
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

/* i, [f,] g, C and c of `units` units, the first of which every pointer points at. The outputs are a function of their
   own: a processor looks too few operations ahead to overlap chains as long as both. */
INLINE void NAME(cell_step_states)(const cell_options *options, ptrdiff_t units, ptrdiff_t hidden_dim, real *z,
                                   const real *peepholes, const real *C_prev, const real *zone, real *C, real *c)
{
    const int coupled = options->gates == 3;
    const ptrdiff_t g_offset = (options->gates - 2) * hidden_dim, f_offset = coupled ? 0 : hidden_dim;
    const vec before = NAME(load_n)(C_prev, units);
    vec gate[3] = {NAME(load_n)(z, units), NAME(load_n)(z + f_offset, units), NAME(load_n)(z + g_offset, units)};
    if (peepholes) {
        gate[0] = FMA(NAME(load_n)(peepholes, units), before, gate[0]);
        gate[1] = FMA(NAME(load_n)(peepholes + f_offset, units), before, gate[1]);
    }
    NAME(activate_ifg)(options, gate);
    const vec f = coupled ? K(1) - gate[0] : gate[1];
    const vec c_t = NAME(clipped)(options, FMA(f, before, gate[0] * gate[2]));
    NAME(store_n)(z, gate[0], units);
    if (!coupled)
        NAME(store_n)(z + f_offset, f, units);
    NAME(store_n)(z + g_offset, gate[2], units);
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

/* `units` units, the first of which every pointer points at; with layer norm after normed_backward. */
INLINE void NAME(cell_step_backward_units)(const cell_options *options, ptrdiff_t units, ptrdiff_t hidden_dim,
                                           const real *gates, const real *peepholes, const real *C_prev,
                                           const real *zone, const real *dm, real *dC, real *dz, real *c)
{
    for (int g = 0; g < options->gates; g++) /* of a later row */
        __builtin_prefetch(gates + (ROWS_AHEAD * options->gates + g) * hidden_dim);
    __builtin_prefetch(C_prev + ROWS_AHEAD * hidden_dim);
    const int gate = options->gate_activation, coupled = options->gates == 3, zoned = zone || options->zoneout != 0;
    const ptrdiff_t o_offset = (options->gates - 1) * hidden_dim, g_offset = o_offset - hidden_dim;
    const vec i = NAME(load_n)(gates, units), g = NAME(load_n)(gates + g_offset, units);
    const vec o = NAME(load_n)(gates + o_offset, units), before = NAME(load_n)(C_prev, units);
    const vec f = coupled ? K(1) - i : NAME(load_n)(gates + hidden_dim, units);
    const vec sum = NAME(cell_sum)(options, units, hidden_dim, gates, C_prev), c_t = NAME(clipped)(options, sum);
    const vec p = zone ? NAME(load_n)(zone, units) : K(options->zoneout), dC_t = NAME(load_n)(dC, units);
    vec dz_o, dc = zoned ? (K(1) - p) * dC_t : dC_t;
    if (options->gain_C) {
        dz_o = NAME(load_n)(dz + o_offset, units);
        dc = dc + NAME(load_n)(dz + hidden_dim, units);
    } else
        dc = NAME(output_gradient)(options, c_t, o, NAME(load_n)(dm, units), dc, &dz_o);
    if (peepholes)
        dc = FMA(NAME(load_n)(peepholes + g_offset, units), dz_o, dc);
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
    NAME(store_n)(dz + g_offset, dz_g, units);
    NAME(store_n)(dz + o_offset, dz_o, units);
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
