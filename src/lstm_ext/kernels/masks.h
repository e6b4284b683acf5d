/* Dropout masks from Philox's words. Included by leaf.h once for each type; the contracts are in kernels.h. */

#define WORD_VECTORS (4 * D / V) /* that hold the words of D blocks */

/* x0 y0 x2 y2 ..., or the odd ones of both. */
#if VECTOR_BYTES == 64
#define PAIRS(x, y, odd) \
    SHUFFLE_LONGS(x, y, odd, 8 + odd, 2 + odd, 10 + odd, 4 + odd, 12 + odd, 6 + odd, 14 + odd)
#define BLOCK_ORDER 0, 4, 1, 5, 2, 6, 3, 7
#elif VECTOR_BYTES == 32
#define PAIRS(x, y, odd) SHUFFLE_LONGS(x, y, odd, 4 + odd, 2 + odd, 6 + odd)
#define BLOCK_ORDER 0, 2, 1, 3
#else
#define PAIRS(x, y, odd) SHUFFLE_LONGS(x, y, odd, 2 + odd)
#define BLOCK_ORDER 0, 1
#endif

#if defined(__clang__)
#define SHUFFLE_LONGS(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE_LONGS(x, y, ...) __builtin_shuffle(x, y, (longs){__VA_ARGS__})
#endif

typedef struct {
    longs keys[PHILOX_ROUNDS][2], counter[4];
} NAME(stream);

INLINE void NAME(open_stream)(NAME(stream) *stream, const uint32_t *key, const uint32_t *counter)
{
    for (uint32_t round = 0; round < PHILOX_ROUNDS; round++) {
        stream->keys[round][0] = NAME(broadcast_long)(key[0] + round * PHILOX_W0);
        stream->keys[round][1] = NAME(broadcast_long)(key[1] + round * PHILOX_W1);
    }
    stream->counter[0] = (longs){BLOCK_ORDER};
    for (int l = 1; l < 4; l++)
        stream->counter[l] = NAME(broadcast_long)(counter[l - 1]);
}

/* The words of the next D blocks. Each lane of 64 bits makes a block; the upper halves hold what no product sees. */
INLINE void NAME(next_words)(NAME(stream) *stream, bitvec *words)
{
    const longs M0 = NAME(broadcast_long)(PHILOX_M0), M1 = NAME(broadcast_long)(PHILOX_M1);
    const longs lower = NAME(broadcast_long)(0xffffffff);
    longs c0 = stream->counter[0], c1 = stream->counter[1], c2 = stream->counter[2], c3 = stream->counter[3];
    stream->counter[0] = c0 + (uint64_t)D;
    UNROLL for (int round = 0; round < PHILOX_ROUNDS; round++) {
        const longs p0 = NAME(multiply_lower)(c0, M0), p1 = NAME(multiply_lower)(c2, M1);
        c0 = (p1 >> 32) ^ c1 ^ stream->keys[round][0];
        c2 = (p0 >> 32) ^ c3 ^ stream->keys[round][1];
        c1 = p1;
        c3 = p0;
    }
    const longs x = (c0 & lower) | (c1 << 32), y = (c2 & lower) | (c3 << 32);
    const longs pairs[2] = {PAIRS(x, y, 0), PAIRS(x, y, 1)};
#if REAL_IS_DOUBLE
    UNROLL for (int l = 0; l < 2; l++) {
        const bitvec even = (bitvec)(pairs[l] & lower), odd = (bitvec)(pairs[l] >> 32);
        words[2 * l] = INTERLEAVE(even, odd, 0);
        words[2 * l + 1] = INTERLEAVE(even, odd, 1);
    }
#else
    UNROLL for (int l = 0; l < 2; l++) words[l] = (bitvec)pairs[l];
#endif
}

/* body(j, n, below) for each vector of n elements, `below` the lanes whose word is below the threshold. */
#define EACH_WORDS(count, key, counter, threshold, body)                                                               \
    do {                                                                                                               \
        NAME(stream) stream_;                                                                                          \
        bitvec words_[WORD_VECTORS];                                                                                   \
        NAME(open_stream)(&stream_, key, counter);                                                                     \
        ptrdiff_t j_ = 0;                                                                                              \
        for (; j_ + 4 * D <= (count); j_ += 4 * D) {                                                                   \
            NAME(next_words)(&stream_, words_);                                                                        \
            UNROLL for (int l = 0; l < WORD_VECTORS; l++) body(j_ + l * V, V, (words_[l] < (bits)(threshold)));        \
        }                                                                                                              \
        if (j_ < (count)) {                                                                                            \
            NAME(next_words)(&stream_, words_);                                                                        \
            UNROLL for (int l = 0; l < WORD_VECTORS; l++) if (j_ + l * V < (count))                                    \
                body(j_ + l * V, (count) - j_ - l * V, (words_[l] < (bits)(threshold)));                               \
        }                                                                                                              \
    } while (0)

static void NAME(mask)(ptrdiff_t n, const uint32_t *key, const uint32_t *counter, uint32_t threshold, real dropped,
                       real kept, real *y)
{
    const bitvec change = (bitvec)K(kept) ^ (bitvec)K(dropped);
#define BODY(j, m, below) NAME(store_n)(y + j, (vec)((bitvec)K(kept) ^ (bitvec)WHERE(below, change)), m)
    EACH_WORDS(n, key, counter, threshold, BODY);
#undef BODY
}

static void NAME(dropout)(ptrdiff_t n, const uint32_t *key, const uint32_t *counter, uint32_t threshold, real scale,
                          const real *x, real *y)
{
#define BODY(j, m, below) NAME(store_n)(y + j, WHERE(~below, K(scale) * NAME(load_n)(x + j, m)), m)
    EACH_WORDS(n, key, counter, threshold, BODY);
#undef BODY
}
