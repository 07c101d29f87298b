/* Tile executor: runs a compiled program of tile kernels over an interleaved complex state, in place, on all threads.
 *
 * Compiled once an instruction set: -DVECTOR_BYTES=16|32|64 and -DENTRY=<symbol>, with the matching -m flags, and
 * -DCACHED_BYTES=<size>, up to which a state may lie in a last-level cache (larger ones are written around it).
 * The layouts of struct op and struct kernel are mirrored by the record types in emit.py.
 */

#ifdef __linux__
#define _GNU_SOURCE /* the processors a thread may run on */
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_BITS 6
#define MAX_HELD 32
#define AHEAD 8 /* rows fetched ahead of the one being loaded */
#define SPINS 2000 /* looks at the barrier before a thread sleeps there: about what waking it takes */
#define SPARES 64

enum { OP_ROTATE_ROWS, OP_ROTATE_LANES, OP_MATRIX_ROW, OP_MATRIX_LANE, OP_DENSE_ROWS, OP_DENSE_MIXED, OP_DENSE_LANES,
       OP_DENSE_ANY, OP_PHASE, OP_PERMUTE };

struct op {
    int32_t kind, bits, bit[MAX_BITS], flag, pad;
    uint64_t control_mask, control_value;  /* tile coordinates (row bits; lane controls live in the coefficients) */
    uint64_t outside_mask, outside_value;  /* address bits outside the tile, the shard's own number above them */
    int64_t reals, ints, count;
};

struct kernel {
    int32_t bits, run;      /* tile bits; how many of the low ones are the lowest address bits */
    int64_t first, count;   /* operations */
    uint64_t inside, empty; /* address bits in the tile; address bits still known to be zero on entry */
    double scale;
};

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() _mm_pause()
#define FLUSH_STREAMS() _mm_sfence()
#else
#define RELAX() ((void)0)
#define FLUSH_STREAMS() ((void)0)
#endif

/* i with a zero inserted at bit position b. */
static inline long gap(long i, int b) {
    const long low = (1L << b) - 1;
    return ((i & ~low) << 1) | (i & low);
}

static inline long spread(long i, int held, const int *fixed) {
    for (int k = 0; k < held; k++) i = gap(i, fixed[k]);
    return i;
}

/* Row bits that an operation holds fixed (targets and controls), ascending; `lanes` = number of lane bits. */
static int held_bits(const struct op *o, int lanes, int *fixed) {
    uint64_t mask = o->control_mask >> lanes;
    for (int k = 0; k < o->bits; k++)
        if (lanes == 0 || o->kind != OP_MATRIX_LANE) mask |= 1ULL << o->bit[k];
    int held = 0;
    for (int b = 0; b < MAX_HELD; b++)
        if ((mask >> b) & 1) fixed[held++] = b;
    return held;
}

#define VB VECTOR_BYTES

/* One vector to memory that nobody reads soon: not fetched first, not kept in a cache. */
#if VECTOR_BYTES == 64 && defined(__AVX512F__)
#define STREAM(to, x) _mm512_stream_si512((__m512i *)(to), (__m512i)(x))
#elif VECTOR_BYTES == 32 && defined(__AVX__)
#define STREAM(to, x) _mm256_stream_si256((__m256i *)(to), (__m256i)(x))
#elif VECTOR_BYTES == 16 && defined(__SSE2__)
#define STREAM(to, x) _mm_stream_si128((__m128i *)(to), (__m128i)(x))
#else
#define STREAM(to, x) (*(to) = (x))
#endif

#define REAL float
#define INT int32_t
#define NAME(x) single_##x
#define LW (VECTOR_BYTES == 64 ? 4 : VECTOR_BYTES == 32 ? 3 : 2)
#include "tile_ops.h"
#undef REAL
#undef INT
#undef NAME
#undef LW

#define REAL double
#define INT int64_t
#define NAME(x) double_##x
#define LW (VECTOR_BYTES == 64 ? 3 : VECTOR_BYTES == 32 ? 2 : 1)
#include "tile_ops.h"
#undef REAL
#undef INT
#undef NAME
#undef LW

struct program {
    int32_t address_bits, threads, precision, pad; /* amplitudes of this shard = 2^address_bits; 4 or 8 bytes a real */
    uint64_t shard;                                 /* number of this shard: address bits above address_bits */
    int64_t kernels;
    const struct kernel *kernel;
    const struct op *op;
    const void *reals;
    const int64_t *ints;
    void *state;
    double *seconds;                                /* out: wall time of every kernel */
};

/* Tiles of the current kernel that one thread begins with: next ... end - 1. Alone in its cache lines. */
struct share { long next, end; char apart[128 - 2 * sizeof(long)]; };

