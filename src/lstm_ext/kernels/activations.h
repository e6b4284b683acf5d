/* The activations: their kinds, and for one type their vectors and arrays. kernels.h includes this file for the kinds,
   leaf.h once for each type. docs/architecture.md lists what a new activation needs. */
#ifndef LSTM_EXT_ACTIVATIONS_H
#define LSTM_EXT_ACTIVATIONS_H

/* X(kind, name), where `name` is the option's value in Python. */
#define EACH_GATE_ACTIVATION(X) X(SIGMOID, sigmoid) X(HARD_SIGMOID, hard_sigmoid)
#define EACH_CELL_ACTIVATION(X) X(TANH, tanh) X(IDENTITY, identity) X(RELU, relu)

#define GATE_ENUMERATOR(kind, name) GATE_##kind,
#define CELL_ENUMERATOR(kind, name) CELL_##kind,
enum gate_activation { EACH_GATE_ACTIVATION(GATE_ENUMERATOR) GATE_KINDS };
enum cell_activation { EACH_CELL_ACTIVATION(CELL_ENUMERATOR) CELL_KINDS };

#define ACTIVATION_NAME(kind, name) #name,
static inline const char *gate_activation_name(int kind)
{
    static const char *const names[] = {EACH_GATE_ACTIVATION(ACTIVATION_NAME)};
    return names[kind];
}

static inline const char *cell_activation_name(int kind)
{
    static const char *const names[] = {EACH_CELL_ACTIVATION(ACTIVATION_NAME)};
    return names[kind];
}

#endif

#ifdef REAL_IS_DOUBLE

/* exp(-x) = e^s / 2^m, m = round(x / ln 2), s = m ln 2 - x, |s| <= ln(2)/2; ln 2 in two parts (Cody and Waite).
   x becomes e^s - 1 = s + s^2 q(s), q a minimax polynomial of the relative error, and `power` 2^m, or 0 where that is
   not normal. Adding `magic` leaves m, with the exponent's bias, in the low bits of the sum. Callers clamp x to the
   range in which m is an exponent. */
INLINE void NAME(expm1_reduced)(int n, vec *x, vec *power)
{
#if REAL_IS_DOUBLE
    const vec magic = K(0x1.8p52 + 1023), ln2_high = K(0x1.62e42fefa2p-1), ln2_low = K(7.3710025651677989e-13);
    const int mantissa_bits = 52;
    static const real coefficients[] = {
        2.09147553258932022e-9, 2.51053127296221018e-8, 2.75572734787185805e-7, 2.75572551700008874e-6,
        2.48015873256774619e-5, 1.98412698750022788e-4, 1.38888888888837112e-3, 8.33333333332608312e-3,
        4.16666666666666698e-2, 0.16666666666666671,    0.5};
#else
    const vec magic = K(0x1.8p23f + 127), ln2_high = K(0x1.62e4p-1f), ln2_low = K(1.4286068203e-06f);
    const int mantissa_bits = 23;
    static const real coefficients[] = {0.0013882510411390553f, 0.008366580332553093f, 0.04166720177488922f,
                                        0.16666543178081414f, 0.4999999814408283f};
#endif
    const int count = sizeof coefficients / sizeof *coefficients;
    vec m[4], q[4];
    EACH(n) power[l] = FMA(x[l], K(1.4426950408889634), magic);
    EACH(n) m[l] = power[l] - magic;
    EACH(n) power[l] = (vec)((bitvec)power[l] << mantissa_bits);
    EACH(n) x[l] = FMA(m[l], ln2_high, -x[l]);
    EACH(n) x[l] = FMA(m[l], ln2_low, x[l]);
    EACH(n) q[l] = K(coefficients[0]);
    UNROLL for (int k = 1; k < count; k++) EACH(n) q[l] = FMA(q[l], x[l], K(coefficients[k]));
    EACH(n) x[l] = FMA(q[l], x[l] * x[l], x[l]);
}

/* Where sigmoid and exp reach 0 (denormals are flushed), and where sigmoid is 1. */
INLINE vec NAME(clamp)(vec x)
{
#if REAL_IS_DOUBLE
    return NAME(max)(K(-709.4), NAME(min)(K(709), x));
#else
    return NAME(max)(K(-88.37f), NAME(min)(K(88), x));
#endif
}

