/* The optimizers: their kinds, and for one type their updates. kernels.h includes this file for the kinds, leaf.h once
   for each type. docs/architecture.md lists what a new optimizer needs. */
#ifndef LSTM_EXT_OPTIMIZERS_H
#define LSTM_EXT_OPTIMIZERS_H

/* X(kind, name, min_moments, max_moments, powers): `name` is the name in Python. An optimizer keeps vectors as long as
   the parameters, its moments, and a few numbers, its powers. g is the scaled gradient, p the parameters. */
#define EACH_OPTIMIZER(X)                                                                                \
    /* v = momentum v + g;  p -= learning_rate v.  Without v, momentum counts as 0. */                   \
    X(SGD, sgd, 0, 1, 0)                                                                                 \
    /* m += (1 - beta1)(g - m);  v = beta2 v + (1 - beta2) g^2;  powers beta1^t and beta2^t at step t;   \
       p -= learning_rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon) */               \
    X(ADAM, adam, 2, 2, 2)

enum { MAX_SETTINGS = 4, MAX_MOMENTS = 2, MAX_POWERS = 2 };

#define OPTIMIZER_ENUMERATOR(kind, name, min_moments, max_moments, powers) OPTIMIZER_##kind,
enum optimizer_kind { EACH_OPTIMIZER(OPTIMIZER_ENUMERATOR) OPTIMIZER_KINDS };

/* The settings of each, in the order of its class in Python. */
typedef struct {
    double learning_rate, momentum;
} sgd_settings;

typedef struct {
    double learning_rate, beta1, beta2, epsilon;
} adam_settings;

#define CHECK_SIZES(kind, name, min_moments, max_moments, powers)                                                \
    _Static_assert(sizeof(name##_settings) <= MAX_SETTINGS * sizeof(double) && max_moments <= MAX_MOMENTS &&     \
                       powers <= MAX_POWERS,                                                                     \
                   #name);
EACH_OPTIMIZER(CHECK_SIZES)

/* Turn the powers of the step before into those of this one. */
static inline void advance_sgd(const double *settings, double *powers)
{
    (void)settings;
    (void)powers;
}

static inline void advance_adam(const double *settings, double *powers)
{
    const adam_settings *s = (const adam_settings *)settings;
    powers[0] *= s->beta1;
    powers[1] *= s->beta2;
}

typedef struct {
    const char *name;
    int settings, min_moments, max_moments, powers; /* how many */
    void (*advance)(const double *settings, double *powers);
} optimizer_traits;

static inline const optimizer_traits *traits_of_optimizer(int kind)
{
#define OPTIMIZER_TRAITS(kind, name, min_moments, max_moments, powers) \
    {#name, sizeof(name##_settings) / sizeof(double), min_moments, max_moments, powers, advance_##name},
    static const optimizer_traits all[] = {EACH_OPTIMIZER(OPTIMIZER_TRAITS)};
    return &all[kind];
}

/* What an update reads besides the vectors. */
typedef struct {
    const double *settings;
    const double *powers; /* of this step */
    double scale;         /* of the gradient */
} update_step;

#endif

#ifdef REAL_IS_DOUBLE

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

static void NAME(sgd_update)(const update_step *step, ptrdiff_t n, real *parameters, const real *gradient,
                             real *const *moments)
{
    const sgd_settings s = *(const sgd_settings *)step->settings;
    const double scale = step->scale;
    real *velocity = moments[0];
#define BODY(j, m)                                                                                                     \
    NAME(sgd_vector)(m, parameters + j, gradient + j, velocity ? velocity + j : NULL, K(scale), K(s.learning_rate),    \
                     K(s.momentum))
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

static void NAME(adam_update)(const update_step *step, ptrdiff_t n, real *parameters, const real *gradient,
                              real *const *moments)
{
    const adam_settings s = *(const adam_settings *)step->settings;
    const double scale = step->scale, step_size = s.learning_rate / (1 - step->powers[0]);
    const double root_correction = __builtin_sqrt(1 - step->powers[1]);
    real *m = moments[0], *v = moments[1];
#define BODY(j, count)                                                                                                 \
    NAME(adam_vector)(count, parameters + j, gradient + j, m + j, v + j, K(scale), K(step_size), K(root_correction),   \
                      K(1 - s.beta1), K(s.beta2), K(1 - s.beta2), K(s.epsilon))
    EACH_VECTOR(n, BODY);
#undef BODY
}

#endif
