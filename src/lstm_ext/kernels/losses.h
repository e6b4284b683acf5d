/* The losses: their kinds, and for one type their kernels. kernels.h includes this file for the kinds, leaf.h once for
   each type. docs/architecture.md lists what a new loss needs. */
#ifndef LSTM_EXT_LOSSES_H
#define LSTM_EXT_LOSSES_H

/* X(kind, name, takes_labels): `name` is the name in Python; a loss that takes labels has one class index as the target
   of a row, others have numbers. The equations are those of one row of outputs y and targets t. */
#define EACH_LOSS(X)                                             \
    X(MSE, mse, 0)                     /* sum_j (y_j - t_j)^2 */ \
    X(MAE, mae, 0)                     /* sum_j |y_j - t_j| */   \
    X(CROSS_ENTROPY, cross_entropy, 1) /* -log softmax(y)[t] */

#define LOSS_ENUMERATOR(kind, name, takes_labels) LOSS_##kind,
enum loss_kind { EACH_LOSS(LOSS_ENUMERATOR) LOSS_KINDS };

typedef struct {
    const char *name;
    int takes_labels;
} loss_traits;

static inline const loss_traits *traits_of_loss(int kind)
{
#define LOSS_TRAITS(kind, name, takes_labels) {#name, takes_labels},
    static const loss_traits all[] = {EACH_LOSS(LOSS_TRAITS)};
    return &all[kind];
}

/* What a loss reads of one row. */
typedef struct {
    ptrdiff_t outputs, targets; /* how many: the parameters of a distribution lie side by side for each target */
    const void *target;         /* (targets) of the kernel's type; with labels one ptrdiff_t */
    const double *settings;     /* of the kind, in the order of its class in Python */
    double scale;               /* of dy */
} loss_row;

#endif

#ifdef REAL_IS_DOUBLE

/* `loss` and `slope` of each element's error, a double, summed and written to dy. */
#define SUM_OF_ERRORS(row, y, dy, loss, slope)                                                                         \
    const real *target = (row)->target;                                                                                \
    double lanes[LANES] = {0};                                                                                         \
    for (ptrdiff_t j = 0; j < (row)->outputs; j += LANES) {                                                            \
        const ptrdiff_t width = (row)->outputs - j < LANES ? (row)->outputs - j : LANES;                               \
        for (ptrdiff_t l = 0; l < width; l++) {                                                                        \
            const double error = (double)(y)[j + l] - (double)target[j + l];                                           \
            lanes[l] += (loss);                                                                                        \
            (dy)[j + l] = (real)(slope);                                                                               \
        }                                                                                                              \
    }                                                                                                                  \
    return NAME(add_lanes)(lanes)

static double NAME(mse_loss)(const loss_row *row, const real *y, real *dy)
{
    const double scale = 2 * row->scale;
    SUM_OF_ERRORS(row, y, dy, error * error, scale * error);
}

static double NAME(mae_loss)(const loss_row *row, const real *y, real *dy)
{
    const double scale = row->scale;
    SUM_OF_ERRORS(row, y, dy, __builtin_fabs(error), error > 0 ? scale : error < 0 ? -scale : 0);
}

static double NAME(cross_entropy_loss)(const loss_row *row, const real *y, real *dy)
{
    const ptrdiff_t n = row->outputs, label = *(const ptrdiff_t *)row->target;
    real largest = y[0];
    for (ptrdiff_t j = 1; j < n; j++)
        largest = y[j] > largest ? y[j] : largest;
#define BODY(j, m) NAME(store_n)(dy + j, NAME(exp)(NAME(load_n)(y + j, m) - K(largest)), m)
    EACH_VECTOR(n, BODY);
#undef BODY
    double lanes[LANES] = {0};
    for (ptrdiff_t j = 0; j < n; j++)
        lanes[j % LANES] += (double)dy[j];
    const double sum = NAME(add_lanes)(lanes), factor = row->scale / sum;
    const double loss = natural_log(sum) - ((double)y[label] - (double)largest);
    for (ptrdiff_t j = 0; j < n; j++)
        dy[j] = (real)(factor * (double)dy[j]);
    dy[label] -= (real)row->scale;
    return loss;
}

#undef SUM_OF_ERRORS

#endif
