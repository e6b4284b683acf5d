/* Compiles every kernel for one instruction set. The including file has defined ISA (a name), VECTOR_BYTES,
   TILE_ROWS and ISA_NEON or, on x86, ISA_X86, X86_PREFIX and ISA_HAS_FMA, and has switched the target on. */
#if !defined(__GNUC__) && !defined(__clang__)
#error "lstm_ext's kernels are written in GCC's vector extensions: compile with gcc or clang (on Windows, clang-cl)"
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF /* also where the driver does not know -ffp-contract */
#endif

#include "kernels.h"
#include "philox.h"
#include "runtime.h"

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define STRING_(a) #a
#define STRING(a) STRING_(a)
#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define UNROLL _Pragma("GCC unroll 16")
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (bitvec){__VA_ARGS__}) /* before GCC 12 there is no other */
#endif

#if TILE_ROWS == 6
#define EACH_TILE_ROWS(case_of, body) \
    case_of(body, 1) case_of(body, 2) case_of(body, 3) case_of(body, 4) case_of(body, 5) case_of(body, 6)
#elif TILE_ROWS == 3
#define EACH_TILE_ROWS(case_of, body) case_of(body, 1) case_of(body, 2) case_of(body, 3)
#elif TILE_ROWS == 2
#define EACH_TILE_ROWS(case_of, body) case_of(body, 1) case_of(body, 2)
#endif

/* log(x) for x >= 1, by x = 2^k m and the series of log m = 2 artanh((m - 1) / (m + 1)); NaN and Inf are returned.
   libm's would need a newer glibc than our wheels do. */
INLINE double natural_log(double x)
{
    union {
        double value;
        unsigned long long pattern;
    } m = {x};
    if (!(x - x == 0))
        return x;
    long long k = (long long)(m.pattern >> 52) - 1023;
    m.pattern = (m.pattern & 0xfffffffffffffULL) | 0x3ff0000000000000ULL;
    if (m.value > 1.4142135623730951) {
        m.value *= 0.5;
        k++;
    }
    double s = (m.value - 1) / (m.value + 1), s2 = s * s, series = 0;
    for (int n = 25; n > 0; n -= 2)
        series = series * s2 + 1.0 / n;
    return (double)k * 0.69314718055994531 + 2 * s * series;
}

#define REAL_IS_DOUBLE 0
#include "leaf.h"
#undef REAL_IS_DOUBLE
#define REAL_IS_DOUBLE 1
#include "leaf.h"

const kernels PASTE(kernels_, ISA) = {STRING(ISA), &table_f32, &table_f64};
