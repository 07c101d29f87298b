/* Circuit kernels for one GPU shard: a block takes tiles of 2^tile_bits amplitudes through shared memory and runs the
 * kernel's steps on each, so the state is read and written once a kernel.
 *
 * A step is a round, a dense matrix, or a permutation. In a round every thread holds eight amplitudes (three tile bits)
 * in registers and runs many operations on them: matrices on those bits, with controls anywhere, and diagonal phases.
 * A dense step multiplies all groups of 2^bits amplitudes by one matrix, eight rows of two groups a thread, from one
 * half of the shared memory into the other. A permutation (any run of CX) moves amplitude t to L t xor c, L linear over
 * GF(2) and c a function of the address outside the tile, likewise between the halves.
 *
 * Compile with -DREAL=float or -DREAL=double. Loops stride by blockDim.x between barriers and no step reads what
 * another thread of the same step wrote, so the same text runs with one thread a block (the tests compile it as C++).
 */

typedef unsigned long long u64;
typedef unsigned int u32;
typedef struct __align__(2 * sizeof(REAL)) { REAL x, y; } amp;
typedef struct __align__(16) { amp a[16 / sizeof(amp)]; } wide;

extern __shared__ u64 memory[];

#define LOW_BITS 6
#define WIDE (int)(16 / sizeof(amp))
#define LANES 16
#define EDGES 4
#define ROUND_BITS 3

typedef struct {
    int kind;                  /* 0 round: ops first..first+count; 1 dense: matrix, transposed; 2 permutation: columns
                                * of L in terms[first..first+tile_bits], then count terms of c (bit: what they flip) */
    int bits;
    int bit[8];                /* tile bits, ascending */
    int first, count, matrix, edges; /* edges: phases of the round whose terms cross the tile's edge */
    u32 tile_mask, tile_value; /* controls of a dense step */
    u64 address_mask, address_value;
} step;

typedef struct {
    int kind;                  /* 1..3 matrix on so many register bits; 4 phase by tables; 5 one phase term; 6 flip of a
                                * register bit; the edge terms of a phase are sorted by tile bit, after tile_bits + 2
                                * records whose `bit` says where each bit's terms begin */
    int which;                 /* register bits: one bit; pair 01, 02, 12; or all */
    int matrix, first, count;  /* offset in the pool (-1: no table); crossing terms */
    int held_mask, held_value; /* controls among the register bits */
    int edge;                  /* which of the round's EDGES tables */
    u32 tile_mask, tile_value; /* controls among the other tile bits; all tile bits of a phase term */
    u64 address_mask, address_value;
} op;

typedef struct {
    u64 mask;                  /* address bits that must be set */
    double angle;
    int bit, pad;              /* a column, what is flipped, or where terms begin */
} term;

__device__ static inline u64 gap(u64 i, int b) {
    const u64 low = (1ULL << b) - 1;
    return ((i & ~low) << 1) | (i & low);
}

/* Where a tile coordinate lies in shared memory: lanes that differ in any few bits meet different banks. Linear over
 * GF(2): place(a ^ b) = place(a) ^ place(b). */
__device__ static inline int place(int t) { return t ^ ((t >> 4) & 15) ^ ((t >> 8) & 15); }

__device__ static inline amp times(amp a, amp b) {
    amp c;
    c.x = a.x * b.x - a.y * b.y;
    c.y = a.x * b.y + a.y * b.x;
    return c;
}

__device__ static inline amp turned(double angle) {
    const double whole = 6.283185307179586476925287;
    angle -= whole * rint(angle / whole);
    amp c;
    c.x = (REAL)cos((REAL)angle);
    c.y = (REAL)sin((REAL)angle);
    return c;
}

/* Matrix on register bits B (a mask of 1, 2 or 3 set bits), where the held controls allow. */
template <int B> __device__ static inline void on_registers(amp *x, const amp *m, int mask, int value) {
    constexpr int K = (B & 1) + (B >> 1 & 1) + (B >> 2 & 1), SIDE = 1 << K;
    constexpr int B0 = B & -B, B1 = (B ^ B0) & -(B ^ B0), B2 = B ^ B0 ^ B1;
    #pragma unroll
    for (int base = 0; base < 8; base++) {
        if (base & B) continue;
        if ((base & mask) != value) continue;
        amp y[SIDE];
        #pragma unroll
        for (int r = 0; r < SIDE; r++) {
            REAL re = 0, im = 0;
            #pragma unroll
            for (int j = 0; j < SIDE; j++) {
                const amp c = m[r * SIDE + j];
                const amp v = x[base | ((j & 1) ? B0 : 0) | ((j & 2) ? B1 : 0) | ((j & 4) ? B2 : 0)];
                re += c.x * v.x - c.y * v.y;
                im += c.x * v.y + c.y * v.x;
            }
            y[r].x = re; y[r].y = im;
        }
        #pragma unroll
        for (int r = 0; r < SIDE; r++)
            x[base | ((r & 1) ? B0 : 0) | ((r & 2) ? B1 : 0) | ((r & 4) ? B2 : 0)] = y[r];
    }
}

