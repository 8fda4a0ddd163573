/* Inner loops: convolutions as products of small matrices, depthwise kernels, sums.
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

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE 12 /* pixels of one register tile: TILE * 2 accumulators */
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

/* One of several images that a convolution reads, and its matrix. */
typedef struct {
    const float *in;
    const float *w;
} Tap;

/* ---- out[p] (+)= sum over taps of in[p] W ---------------------------------------------------------------- */

INLINE void product_tile(const int R, float *out, long out_pix, const Tap *taps, int n, long at, long in_pix, long pair,
                         int K, int add) {
    vec a[TILE][2];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < 2; v++) a[r][v] = add ? load(out + r * out_pix + v * VL) : (vec){0};
    for (int t = 0; t < n; t++) {
        const float *x = taps[t].in + at, *w = taps[t].w + pair;
        for (int k = 0; k < K; k++, w += PAIR) {
            vec w0 = load(w), w1 = load(w + VL);
            for (int r = 0; r < R; r++) {
                vec b = splat(x[r * in_pix + k]);
                a[r][0] += b * w0;
                a[r][1] += b * w1;
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < 2; v++) store(out + r * out_pix + v * VL, a[r][v]);
}

static void product_rest(int rest, float *out, long out_pix, const Tap *taps, int n, long at, long in_pix, long pair,
                         int K, int add) {
    switch (rest) {
#define CASE(R)                                                                        \
    case R:                                                                            \
        product_tile(R, out, out_pix, taps, n, at, in_pix, pair, K, add);              \
        break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
#if TILE > 6
        CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11)
#endif
#undef CASE
    }
}

/* `pixels` pixels in a row; the output has CP channels, the input K. */
ALONE void product(float *out, long out_pix, int pixels, const Tap *taps, int n, long in_pix, int K, int CP, int add) {
    if (n == 0) {
        if (!add)
            for (int p = 0; p < pixels; p++) memset(out + p * out_pix, 0, CP * sizeof(float));
        return;
    }
    const int block = 8 * TILE;
    for (int from = 0; from < pixels; from += block) {
        int to = from + block < pixels ? from + block : pixels;
        for (int c = 0; c < CP; c += PAIR) {
            int p = from;
            for (; p + TILE <= to; p += TILE)
                product_tile(TILE, out + p * out_pix + c, out_pix, taps, n, p * in_pix, in_pix, (long)c * K, K, add);
            if (p < to)
                product_rest(to - p, out + p * out_pix + c, out_pix, taps, n, p * in_pix, in_pix, (long)c * K, K, add);
        }
    }
}

/* ---- dw += sum over pixels of in[p]^T dout[p] ------------------------------------------------------------- */

#define ROWS 6 /* rows of the matrix in one register tile; with AVX-512 there is room for 12 */
#if TILE > 6
#undef ROWS
#define ROWS 12
#endif

