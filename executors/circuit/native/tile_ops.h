/* Gate kernels on one tile, written once and compiled for float and double.
 *
 * A tile holds 2^K amplitudes in blocks of one vector of W real parts followed by one vector of W imaginary parts;
 * tile coordinate bits below LW = log2 W select a lane, the others a row. The includer defines REAL, INT, NAME(x),
 * VB (bytes a vector) and LW. Nothing here allocates or branches on data.
 */

#define W (1 << LW)
#define vec NAME(vec)
#define ivec NAME(ivec)
typedef REAL vec __attribute__((vector_size(VB), aligned(VB)));
typedef INT ivec __attribute__((vector_size(VB), aligned(VB)));

static inline vec NAME(shuffle)(vec x, ivec index) {
#if defined(__clang__)
    vec y;
    for (int l = 0; l < W; l++) y[l] = x[index[l]];
    return y;
#else
    return __builtin_shuffle(x, index);
#endif
}

static inline vec NAME(shuffle2)(vec x, vec y, ivec index) {
#if defined(__clang__)
    vec z;
    for (int l = 0; l < W; l++) z[l] = index[l] < W ? x[index[l]] : y[index[l] - W];
    return z;
#else
    return __builtin_shuffle(x, y, index);
#endif
}

static inline vec NAME(splat)(REAL x) { return x - (vec){0}; }

static inline ivec NAME(flip_index)(int bit) {
    ivec index;
    for (int l = 0; l < W; l++) index[l] = l ^ (1 << bit);
    return index;
}

#define shuffle NAME(shuffle)
#define shuffle2 NAME(shuffle2)
#define splat NAME(splat)
#define flip_index NAME(flip_index)

/* Unnormalised real rotation of the pair (x, y): x' = x - s y, y' = y + s x. */
#define TURN(x, y, s) do { vec turned_ = (x) - (s) * (y); (y) = (y) + (s) * (x); (x) = turned_; } while (0)

static void NAME(rotate_rows1)(vec *restrict t, long rows, const int *bit, const REAL *slope) {
    const long a = 1L << bit[0];
    const vec s = splat(slope[0]);
    for (long i = 0; i < rows >> 1; i++) {
        vec *p = t + 2 * gap(i, bit[0]), *q = p + 2 * a;
        vec xr = p[0], xi = p[1], yr = q[0], yi = q[1];
        TURN(xr, yr, s);
        TURN(xi, yi, s);
        p[0] = xr; p[1] = xi; q[0] = yr; q[1] = yi;
    }
}

static void NAME(rotate_rows2)(vec *restrict t, long rows, const int *bit, const REAL *slope) {
    const long a = 2L << bit[0], b = 2L << bit[1];
    const vec s = splat(slope[0]), u = splat(slope[1]);
    for (long i = 0; i < rows >> 2; i++) {
        vec *p = t + 2 * gap(gap(i, bit[0]), bit[1]);
        vec w[4], v[4];
        w[0] = p[0]; w[1] = p[a]; w[2] = p[b]; w[3] = p[a + b];
        v[0] = p[1]; v[1] = p[a + 1]; v[2] = p[b + 1]; v[3] = p[a + b + 1];
        TURN(w[0], w[1], s); TURN(w[2], w[3], s); TURN(w[0], w[2], u); TURN(w[1], w[3], u);
        TURN(v[0], v[1], s); TURN(v[2], v[3], s); TURN(v[0], v[2], u); TURN(v[1], v[3], u);
        p[0] = w[0]; p[a] = w[1]; p[b] = w[2]; p[a + b] = w[3];
        p[1] = v[0]; p[a + 1] = v[1]; p[b + 1] = v[2]; p[a + b + 1] = v[3];
    }
}

#define CUBE(w, s, u, v) do { \
    TURN(w[0], w[1], s); TURN(w[2], w[3], s); TURN(w[4], w[5], s); TURN(w[6], w[7], s); \
    TURN(w[0], w[2], u); TURN(w[1], w[3], u); TURN(w[4], w[6], u); TURN(w[5], w[7], u); \
    TURN(w[0], w[4], v); TURN(w[1], w[5], v); TURN(w[2], w[6], v); TURN(w[3], w[7], v); } while (0)

