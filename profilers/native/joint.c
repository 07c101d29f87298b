/* Search by joint code: shares of all joint codes, and the tokens of those with the largest ones.

   Scores, normalisers and the choice of codes run over the joint codes, whatever the number of tokens; only the tokens
   found are copied. The least share that is taken is found by halving the range of its bits (floats not below zero are
   in the order of their bits), so no code is ever sorted or moved. */

#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t u16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i16 __attribute__((vector_size(64), aligned(4), may_alias));

INLINE float sum_of(v16 x)
{
    float total = 0.0f;
    for (int lane = 0; lane < LANES; lane++)
        total += x[lane];
    return total;
}

/* joint[a c + b] = joint[a] power[b] for all a below `filled`; from behind, so that it can be done in place. */
static void expand(float *joint, const float *power, int64_t filled, int64_t clusters)
{
    for (int64_t a = filled - 1; a >= 0; a--) {
        float factor = joint[a];
        for (int64_t b = 0; b < clusters; b++)
            joint[a * clusters + b] = factor * power[b];
    }
}

/* Tokens of the codes whose share has at least these bits; without counts each code has one. */
INLINE int64_t held(const uint32_t *shares, const int32_t *counts, int64_t codes, uint32_t least)
{
    u16 total = {0};
    for (int64_t j = 0; j < codes; j += LANES) {
        u16 taken = (u16)(*(const u16 *)(shares + j) >= least);
        total += counts ? taken & *(const u16 *)(counts + j) : taken & 1u;
    }
    int64_t found = 0;
    for (int lane = 0; lane < LANES; lane++)
        found += total[lane];
    return found;
}

