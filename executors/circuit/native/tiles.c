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

/* What the threads of one run share. A thread works from the moment it runs: until then the others do its part, and one
   that comes when all is done leaves again. So the team outlives the run, until the last thread has left it. */
struct team {
    const struct program *p; /* gone once the run is over */
    pthread_mutex_t lock;
    pthread_cond_t turned;
    int members, waiting, left; /* threads at work; those of them that wait for the next kernel; not yet gone for good */
    int shares;            /* one for each thread that was wanted */
    long generation;       /* read without the lock by those that spin; 0 until the team's first kernel is open */
    int64_t current, kernels;
    int64_t *offset;       /* row offsets of the current kernel */
    struct share *share;
    struct worker *worker;
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

/* With the lock held: kernel k begins. */
static void open_kernel(struct team *team, int64_t k) {
    team->current = k;
    if (k < team->kernels) prepare(team, k);
    team->waiting = 0;
    __atomic_store_n(&team->generation, team->generation + 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&team->turned);
}

static void await(struct team *team, long mine) {
    for (int i = 0; i < SPINS; i++) {
        if (__atomic_load_n(&team->generation, __ATOMIC_ACQUIRE) != mine) return;
        RELAX();
    }
    pthread_mutex_lock(&team->lock);
    while (team->generation == mine) pthread_cond_wait(&team->turned, &team->lock);
    pthread_mutex_unlock(&team->lock);
}

/* Everyone at work waits; the last to arrive closes kernel k and opens the next. */
static void turn(struct team *team, int64_t k) {
    pthread_mutex_lock(&team->lock);
    const long mine = team->generation;
    const int last = ++team->waiting == team->members;
    if (last) {
        team->p->seconds[k] = now() - team->began;
        open_kernel(team, k + 1);
    }
    pthread_mutex_unlock(&team->lock);
    if (!last) await(team, mine);
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

/* `threads` leave for good, or never came. */
static void leave(struct team *team, int threads) {
    pthread_mutex_lock(&team->lock);
    const int last = (team->left -= threads) == 0;
    pthread_mutex_unlock(&team->lock);
    if (!last) return;
    pthread_mutex_destroy(&team->lock);
    pthread_cond_destroy(&team->turned);
    free(team->offset);
    free(team->share);
    free(team->worker);
    free(team);
}

/* Kernels from k on. Threads begin with the same part of the state in every kernel, which is then still in their caches,
   and end with what is left of the others' parts. Nonzero without memory for a tile. */
static int work(struct team *team, int number, int64_t k) {
    void *scratch = take(scratch_bytes(team->p));
    for (; k < team->kernels; k++) {
        for (int j = 0; j < team->shares && scratch; j++) {
            struct share *share = team->share + (number + j) % team->shares;
            long i;
            while ((i = __atomic_fetch_add(&share->next, 1, __ATOMIC_RELAXED)) < share->end) run_tile(team, k, i, scratch);
        }
        FLUSH_STREAMS();
        turn(team, k);
    }
    give(scratch);
    return !scratch;
}

static void *join(void *argument) {
    const struct worker *me = argument;
    struct team *team = me->team;
#ifdef __linux__
    sched_setaffinity(0, sizeof me->allowed, &me->allowed);
#endif
    pthread_mutex_lock(&team->lock);
    const int64_t k = team->current;
    const long opened = team->generation;
    if (k < team->kernels) team->members++;
    pthread_mutex_unlock(&team->lock);
    if (k < team->kernels) {
        if (!opened) await(team, 0);
        work(team, me->number, k); /* without memory others do its part */
    }
    leave(team, 1);
    return 0;
}

/* Starts one more thread, on processor `cpu` unless that is negative; nonzero if that fails. */
static int start(struct worker *me, int cpu) {
    pthread_attr_t how;
    pthread_t thread;
    if (pthread_attr_init(&how)) return 1;
    int bad = pthread_attr_setdetachstate(&how, PTHREAD_CREATE_DETACHED);
#ifdef __linux__
    if (cpu >= 0) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        bad |= pthread_attr_setaffinity_np(&how, sizeof one, &one);
    }
#else
    (void)cpu;
#endif
    bad = bad || pthread_create(&thread, &how, join, me);
    pthread_attr_destroy(&how);
    return bad;
}

/* Starts the other threads, each on a processor of its own: left to the system one often shares the caller's for
   milliseconds, which is longer than many circuits take. */
static void start_all(struct team *team) {
    int cpu = -1, started = 1;
#ifdef __linux__
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    const int apart = !sched_getaffinity(0, sizeof allowed, &allowed) && CPU_COUNT(&allowed) >= team->shares;
    const int here = sched_getcpu();
#endif
    for (; started < team->shares; started++) {
        struct worker *me = team->worker + started;
        *me = (struct worker){.team = team, .number = started};
#ifdef __linux__
        me->allowed = allowed;
        if (apart) do cpu++; while (cpu == here || !CPU_ISSET(cpu, &allowed));
#endif
        if (start(me, cpu) && start(me, -1)) break;
    }
    if (started < team->shares) leave(team, team->shares - started);
}

/* Kernels at a program's start that are one tile (or all, for one thread) are the caller's alone: how many there are. */
static int64_t alone(const struct program *p) {
    int64_t k = 0;
    while (k < p->kernels && (tiles_of(p, k) == 1 || p->threads == 1)) k++;
    return k;
}

static int run_alone(struct team *team, int64_t kernels) {
    void *scratch = take(scratch_bytes(team->p));
    for (int64_t k = 0; scratch && k < kernels; k++) {
        prepare(team, k);
        for (long i = 0; i < tiles_of(team->p, k); i++) run_tile(team, k, i, scratch);
        FLUSH_STREAMS();
        team->p->seconds[k] = now() - team->began;
    }
    give(scratch);
    return !scratch;
}

static struct team *gathered(const struct program *p) {
    struct team *team = calloc(1, sizeof *team);
    if (!team) return 0;
    const long most = most_tiles(p);
    void *share = 0;
    *team = (struct team){.p = p, .kernels = p->kernels, .current = alone(p),
                          .shares = most < p->threads ? (int)most : p->threads};
    team->left = team->shares;
    pthread_mutex_init(&team->lock, 0);
    pthread_cond_init(&team->turned, 0);
    team->offset = malloc(sizeof *team->offset << most_rows(p));
    team->worker = malloc(sizeof *team->worker * (size_t)team->shares);
    if (!posix_memalign(&share, sizeof *team->share, sizeof *team->share * (size_t)team->shares)) team->share = share;
    if (team->offset && team->worker && team->share) return team;
    leave(team, team->shares);
    return 0;
}

/* Runs the program; 0, or 1 when memory is short (the state is then undefined). */
int ENTRY(const struct program *p) {
    if (!p->kernels) return 0;
    struct team *team = gathered(p);
    if (!team) return 1;
    const int64_t first = team->current;
    if (first == p->kernels) team->left = 1;
    else start_all(team);
    int failed = first && run_alone(team, first);
    if (first < p->kernels) {
        pthread_mutex_lock(&team->lock);
        team->members++;
        open_kernel(team, first);
        pthread_mutex_unlock(&team->lock);
        failed |= work(team, 0, first);
    }
    leave(team, 1);
    return failed;
}
