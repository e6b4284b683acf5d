/* Every leaf kernel for one type: included by kernels_isa.h with REAL_IS_DOUBLE 0, then 1. */
#define NAME(name) PASTE(name, PASTE(_f, REAL_BITS))
#if REAL_IS_DOUBLE
#define REAL_BITS 64
#define TABLE kernels_double
#else
#define REAL_BITS 32
#define TABLE kernels_float
#endif

#include "simd.h"
#include "tile.h"
#include "lanes.h"
#include "general_cell.h"

static void NAME(sigmoid)(ptrdiff_t n, const real *x, real *y)
{
#define BODY(j, m) NAME(store_n)(y + j, NAME(vsigmoid)(NAME(load_n)(x + j, m)), m)
    EACH_VECTOR(n, BODY);
#undef BODY
}

static void NAME(tanh)(ptrdiff_t n, const real *x, real *y)
{
#define BODY(j, m) NAME(store_n)(y + j, NAME(vtanh)(NAME(load_n)(x + j, m)), m)
    EACH_VECTOR(n, BODY);
#undef BODY
}

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
        for (ptrdiff_t l = 0; l < LANES; l++) /* a fixed length makes vectors of it */
            lanes[l] += (double)x[l] * (double)x[l];
    for (ptrdiff_t l = 0; l < rest; l++)
        lanes[l] += (double)x[l] * (double)x[l];
    return NAME(add_lanes)(lanes);
}

static double NAME(squared_error)(ptrdiff_t n, const real *y, const real *target, double scale, real *dy)
{
    double lanes[LANES] = {0};
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        ptrdiff_t width = n - j < LANES ? n - j : LANES;
        for (ptrdiff_t l = 0; l < width; l++) {
            double error = (double)y[j + l] - (double)target[j + l];
            lanes[l] += error * error;
            dy[j + l] = (real)(scale * error);
        }
    }
    return NAME(add_lanes)(lanes);
}

static double NAME(cross_entropy)(ptrdiff_t n, const real *logits, ptrdiff_t label, double scale, real *dlogits)
{
    real largest = logits[0];
    for (ptrdiff_t j = 1; j < n; j++)
        largest = logits[j] > largest ? logits[j] : largest;
#define BODY(j, m) NAME(store_n)(dlogits + j, NAME(exp)(NAME(load_n)(logits + j, m) - K(largest)), m)
    EACH_VECTOR(n, BODY);
#undef BODY
    double lanes[LANES] = {0};
    for (ptrdiff_t j = 0; j < n; j++)
        lanes[j % LANES] += (double)dlogits[j];
    double sum = NAME(add_lanes)(lanes), factor = scale / sum;
    double loss = natural_log(sum) - ((double)logits[label] - (double)largest);
    for (ptrdiff_t j = 0; j < n; j++)
        dlogits[j] = (real)(factor * (double)dlogits[j]);
    dlogits[label] -= (real)scale;
    return loss;
}

INLINE void NAME(sgd_vector)(ptrdiff_t n, real *parameters, const real *gradient, real *velocity, vec scale,
                             vec learning_rate, vec momentum)
{
    vec v = scale * NAME(load_n)(gradient, n);
    if (velocity) {
        v = FMA(momentum, NAME(load_n)(velocity, n), v);
        NAME(store_n)(velocity, v, n);
    }
    NAME(store_n)(parameters, FMA(-learning_rate, v, NAME(load_n)(parameters, n)), n);
}

static void NAME(sgd)(ptrdiff_t n, real *parameters, const real *gradient, real *velocity, double scale,
                      double learning_rate, double momentum)
{
#define BODY(j, m)                                                                                                     \
    NAME(sgd_vector)(m, parameters + j, gradient + j, velocity ? velocity + j : NULL, K(scale), K(learning_rate),      \
                     K(momentum))
    EACH_VECTOR(n, BODY);
#undef BODY
}

INLINE void NAME(adam_vector)(ptrdiff_t n, real *parameters, const real *gradient, real *m, real *v, vec scale,
                              vec step_size, vec root_correction, vec one_minus_beta1, vec beta2, vec one_minus_beta2,
                              vec epsilon)
{
    vec g = scale * NAME(load_n)(gradient, n), mean = NAME(load_n)(m, n);
    mean = FMA(one_minus_beta1, g - mean, mean);
    vec square = FMA(beta2, NAME(load_n)(v, n), one_minus_beta2 * g * g);
    vec denominator = NAME(sqrt)(square) / root_correction + epsilon;
    NAME(store_n)(m, mean, n);
    NAME(store_n)(v, square, n);
    NAME(store_n)(parameters, FMA(-step_size, mean / denominator, NAME(load_n)(parameters, n)), n);
}

static void NAME(adam)(ptrdiff_t n, real *parameters, const real *gradient, real *m, real *v, double scale,
                       double step_size, double root_correction, double beta1, double beta2, double epsilon)
{
#define BODY(j, count)                                                                                                 \
    NAME(adam_vector)(count, parameters + j, gradient + j, m + j, v + j, K(scale), K(step_size), K(root_correction),   \
                      K(1 - beta1), K(beta2), K(1 - beta2), K(epsilon))
    EACH_VECTOR(n, BODY);
#undef BODY
}

static const TABLE NAME(table) = {
    .lanes = V,
    .tile_rows = TILE_ROWS,
    .sigmoid = NAME(sigmoid),
    .tanh = NAME(tanh),
    .matmul = NAME(matmul),
    .outer = NAME(outer),
    .transpose = NAME(transpose),
    .cell_forward = NAME(cell_forward),
    .cell_backward = NAME(cell_backward),
    .lanes_forward = NAME(lanes_forward),
    .lanes_backward = NAME(lanes_backward),
    .cell_step = NAME(cell_step),
    .cell_step_backward = NAME(cell_step_backward),
    .normalize = NAME(normalize),
    .normalize_backward = NAME(normalize_backward),
    .blend = NAME(blend),
    .mask = NAME(mask),
    .dropout = NAME(dropout),
    .are_finite = NAME(are_finite),
    .sum_of_squares = NAME(sum_of_squares),
    .squared_error = NAME(squared_error),
    .cross_entropy = NAME(cross_entropy),
    .sgd = NAME(sgd),
    .adam = NAME(adam),
};

#undef NAME
#undef REAL_BITS
#undef TABLE
#undef real
#undef bits
#undef vec
#undef bitvec
#undef V
#undef FMA
#undef K
#undef EACH_VECTOR
#undef LANES_2
#undef LANES_4
#undef LANES_8
#undef LANES_16
#undef INTERLEAVE
#undef EACH
#undef LOAD_ROWS
#undef STORE_ROWS
#undef MULTIPLY_ADD
#undef CASE_ROWS
#undef MATMUL_BODY
#undef OUTER_BODY
#undef CELL_CASE
#undef ROWS_AHEAD
#undef SQUARE
#undef SHUFFLE_SQUARE
#undef LANES_TILE
#undef LANES_MULTIPLY_ADD
#undef square_row
#undef LOAD_ROW
#undef STORE_ROW
#undef LANES
#undef longs
#undef D
#undef doubles
#undef SUM_OF
#undef WHERE
#undef PAIRS
#undef BLOCK_ORDER
#undef SHUFFLE_LONGS
#undef WORD_VECTORS
#undef EACH_WORDS