/* Exchange the two values of register bit B where the held controls allow. */
template <int B> __device__ static inline void flip_register(amp *x, int mask, int value) {
    #pragma unroll
    for (int base = 0; base < 8; base++) {
        if (base & B) continue;
        if ((base & mask) != value) continue;
        const amp y = x[base];
        x[base] = x[base | B];
        x[base | B] = y;
    }
}

__device__ static inline void matrix_op(amp *x, const op *o, const amp *m) {
    const int mask = o->held_mask, value = o->held_value;
    switch (o->kind * 4 + o->which) {
        case 4: on_registers<1>(x, m, mask, value); break;
        case 5: on_registers<2>(x, m, mask, value); break;
        case 6: on_registers<4>(x, m, mask, value); break;
        case 8: on_registers<3>(x, m, mask, value); break;
        case 9: on_registers<5>(x, m, mask, value); break;
        case 10: on_registers<6>(x, m, mask, value); break;
        case 24: flip_register<1>(x, mask, value); break;
        case 25: flip_register<2>(x, mask, value); break;
        case 26: flip_register<4>(x, mask, value); break;
        default: on_registers<7>(x, m, mask, value); break;
    }
}

__device__ static void round_step(amp *tile, const step *s, const op *ops, const amp *pool, int size, u64 here,
                                  const amp *low, const amp *high) {
    const int b0 = s->bit[0], b1 = s->bit[1], b2 = s->bit[2];
    for (int w = threadIdx.x; w < size >> ROUND_BITS; w += blockDim.x) {
        const int base = (int)gap(gap(gap((u64)w, b0), b1), b2);
        const int from = place(base), p0 = place(1 << b0), p1 = place(1 << b1), p2 = place(1 << b2);
        amp x[8];
        #pragma unroll
        for (int i = 0; i < 8; i++) x[i] = tile[from ^ (i & 1 ? p0 : 0) ^ (i & 2 ? p1 : 0) ^ (i & 4 ? p2 : 0)];
        for (int n = s->first; n < s->first + s->count; n++) {
            const op *o = ops + n;
            if (o->kind == 4) {
                #pragma unroll
                for (int i = 0; i < 8; i++) {
                    const int t = base | (i & 1) << b0 | (i >> 1 & 1) << b1 | (i >> 2) << b2;
                    if (o->matrix >= 0) x[i] = times(x[i], pool[o->matrix + t]);
                    if (o->count)
                        x[i] = times(x[i], times(low[o->edge << LOW_BITS | (t & ((1 << LOW_BITS) - 1))],
                                                 high[o->edge << LOW_BITS | t >> LOW_BITS]));
                }
            } else if ((here & o->address_mask) == o->address_value) {
                if (o->kind == 5) {
                    const amp c = pool[o->matrix];
                    #pragma unroll
                    for (int i = 0; i < 8; i++) {
                        const u32 t = base | (i & 1) << b0 | (i >> 1 & 1) << b1 | (i >> 2) << b2;
                        if ((t & o->tile_mask) == o->tile_mask) x[i] = times(x[i], c);
                    }
                } else if (((u32)base & o->tile_mask) == o->tile_value) {
                    matrix_op(x, o, pool + o->matrix);
                }
            }
        }
        #pragma unroll
        for (int i = 0; i < 8; i++) tile[from ^ (i & 1 ? p0 : 0) ^ (i & 2 ? p1 : 0) ^ (i & 4 ? p2 : 0)] = x[i];
    }
}

/* exp(i angle) of the terms that meet no tile bit or one, as two tables over the low and the high tile bits. */
__device__ static void edge_phases(const op *o, const term *terms, int tile_bits, u64 here, double *angles, amp *low,
                                   amp *high) {
    const term *starts = terms + o->first;
    for (int i = threadIdx.x; i < (tile_bits + 1) * LANES; i += blockDim.x) {
        const int b = i / LANES;
        double angle = 0;
        for (int k = starts[b].bit + i % LANES; k < starts[b + 1].bit; k += LANES)
            if ((here & terms[k].mask) == terms[k].mask) angle += terms[k].angle;
        angles[i] = angle;
    }
    __syncthreads();
    for (int b = threadIdx.x; b <= tile_bits; b += blockDim.x) {
        double angle = 0;
        for (int k = 0; k < LANES; k++) angle += angles[b * LANES + k];
        angles[b * LANES] = angle;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 << LOW_BITS; i += blockDim.x) {
        const int half = i >> LOW_BITS, t = i & ((1 << LOW_BITS) - 1);
        double angle = half ? 0 : angles[0];
        for (int k = 0; k < LOW_BITS; k++)
            if ((t >> k & 1) && half * LOW_BITS + k < tile_bits) angle += angles[(1 + half * LOW_BITS + k) * LANES];
        (half ? high : low)[o->edge << LOW_BITS | t] = turned(angle);
    }
    __syncthreads();
}

