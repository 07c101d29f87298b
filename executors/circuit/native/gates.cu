/* Gate kernels for one GPU shard: a dense fused matrix, and many gates on tiles in shared memory.
 *
 * Compile with -DREAL=float or -DREAL=double. Every loop strides by blockDim.x between barriers, so the same text runs
 * with one thread a block (the tests compile it as C++ that way). Amplitudes are interleaved (re, im) pairs.
 */

typedef unsigned long long u64;
typedef struct { REAL x, y; } amp;

typedef struct {
    int kind, bits;            /* 0: matrix on tile bits; 1: phase on address bits */
    int bit[4];
    u64 tile_mask, tile_value; /* controls in tile coordinates */
    u64 address_mask, address_value; /* controls (kind 0) or the product of bits (kind 1) in address bits */
    int matrix, pad;           /* offset in the matrix pool, in amplitudes */
} gate;

__device__ static inline u64 gap(u64 i, int b) {
    const u64 low = (1ULL << b) - 1;
    return ((i & ~low) << 1) | (i & low);
}

/* Groups of 2^m amplitudes at ascending address bits at[0..m): group <- matrix * group. Block: 256 >> m groups. */
extern "C" __global__ void dense(amp *state, const amp *matrix, const int *at, int m, u64 groups) {
    __shared__ amp held[256];
    __shared__ u64 where[256];
    const int side = 1 << m, each = 256 >> m;
    for (u64 first = (u64)blockIdx.x * each; first < groups; first += (u64)gridDim.x * each) {
        for (int t = threadIdx.x; t < 256; t += blockDim.x) {
            u64 address = first + (t >> m);
            if (address < groups) {
                for (int k = 0; k < m; k++) address = gap(address, at[k]);
                for (int k = 0; k < m; k++) address |= (u64)((t >> k) & 1) << at[k];
                where[t] = address;
                held[t] = state[address];
            }
        }
        __syncthreads();
        for (int t = threadIdx.x; t < 256; t += blockDim.x) {
            if (first + (t >> m) < groups) {
                const int base = t & ~(side - 1), row = t & (side - 1);
                REAL re = 0, im = 0;
                for (int j = 0; j < side; j++) {
                    const amp c = matrix[row * side + j], x = held[base + j];
                    re += c.x * x.x - c.y * x.y;
                    im += c.x * x.y + c.y * x.x;
                }
                amp y;
                y.x = re; y.y = im;
                state[where[t]] = y;
            }
        }
        __syncthreads();
    }
}

__device__ static inline void apply_matrix(amp *tile, const gate *g, const amp *matrix, int i) {
    const int k = g->bits, side = 1 << k;
    u64 base = (u64)i;
    /* bits are given ascending, so that zeros go in from below */
    for (int b = 0; b < k; b++) base = gap(base, g->bit[b]);
    if ((base & g->tile_mask) != g->tile_value) return;
    amp x[16];
    for (int j = 0; j < side; j++) {
        u64 at = base;
        for (int b = 0; b < k; b++) at |= (u64)((j >> b) & 1) << g->bit[b];
        x[j] = tile[at];
    }
    for (int r = 0; r < side; r++) {
        REAL re = 0, im = 0;
        for (int j = 0; j < side; j++) {
            const amp c = matrix[r * side + j];
            re += c.x * x[j].x - c.y * x[j].y;
            im += c.x * x[j].y + c.y * x[j].x;
        }
        u64 at = base;
        for (int b = 0; b < k; b++) at |= (u64)((r >> b) & 1) << g->bit[b];
        amp y;
        y.x = re; y.y = im;
        tile[at] = y;
    }
}

/* Tiles of 2^tile_bits amplitudes: coordinate k is address bit at[k] (ascending); `shard` sits above the address. */
extern "C" __global__ void tiles(amp *state, const gate *gates, int count, const amp *pool, const int *at,
                                 int tile_bits, u64 number, u64 shard) {
    extern __shared__ amp tile[];
    const int size = 1 << tile_bits;
    for (u64 block = blockIdx.x; block < number; block += gridDim.x) {
        u64 start = block;
        for (int k = 0; k < tile_bits; k++) start = gap(start, at[k]);
        for (int t = threadIdx.x; t < size; t += blockDim.x) {
            u64 address = start;
            for (int k = 0; k < tile_bits; k++) address |= (u64)((t >> k) & 1) << at[k];
            tile[t] = state[address];
        }
        __syncthreads();
        for (int n = 0; n < count; n++) {
            const gate *g = gates + n;
            const amp *matrix = pool + g->matrix;
            if (g->kind == 0) {
                if (((start | shard) & g->address_mask) == g->address_value)
                    for (int t = threadIdx.x; t < size >> g->bits; t += blockDim.x) apply_matrix(tile, g, matrix, t);
            } else if (((start | shard) & g->address_mask) == g->address_mask) {
                for (int t = threadIdx.x; t < size; t += blockDim.x)
                    if (((u64)t & g->tile_mask) == g->tile_mask) {
                        const amp c = matrix[0], x = tile[t];
                        amp y;
                        y.x = c.x * x.x - c.y * x.y;
                        y.y = c.x * x.y + c.y * x.x;
                        tile[t] = y;
                    }
            }
            __syncthreads();
        }
        for (int t = threadIdx.x; t < size; t += blockDim.x) {
            u64 address = start;
            for (int k = 0; k < tile_bits; k++) address |= (u64)((t >> k) & 1) << at[k];
            state[address] = tile[t];
        }
        __syncthreads();
    }
}
