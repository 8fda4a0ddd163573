/* Inner loops: convolutions as products of small matrices, depthwise kernels.
 *
 * Images lie pixel by pixel, each pixel `stride` floats after the last, its channels padded with zeros to CP,
 * a multiple of 2 * VL. A convolution is a sum over taps: each tap is the input image, shifted, times one
 * matrix (K, CP). Tap pointers say where the shifted image begins, so stride, dilation and the transposed
 * convolution of the backward pass are all the same loop.
 *
 * Matrices are packed: for each pair of vectors of output channels (K, 2 * VL), so they are read in order.
 */
#ifndef METANAS_KERNELS_H
#define METANAS_KERNELS_H

#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE 14 /* pixels of one register tile: TILE * 2 accumulators; 84, 28 and 14 are multiples */
#else
#define VECTOR_BYTES 32
#define TILE 6
#endif
#define VL (VECTOR_BYTES / 4)
#define PAIR (2 * VL)
#define MAX_TAPS 32

typedef float vec __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
/* Compiled once and by itself: inlined into a caller, gcc keeps accumulators on the stack. */
#define ALONE static __attribute__((noinline, noclone))

INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec v) { *(vec *)p = v; }
INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec choose(ivec which, vec yes, vec no) { return (vec)(((ivec)yes & which) | ((ivec)no & ~which)); }

/* The larger of two; b where one is NaN. */
INLINE vec larger(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose(a > b, a, b);
#endif
}

/* ReLU; NaN stays NaN. */
INLINE vec positive(vec x) { return larger((vec){0}, x); }

/* One of several images that a convolution reads, and its matrix. */
typedef struct {
    const float *in;
    const float *w;
} Tap;

/* ---- what is read next from far away, fetched while there is much to compute on what is near ------------------- */

#define RANGES 3
#define AHEAD 16 /* cache lines for each tap of a tile: what memory gives meanwhile */
#define MOST_TAPS_AHEAD 3 /* more lines at once would only stand in line */

typedef struct {
    const char *at, *end;
} Range;
static __thread Range ahead[RANGES];

static void look_ahead(int which, const float *from, long floats) {
    ahead[which] = (Range){(const char *)from, (const char *)(from + floats)};
}

static void fetch_ahead(int lines) {
    for (int k = 0; k < RANGES; k++) {
        Range *range = &ahead[k];
        const char *at = range->at, *end = range->end;
        for (int i = 0; i < lines && at < end; i++, at += 64) __builtin_prefetch(at, 0, 2);
        range->at = at;
    }
}

/* ---- out[p] (+)= sum over taps of in[p] W ---------------------------------------------------------------- */

static const float zeros[PAIR];

/* With loops that run at least once and no branches gcc has no reason to move accumulators about. */
INLINE void product_tile(const int R, float *out, long out_pix, const Tap *taps, int n, long at, long in_pix, long pair,
                         int K, int add) {
    vec a[TILE][2];
    const float *from = add ? out : zeros;
    long step = add ? out_pix : 0;
    for (int r = 0; r < R; r++) a[r][0] = load(from + r * step), a[r][1] = load(from + r * step + VL);
    const Tap *end = taps + n;
    do {
        const float *x = taps->in + at, *w = taps->w + pair, *last = x + K;
        do {
            vec w0 = load(w), w1 = load(w + VL);
            for (int r = 0; r < R; r++) {
                vec b = splat(x[r * in_pix]);
                a[r][0] += b * w0;
                a[r][1] += b * w1;
            }
            w += PAIR;
        } while (++x != last);
    } while (++taps != end);
    for (int r = 0; r < R; r++) store(out + r * out_pix, a[r][0]), store(out + r * out_pix + VL, a[r][1]);
}

/* The sizes that a tile can have, as cases of a switch. */
#if TILE > 6
#define CASES CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) \
    CASE(13) CASE(14)
#else
#define CASES CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#endif