__device__ static void dense_step(const amp *from, amp *to, const step *s, const amp *pool, int size, u64 here,
                                  const int *rows) {
    const int side = 1 << s->bits, alone = size == side; /* one group only: both halves of a thread are that one */
    const int pairs = alone ? 1 : size >> (s->bits + 1);
    const wide *matrix = (const wide *)(pool + s->matrix);
    const int active = (here & s->address_mask) == s->address_value;
    for (int w = threadIdx.x; w < (alone ? size >> 3 : size >> 4); w += blockDim.x) {
        const int first = w / pairs * 8;
        u64 left = (u64)(w % pairs), right = alone ? left : left + pairs;
        for (int k = 0; k < s->bits; k++) {
            left = gap(left, s->bit[k]);
            right = gap(right, s->bit[k]);
        }
        const int p = place((int)left), q = place((int)right);
        REAL re[16], im[16];
        #pragma unroll
        for (int r = 0; r < 16; r++) re[r] = im[r] = 0;
        for (int j = 0; j < side; j++) {
            const amp v = from[p ^ rows[j]], u = from[q ^ rows[j]];
            wide c[8 / WIDE];
            #pragma unroll
            for (int k = 0; k < 8 / WIDE; k++) c[k] = matrix[(j * side + first) / WIDE + k];
            #pragma unroll
            for (int r = 0; r < 8; r++) {
                const amp m = c[r / WIDE].a[r % WIDE];
                re[r] += m.x * v.x - m.y * v.y;
                im[r] += m.x * v.y + m.y * v.x;
                re[8 + r] += m.x * u.x - m.y * u.y;
                im[8 + r] += m.x * u.y + m.y * u.x;
            }
        }
        const int there = active && ((u32)left & s->tile_mask) == s->tile_value;
        const int here_too = active && ((u32)right & s->tile_mask) == s->tile_value;
        #pragma unroll
        for (int r = 0; r < 8; r++) {
            amp y, z;
            y.x = re[r]; y.y = im[r];
            z.x = re[8 + r]; z.y = im[8 + r];
            const int row = rows[first + r];
            to[p ^ row] = there ? y : from[p ^ row];
            to[q ^ row] = here_too ? z : from[q ^ row];
        }
    }
}

/* L t as two tables of places, and c from the address outside. */
__device__ static void permute_tables(const step *s, const term *terms, int tile_bits, u64 here, int *images) {
    for (int i = threadIdx.x; i < 2 << LOW_BITS; i += blockDim.x) {
        const int half = i >> LOW_BITS;
        int image = 0;
        for (int k = 0; k < LOW_BITS; k++)
            if ((i >> k & 1) && half * LOW_BITS + k < tile_bits) image ^= terms[s->first + half * LOW_BITS + k].bit;
        if (!half)
            for (int k = s->first + tile_bits; k < s->first + tile_bits + s->count; k++)
                if ((here & terms[k].mask) == terms[k].mask) image ^= terms[k].bit;
        images[i] = place(image);
    }
    __syncthreads();
}

/* Tile coordinate k is address bit at[k] (ascending); `shard` sits above the address. Shared memory: two tiles where
 * `doubled`, else one; then the tables. */