static void NAME(rotate_rows3)(vec *restrict t, long rows, const int *bit, const REAL *slope) {
    const long a = 2L << bit[0], b = 2L << bit[1], c = 2L << bit[2];
    const vec s = splat(slope[0]), u = splat(slope[1]), v = splat(slope[2]);
    for (long i = 0; i < rows >> 3; i++) {
        vec *p = t + 2 * gap(gap(gap(i, bit[0]), bit[1]), bit[2]);
        for (int part = 0; part < 2; part++, p++) {
            vec w[8];
            w[0] = p[0]; w[1] = p[a]; w[2] = p[b]; w[3] = p[a + b];
            w[4] = p[c]; w[5] = p[c + a]; w[6] = p[c + b]; w[7] = p[c + a + b];
            CUBE(w, s, u, v);
            p[0] = w[0]; p[a] = w[1]; p[b] = w[2]; p[a + b] = w[3];
            p[c] = w[4]; p[c + a] = w[5]; p[c + b] = w[6]; p[c + a + b] = w[7];
        }
    }
}

/* Rotations of up to LW lane bits, one after the other while the vector is in a register. */
static void NAME(rotate_lanes)(vec *restrict t, long rows, int count, const int *bit, const REAL *slope) {
    ivec index[LW];
    vec s[LW];
    for (int k = 0; k < count; k++) {
        index[k] = flip_index(bit[k]);
        for (int l = 0; l < W; l++) s[k][l] = (l >> bit[k]) & 1 ? slope[k] : -slope[k];
    }
    for (int k = count; k < LW; k++) { index[k] = flip_index(0); s[k] = splat(0); }
    if (count == 1) {
        for (long i = 0; i < 2 * rows; i++) t[i] += s[0] * shuffle(t[i], index[0]);
        return;
    }
#if LW > 1
    if (count == 2) {
        for (long i = 0; i < 2 * rows; i++) {
            vec x = t[i];
            x += s[0] * shuffle(x, index[0]);
            x += s[1] * shuffle(x, index[1]);
            t[i] = x;
        }
        return;
    }
#endif
    for (long i = 0; i < 2 * rows; i++) {
        vec x = t[i];
        for (int k = 0; k < LW; k++) x += s[k] * shuffle(x, index[k]);
        t[i] = x;
    }
}

/* BODY(row) for every row whose `held` bits are zero: the usual one or two are spread without a loop. */
#define EACH_ROW(BODY) do { \
    if (held == 1) for (long i = 0; i < count; i++) BODY(gap(i, fixed[0])); \
    else if (held == 2) for (long i = 0; i < count; i++) BODY(gap(gap(i, fixed[0]), fixed[1])); \
    else for (long i = 0; i < count; i++) BODY(spread(i, held, fixed)); } while (0)

/* One-qubit matrix on a row bit; coefficients per lane, so lane controls cost nothing. flag: real matrix. */
static void NAME(matrix_row)(vec *restrict t, long rows, const struct op *o, const REAL *restrict coefficient) {
    const vec *m = (const vec *)coefficient;
    int fixed[MAX_HELD];
    const int held = held_bits(o, LW, fixed);
    const long set = (long)(o->control_value >> LW), step = 2L << o->bit[0], count = rows >> held;
    if (o->flag) {
        const vec a = m[0], b = m[1], c = m[2], d = m[3];
#define REAL_PAIR(at) do { \
            vec *p = t + 2 * ((at) | set), *q = p + step; \
            const vec xr = p[0], xi = p[1], yr = q[0], yi = q[1]; \
            p[0] = a * xr + b * yr; p[1] = a * xi + b * yi; \
            q[0] = c * xr + d * yr; q[1] = c * xi + d * yi; } while (0)
        EACH_ROW(REAL_PAIR);
#undef REAL_PAIR
        return;
    }
    const vec ar = m[0], ai = m[1], br = m[2], bi = m[3], cr = m[4], ci = m[5], dr = m[6], di = m[7];
#define PAIR(at) do { \
        vec *p = t + 2 * ((at) | set), *q = p + step; \
        const vec xr = p[0], xi = p[1], yr = q[0], yi = q[1]; \
        p[0] = ar * xr - ai * xi + br * yr - bi * yi; p[1] = ar * xi + ai * xr + br * yi + bi * yr; \
        q[0] = cr * xr - ci * xi + dr * yr - di * yi; q[1] = cr * xi + ci * xr + dr * yi + di * yr; } while (0)
    EACH_ROW(PAIR);