/* Pixels that lie USUAL floats apart need no registers for their addresses. */
#define USUAL 32
#define CASE(R)                                                                                                 \
    ALONE void product_usual_##R(float *out, long out_pix, const Tap *taps, int n, long at, long pair, int K,   \
                                 int add) {                                                                     \
        product_tile(R, out, out_pix, taps, n, at, USUAL, pair, K, add);                                        \
    }                                                                                                           \
    ALONE void product_other_##R(float *out, long out_pix, const Tap *taps, int n, long at, long in_pix,        \
                                 long pair, int K, int add) {                                                   \
        product_tile(R, out, out_pix, taps, n, at, in_pix, pair, K, add);                                       \
    }
CASES
#undef CASE

static void product_some(int size, float *out, long out_pix, const Tap *taps, int n, long at, long in_pix, long pair,
                         int K, int add) {
    switch (size) {
#define CASE(R)                                                                \
    case R:                                                                    \
        if (in_pix == USUAL)                                                   \
            product_usual_##R(out, out_pix, taps, n, at, pair, K, add);        \
        else                                                                   \
            product_other_##R(out, out_pix, taps, n, at, in_pix, pair, K, add); \
        break;
        CASES
#undef CASE
    }
}

/* How long a piece is if `length` is cut into as few as possible of at most `most`, all but equally long. */
INLINE int even_piece(int length, int most) {
    int pieces = (length + most - 1) / most;
    return (length + pieces - 1) / pieces;
}

/* `pixels` pixels in a row; the output has CP channels, the input K. */
static void product(float *out, long out_pix, int pixels, const Tap *taps, int n, long in_pix, int K, int CP, int add) {
    if (n == 0) {
        if (!add)
            for (int p = 0; p < pixels; p++) memset(out + p * out_pix, 0, CP * sizeof(float));
        return;
    }
    for (int p = 0, size; p < pixels; p += size) {
        size = even_piece(pixels - p, TILE);
        fetch_ahead(AHEAD * (n < MOST_TAPS_AHEAD ? n : MOST_TAPS_AHEAD));
        for (int c = 0; c < CP; c += PAIR)
            product_some(size, out + p * out_pix + c, out_pix, taps, n, p * in_pix, in_pix, (long)c * K, K, add);
    }
}

/* ---- dw += sum over pixels of in[p]^T dout[p] ------------------------------------------------------------- */

INLINE void outer_tile(const int R, float *dw, const float *in, long in_row, long in_pix, const float *dout,
                       long out_row, long out_pix, int rows, int pixels) {
    vec a[TILE][2];
    for (int r = 0; r < R; r++) a[r][0] = load(dw + r * PAIR), a[r][1] = load(dw + r * PAIR + VL);
    do {
        const float *x = in, *d = dout, *last = in + pixels * in_pix;
        do {
            vec d0 = load(d), d1 = load(d + VL);
            for (int r = 0; r < R; r++) {
                vec b = splat(x[r]);
                a[r][0] += b * d0;
                a[r][1] += b * d1;
            }
            d += out_pix;
        } while ((x += in_pix) != last);
        in += in_row;
        dout += out_row;
    } while (--rows);
    for (int r = 0; r < R; r++) store(dw + r * PAIR, a[r][0]), store(dw + r * PAIR + VL, a[r][1]);
}

#define CASE(R)                                                                                                  \
    ALONE void outer_##R(float *dw, const float *in, long in_row, long in_pix, const float *dout, long out_row,  \
                         long out_pix, int rows, int pixels) {                                                   \
        outer_tile(R, dw, in, in_row, in_pix, dout, out_row, out_pix, rows, pixels);                             \
    }
CASES
#undef CASE

/* A tile of `size` rows of the matrix: they are channels of the input. */
static void outer_some(int size, float *dw, const float *in, long in_row, long in_pix, const float *dout, long out_row,
                       long out_pix, int rows, int pixels) {
    switch (size) {
#define CASE(R)                                                                   \
    case R:                                                                       \
        outer_##R(dw, in, in_row, in_pix, dout, out_row, out_pix, rows, pixels);  \
        break;
        CASES
#undef CASE
    }
}

