/* The process's helpers: threads that take over a part of one loop at a time.

   A loop is `count` independent calls of a task. Its indices are divided into one range for each worker; the caller is
   worker 0. A worker that has done its own range continues with those of the others. A range is one word (generation,
   next, end), so a claim is one compare-and-swap, which fails once the loop is over: a helper that comes late or never
   delays nobody. Any worker may run any index, so the result of an index must not depend on the worker.

   A waiting worker spins for some microseconds, then sleeps on a lock of its own. A caller that has slept for long has
   waited for a helper whose processor another process uses; it continues alone for a while, as it does when its own
   processor was taken. */
#ifndef LSTM_EXT_TEAM_H
#define LSTM_EXT_TEAM_H

#include <stddef.h>

#define TEAM_MAX 64            /* workers */
#define TEAM_MAX_COUNT 0xfffff /* indices of a loop */

/* `tag` is NULL: a task for float and one for double differ in its type. */
typedef void (*team_task)(void *context, ptrdiff_t index, const void *tag);

/* Take the helpers for the calling thread: 1, or 0 if another thread has them. Give them back. Whether they should rest
   now. */
int team_take(void);
void team_give_back(void);
int team_rests(void);

/* The thread that has the helpers opens a loop, with 2 <= workers <= 1 + helpers and count <= TEAM_MAX_COUNT; claims
   and runs indices until a claim is -1; and closes the loop with the number of indices that it ran. Closing it earlier
   drops the indices that nobody has claimed. */
void team_open(int workers, ptrdiff_t count, team_task task, void *context);
ptrdiff_t team_claim(void);
void team_close(ptrdiff_t done);

/* Make the seat of worker `index`: 1, or 0 without memory. Run helper `index` >= 1, which has a seat; never returns.
   Forget all helpers, in the child of a fork. */
int team_seat(int index);
void team_serve(int index);
void team_forget(void);

/* For tests: set whether the helpers rest and how many pauses late each comes to a loop; pause the processor. */
void team_adjust(int rests, int lateness);
void team_pause(int count);

#endif
