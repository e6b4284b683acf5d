/* The AVX2 with FMA build. */
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(_MSC_VER) /* clang-cl leaves out of it what the command line's target lacks */
#include <avxintrin.h>
#include <avx2intrin.h>
#include <fmaintrin.h>
#endif
#include <stddef.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define ISA avx2
#define ISA_X86
#define ISA_HAS_FMA 1
#define X86_PREFIX _mm256_
#define VECTOR_BYTES 32
#define TILE_ROWS 3
#include "kernels_isa.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
