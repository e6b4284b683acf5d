/* What the passes need from the machine, except for the kernels. */
#ifndef LSTM_EXT_RUNTIME_H
#define LSTM_EXT_RUNTIME_H

#define CACHE_LINE 64 /* bytes; a few machines have a multiple of it */

/* Denormals are flushed to zero between the two calls, in this thread: vanishing gradients are denormal by nature and
   cost some CPUs twenty times. Not inlined, so that no compiler moves arithmetic across them. */
unsigned long long denormals_flush(void);
void denormals_restore(unsigned long long state);

/* Seconds from an arbitrary start. */
double wall_seconds(void);

/* A zero for each lane of the widest panel: the start of a sum. */
extern const float zeros_f32[64];
extern const double zeros_f64[64];

#endif