INLINE vec NAME(exp)(vec x)
{
    vec p = NAME(clamp)(-x), power;
    NAME(expm1_reduced)(1, &p, &power);
    return (K(1) + p) / power;
}

/* 1 / (1 + exp(-x)) = 2^m / (2^m + e^s). */
INLINE vec NAME(sigmoid_of_reduced)(vec p, vec power) { return power / (power + (K(1) + p)); }

INLINE vec NAME(vsigmoid)(vec x)
{
    vec p = NAME(clamp)(x), power;
    NAME(expm1_reduced)(1, &p, &power);
    return NAME(sigmoid_of_reduced)(p, power);
}

/* tanh|x| = (1 - e) / (1 + e) = (2^m - e^s) / (2^m + e^s), e = exp(-2|x|), with the sign of x; 1 from 30 on. */
INLINE vec NAME(tanh_argument)(vec x)
{
    vec magnitude = (vec)((bitvec)x & ~(bitvec)K(-0.0));
    return NAME(min)(K(60), magnitude + magnitude);
}

INLINE vec NAME(tanh_of_reduced)(vec x, vec p, vec power)
{
    vec numerator = (power - K(1)) - p;
    vec t = numerator / ((power + power) - numerator);
    return (vec)((bitvec)t | ((bitvec)x & (bitvec)K(-0.0)));
}

INLINE void NAME(vtanh_side_by_side)(int n, vec *x)
{
    vec p[4], power[4];
    EACH(n) p[l] = NAME(tanh_argument)(x[l]);
    NAME(expm1_reduced)(n, p, power);
    EACH(n) x[l] = NAME(tanh_of_reduced)(x[l], p[l], power[l]);
}

INLINE vec NAME(vtanh)(vec x)
{
    NAME(vtanh_side_by_side)(1, &x);
    return x;
}

/* --- by kind; slopes are in terms of the outputs --- */

/* x, or 0 where the condition does not hold. */
#define WHERE(condition, x) ((vec)((bitvec)(condition) & (bitvec)(x)))

INLINE vec NAME(gate_sigmoid)(vec z) { return NAME(vsigmoid)(z); }
INLINE vec NAME(gate_slope_sigmoid)(vec y) { return FMA(-y, y, y); }

INLINE vec NAME(gate_hard_sigmoid)(vec z) { return NAME(max)(K(0), NAME(min)(K(1), FMA(K(0.2), z, K(0.5)))); }
INLINE vec NAME(gate_slope_hard_sigmoid)(vec y) { return WHERE((y > K(0)) & (y < K(1)), K(0.2)); }

INLINE vec NAME(activate_tanh)(vec x) { return NAME(vtanh)(x); }
INLINE vec NAME(slope_tanh)(vec y) { return FMA(-y, y, K(1)); }

INLINE vec NAME(activate_identity)(vec x) { return x; }
INLINE vec NAME(slope_identity)(vec y)
{
    (void)y;
    return K(1);
}

INLINE vec NAME(activate_relu)(vec x) { return WHERE(~(x < K(0)), x); } /* NaN stays */
INLINE vec NAME(slope_relu)(vec y) { return WHERE(y > K(0), K(1)); }

#define GATE(kind, name) case GATE_##kind: return NAME(gate_##name)(x);
#define GATE_SLOPE(kind, name) case GATE_##kind: return NAME(gate_slope_##name)(x);
#define CELL(kind, name) case CELL_##kind: return NAME(activate_##name)(x);
#define CELL_SLOPE(kind, name) case CELL_##kind: return NAME(slope_##name)(x);
#define BY_KIND(function, each_kind, case_of)                                                                          \
    INLINE vec NAME(function)(int kind, vec x)                                                                         \
    {                                                                                                                  \
        switch (kind) {                                                                                                \
            each_kind(case_of)                                                                                         \
        }                                                                                                              \
        __builtin_unreachable();                                                                                       \
    }
BY_KIND(gate, EACH_GATE_ACTIVATION, GATE)
BY_KIND(gate_slope, EACH_GATE_ACTIVATION, GATE_SLOPE)
BY_KIND(activation, EACH_CELL_ACTIVATION, CELL)
BY_KIND(activation_slope, EACH_CELL_ACTIVATION, CELL_SLOPE)
#undef GATE
#undef GATE_SLOPE
#undef CELL
#undef CELL_SLOPE
#undef BY_KIND

/* --- on arrays --- */

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

#endif
