/* Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, 2011): four words that are a
   function of a counter (4) and a key (2), so any word can be computed without those before it. */
#ifndef LSTM_EXT_PHILOX_H
#define LSTM_EXT_PHILOX_H

#include <stdint.h>

#define PHILOX_ROUNDS 10
#define PHILOX_M0 0xD2511F53u
#define PHILOX_M1 0xCD9E8D57u
#define PHILOX_W0 0x9E3779B9u /* added to the key in each round */
#define PHILOX_W1 0xBB67AE85u

static inline void philox(const uint32_t *counter, const uint32_t *key, uint32_t *words)
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t p0 = (uint64_t)c0 * PHILOX_M0, p1 = (uint64_t)c2 * PHILOX_M1;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

/* The key (2) of update u of a training with this seed. */
static inline void philox_key(uint64_t seed, uint64_t update, uint32_t *key)
{
    const uint32_t counter[4] = {(uint32_t)update, (uint32_t)(update >> 32), 0, 0};
    const uint32_t seed_words[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t words[4];
    philox(counter, seed_words, words);
    key[0] = words[0];
    key[1] = words[1];
}

#endif
