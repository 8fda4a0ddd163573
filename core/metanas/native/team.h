/* A few threads that share the images of a batch, stage by stage.
 *
 * A batch is cut into SLOTS parts, whatever the number of threads; each part is summed by itself and the parts
 * are added in order. So the number of threads never changes a bit of the result. Threads live as
 * long as one pass through the network, so nothing is left behind that a fork could lose.
 */
#ifndef METANAS_TEAM_H
#define METANAS_TEAM_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define SLOTS 4
#define MAX_THREADS SLOTS

typedef struct Team Team;
typedef void (*Work)(void *context, int slot, int thread);

typedef struct {
    Team *team;
    int number;
} Member;

struct Team {
    int threads;
    pthread_t handles[MAX_THREADS];
    Member members[MAX_THREADS];
    Work work;
    void *context;
    atomic_int next; /* the next slot that nobody has taken; SLOTS or more: none */
    atomic_int done; /* slots that are finished */
    atomic_int over;
};

static inline void team_pause(int *tries) {
    if (++*tries > 2000) sched_yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* A member that comes late finds the slots taken, so nobody waits for one that the system does not let run. */
static void team_take(Team *team, int thread) {
    int slot;
    while (atomic_load(&team->next) < SLOTS && (slot = atomic_fetch_add(&team->next, 1)) < SLOTS) {
        team->work(team->context, slot, thread);
        atomic_fetch_add(&team->done, 1);
    }
}

static void *team_member(void *argument) {
    Member *member = argument;
    for (int tries = 0; !atomic_load(&member->team->over); team_pause(&tries)) {
        if (atomic_load(&member->team->next) >= SLOTS) continue;
        team_take(member->team, member->number);
        tries = 0;
    }
    return NULL;
}

static void team_begin(Team *team, int threads) {
    memset(team, 0, sizeof *team);
    team->threads = 1;
    atomic_store(&team->next, SLOTS);
    while (team->threads < threads && team->threads < MAX_THREADS) {
        int number = team->threads;
        team->members[number] = (Member){team, number};
        /* One thread fewer is slower, not wrong. */
        if (pthread_create(&team->handles[number], NULL, team_member, &team->members[number]) != 0) break;
        team->threads++;
    }
}

/* Run `work` on every slot; back when all are done. */
static void team_run(Team *team, Work work, void *context) {
    team->work = work;
    team->context = context;
    atomic_store(&team->done, 0);
    atomic_store(&team->next, 0);
    team_take(team, 0);
    for (int tries = 0; atomic_load(&team->done) < SLOTS;) team_pause(&tries);
}

static void team_end(Team *team) {
    atomic_store(&team->over, 1);
    for (int number = 1; number < team->threads; number++) pthread_join(team->handles[number], NULL);
}

#endif
