/* One decode step of attention on a CPU: softmax(q K^T) V with every cached row read once for all queries that share it.

   Queries come in tiles of four, a last one that is left over alone; rows in blocks that stay in the first-level cache.
   A block is walked twice: its keys give a score for each query and row, whose running maximum and sum are kept (online
   softmax, arXiv 2205.14135); its values are added up with these weights. Both loops need fewer cycles than memory needs
   to bring the rows.

   While a block is worked on, the next one is fetched: a processor's own prefetching does not reach across the two
   walks. Rows are floats or bfloat16s; sums are floats. */

#include <stdint.h>
#include <string.h>

#define BLOCK 64       /* rows at most; for tiles of four queries SMALL ones were measured best, for one query large ones */
#define SMALL 16
#define LINE 64
#define INLINE static inline __attribute__((always_inline))

typedef float v16 __attribute__((vector_size(64)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef float v16_anywhere __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t u16 __attribute__((vector_size(64)));
typedef uint32_t u16_anywhere __attribute__((vector_size(64), aligned(2), may_alias));

#ifdef __AVX512BF16__
#include <immintrin.h>
typedef __m512bh bh_anywhere __attribute__((aligned(2), may_alias));
#endif

enum { FLOAT32 = 4, BFLOAT16 = 2 };

struct rows {
    const char *keys[BLOCK], *values[BLOCK];
    int count;
};

/* Columns i .. i + 31 of a row as two vectors: floats in order, bfloat16s at even columns first, then those at odd. */
INLINE void load(const char *row, int64_t i, int size, v16 out[2])
{
    if (size == FLOAT32) {
        out[0] = *(const v16_anywhere *)(row + 4 * i);
        out[1] = *(const v16_anywhere *)(row + 4 * i + 64);
    } else {
        u16 both = *(const u16_anywhere *)(row + 2 * i);
        out[0] = (v16)(both << 16);
        out[1] = (v16)(both & 0xffff0000u);
    }
}

INLINE v16 all(float x)
{
    return x - (v16){0};
}

INLINE v16 larger(v16 a, v16 b)
{
    i16 take = a > b;
    return (v16)(((i16)a & take) | ((i16)b & ~take));
}

/* 2^x for x <= 0, to two units in the last place; what would be below 2^-126 becomes about that. */
INLINE v16 power_of_two(v16 x)
{
    x = larger(all(-126.0f), x); /* not-a-number stays */
    v16 shifted = x + 12582912.0f; /* 1.5 * 2^23: the integer nearest to x is in the low bits */
    i16 whole = (i16)shifted - (i16)all(12582912.0f);
    v16 f = x - (shifted - 12582912.0f);
    v16 y = f * 1.54531629e-4f + 1.33908634e-3f; /* (2^f - 1) / f at Chebyshev's points of -0.5 .. 0.5 */
    y = y * f + 9.61808256e-3f;
    y = y * f + 5.55035711e-2f;
    y = y * f + 0.240226508f;
    y = y * f + 0.693147188f;
    y = y * f + 1.0f;
    return (v16)((i16)y + (whole << 23));
}

#define PAIR(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* Sums of the lanes of 16 vectors: lane 4 r + g of the result is the sum of s[r][g]. */
INLINE v16 lane_sums(v16 s[4][4])
{
    v16 of[4];
    for (int g = 0; g < 4; g++) {
        v16 even = PAIR(s[0][g], s[2][g], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
                 + PAIR(s[0][g], s[2][g], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
        v16 odd = PAIR(s[1][g], s[3][g], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
                + PAIR(s[1][g], s[3][g], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
        of[g] = PAIR(even, odd, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
              + PAIR(even, odd, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    }
    v16 two[2];
    for (int g = 0; g < 2; g++)
        two[g] = PAIR(of[g], of[g + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
               + PAIR(of[g], of[g + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return PAIR(two[0], two[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
         + PAIR(two[0], two[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

/* The bits of the bfloat16 nearest to each of 16 floats, in the low halves; ties go to even. */
INLINE u16 rounded(v16 x)
{
    u16 bits = (u16)x;
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

/* 32 sums times a factor, stored in the rows' format and in the order of columns again. */
INLINE void store(char *out, const float *sum, float factor, int size)
{
    v16 a = *(const v16_anywhere *)sum * factor, b = *(const v16_anywhere *)(sum + 16) * factor;
    if (size == FLOAT32) {
        *(v16_anywhere *)out = a;
        *(v16_anywhere *)(out + 64) = b;
    } else
        *(u16_anywhere *)out = rounded(a) | rounded(b) << 16;
}

/* The scores of four queries over four rows; `after` is memory to be brought meanwhile, one row each. */
INLINE v16 scores(const char *q, const char *const rows[4], const char *const after[4], int64_t width, int size)
{
    v16 s[4][4] = {{{0}}};
    for (int64_t d = 0; d < width; d += 32) {
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < 32 * size; i += LINE)
                __builtin_prefetch(after[r] + d * size + i);
#ifdef __AVX512BF16__
        if (size == BFLOAT16) {
            for (int g = 0; g < 4; g++) {
                __m512bh its = *(const bh_anywhere *)(q + 2 * (g * width + d));
                for (int r = 0; r < 4; r++)
                    s[r][g] = _mm512_dpbf16_ps(s[r][g], *(const bh_anywhere *)(rows[r] + 2 * d), its);
            }
            continue;
        }
#endif
        v16 row[4][2], its[2];
        for (int r = 0; r < 4; r++)
            load(rows[r], d, size, row[r]);
        for (int g = 0; g < 4; g++) {
            load(q + size * (g * width), d, size, its);
            for (int r = 0; r < 4; r++)
                s[r][g] += row[r][0] * its[0] + row[r][1] * its[1];
        }
    }
    return lane_sums(s);
}

/* Columns d .. d + 16 parts of the sums of four queries: sum = sum shrink + weights times values. */
INLINE void add_values(float *sum, const struct rows *now, const struct rows *next, const float *weights,
                       const float *shrink, int64_t d, int64_t width, int parts, int size)
{
    v16 s[4][4];
    for (int g = 0; g < 4; g++)
        for (int j = 0; j < parts; j++)
            s[g][j] = *(const v16_anywhere *)(sum + g * width + d + 16 * j) * shrink[g];
    for (int r = 0; r < now->count; r++) {
        v16 value[4];
        for (int j = 0; j < parts; j += 2)
            load(now->values[r], d + 16 * j, size, value + j);
        for (int i = 0; i < 16 * parts * size; i += LINE)
            __builtin_prefetch(next->values[r] + d * size + i);
        for (int g = 0; g < 4; g++)
            for (int j = 0; j < parts; j++)
                s[g][j] += value[j] * weights[4 * r + g];
    }
    for (int g = 0; g < 4; g++)
        for (int j = 0; j < parts; j++)
            *(v16_anywhere *)(sum + g * width + d + 16 * j) = s[g][j];
}

/* One block of rows for one tile of queries; `top` and `total` have one lane for each of 4 rows x 4 queries. */
INLINE void block(const char *q, const struct rows *now, const struct rows *next, int64_t width, float scale,
                  float *sum, v16 *top, v16 *total, int size)
{
    v16 weights[BLOCK / 4];
    v16 highest = *top;
    for (int r = 0; r < now->count; r += 4) {
        v16 found = scores(q, now->keys + r, next->keys + r, width, size) * scale;
        for (int lane = 4 * (now->count - r); lane < 16; lane++)
            found[lane] = -__builtin_inff();
        weights[r / 4] = found;
        highest = larger(highest, found);
    }
    highest = larger(highest, PAIR(highest, highest, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    highest = larger(highest, PAIR(highest, highest, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v16 shrink = power_of_two(*top - highest);
    v16 sums = *total * shrink;
    for (int r = 0; r < now->count; r += 4) {
        weights[r / 4] = power_of_two(weights[r / 4] - highest);
        sums += weights[r / 4];
    }
    *top = highest;
    *total = sums;
    int64_t d = 0;
    for (; d + 64 <= width; d += 64)
        add_values(sum, now, next, (const float *)weights, (const float *)&shrink, d, width, 4, size);
    if (d < width)
        add_values(sum, now, next, (const float *)weights, (const float *)&shrink, d, width, 2, size);
}

/* The scores of one query over sixteen rows; see scores. */
INLINE v16 scores_of_one(const char *q, const char *const rows[16], const char *const after[16], int64_t width, int size)
{
    v16 s[4][4] = {{{0}}};
    for (int64_t d = 0; d < width; d += 32) {
        for (int r = 0; r < 16; r++)
            for (int i = 0; i < 32 * size; i += LINE)
                __builtin_prefetch(after[r] + d * size + i);
#ifdef __AVX512BF16__
        if (size == BFLOAT16) {
            __m512bh its = *(const bh_anywhere *)(q + 2 * d);
            for (int r = 0; r < 16; r++)
                s[r / 4][r % 4] = _mm512_dpbf16_ps(s[r / 4][r % 4], *(const bh_anywhere *)(rows[r] + 2 * d), its);
            continue;
        }
#endif
        v16 row[2], its[2];
        load(q, d, size, its);
        for (int r = 0; r < 16; r++) {
            load(rows[r], d, size, row);
            s[r / 4][r % 4] += row[0] * its[0] + row[1] * its[1];
        }
    }
    return lane_sums(s);
}

/* Columns d .. d + 16 parts of the sums of one query; see add_values. */
INLINE void add_values_of_one(float *sum, const struct rows *now, const struct rows *next, const float *weights,
                              float shrink, int64_t d, int parts, int size)
{
    v16 s[2][8];
    for (int j = 0; j < parts; j++) {
        s[0][j] = *(const v16_anywhere *)(sum + d + 16 * j) * shrink;
        s[1][j] = all(0.0f);
    }
    for (int first = 0; first < now->count; first += 2)
        for (int odd = 0; odd < 2; odd++) { /* beyond the last row: the last row again, with weight 0 */
            v16 value[8];
            for (int j = 0; j < parts; j += 2)
                load(now->values[first + odd], d + 16 * j, size, value + j);
            for (int i = 0; i < 16 * parts * size; i += LINE)
                __builtin_prefetch(next->values[first + odd] + d * size + i);
            for (int j = 0; j < parts; j++)
                s[odd][j] += value[j] * weights[first + odd];
        }
    for (int j = 0; j < parts; j++)
        *(v16_anywhere *)(sum + d + 16 * j) = s[0][j] + s[1][j];
}

/* One block of rows for one query; `total` has one lane for each of 16 rows, `top` is the same in all. */
INLINE void block_of_one(const char *q, const struct rows *now, const struct rows *next, int64_t width, float scale,
                         float *sum, v16 *top, v16 *total, int size)
{
    v16 weights[BLOCK / 16];
    v16 highest = *top;
    for (int r = 0; r < now->count; r += 16) {
        v16 found = scores_of_one(q, now->keys + r, next->keys + r, width, size) * scale;
        for (int lane = now->count - r; lane < 16; lane++)
            found[lane] = -__builtin_inff();
        weights[r / 16] = found;
        highest = larger(highest, found);
    }
    highest = larger(highest, PAIR(highest, highest, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    highest = larger(highest, PAIR(highest, highest, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    highest = larger(highest, PAIR(highest, highest, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    highest = larger(highest, PAIR(highest, highest, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
    v16 shrink = power_of_two(*top - highest);
    v16 sums = *total * shrink;
    for (int r = 0; r < now->count; r += 16) {
        weights[r / 16] = power_of_two(weights[r / 16] - highest);
        sums += weights[r / 16];
    }
    *top = highest;
    *total = sums;
    int64_t d = 0;
    for (; d + 128 <= width; d += 128)
        add_values_of_one(sum, now, next, (const float *)weights, shrink[0], d, 8, size);
    for (; d + 64 <= width; d += 64)
        add_values_of_one(sum, now, next, (const float *)weights, shrink[0], d, 4, size);
    if (d < width)
        add_values_of_one(sum, now, next, (const float *)weights, shrink[0], d, 2, size);
}

/* Where the rows of a block start are; beyond the last one the last one again. */
INLINE void find(struct rows *found, const char *k, const char *v, const int32_t *chosen, int64_t start, int64_t rows,
                 int64_t k_stride, int64_t v_stride, int most)
{
    found->count = rows - start < most ? (int)(rows - start) : most;
    for (int r = 0; r < most; r++) {
        int64_t row = start + r < rows ? start + r : rows - 1;
        row = chosen ? chosen[row] : row;
        found->keys[r] = k + row * k_stride;
        found->values[r] = v + row * v_stride;
    }
}

/* What a walk over rows leaves for one tile of queries beside its sums: see block. */
struct state {
    v16 top, total;
};

/* The first `rows` rows for all tiles of queries of a head. */
INLINE void walk(const char *q, const char *k, const char *v, const int32_t *chosen, int64_t rows, int64_t k_stride,
                 int64_t v_stride, int64_t group, int64_t width, float scale, struct state *state, float *sum, int size)
{
    int64_t tiles = (group + 3) / 4;
    char padded[tiles * 4 * width * size];
    for (int64_t t = 0; t < tiles; t++)
        state[t] = (struct state){all(-3.0e38f), all(0.0f)};
    memset(sum, 0, tiles * 4 * width * sizeof *sum);
    memset(padded, 0, sizeof padded);
    memcpy(padded, q, group * width * size);
    struct rows both[2], *now = both, *next = both + 1;
    const int most = group == 1 ? BLOCK : SMALL;
    find(now, k, v, chosen, 0, rows, k_stride, v_stride, most);
    for (int64_t start = 0; start < rows; start += most) {
        find(next, k, v, chosen, start + most, rows, k_stride, v_stride, most);
        for (int64_t t = 0; t < tiles; t++) {
            const char *queries = padded + t * 4 * width * size;
            const struct rows *meanwhile = t ? now : next;
            if (group - 4 * t == 1)
                block_of_one(queries, now, meanwhile, width, scale, sum + t * 4 * width, &state[t].top,
                             &state[t].total, size);
            else
                block(queries, now, meanwhile, width, scale, sum + t * 4 * width, &state[t].top, &state[t].total, size);
        }
        struct rows *free = now;
        now = next;
        next = free;
    }
}

/* Adds to the walk over some rows what a walk over others left. */
INLINE void merge(struct state *state, float *sum, const struct state *other, const float *more, int64_t tiles,
                  int64_t width)
{
    for (int64_t t = 0; t < tiles; t++) {
        v16 highest = larger(state[t].top, other[t].top);
        v16 mine = power_of_two(state[t].top - highest), its = power_of_two(other[t].top - highest);
        state[t] = (struct state){highest, state[t].total * mine + other[t].total * its};
        for (int64_t g = 0; g < 4; g++)
            for (int64_t d = (4 * t + g) * width; d < (4 * t + g + 1) * width; d += 16) {
                v16_anywhere *to = (v16_anywhere *)(sum + d);
                *to = *to * mine[g] + *(const v16_anywhere *)(more + d) * its[g];
            }
    }
}

/* The walk's sums over their weights, as numbers of the rows' format. */
INLINE void finish(const struct state *state, const float *sum, int64_t group, int64_t width, char *out, int size)
{
    for (int64_t g = 0; g < group; g++) {
        v16 its = state[g / 4].total;
        float whole = its[g % 4] + its[g % 4 + 4] + its[g % 4 + 8] + its[g % 4 + 12];
        if (g % 4 == 0 && g == group - 1) /* a query alone has all lanes */
            for (int lane = 0; lane < 16; lane++)
                whole += lane % 4 ? its[lane] : 0.0f;
        for (int64_t d = 0; d < width; d += 32)
            store(out + (g * width + d) * size, sum + g * width + d, 1.0f / whole, size);
    }
}

/* Bytes that a walk leaves, of whole cache lines. */
int64_t walk_bytes(int64_t group, int64_t width)
{
    const int64_t tiles = (group + 3) / 4;
    return tiles * (int64_t)(sizeof(struct state) + 4 * width * sizeof(float));
}

/* Every head of every sequence; q and out: sequences x heads x group x width, without gaps.

   k, v: the strides are bytes of a sequence, of a KV head and of a row; size: bytes of a number, 4 or 2; width: a
   multiple of 32. chosen: sequences x heads x rows row numbers, or null for the first `rows` rows. With OpenMP heads are
   shared out among `threads`, each head's rows in `parts` (whoever is done first does not wait for a whole head); where
   torch brought its runtime it is the same one, with the same threads. room: for sequences x heads x parts walks, of
   which each takes `walk_bytes`. */
void decode(const char *q, const char *k, const char *v, const int32_t *chosen, int64_t k_sequence, int64_t k_head,
            int64_t k_row, int64_t v_sequence, int64_t v_head, int64_t v_row, int64_t sequences, int64_t heads,
            int64_t rows, int64_t group, int64_t width, int64_t size, float scale, int64_t threads, int64_t parts,
            char *room, char *out)
{
    const int64_t tiles = (group + 3) / 4, each = walk_bytes(group, width);
    (void)threads;
#pragma omp parallel num_threads((int)threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t task = 0; task < sequences * heads * parts; task++) {
            const int64_t h = task / parts, part = task % parts;
            const int64_t first = rows * part / parts, count = rows * (part + 1) / parts - first;
            const int32_t *its = chosen ? chosen + h * rows + first : 0;
            const char *keys = k + h / heads * k_sequence + h % heads * k_head + (its ? 0 : first * k_row);
            const char *values = v + h / heads * v_sequence + h % heads * v_head + (its ? 0 : first * v_row);
            const char *own = q + h * group * width * size;
            struct state *state = (struct state *)(room + task * each);
            float *sum = (float *)(state + tiles);
            if (size == FLOAT32)
                walk(own, keys, values, its, count, k_row, v_row, group, width, scale, state, sum, FLOAT32);
            else
                walk(own, keys, values, its, count, k_row, v_row, group, width, scale, state, sum, BFLOAT16);
        }
#pragma omp for schedule(static)
        for (int64_t h = 0; h < sequences * heads; h++) {
            struct state *state = (struct state *)(room + h * parts * each);
            float *sum = (float *)(state + tiles);
            for (int64_t part = 1; part < parts; part++) {
                const struct state *other = (const struct state *)(room + (h * parts + part) * each);
                merge(state, sum, other, (const float *)(other + tiles), tiles, width);
            }
            finish(state, sum, group, width, out + h * group * width * size, (int)size);
        }
    }
}
