/* One vector type `vec` of `real`, for the instruction set and type that the including file has chosen:
   VECTOR_BYTES, and REAL_IS_DOUBLE. Included once for each type, so without a guard.

   Plain C on GCC's and Clang's vector extensions; fma, sqrt, min, max, masked loads and stores and the product of
   halves are the only intrinsics. The multiply-add is always written out: the build forbids the compiler to contract
   (-ffp-contract=off), so the bits are ours to choose. */
#include <stdint.h>

#if REAL_IS_DOUBLE
typedef double NAME(real);
typedef uint64_t NAME(bits);
#else
typedef float NAME(real);
typedef uint32_t NAME(bits);
#endif
#define real NAME(real)
#define bits NAME(bits)

typedef real NAME(vec) __attribute__((vector_size(VECTOR_BYTES)));
typedef real NAME(vec_unaligned) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
typedef bits NAME(bitvec) __attribute__((vector_size(VECTOR_BYTES)));
#define vec NAME(vec)
#define bitvec NAME(bitvec)
#define V ((ptrdiff_t)(VECTOR_BYTES / sizeof(real)))

INLINE vec NAME(load)(const real *p) { return (vec) * (const NAME(vec_unaligned) *)p; }
INLINE void NAME(store)(real *p, vec x) { *(NAME(vec_unaligned) *)p = (NAME(vec_unaligned))x; }
INLINE vec NAME(broadcast)(real s) { return s - (vec){0}; /* s - 0 keeps the sign of a zero; s + 0 does not */ }

/* fma(a, b, c) = a * b + c, rounded once where the set has it. min and max return their second argument where it is
   NaN. */
