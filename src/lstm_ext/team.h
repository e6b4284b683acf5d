/* The process's helpers: threads that take over a part of one loop at a time.

   A loop is `count` independent calls of a task. Its indices are cut into one range for each worker; the caller is
   worker 0, and whoever is through with its own range goes on with the others'. A range is one word (generation, next,
   end), so a claim is one compare-and-swap, which fails once the loop is over: a helper that comes late, or never,
   delays nobody. Which worker runs an index is open; what the index does must not depend on it.

   Whoever waits does so for some microseconds on the processor, then asleep on a lock of its own. A caller that has
   slept for long has waited for a helper whose processor somebody else is using: it goes on alone for a while, as it
   does when its own was taken. */
#ifndef LSTM_EXT_TEAM_H
#define LSTM_EXT_TEAM_H

#include <stddef.h>

#define TEAM_MAX 64               /* workers */
#define TEAM_MAX_COUNT 0xfffff  /* indices */

/* `tag` is NULL: a task for float and one for double differ in its type. */
typedef void (*team_task)(void *context, ptrdiff_t index, const void *tag);

/* Take the helpers for the calling thread: 1, or 0 if another has them. Whether they should rest now. */
int team_take(void);
void team_give_back(void);
int team_rests(void);

/* Whoever has the helpers opens a loop, 2 <= workers <= 1 + helpers, count <= TEAM_MAX_COUNT; claims indices and
   does them until the claim is -1; and closes it, saying how many it did. To close it earlier drops what nobody has
   claimed. */
void team_open(int workers, ptrdiff_t count, team_task task, void *context);
ptrdiff_t team_claim(void);
void team_close(ptrdiff_t done);

/* The life of helper `index` >= 1, which never ends; what makes it possible, 0 if memory lacks; and what a process does
   after a fork, which has no helpers. */
int team_seat(int index);
void team_serve(int index);
void team_forget(void);

/* For tests: whether the helpers rest, how many pauses each comes late to a loop; and to pause the processor. */
void team_adjust(int rests, int lateness);
void team_pause(int count);

#endif
