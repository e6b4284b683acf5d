/* The AVX-512 build. */
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(_MSC_VER) /* clang-cl leaves out of it what the command line's target lacks */
#include <smmintrin.h>
#include <avxintrin.h>
#include <avx512fintrin.h>
#endif
#include <stddef.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#define ISA avx512
#define ISA_X86
#define ISA_HAS_FMA 1
#define X86_PREFIX _mm512_
#define VECTOR_BYTES 64
#define TILE_ROWS 6
#include "kernels_isa.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