#if defined(ISA_NEON)
#if REAL_IS_DOUBLE
INLINE vec NAME(fma)(vec a, vec b, vec c) { return (vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
INLINE vec NAME(sqrt)(vec x) { return (vec)vsqrtq_f64((float64x2_t)x); }
INLINE vec NAME(min)(vec a, vec x) { return (vec)vminq_f64((float64x2_t)a, (float64x2_t)x); }
INLINE vec NAME(max)(vec a, vec x) { return (vec)vmaxq_f64((float64x2_t)a, (float64x2_t)x); }
#else
INLINE vec NAME(fma)(vec a, vec b, vec c) { return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
INLINE vec NAME(sqrt)(vec x) { return (vec)vsqrtq_f32((float32x4_t)x); }
INLINE vec NAME(min)(vec a, vec x) { return (vec)vminq_f32((float32x4_t)a, (float32x4_t)x); }
INLINE vec NAME(max)(vec a, vec x) { return (vec)vmaxq_f32((float32x4_t)a, (float32x4_t)x); }
#endif
#elif defined(ISA_X86)
#if REAL_IS_DOUBLE
#define INTRINSIC(op) PASTE(X86_PREFIX, PASTE(op, _pd))
#else
#define INTRINSIC(op) PASTE(X86_PREFIX, PASTE(op, _ps))
#endif
#if ISA_HAS_FMA
INLINE vec NAME(fma)(vec a, vec b, vec c) { return (vec)INTRINSIC(fmadd)(a, b, c); }
#else
INLINE vec NAME(fma)(vec a, vec b, vec c) { return a * b + c; }
#endif
INLINE vec NAME(sqrt)(vec x) { return (vec)INTRINSIC(sqrt)(x); }
INLINE vec NAME(min)(vec a, vec x) { return (vec)INTRINSIC(min)(a, x); }
INLINE vec NAME(max)(vec a, vec x) { return (vec)INTRINSIC(max)(a, x); }
#endif

/* Lanes of 64 bits, and the products of their lower halves; GCC would multiply whole lanes for the plain operator. */
typedef uint64_t NAME(longs) __attribute__((vector_size(VECTOR_BYTES), may_alias));
#define longs NAME(longs)
INLINE longs NAME(broadcast_long)(uint64_t x) { return x + (longs){0}; }
#if defined(ISA_NEON)
INLINE longs NAME(multiply_lower)(longs a, longs b)
{
    return (longs)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
}
#elif defined(ISA_X86)
typedef long long NAME(signed_longs) __attribute__((vector_size(VECTOR_BYTES)));
INLINE longs NAME(multiply_lower)(longs a, longs b)
{
    return (longs)PASTE(X86_PREFIX, mul_epu32)((NAME(signed_longs))a, (NAME(signed_longs))b);
}
#endif

/* The first n lanes only, 0 <= n: memory past them is neither read nor written, lanes past them are zero. */
#if defined(ISA_X86) && VECTOR_BYTES == 64
#if REAL_IS_DOUBLE
#define LANE_MASK(n) (__mmask8)((1u << (n)) - 1)
#else
#define LANE_MASK(n) (__mmask16)((1u << (n)) - 1)
#endif
INLINE vec NAME(load_some)(const real *p, ptrdiff_t n) { return (vec)INTRINSIC(maskz_loadu)(LANE_MASK(n), p); }
INLINE void NAME(store_some)(real *p, vec x, ptrdiff_t n) { INTRINSIC(mask_storeu)(p, LANE_MASK(n), x); }
#undef LANE_MASK
#elif defined(ISA_X86) && VECTOR_BYTES == 32
INLINE __m256i NAME(lane_mask)(ptrdiff_t n)
{
    static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(ones + 8 - n * (ptrdiff_t)(sizeof(real) / 4)));
}
INLINE vec NAME(load_some)(const real *p, ptrdiff_t n) { return (vec)INTRINSIC(maskload)(p, NAME(lane_mask)(n)); }
INLINE void NAME(store_some)(real *p, vec x, ptrdiff_t n) { INTRINSIC(maskstore)(p, NAME(lane_mask)(n), x); }
#else
INLINE vec NAME(load_some)(const real *p, ptrdiff_t n)
{
    vec x = {0};
    for (int j = 0; j < V; j++)
        if (j < n)
            x[j] = p[j];
    return x;
}
INLINE void NAME(store_some)(real *p, vec x, ptrdiff_t n)
{
    for (int j = 0; j < V; j++)
        if (j < n)
            p[j] = x[j];
}
#endif
#undef INTRINSIC

/* The same for any n. Whole vectors are loaded and stored without a mask; where n is a constant, the test is free. */
INLINE vec NAME(load_n)(const real *p, ptrdiff_t n)
{
    return n >= V ? NAME(load)(p) : NAME(load_some)(p, n > 0 ? n : 0);
}
INLINE void NAME(store_n)(real *p, vec x, ptrdiff_t n)
{
    if (n >= V)
        NAME(store)(p, x);
    else
        NAME(store_some)(p, x, n > 0 ? n : 0);
}

/* body(j, n) for each vector of `count` elements: n is the constant V, but smaller for a last, partial vector. */
#define EACH_VECTOR(count, body)                                                                                       \
    do {                                                                                                               \
        ptrdiff_t j_ = 0;                                                                                              \
        for (; j_ + V <= (count); j_ += V)                                                                             \
            body(j_, V);                                                                                               \
        if (j_ < (count))                                                                                              \
            body(j_, (count) - j_);                                                                                    \
    } while (0)

/* x0 y0 x1 y1 ...: the lower and the upper half of the lanes of x and y, interleaved. */
#define LANES_2(from, y) from, y + from
#define LANES_4(from, y) LANES_2(from, y), LANES_2(from + 1, y)
#define LANES_8(from, y) LANES_4(from, y), LANES_4(from + 2, y)
#define LANES_16(from, y) LANES_8(from, y), LANES_8(from + 4, y)
#if VECTOR_BYTES == 64 && !REAL_IS_DOUBLE
#define INTERLEAVE(x, y, upper) SHUFFLE(x, y, LANES_16(upper * 8, 16))
#elif VECTOR_BYTES == 64 || (VECTOR_BYTES == 32 && !REAL_IS_DOUBLE)
#define INTERLEAVE(x, y, upper) SHUFFLE(x, y, LANES_8(upper * 4, 8))
#elif VECTOR_BYTES == 32 || !REAL_IS_DOUBLE
#define INTERLEAVE(x, y, upper) SHUFFLE(x, y, LANES_4(upper * 2, 4))
#else
#define INTERLEAVE(x, y, upper) SHUFFLE(x, y, LANES_2(upper, 2))
#endif

/* Transposes V vectors. Interleaving the first half with the second doubles every element's position modulo V^2 - 1;
   done log2(V) times, this exchanges its row and its column. */
INLINE void NAME(transpose_square)(vec *rows)
{
    UNROLL for (int step = 1; step < V; step *= 2)
    {
        vec shuffled[V];
        UNROLL for (int j = 0; j < V / 2; j++)
        {
            shuffled[2 * j] = INTERLEAVE(rows[j], rows[j + V / 2], 0);
            shuffled[2 * j + 1] = INTERLEAVE(rows[j], rows[j + V / 2], 1);
        }
        UNROLL for (int j = 0; j < V; j++) rows[j] = shuffled[j];
    }
}

#define FMA(a, b, c) NAME(fma)(a, b, c)
#define K(c) NAME(broadcast)((real)(c))

/* For each of n <= 4 vectors side by side, n a constant: a processor looks too few operations ahead to overlap chains
   that come one after another. */
#define EACH(n) UNROLL for (int l = 0; l < (n); l++)

/* Sums across elements run in LANES lanes of double whatever the vector width, so their bits are the same on every
   set. */
#define LANES 16

INLINE double NAME(add_lanes)(const double *lanes)
{
    double sum = 0;
    for (int l = 0; l < LANES; l++)
        sum += lanes[l];
    return sum;
}