#undef PAIR
}

/* One-qubit matrix on a lane bit: y = d x + e flip(x). */
static void NAME(matrix_lane)(vec *restrict t, long rows, const struct op *o, const REAL *restrict coefficient) {
    const vec *m = (const vec *)coefficient;
    const vec dr = m[0], di = m[1], er = m[2], ei = m[3];
    const ivec index = flip_index(o->bit[0]);
    int fixed[MAX_HELD];
    const int held = held_bits(o, LW, fixed);
    const long set = (long)(o->control_value >> LW), count = rows >> held;
#define VECTOR(at) do { \
        vec *p = t + 2 * ((at) | set); \
        const vec xr = p[0], xi = p[1], fr = shuffle(xr, index), fi = shuffle(xi, index); \
        p[0] = dr * xr - di * xi + er * fr - ei * fi; \
        p[1] = dr * xi + di * xr + er * fi + ei * fr; } while (0)
    EACH_ROW(VECTOR);
#undef VECTOR
}

/* Dense 4 x 4 on two row bits; coefficients are 16 (re, im) scalars, row-major, bit[0] the low index bit. */
static void NAME(dense_rows)(vec *restrict t, long rows, const int *bit, const REAL *restrict m) {
    const long a = 2L << bit[0], b = 2L << bit[1];
    const int low = bit[0] < bit[1] ? bit[0] : bit[1], high = bit[0] < bit[1] ? bit[1] : bit[0];
    for (long i = 0; i < rows >> 2; i++) {
        vec *p = t + 2 * gap(gap(i, low), high);
        vec x0r = p[0], x0i = p[1], x1r = p[a], x1i = p[a + 1];
        vec x2r = p[b], x2i = p[b + 1], x3r = p[a + b], x3i = p[a + b + 1];
        vec *out[4] = {p, p + a, p + b, p + a + b};
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            const REAL *c = m + 8 * k;
            vec yr = c[0] * x0r, yi = c[0] * x0i;
            yr -= c[1] * x0i; yi += c[1] * x0r;
            yr += c[2] * x1r; yi += c[2] * x1i;
            yr -= c[3] * x1i; yi += c[3] * x1r;
            yr += c[4] * x2r; yi += c[4] * x2i;
            yr -= c[5] * x2i; yi += c[5] * x2r;
            yr += c[6] * x3r; yi += c[6] * x3i;
            yr -= c[7] * x3i; yi += c[7] * x3r;
            out[k][0] = yr; out[k][1] = yi;
        }
    }
}

/* Dense 4 x 4 on a row bit and a lane bit: 2 rows in, their lane flips beside them, 8 lane-wise coefficients. */
static void NAME(dense_mixed)(vec *restrict t, long rows, int row, int lane, const REAL *restrict coefficient) {
    const vec *m = (const vec *)coefficient;
    const long a = 2L << row;
    const ivec index = flip_index(lane);
    for (long i = 0; i < rows >> 1; i++) {
        vec *p = t + 2 * gap(i, row), *q = p + a;
        vec x0r = p[0], x0i = p[1], x1r = q[0], x1i = q[1];
        vec f0r = shuffle(x0r, index), f0i = shuffle(x0i, index), f1r = shuffle(x1r, index), f1i = shuffle(x1i, index);
        vec *out[2] = {p, q};
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            const vec *c = m + 8 * k;
            vec yr = c[0] * x0r, yi = c[0] * x0i;
            yr -= c[1] * x0i; yi += c[1] * x0r;
            yr += c[2] * f0r; yi += c[2] * f0i;
            yr -= c[3] * f0i; yi += c[3] * f0r;
            yr += c[4] * x1r; yi += c[4] * x1i;
            yr -= c[5] * x1i; yi += c[5] * x1r;
            yr += c[6] * f1r; yi += c[6] * f1i;
            yr -= c[7] * f1i; yi += c[7] * f1r;
            out[k][0] = yr; out[k][1] = yi;
        }
    }
}