/* dw is packed as the matrices are: one (K, CP) for each of the n inputs, one after the other. */
static void outer(float *dw, const float *const *in, int n, long in_row, long in_pix, const float *dout, long out_row,
                  long out_pix, int rows, int pixels, int K, int CP) {
    /* Blocks that stay in the first cache while they are read once for each tile of the matrices. */
    const int wide = even_piece(pixels, 96), high = wide < 64 ? 64 / wide : 1;
    for (int y = 0; y < rows; y += high)
        for (int p = 0; p < pixels; p += wide) {
            int some = rows - y < high ? rows - y : high, across = pixels - p < wide ? pixels - p : wide;
            for (int t = 0; t < n; t++)
                for (int c = 0; c < CP; c += PAIR)
                    for (int k = 0, size; k < K; k += size) {
                        size = even_piece(K - k, TILE);
                        fetch_ahead(AHEAD);
                        outer_some(size, dw + (long)t * K * CP + (long)c * K + k * PAIR,
                                   in[t] + y * in_row + p * in_pix + k, in_row, in_pix,
                                   dout + y * out_row + p * out_pix + c, out_row, out_pix, some, across);
                    }
        }
}

/* ---- depthwise: rows[ky] + kx * dx is where tap (ky, kx) of the first pixel lies ---------------------------- */

INLINE void depthwise_some(const int ky, const int kx, float *out, long out_pix, int pixels, const float *const *rows,
                           long dx, long in_pix, const float *w, int CP, int add) {
    for (int c = 0; c < CP; c += VL) {
        vec k[9];
        for (int t = 0; t < ky * kx; t++) k[t] = load(w + t * CP + c);
        for (int p = 0; p < pixels; p++) {
            vec a = add ? load(out + p * out_pix + c) : (vec){0};
            for (int y = 0; y < ky; y++)
                for (int x = 0; x < kx; x++) a += load(rows[y] + p * in_pix + x * dx + c) * k[y * kx + x];
            store(out + p * out_pix + c, a);
        }
    }
}

ALONE void depthwise_row(int kernel, float *out, long out_pix, int pixels, const float *const *rows, long dx,
                          long in_pix, const float *w, int CP, int add) {
    if (kernel == 3) {
        const float *const three[3] = {rows[0], rows[1], rows[2]};
        depthwise_some(3, 3, out, out_pix, pixels, three, dx, in_pix, w, CP, add);
        return;
    }
    for (int y = 0; y < 5; y++)
        depthwise_some(1, 5, out, out_pix, pixels, rows + y, dx, in_pix, w + y * 5 * CP, CP, add || y > 0);
}

/* dw[tap] += sum over pixels of in * dout. */
INLINE void depthwise_outer_some(const int ky, const int kx, float *dw, const float *dout, long out_pix, int pixels,
                                 const float *const *rows, long dx, long in_pix, int CP) {
    for (int c = 0; c < CP; c += VL) {
        vec a[9];
        for (int t = 0; t < ky * kx; t++) a[t] = load(dw + t * CP + c);
        for (int p = 0; p < pixels; p++) {
            vec d = load(dout + p * out_pix + c);
            for (int y = 0; y < ky; y++)
                for (int x = 0; x < kx; x++) a[y * kx + x] += load(rows[y] + p * in_pix + x * dx + c) * d;
        }
        for (int t = 0; t < ky * kx; t++) store(dw + t * CP + c, a[t]);
    }
}

ALONE void depthwise_outer_row(int kernel, float *dw, const float *dout, long out_pix, int pixels,
                                const float *const *rows, long dx, long in_pix, int CP) {
    if (kernel == 3) {
        const float *const three[3] = {rows[0], rows[1], rows[2]};
        depthwise_outer_some(3, 3, dw, dout, out_pix, pixels, three, dx, in_pix, CP);
        return;
    }
    for (int y = 0; y < 5; y++)
        depthwise_outer_some(1, 5, dw + y * 5 * CP, dout, out_pix, pixels, rows + y, dx, in_pix, CP);
}

/* The transpose of depthwise_row: adds to the pixels that it read. For strides above 1. */
static void depthwise_scatter_row(int kernel, const float *dout, long out_pix, int pixels, float *const *rows, long dx,
                                  long in_pix, const float *w, int CP) {
    for (int p = 0; p < pixels; p++)
        for (int y = 0; y < kernel; y++)
            for (int x = 0; x < kernel; x++) {
                float *to = rows[y] + p * in_pix + x * dx;
                const float *k = w + (y * kernel + x) * CP;
                for (int c = 0; c < CP; c += VL) store(to + c, load(to + c) + load(dout + p * out_pix + c) * load(k + c));
            }
}

#endif