/* The largest bits such that codes with at least these have `wanted` tokens or more. */
INLINE uint32_t least_taken(const uint32_t *shares, const int32_t *counts, int64_t codes, int64_t wanted)
{
    u16 highest = {0};
    for (int64_t j = 0; j < codes; j += LANES) {
        u16 its = *(const u16 *)(shares + j), more = (u16)(its > highest);
        highest = (its & more) | (highest & ~more);
    }
    uint32_t low = 0, high = 0; /* enough tokens at low, too few above high */
    for (int lane = 0; lane < LANES; lane++)
        high = highest[lane] > high ? highest[lane] : high;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2 + 1;
        int64_t found = held(shares, counts, codes, middle);
        if (found == wanted)
            return middle;
        if (found > wanted)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* For each head: powers (group x subspaces x clusters) of its queries; first (joint codes + 1): where the tokens of a
   code start in `tokens` (all x 1). Writes `wanted` tokens of the largest shares: all of the codes above the least
   share taken, in order of code, then of those with exactly this share the earliest.

   memory: 4 x (joint codes rounded up to a multiple of 16) numbers of 4 bytes. */
void joint_search(const float *powers, const int32_t *first, const int32_t *tokens, int64_t heads, int64_t group,
                  int64_t subspaces, int64_t clusters, int64_t codes, int64_t all, int64_t wanted, float *memory,
                  int32_t *chosen)
{
    int64_t padded = (codes + LANES - 1) / LANES * LANES;
    float *joint = memory, *shares = memory + padded;
    int32_t *counts = (int32_t *)(memory + 2 * padded), *taken = (int32_t *)(memory + 3 * padded);
    for (int64_t head = 0; head < heads; head++) {
        const int32_t *its = first + head * (codes + 1), *row = tokens + head * all;
        int32_t *out = chosen + head * wanted;
        memset(memory, 0, 3 * padded * sizeof(float));
        for (int64_t j = 0; j < codes; j++)
            counts[j] = its[j + 1] - its[j];
        for (int64_t g = 0; g < group; g++) {
            const float *power = powers + (head * group + g) * subspaces * clusters;
            memcpy(joint, power, clusters * sizeof(float));
            for (int64_t i = 1, filled = clusters; i < subspaces; i++, filled *= clusters)
                expand(joint, power + i * clusters, filled, clusters);
            v16 total = {0};
            for (int64_t j = 0; j < padded; j += LANES)
                total += *(const v16 *)(joint + j) * __builtin_convertvector(*(const i16 *)(counts + j), v16);
            float share = 1.0f / sum_of(total);
            for (int64_t j = 0; j < padded; j += LANES)
                *(v16 *)(shares + j) += *(const v16 *)(joint + j) * share;
        }
        const uint32_t *bits = (const uint32_t *)shares;
        uint32_t least = least_taken(bits, counts, padded, wanted);
        int64_t found = 0, filled = 0;
        for (int64_t j = 0; j < codes; j++) {
            taken[found] = (int32_t)j;
            found += bits[j] > least;
        }
        for (int64_t i = 0; i < found; i++) {
            int64_t start = its[taken[i]], count = counts[taken[i]];
            int64_t whole = (count + LANES - 1) / LANES * LANES;
            if (filled + whole <= wanted && start + whole <= all)
                for (int64_t t = 0; t < count; t += LANES) /* what is too much is written over by the next code */
                    *(i16 *)(out + filled + t) = *(const i16 *)(row + start + t);
            else
                memcpy(out + filled, row + start, count * sizeof *out);
            filled += count;
        }
        for (int64_t j = 0; j < codes && filled < wanted; j++)
            if (bits[j] == least) {
                int64_t count = counts[j] < wanted - filled ? counts[j] : wanted - filled;
                memcpy(out + filled, row + its[j], count * sizeof *out);
                filled += count;
            }
    }
}

/* Bits of floats in the order of the floats, also below zero. */
INLINE uint32_t ordered(uint32_t bits)
{
    return bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
}

#define BLOCK (LANES * LANES)

/* A number that `wanted` numbers reach at least, from the largest of each group of 16 (a lane of a block's vectors);
   tops: 16 numbers a block. */
static uint32_t reached(const uint32_t *bits, int64_t blocks, int64_t wanted, uint32_t *tops)
{
    for (int64_t b = 0; b < blocks; b++) {
        u16 top = {0};
        for (int64_t i = 0; i < LANES; i++) {
            u16 its = *(const u16 *)(bits + b * BLOCK + i * LANES);
            its ^= (u16)((i16)its >> 31) | 0x80000000u;
            u16 more = (u16)(its > top);
            top = (its & more) | (top & ~more);
        }
        *(u16 *)(tops + b * LANES) = top;
    }
    return least_taken(tops, 0, blocks * LANES, wanted);
}

/* Places of the `wanted` largest numbers of each row, in no order; of equal ones some.

   Only groups of 16 with a number that may be among them are looked into. memory: 3 x (size + 16) numbers of 4
   bytes. */
void largest(const float *values, int64_t rows, int64_t size, int64_t wanted, uint32_t *memory, int32_t *chosen)
{
    uint32_t *keys = memory, *tops = memory + 2 * (size + LANES);
    int32_t *places = (int32_t *)memory + size + LANES;
    for (int64_t row = 0; row < rows; row++) {
        const uint32_t *bits = (const uint32_t *)(values + row * size);
        int64_t blocks = size / BLOCK, found = 0, start = 0;
        uint32_t least = 0;
        if (wanted <= LANES * blocks) {
            least = reached(bits, blocks, wanted, tops);
            for (int64_t group = 0; group < LANES * blocks; group++)
                if (tops[group] >= least)
                    for (int64_t i = 0; i < LANES; i++) {
                        int64_t place = group / LANES * BLOCK + i * LANES + group % LANES;
                        keys[found] = ordered(bits[place]);
                        places[found] = (int32_t)place;
                        found += keys[found] >= least;
                    }
            start = blocks * BLOCK;
        }
        for (int64_t i = start; i < size; i++) {
            keys[found] = ordered(bits[i]);
            places[found] = (int32_t)i;
            found += keys[found] >= least;
        }
        for (int lane = 0; lane < LANES; lane++)
            keys[found + lane] = 0;
        least = least_taken(keys, 0, (found + LANES - 1) / LANES * LANES, wanted);
        int64_t equal = wanted, taken = 0;
        for (int64_t i = 0; i < found; i++)
            equal -= keys[i] > least;
        int32_t *out = chosen + row * wanted;
        for (int64_t i = 0; i < found && taken < wanted; i++) {
            int its = (keys[i] > least) | ((keys[i] == least) & (equal > 0));
            equal -= keys[i] == least;
            out[taken] = places[i];
            taken += its;
        }
    }
}