/* Dense 4 x 4 on two lane bits: y = sum over the 4 flips of a lane-wise coefficient times the flipped vector. */
static void NAME(dense_lanes)(vec *restrict t, long rows, const int *bit, const REAL *restrict coefficient) {
    const vec *m = (const vec *)coefficient;
    const ivec one = flip_index(bit[0]), two = flip_index(bit[1]);
    for (long i = 0; i < rows; i++) {
        vec xr = t[2 * i], xi = t[2 * i + 1];
        vec ar = shuffle(xr, one), ai = shuffle(xi, one), br = shuffle(xr, two), bi = shuffle(xi, two);
        vec cr = shuffle(ar, two), ci = shuffle(ai, two);
        vec yr = m[0] * xr, yi = m[0] * xi;
        yr -= m[1] * xi; yi += m[1] * xr;
        yr += m[2] * ar; yi += m[2] * ai;
        yr -= m[3] * ai; yi += m[3] * ar;
        yr += m[4] * br; yi += m[4] * bi;
        yr -= m[5] * bi; yi += m[5] * br;
        yr += m[6] * cr; yi += m[6] * ci;
        yr -= m[7] * ci; yi += m[7] * cr;
        t[2 * i] = yr; t[2 * i + 1] = yi;
    }
}

/* Dense 2^k x 2^k on any tile bits, amplitude by amplitude: right for every gate, tuned for none. */
static void NAME(dense_any)(vec *restrict t, long rows, const struct op *o, const REAL *restrict m) {
    REAL *z = (REAL *)t;
    const int k = o->bits;
    const long size = 1L << k, amplitudes = rows << LW;
    int fixed[MAX_HELD];
    const int held = held_bits(o, 0, fixed);
    REAL xr[1 << MAX_BITS], xi[1 << MAX_BITS];
    long at[1 << MAX_BITS];
    for (long i = 0; i < amplitudes >> held; i++) {
        const long base = spread(i, held, fixed) | (long)o->control_value;
        for (long j = 0; j < size; j++) {
            long c = base;
            for (int b = 0; b < k; b++) c |= ((j >> b) & 1) << o->bit[b];
            at[j] = ((c >> LW) << (LW + 1)) + (c & (W - 1));
            xr[j] = z[at[j]]; xi[j] = z[at[j] + W];
        }
        for (long j = 0; j < size; j++) {
            const REAL *row = m + 2 * size * j;
            REAL yr = 0, yi = 0;
            for (long l = 0; l < size; l++) {
                yr += row[2 * l] * xr[l] - row[2 * l + 1] * xi[l];
                yi += row[2 * l] * xi[l] + row[2 * l + 1] * xr[l];
            }
            z[at[j]] = yr; z[at[j] + W] = yi;
        }
    }
}

/* Diagonal of unit phases. Coordinate = (high, low) with `low_bits` low bits: amplitude *= table[low] * scalar[high],
 * where table gathers one cross factor for every high bit that is set, walked as a binary tree so that each of its
 * products is formed once. A null table means "all ones". Real pool: base table if flagged, the cross tables of the
 * high bits in control_mask, then the scalars; integer pool: (outside mask, coordinate or -1) pairs, their factors. */
