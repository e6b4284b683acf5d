/* Functions of a whole array. Included by leaf.h once for each type; the contracts are in kernels.h. */

static int NAME(are_finite)(ptrdiff_t n, const real *x)
{
    bitvec found = {0};
    vec v;
#define BODY(j, m) (v = NAME(load_n)(x + j, m), found |= (bitvec)(v - v)) /* 0, or NaN from NaN and Inf */
    EACH_VECTOR(n, BODY);
#undef BODY
    bits any = 0;
    for (ptrdiff_t l = 0; l < V; l++)
        any |= found[l];
    return any == 0;
}

static double NAME(sum_of_squares)(ptrdiff_t n, const real *x)
{
    double lanes[LANES] = {0};
    const ptrdiff_t rest = n % LANES;
    for (const real *end = x + n - rest; x < end; x += LANES)
        for (ptrdiff_t l = 0; l < LANES; l++) /* compilers vectorise a loop of fixed length */
            lanes[l] += (double)x[l] * (double)x[l];
    for (ptrdiff_t l = 0; l < rest; l++)
        lanes[l] += (double)x[l] * (double)x[l];
    return NAME(add_lanes)(lanes);
}
