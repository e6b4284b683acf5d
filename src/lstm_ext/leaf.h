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

static void NAME(sigmoid)(ptrdiff_t n, const real *x, real *y)
{
    for (ptrdiff_t j = 0; j < n; j += V)
        NAME(store_n)(y + j, NAME(vsigmoid)(NAME(load_n)(x + j, n - j)), n - j);
}

static void NAME(tanh)(ptrdiff_t n, const real *x, real *y)
{
    for (ptrdiff_t j = 0; j < n; j += V)
        NAME(store_n)(y + j, NAME(vtanh)(NAME(load_n)(x + j, n - j)), n - j);
}

/* The sums below run in LANES lanes of double whatever the vector width, so their bits are the same on every set. */
#define LANES 16

INLINE double NAME(add_lanes)(const double *lanes)
{
    double sum = 0;
    for (int l = 0; l < LANES; l++)
        sum += lanes[l];
    return sum;
}

static double NAME(sum_of_squares)(ptrdiff_t n, const real *x)
{
    double lanes[LANES] = {0};
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        ptrdiff_t width = n - j < LANES ? n - j : LANES;
        for (ptrdiff_t l = 0; l < width; l++)
            lanes[l] += (double)x[j + l] * (double)x[j + l];
    }
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
    for (ptrdiff_t j = 0; j < n; j += V)
        NAME(store_n)(dlogits + j, NAME(exp)(NAME(load_n)(logits + j, n - j) - K(largest)), n - j);
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

static void NAME(sgd)(ptrdiff_t n, real *parameters, const real *gradient, real *velocity, double scale,
                      double learning_rate, double momentum)
{
    for (ptrdiff_t j = 0; j < n; j += V) {
        vec v = K(scale) * NAME(load_n)(gradient + j, n - j);
        if (velocity) {
            v = FMA(K(momentum), NAME(load_n)(velocity + j, n - j), v);
            NAME(store_n)(velocity + j, v, n - j);
        }
        NAME(store_n)(parameters + j, FMA(K(-learning_rate), v, NAME(load_n)(parameters + j, n - j)), n - j);
    }
}

static void NAME(adam)(ptrdiff_t n, real *parameters, const real *gradient, real *m, real *v, double scale,
                       double step_size, double root_correction, double beta1, double beta2, double epsilon)
{
    for (ptrdiff_t j = 0; j < n; j += V) {
        vec g = K(scale) * NAME(load_n)(gradient + j, n - j);
        vec mean = NAME(load_n)(m + j, n - j);
        mean = FMA(K(1 - beta1), g - mean, mean);
        vec square = FMA(K(beta2), NAME(load_n)(v + j, n - j), K(1 - beta2) * g * g);
        vec denominator = NAME(sqrt)(square) / K(root_correction) + K(epsilon);
        NAME(store_n)(m + j, mean, n - j);
        NAME(store_n)(v + j, square, n - j);
        NAME(store_n)(parameters + j, FMA(K(-step_size), mean / denominator, NAME(load_n)(parameters + j, n - j)), n - j);
    }
}

static const TABLE NAME(table) = {
    .lanes = V,
    .tile_rows = TILE_ROWS,
    .sigmoid = NAME(sigmoid),
    .tanh = NAME(tanh),
    .matmul = NAME(matmul),
    .outer = NAME(outer),
    .cell_forward = NAME(cell_forward),
    .cell_backward = NAME(cell_backward),
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
#undef LOAD_ROWS
#undef STORE_ROWS
#undef MULTIPLY_ADD
#undef CASE_ROWS
#undef MATMUL_BODY
#undef OUTER_BODY
#undef CELL_CASE
#undef LANES