static void NAME(phase)(vec *restrict t, const struct op *o, const REAL *real_pool, const int64_t *ints,
                        uint64_t outside, int tile_bits, REAL *restrict work) {
    const int low_bits = o->bit[0], high_bits = tile_bits - low_bits;
    const long block = 1L << (low_bits - LW), blocks = 1L << high_bits;
    double lr[64], li[64], cr = 1, ci = 0;
    int touched_low = 0;
    for (int k = 0; k < tile_bits; k++) { lr[k] = 1; li[k] = 0; }
    const int64_t *e = ints + o->ints;
    const double *factor = (const double *)(e + 2 * o->count);
    for (long i = 0; i < o->count; i++) {
        const uint64_t needs = (uint64_t)e[2 * i];
        const int k = (int)e[2 * i + 1];
        if ((outside & needs) != needs) continue;
        const double fr = factor[2 * i], fi = factor[2 * i + 1];
        double *ar = k < 0 ? &cr : &lr[k], *ai = k < 0 ? &ci : &li[k];
        const double r = *ar * fr - *ai * fi;
        *ai = *ar * fi + *ai * fr;
        *ar = r;
        if (k >= 0 && k < low_bits) touched_low = 1;
    }
    const long table = 2 * block;
    vec *spare = (vec *)work;
    const vec *at[66];
    const REAL *data = real_pool + o->reals;
    const vec *base = (o->flag & 1) ? (const vec *)data : 0;
    const REAL *cross = data + ((o->flag & 1) ? (2L << low_bits) : 0);
    const REAL *static_scalar = cross + ((long)__builtin_popcountll(o->control_mask) << (low_bits + 1));
    if (touched_low) {
        vec lane_r = splat(1), lane_i = splat(0);
        for (int k = 0; k < LW; k++)
            for (int l = 0; l < W; l++)
                if ((l >> k) & 1) {
                    const REAL r = lane_r[l] * (REAL)lr[k] - lane_i[l] * (REAL)li[k];
                    lane_i[l] = lane_r[l] * (REAL)li[k] + lane_i[l] * (REAL)lr[k];
                    lane_r[l] = r;
                }
        spare[0] = lane_r; spare[1] = lane_i;
        for (int k = LW; k < low_bits; k++) {
            const long half = 1L << (k - LW);
            const REAL r = (REAL)lr[k], im = (REAL)li[k];
            for (long j = 0; j < half; j++) {
                spare[2 * (half + j)] = r * spare[2 * j] - im * spare[2 * j + 1];
                spare[2 * (half + j) + 1] = r * spare[2 * j + 1] + im * spare[2 * j];
            }
        }
        if (base)
            for (long j = 0; j < block; j++) {
                const vec r = spare[2 * j] * base[2 * j] - spare[2 * j + 1] * base[2 * j + 1];
                spare[2 * j + 1] = spare[2 * j] * base[2 * j + 1] + spare[2 * j + 1] * base[2 * j];
                spare[2 * j] = r;
            }
        base = spare;
        spare += table;
    }
    vec *level[64];
    const vec *cross_at[64];
    for (int k = 0; k < high_bits; k++) {
        cross_at[k] = 0;
        if (((uint64_t)o->control_mask >> k) & 1) {
            cross_at[k] = (const vec *)cross;
            cross += 2L << low_bits;
            level[k] = spare;
            spare += table;
        }
    }
    double *sr = (double *)spare, *si = sr + blocks;
    sr[0] = cr; si[0] = ci;
    for (int k = 0; k < high_bits; k++)
        for (long j = 0; j < 1L << k; j++) {
            sr[(1L << k) + j] = sr[j] * lr[low_bits + k] - si[j] * li[low_bits + k];
            si[(1L << k) + j] = sr[j] * li[low_bits + k] + si[j] * lr[low_bits + k];
        }
    for (int k = 0; k <= high_bits; k++) at[k] = base;
    for (long b = 0; b < blocks; b++) {
        if (b) {
            const int k = __builtin_ctzl((unsigned long)b);
            const vec *above = at[k + 1];
            if (cross_at[k]) {
                if (above) {
                    const vec *g = cross_at[k];
                    vec *to = level[k];
                    for (long j = 0; j < block; j++) {
                        to[2 * j] = above[2 * j] * g[2 * j] - above[2 * j + 1] * g[2 * j + 1];
                        to[2 * j + 1] = above[2 * j] * g[2 * j + 1] + above[2 * j + 1] * g[2 * j];
                    }
                    above = to;
                } else {
                    above = cross_at[k];
                }
            }
            for (int l = 0; l <= k; l++) at[l] = above;
        }
        const REAL pr = static_scalar[2 * b], pi = static_scalar[2 * b + 1];
        const REAL scr = (REAL)(sr[b] * pr - si[b] * pi), sci = (REAL)(sr[b] * pi + si[b] * pr);
        const vec *g = at[0];
        vec *p = t + b * table;
        const int plain = scr == 1 && sci == 0;
        if (!g) {
            if (plain) continue;
            for (long j = 0; j < block; j++) {
                const vec xr = p[2 * j], xi = p[2 * j + 1];
                p[2 * j] = scr * xr - sci * xi;
                p[2 * j + 1] = scr * xi + sci * xr;
            }
        } else if (plain) {
            for (long j = 0; j < block; j++) {
                const vec xr = p[2 * j], xi = p[2 * j + 1], gr = g[2 * j], gi = g[2 * j + 1];
                p[2 * j] = gr * xr - gi * xi;
                p[2 * j + 1] = gr * xi + gi * xr;
            }
        } else {
            for (long j = 0; j < block; j++) {
                const vec xr = p[2 * j], xi = p[2 * j + 1];
                const vec gr = g[2 * j] * scr - g[2 * j + 1] * sci, gi = g[2 * j] * sci + g[2 * j + 1] * scr;
                p[2 * j] = gr * xr - gi * xi;
                p[2 * j + 1] = gr * xi + gi * xr;
            }
        }
    }
}