struct team {
    const struct program *p;
    pthread_mutex_t lock;
    pthread_cond_t turned;
    int waiting, failed;
    int shares;            /* one for each thread that was wanted */
    long generation;       /* read without the lock by those that spin */
    struct share *share;
    int64_t first;         /* first kernel that the team runs */
    int64_t *offset;       /* row offsets of the current kernel */
    double began;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t deposit(uint64_t value, uint64_t mask) {
    uint64_t result = 0;
    for (; mask; mask &= mask - 1, value >>= 1)
        if (value & 1) result |= mask & -mask;
    return result;
}

static uint64_t across_tiles(const struct program *p, const struct kernel *kernel) {
    return ((1ULL << p->address_bits) - 1) & ~kernel->inside & ~kernel->empty;
}

static long tiles_of(const struct program *p, int64_t k) {
    return 1L << __builtin_popcountll(across_tiles(p, p->kernel + k));
}

static void prepare(struct team *team, long k) {
    const struct kernel *kernel = team->p->kernel + k;
    const uint64_t rows = kernel->inside & ~((1ULL << kernel->run) - 1);
    for (int64_t r = 0; r < 1LL << (kernel->bits - kernel->run); r++) team->offset[r] = (int64_t)deposit((uint64_t)r, rows);
    const long tiles = tiles_of(team->p, k);
    for (int j = 0; j < team->shares; j++) {
        team->share[j].end = tiles * (j + 1) / team->shares;
        __atomic_store_n(&team->share[j].next, tiles * j / team->shares, __ATOMIC_RELAXED);
    }
    team->began = now();
}

/* Everyone waits; the last to arrive closes kernel k and opens the next. */
static void turn(struct team *team, long k) {
    pthread_mutex_lock(&team->lock);
    const long mine = team->generation;
    if (++team->waiting == team->p->threads) {
        team->p->seconds[k] = now() - team->began;
        if (k + 1 < team->p->kernels) prepare(team, k + 1);
        team->waiting = 0;
        __atomic_store_n(&team->generation, mine + 1, __ATOMIC_RELEASE);
        pthread_cond_broadcast(&team->turned);
        pthread_mutex_unlock(&team->lock);
        return;
    }
    pthread_mutex_unlock(&team->lock);
    for (int i = 0; i < SPINS; i++) {
        if (__atomic_load_n(&team->generation, __ATOMIC_ACQUIRE) != mine) return;
        RELAX();
    }
    pthread_mutex_lock(&team->lock);
    while (team->generation == mine) pthread_cond_wait(&team->turned, &team->lock);
    pthread_mutex_unlock(&team->lock);
}

/* Tiles outlive a run: fresh pages would cost a small circuit more than its arithmetic. */
static struct spare { void *memory; size_t size; int taken; } spares[SPARES];
static pthread_mutex_t spares_lock = PTHREAD_MUTEX_INITIALIZER;

static void *take(size_t size) {
    struct spare *slot = 0;
    pthread_mutex_lock(&spares_lock);
    for (int i = 0; i < SPARES; i++) {
        struct spare *s = spares + i;
        if (s->taken) continue;
        if (!slot || (s->size >= size && slot->size < size)) slot = s;
    }
    if (slot) slot->taken = 1;
    pthread_mutex_unlock(&spares_lock);
    if (slot && slot->size >= size) return slot->memory;
    void *memory = 0;
    if (posix_memalign(&memory, 4096, size)) memory = 0;
    if (slot) {
        free(slot->memory);
        slot->memory = memory;
        slot->size = memory ? size : 0;
        slot->taken = memory != 0;
    }
    return memory;
}

static void give(void *memory) {
    int kept = 0;
    pthread_mutex_lock(&spares_lock);
    for (int i = 0; i < SPARES && memory && !kept; i++)
        if (spares[i].memory == memory) { spares[i].taken = 0; kept = 1; }
    pthread_mutex_unlock(&spares_lock);
    if (!kept) free(memory);
}

static int64_t widest(const struct program *p) {
    int64_t bits = 0;
    for (int64_t k = 0; k < p->kernels; k++) if (p->kernel[k].bits > bits) bits = p->kernel[k].bits;
    return bits;
}

static int64_t most_rows(const struct program *p) {
    int64_t bits = 0;
    for (int64_t k = 0; k < p->kernels; k++)
        if (p->kernel[k].bits - p->kernel[k].run > bits) bits = p->kernel[k].bits - p->kernel[k].run;
    return bits;
}

static long most_tiles(const struct program *p) {
    long most = 0;
    for (int64_t k = 0; k < p->kernels; k++) {
        const long tiles = tiles_of(p, k);
        if (tiles > most) most = tiles;
    }
    return most;
}

static size_t scratch_bytes(const struct program *p) {
    const size_t tile = 2UL * (size_t)p->precision << widest(p);
    return 2 * tile + 65536 + tile / 4;
}

/* One tile of kernel k. */
static void run_tile(const struct team *team, int64_t k, long i, void *scratch) {
    const struct program *p = team->p;
    const struct kernel *kernel = p->kernel + k;
    const int streamed = 2L * p->precision << p->address_bits > CACHED_BYTES;
    const uint64_t start = deposit((uint64_t)i, across_tiles(p, kernel)), outside = start | p->shard << p->address_bits;
    if (p->precision == 4)
        single_run_tile(kernel, p->op, p->reals, p->ints, p->state, team->offset, start, outside, streamed, scratch);
    else
        double_run_tile(kernel, p->op, p->reals, p->ints, p->state, team->offset, start, outside, streamed, scratch);
}

struct worker {
    struct team *team;
    int number;
#ifdef __linux__
    cpu_set_t allowed; /* where it may go on once it has started */
#endif
};

/* Threads begin with the same part of the state in every kernel, which is then still in their caches, and end with what
   is left of the others' parts. */
static void *work(void *argument) {
    const struct worker *me = argument;
    struct team *team = me->team;
    const struct program *p = team->p;
#ifdef __linux__
    if (me->number) sched_setaffinity(0, sizeof me->allowed, &me->allowed);
#endif
    void *scratch = take(scratch_bytes(p));
    if (!scratch) __atomic_store_n(&team->failed, 1, __ATOMIC_RELAXED);
    for (int64_t k = team->first; k < p->kernels; k++) {
        for (int j = 0; j < team->shares && scratch; j++) {
            struct share *share = team->share + (me->number + j) % team->shares;
            long i;
            while ((i = __atomic_fetch_add(&share->next, 1, __ATOMIC_RELAXED)) < share->end) run_tile(team, k, i, scratch);
        }
        FLUSH_STREAMS();
        turn(team, k);
    }
    give(scratch);
    return 0;
}

#ifdef __linux__
/* Starts thread `number` on a processor of its own: left to the system it often shares the caller's for milliseconds,
   which is longer than many circuits take. Nonzero where that cannot be done. */
static int start_apart(pthread_t *thread, struct worker *worker, int number, int *cpu) {
    struct worker *me = worker + number;
    const int here = sched_getcpu();
    if (CPU_COUNT(&me->allowed) <= number) return 1;
    do ++*cpu; while (*cpu < CPU_SETSIZE && (*cpu == here || !CPU_ISSET(*cpu, &me->allowed)));
    if (*cpu >= CPU_SETSIZE) return 1;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(*cpu, &one);
    pthread_attr_t where;
    if (pthread_attr_init(&where)) return 1;
    const int bad = pthread_attr_setaffinity_np(&where, sizeof one, &one) ||
                    pthread_create(thread + number, &where, work, me);
    pthread_attr_destroy(&where);
    return bad;
}
#else
static int start_apart(pthread_t *thread, struct worker *worker, int number, int *cpu) { return 1; }
#endif

/* Starts threads 1 ... wanted - 1; how many there are then, the caller among them. */
static int start_all(pthread_t *thread, struct worker *worker, int wanted) {
    int started = 1, cpu = -1;
#ifdef __linux__
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    sched_getaffinity(0, sizeof allowed, &allowed);
    for (int j = 0; j < wanted; j++) worker[j].allowed = allowed;
#endif
    while (started < wanted && (!start_apart(thread, worker, started, &cpu) ||
                                !pthread_create(thread + started, 0, work, worker + started))) started++;
    return started;
}

/* The kernels of one tile at a program's start, on the calling thread: waking others would take longer than they do. */
static void run_alone(struct team *team) {
    const struct program *p = team->p;
    if (tiles_of(p, 0) > 1 && p->threads > 1) return;
    void *scratch = take(scratch_bytes(p));
    if (!scratch) team->failed = 1;
    for (; scratch && team->first < p->kernels && (tiles_of(p, team->first) == 1 || p->threads == 1); team->first++) {
        prepare(team, team->first);
        for (long i = 0; i < tiles_of(p, team->first); i++) run_tile(team, team->first, i, scratch);
        FLUSH_STREAMS();
        p->seconds[team->first] = now() - team->began;
    }
    give(scratch);
}

/* Runs the program; 0, or 1 when memory or threads are short (the state is then undefined). */
int ENTRY(const struct program *p) {
    if (!p->kernels) return 0;
    struct team team = {.p = p};
    team.offset = malloc(sizeof(int64_t) << most_rows(p));
    pthread_t *thread = malloc(sizeof(pthread_t) * (size_t)p->threads);
    struct worker *worker = malloc(sizeof(struct worker) * (size_t)p->threads);
    void *shares = 0;
    if (posix_memalign(&shares, sizeof(struct share), sizeof(struct share) * (size_t)p->threads)) shares = 0;
    team.share = shares;
    team.failed = !team.offset || !thread || !worker || !shares;
    if (!team.failed) run_alone(&team);
    if (team.first < p->kernels && !team.failed) {
        pthread_mutex_init(&team.lock, 0);
        pthread_cond_init(&team.turned, 0);
        struct program fewer = *p;
        const int useful = most_tiles(p) < p->threads ? (int)most_tiles(p) : p->threads;
        team.shares = useful;
        prepare(&team, team.first);
        for (int j = 0; j < useful; j++) worker[j] = (struct worker){.team = &team, .number = j};
        pthread_mutex_lock(&team.lock);
        const int started = start_all(thread, worker, useful);
        fewer.threads = started;
        team.p = &fewer;
        pthread_mutex_unlock(&team.lock);
        work(worker);
        for (int i = 1; i < started; i++) pthread_join(thread[i], 0);
        pthread_mutex_destroy(&team.lock);
        pthread_cond_destroy(&team.turned);
    }
    free(team.offset);
    free(thread);
    free(worker);
    free(shares);
    return team.failed;
}