extern "C" __global__ void tiles(amp *state, const step *steps, int count, const op *ops, const term *terms,
                                 const amp *pool, const int *at, int tile_bits, u64 number, u64 shard, int doubled) {
    const int size = 1 << tile_bits;
    amp *tile = (amp *)memory, *other = tile + (doubled ? size : 0);
    u64 *low_address = (u64 *)(other + size), *high_address = low_address + (1 << LOW_BITS);
    double *angles = (double *)(high_address + (1 << LOW_BITS));
    amp *low = (amp *)(angles + 14 * LANES), *high = low + (EDGES << LOW_BITS);
    int *rows = (int *)(high + (EDGES << LOW_BITS));
    for (int i = threadIdx.x; i < 1 << LOW_BITS; i += blockDim.x) {
        u64 a = 0, b = 0;
        for (int k = 0; k < LOW_BITS; k++) {
            if (k < tile_bits) a |= (u64)(i >> k & 1) << at[k];
            if (LOW_BITS + k < tile_bits) b |= (u64)(i >> k & 1) << at[LOW_BITS + k];
        }
        low_address[i] = a;
        high_address[i] = b;
    }
    __syncthreads();
    for (u64 block = blockIdx.x; block < number; block += gridDim.x) {
        u64 start = block;
        for (int k = 0; k < tile_bits; k++) start = gap(start, at[k]);
        const u64 here = start | shard;
        for (int t = threadIdx.x; t < size; t += blockDim.x)
            tile[place(t)] = state[start | low_address[t & ((1 << LOW_BITS) - 1)] | high_address[t >> LOW_BITS]];
        __syncthreads();
        for (int n = 0; n < count; n++) {
            const step *s = steps + n;
            if (s->kind == 0) {
                for (int k = s->first; s->edges && k < s->first + s->count; k++)
                    if (ops[k].kind == 4 && ops[k].count)
                        edge_phases(ops + k, terms, tile_bits, here, angles, low, high);
                round_step(tile, s, ops, pool, size, here, low, high);
            } else if (s->kind == 2) {
                permute_tables(s, terms, tile_bits, here, rows);
                for (int t = threadIdx.x; t < size; t += blockDim.x)
                    other[rows[t & ((1 << LOW_BITS) - 1)] ^ rows[(1 << LOW_BITS) + (t >> LOW_BITS)]] = tile[place(t)];
                amp *swap = tile;
                tile = other;
                other = swap;
            } else {
                for (int j = threadIdx.x; j < 1 << s->bits; j += blockDim.x) {
                    int r = 0;
                    for (int k = 0; k < s->bits; k++) r |= (j >> k & 1) << s->bit[k];
                    rows[j] = place(r);
                }
                __syncthreads();
                dense_step(tile, other, s, pool, size, here, rows);
                amp *swap = tile;
                tile = other;
                other = swap;
            }
            __syncthreads();
        }
        for (int t = threadIdx.x; t < size; t += blockDim.x)
            state[start | low_address[t & ((1 << LOW_BITS) - 1)] | high_address[t >> LOW_BITS]] = tile[place(t)];
        __syncthreads();
    }
}

/* One matrix on M address bits at[0..M), the lowest at least 2: a thread holds its group in registers, and lanes
 * differ in the bits below, so whole sectors move. The matrix, row by row, is in shared memory. */
template <int M> __device__ static inline void group_of(amp *state, const amp *matrix, const int *at, u64 groups) {
    constexpr int SIDE = 1 << M;
    wide *rows = (wide *)memory;
    for (int i = threadIdx.x; i < SIDE * SIDE / WIDE; i += blockDim.x) rows[i] = ((const wide *)matrix)[i];
    u64 bit[M];
    #pragma unroll
    for (int k = 0; k < M; k++) bit[k] = 1ULL << at[k];
    __syncthreads();
    for (u64 g = (u64)blockIdx.x * blockDim.x + threadIdx.x; g < groups; g += (u64)gridDim.x * blockDim.x) {
        u64 start = g;
        #pragma unroll
        for (int k = 0; k < M; k++) start = ((start & ~(bit[k] - 1)) << 1) | (start & (bit[k] - 1));
        amp x[SIDE];
        #pragma unroll
        for (int j = 0; j < SIDE; j++) {
            u64 address = start;
            #pragma unroll
            for (int k = 0; k < M; k++) if (j >> k & 1) address += bit[k];
            x[j] = state[address];
        }
        for (int r = 0; r < SIDE; r++) {
            REAL re = 0, im = 0;
            #pragma unroll
            for (int j = 0; j < SIDE; j += WIDE) {
                const wide c = rows[(r * SIDE + j) / WIDE];
                #pragma unroll
                for (int i = 0; i < WIDE; i++) {
                    re += c.a[i].x * x[j + i].x - c.a[i].y * x[j + i].y;
                    im += c.a[i].x * x[j + i].y + c.a[i].y * x[j + i].x;
                }
            }
            u64 address = start;
            #pragma unroll
            for (int k = 0; k < M; k++) if (r >> k & 1) address += bit[k];
            amp y;
            y.x = re; y.y = im;
            state[address] = y;
        }
    }
}

extern "C" __global__ void group1(amp *state, const amp *matrix, const int *at, u64 groups) {
    group_of<1>(state, matrix, at, groups);
}

extern "C" __global__ void group2(amp *state, const amp *matrix, const int *at, u64 groups) {
    group_of<2>(state, matrix, at, groups);
}

extern "C" __global__ void group3(amp *state, const amp *matrix, const int *at, u64 groups) {
    group_of<3>(state, matrix, at, groups);
}

extern "C" __global__ void group4(amp *state, const amp *matrix, const int *at, u64 groups) {
    group_of<4>(state, matrix, at, groups);
}

extern "C" __global__ void group5(amp *state, const amp *matrix, const int *at, u64 groups) {
    group_of<5>(state, matrix, at, groups);
}