INLINE void outer_tile(const int R, float *dw, const float *in, long in_row, long in_pix, const float *dout,
                       long out_row, long out_pix, int rows, int pixels) {
    vec a[ROWS][2];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < 2; v++) a[r][v] = load(dw + r * PAIR + v * VL);
    for (int y = 0; y < rows; y++) {
        const float *x = in + y * in_row, *d = dout + y * out_row;
        for (int p = 0; p < pixels; p++, x += in_pix, d += out_pix) {
            vec d0 = load(d), d1 = load(d + VL);
            for (int r = 0; r < R; r++) {
                vec b = splat(x[r]);
                a[r][0] += b * d0;
                a[r][1] += b * d1;
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < 2; v++) store(dw + r * PAIR + v * VL, a[r][v]);
}

/* dw is packed as the matrices are: one (K, CP) for each of the n inputs, one after the other. */
ALONE void outer(float *dw, const float *const *in, int n, long in_row, long in_pix, const float *dout, long out_row,
                  long out_pix, int rows, int pixels, int K, int CP) {
    /* Blocks that stay in the first cache while they are read once for each tile of the matrices. */
    const int wide = pixels < 96 ? pixels : 64, high = wide < 64 ? 64 / wide : 1;
    for (int y = 0; y < rows; y += high)
        for (int p = 0; p < pixels; p += wide) {
            int some = rows - y < high ? rows - y : high, across = pixels - p < wide ? pixels - p : wide;
            for (int t = 0; t < n; t++)
                for (int c = 0; c < CP; c += PAIR)
                    for (int k = 0; k < K; k += ROWS) {
                        float *to = dw + (long)t * K * CP + (long)c * K + k * PAIR;
                        const float *x = in[t] + y * in_row + p * in_pix + k;
                        const float *d = dout + y * out_row + p * out_pix + c;
                        switch (K - k < ROWS ? K - k : ROWS) {
#define CASE(R)                                                                          \
    case R:                                                                              \
        outer_tile(R, to, x, in_row, in_pix, d, out_row, out_pix, some, across);         \
        break;
                            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS > 6
                            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
                        }
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

/* ---- pixel by pixel ------------------------------------------------------------------------------------------ */

/* Sums of y and of y * y of each channel. Squares are taken about the mean of a block, so no digits are lost. */
static void add_moments(double *first, double *second, const float *y, long pixels, int CP) {
    const long block = 64;
    for (long from = 0; from < pixels; from += block) {
        long to = from + block < pixels ? from + block : pixels;
        for (int c = 0; c < CP; c += VL) {
            vec a = {0}, b = {0};
            for (long p = from; p < to; p++) a += load(y + p * CP + c);
            vec mean = a / splat((float)(to - from));
            for (long p = from; p < to; p++) {
                vec rest = load(y + p * CP + c) - mean;
                b += rest * rest;
            }
            for (int i = 0; i < VL; i++) {
                double m = mean[i], n = (double)(to - from);
                first[c + i] += m * n;
                second[c + i] += b[i] + m * m * n;
            }
        }
    }
}

/* Sums of g and of g * (y - mean) of each channel. */
static void add_products(double *first, double *second, const float *g, const float *y, const float *mean, long pixels,
                         int CP) {
    const long block = 64;
    for (long from = 0; from < pixels; from += block) {
        long to = from + block < pixels ? from + block : pixels;
        for (int c = 0; c < CP; c += VL) {
            vec a = {0}, b = {0}, m = mean ? load(mean + c) : (vec){0};
            for (long p = from; p < to; p++) {
                vec value = load(g + p * CP + c);
                a += value;
                b += value * (load(y + p * CP + c) - m);
            }
            for (int i = 0; i < VL; i++) {
                first[c + i] += a[i];
                second[c + i] += b[i];
            }
        }
    }
}

/* out = P * g + Q * y + R, by channel: the backward pass of a batch norm. */
static void combine(float *out, const float *g, const float *y, const float *P, const float *Q, const float *R,
                    long pixels, int CP, int add) {
    for (int c = 0; c < CP; c += VL) {
        vec p = load(P + c), q = load(Q + c), r = load(R + c);
        for (long i = 0; i < pixels; i++) {
            vec value = p * load(g + i * CP + c) + q * load(y + i * CP + c) + r;
            if (add) value += load(out + i * CP + c);
            store(out + i * CP + c, value);
        }
    }
}

/* out (+)= scale * x + shift, by channel. */
static void scale_shift(float *out, const float *x, const float *scale, const float *shift, long pixels, int CP,
                        int add) {
    for (int c = 0; c < CP; c += VL) {
        vec s = load(scale + c), b = load(shift + c);
        for (long i = 0; i < pixels; i++) {
            vec value = s * load(x + i * CP + c) + b;
            if (add) value += load(out + i * CP + c);
            store(out + i * CP + c, value);
        }
    }
}

/* ReLU; NaN stays NaN. */
INLINE vec positive(vec x) {
    ivec less = x < (vec){0};
    return choose(less, (vec){0}, x);
}

#endif