/* Affine map over GF(2): to[c] = from[A c ^ shift]; ints: column of A for every tile bit, then (outside mask, shift). */
static void NAME(permute)(const vec *restrict from, vec *restrict to, long rows, const struct op *o,
                          const int64_t *ints, uint64_t outside, int tile_bits) {
    const int64_t *column = ints + o->ints, *e = column + tile_bits;
    uint64_t shift = (uint64_t)o->control_value;
    for (long i = 0; i < o->count; i++)
        if (__builtin_popcountll(outside & (uint64_t)e[2 * i]) & 1) shift ^= (uint64_t)e[2 * i + 1];
    /* Lanes of one vector come from up to W source rows: pairs of rows are merged by two-source shuffles. */
    uint64_t part[W + 1];
    int parts = 0, straight = 1;
    ivec index, taken[W / 2 + 1];
    for (int l = 0; l < W; l++) {
        uint64_t at = 0;
        for (int k = 0; k < LW; k++) if ((l >> k) & 1) at ^= (uint64_t)column[k];
        int p = 0;
        while (p < parts && part[p] != at >> LW) p++;
        if (p == parts) part[parts++] = at >> LW;
        index[l] = (INT)((at & (W - 1)) | (p & 1 ? W : 0));
        for (int q = 0; q <= W / 2; q++) taken[q][l] = q == p / 2 ? -1 : 0;
        straight &= p == 0 && (int)(at & (W - 1)) == l;
    }
    if (parts & 1) part[parts] = part[parts - 1];
    uint64_t source = shift;
    for (long r = 0; r < rows; r++) {
        if (r) {
            /* The bits that change from r - 1 to r are those up to the lowest set bit of r. */
            const int top = __builtin_ctzl((unsigned long)r);
            for (int k = 0; k <= top; k++) source ^= (uint64_t)column[LW + k];
        }
        const long row = (long)(source >> LW);
        const INT in_lane = (INT)(source & (W - 1));
        vec *y = to + 2 * r;
        const vec *x = from + 2 * row;
        if (parts == 1) {
            if (straight && !in_lane) {
                y[0] = x[0]; y[1] = x[1];
            } else {
                const ivec where = index ^ in_lane;
                y[0] = shuffle(x[0], where); y[1] = shuffle(x[1], where);
            }
            continue;
        }
        const vec *z = from + 2 * (row ^ (long)part[1]);
        const ivec where = index ^ in_lane;
        vec yr = shuffle2(x[0], z[0], where), yi = shuffle2(x[1], z[1], where);
        for (int q = 1; 2 * q < parts; q++) {
            x = from + 2 * (row ^ (long)part[2 * q]);
            z = from + 2 * (row ^ (long)part[2 * q + 1]);
            const ivec keep = ~taken[q];
            yr = (vec)(((ivec)yr & keep) | ((ivec)shuffle2(x[0], z[0], where) & taken[q]));
            yi = (vec)(((ivec)yi & keep) | ((ivec)shuffle2(x[1], z[1], where) & taken[q]));
        }
        y[0] = yr; y[1] = yi;
    }
}

/* Tile in: rows of 2^run amplitudes at start + offset[r]; rows inside `empty` are zeros and are not read. */
static void NAME(load)(vec *restrict t, const REAL *restrict state, const struct kernel *k, const int64_t *offset,
                       uint64_t start) {
    const long count = 1L << (k->bits - k->run), vectors = 1L << (k->run - LW);
    ivec even, odd;
    for (int l = 0; l < W; l++) { even[l] = 2 * l; odd[l] = 2 * l + 1; }
    for (long r = 0; r < count; r++) {
        vec *to = t + 2 * vectors * r;
        if ((uint64_t)offset[r] & k->empty) {
            for (long j = 0; j < 2 * vectors; j++) to[j] = splat(0);
            continue;
        }
        const vec *from = (const vec *)(state + 2 * (start + (uint64_t)offset[r]));
        if (r + AHEAD < count && !((uint64_t)offset[r + AHEAD] & k->empty)) {
            const char *ahead = (const char *)(state + 2 * (start + (uint64_t)offset[r + AHEAD]));
            for (long j = 0; j < vectors * 2 * VB; j += 64) __builtin_prefetch(ahead + j, 0);
        }
        for (long j = 0; j < vectors; j++) {
            const vec x = from[2 * j], y = from[2 * j + 1];
            to[2 * j] = shuffle2(x, y, even);
            to[2 * j + 1] = shuffle2(x, y, odd);
        }
    }
}

