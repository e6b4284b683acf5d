/* What the passes need from the machine, apart from the kernels. */
#ifndef LSTM_EXT_RUNTIME_H
#define LSTM_EXT_RUNTIME_H

#define CACHE_LINE 64 /* bytes, or a multiple of it, on every machine we build for */

/* Denormals are flushed to zero between the two calls, in this thread: vanishing gradients are denormal by nature and
   cost some CPUs twenty times. Not inlined, so that no compiler moves arithmetic across them. */
unsigned long long denormals_flush(void);
void denormals_restore(unsigned long long state);

/* Seconds from an arbitrary start. */
double wall_seconds(void);

/* As many zeros as the widest panel has lanes: the start of a sum that starts at nothing. */
extern const float zeros_f32[64];
extern const double zeros_f64[64];

#endif
