/* How long a message takes from one processor to another and back: two threads hand a number to each other through one
   cache line. Tens of nanoseconds where they share a cache, hundreds where they do not. */

#ifdef __linux__
#define _GNU_SOURCE
#include <sched.h>
#endif
#include <pthread.h>
#include <time.h>

#define GROUP 100
#define PATIENCE 0.01 /* seconds: who shares a processor with somebody else would wait for whole time slices */

struct player {
    int cpu;
    long me, rounds;
    long *turn;
    double least;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *play(void *argument)
{
    struct player *p = argument;
    const double began = now();
    double since = began;
    for (long r = 0; r < p->rounds; r++) {
        for (long looks = 0; __atomic_load_n(p->turn, __ATOMIC_ACQUIRE) != 2 * r + p->me; looks++)
            if (looks % 1024 == 1023 && now() - began > PATIENCE) return 0;
        __atomic_store_n(p->turn, 2 * r + p->me + 1, __ATOMIC_RELEASE);
        if (r % GROUP == GROUP - 1) {
            const double t = now();
            if (t - since < p->least) p->least = t - since;
            since = t;
        }
    }
    return 0;
}

static int start(pthread_t *thread, struct player *p)
{
    pthread_attr_t where;
    if (pthread_attr_init(&where)) return 1;
    int bad = 0;
#ifdef __linux__
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(p->cpu, &own);
    bad = pthread_attr_setaffinity_np(&where, sizeof own, &own);
#endif
    bad = bad || pthread_create(thread, &where, play, p);
    pthread_attr_destroy(&where);
    return bad;
}

/* Seconds there and back between two processors, of the best hundred rounds of some; 0 where it was not found. */
double there_and_back(int first, int second, long rounds)
{
    static struct { long turn; char apart[120]; } line __attribute__((aligned(128)));
    struct player both[2] = {{first, 0, rounds, &line.turn, 1.0}, {second, 1, rounds, &line.turn, 1.0}};
    pthread_t thread[2];
    line.turn = 0;
    int started = 0;
    while (started < 2 && !start(thread + started, both + started)) started++;
    for (int i = 0; i < started; i++) pthread_join(thread[i], 0);
    return started == 2 && both[0].least < 1.0 ? both[0].least / GROUP : 0.0;
}