/* Tile out. Rows that were not read are streamed where the state exceeds the cache: no line is fetched to be lost. */
static void NAME(store)(const vec *restrict t, REAL *restrict state, const struct kernel *k, const int64_t *offset,
                        uint64_t start, int streamed) {
    const long count = 1L << (k->bits - k->run), vectors = 1L << (k->run - LW);
    const vec scale = splat((REAL)k->scale);
    ivec first, second;
    for (int l = 0; l < W; l++) {
        first[l] = (l & 1 ? W : 0) + l / 2;
        second[l] = (l & 1 ? W : 0) + W / 2 + l / 2;
    }
    for (long r = 0; r < count; r++) {
        const vec *from = t + 2 * vectors * r;
        vec *to = (vec *)(state + 2 * (start + (uint64_t)offset[r]));
        if (streamed && ((uint64_t)offset[r] & k->empty)) {
            for (long j = 0; j < vectors; j++) {
                const vec x = scale * from[2 * j], y = scale * from[2 * j + 1];
                STREAM(to + 2 * j, shuffle2(x, y, first));
                STREAM(to + 2 * j + 1, shuffle2(x, y, second));
            }
            continue;
        }
        for (long j = 0; j < vectors; j++) {
            const vec x = scale * from[2 * j], y = scale * from[2 * j + 1];
            to[2 * j] = shuffle2(x, y, first);
            to[2 * j + 1] = shuffle2(x, y, second);
        }
    }
}

/* All operations of one kernel on the tile that starts at `start`; `outside` also holds the shard's own bits. */
static void NAME(run_tile)(const struct kernel *k, const struct op *ops, const REAL *reals, const int64_t *ints,
                           REAL *state, const int64_t *offset, uint64_t start, uint64_t outside, int streamed,
                           void *scratch) {
    const long rows = 1L << (k->bits - LW);
    vec *t = (vec *)scratch, *u = t + 2 * rows;
    REAL *work = (REAL *)(u + 2 * rows);
    NAME(load)(t, state, k, offset, start);
    for (long i = k->first; i < k->first + k->count; i++) {
        const struct op *o = ops + i;
        if ((outside & o->outside_mask) != o->outside_value) continue;
        const REAL *c = reals + o->reals;
        switch (o->kind) {
        case OP_ROTATE_ROWS:
            if (o->bits == 1) NAME(rotate_rows1)(t, rows, o->bit, c);
            else if (o->bits == 2) NAME(rotate_rows2)(t, rows, o->bit, c);
            else NAME(rotate_rows3)(t, rows, o->bit, c);
            break;
        case OP_ROTATE_LANES: NAME(rotate_lanes)(t, rows, o->bits, o->bit, c); break;
        case OP_MATRIX_ROW: NAME(matrix_row)(t, rows, o, c); break;
        case OP_MATRIX_LANE: NAME(matrix_lane)(t, rows, o, c); break;
        case OP_DENSE_ROWS: NAME(dense_rows)(t, rows, o->bit, c); break;
        case OP_DENSE_MIXED: NAME(dense_mixed)(t, rows, o->bit[0], o->bit[1], c); break;
        case OP_DENSE_LANES: NAME(dense_lanes)(t, rows, o->bit, c); break;
        case OP_DENSE_ANY: NAME(dense_any)(t, rows, o, c); break;
        case OP_PHASE: NAME(phase)(t, o, reals, ints, outside, k->bits, work); break;
        case OP_PERMUTE: {
            NAME(permute)(t, u, rows, o, ints, outside, k->bits);
            vec *swap = t; t = u; u = swap;
            break;
        }
        }
    }
    NAME(store)(t, state, k, offset, start, streamed);
}

#undef TURN
#undef CUBE
#undef EACH_ROW
#undef shuffle
#undef shuffle2
#undef splat
#undef flip_index
#undef vec
#undef ivec
#undef W
