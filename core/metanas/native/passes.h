/* Passes over whole images, pixel by pixel: sums, batch norm, what is read once from far away and written once.
 *
 * What does not fit into the caches costs more here than any arithmetic. So pixels are read in the order in which
 * they lie, and what is read again only after all images have passed is written past the caches.
 */
#ifndef METANAS_PASSES_H
#define METANAS_PASSES_H

#include "kernels.h"

#if defined(__AVX512F__) || defined(__AVX__)
#include <immintrin.h>
#endif

/* Write past the caches, without reading first what is overwritten. p must be aligned to a vector. */
INLINE void stream(float *p, vec v) {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX__)
    _mm256_stream_ps(p, (__m256)v);
#else
    store(p, v);
#endif
}

/* Before another thread may read what was streamed. */
INLINE void end_streams(void) {
#if defined(__AVX512F__) || defined(__AVX__)
    _mm_sfence();
#endif
}

#define BLOCK 64 /* pixels whose sums are single precision */

/* For each pixel p of `n`: two at a time, that each have their own accumulators, numbered `q`. */
#define EACH_PIXEL(n, statement)                                          \
    do {                                                                  \
        long p = 0;                                                       \
        for (; p + 2 <= (n); p += 2) {                                    \
            { enum { q = 0 }; const long at = p * CP; statement }         \
            { enum { q = 1 }; const long at = (p + 1) * CP; statement }   \
        }                                                                 \
        if (p < (n)) { enum { q = 0 }; const long at = p * CP; statement } \
    } while (0)

INLINE long block_of(long from, long pixels) { return even_piece((int)(pixels - from), BLOCK); }

/* to[channel] += the channel's sum. */
INLINE void add_up(double *to, vec a[2][2]) {
    float sums[PAIR];
    store(sums, a[0][0] + a[1][0]);
    store(sums + VL, a[0][1] + a[1][1]);
    for (int i = 0; i < PAIR; i++) to[i] += sums[i];
}

/* Sums of y and of y * y of each channel. Squares are taken about the mean of a block, so no digits are lost.
 * keep: where y is streamed to; NULL: nowhere. */
INLINE void add_moments_of(const int keeps, double *first, double *second, const float *y, float *keep, long pixels,
                           int CP) {
    for (long from = 0, n; from < pixels; from += n) {
        n = block_of(from, pixels);
        for (int c = 0; c < CP; c += PAIR) {
            const float *in = y + from * CP + c;
            float *out = keep + from * CP + c, means[PAIR], squares[PAIR];
            vec a[2][2] = {{{0}}}, b[2][2] = {{{0}}}, m[2];
            EACH_PIXEL(n, a[q][0] += load(in + at); a[q][1] += load(in + at + VL););
            for (int v = 0; v < 2; v++) {
                m[v] = (a[0][v] + a[1][v]) / splat((float)n);
                store(means + v * VL, m[v]);
            }
            EACH_PIXEL(n, for (int v = 0; v < 2; v++) {
                vec value = load(in + at + v * VL);
                vec rest = value - m[v];
                b[q][v] += rest * rest;
                if (keeps) stream(out + at + v * VL, value);
            });
            for (int v = 0; v < 2; v++) store(squares + v * VL, b[0][v] + b[1][v]);
            for (int i = 0; i < PAIR; i++) {
                double mean = means[i], sum = mean * (double)n;
                first[c + i] += sum;
                second[c + i] += squares[i] + mean * sum;
            }
        }
    }
}

ALONE void add_moments(double *first, double *second, const float *y, float *keep, long pixels, int CP) {
    if (keep)
        add_moments_of(1, first, second, y, keep, pixels, CP);
    else
        add_moments_of(0, first, second, y, NULL, pixels, CP);
}

/* sums += g, by channel. */
ALONE void add_sums(double *sums, const float *g, long pixels, int CP) {
    for (long from = 0, n; from < pixels; from += n) {
        n = block_of(from, pixels);
        for (int c = 0; c < CP; c += PAIR) {
            const float *in = g + from * CP + c;
            vec a[2][2] = {{{0}}};
            EACH_PIXEL(n, a[q][0] += load(in + at); a[q][1] += load(in + at + VL););
            add_up(sums + c, a);
        }
    }
}

/* sums += g * (y - mean), by channel; mean may be NULL: 0. */
ALONE void add_products(double *sums, const float *g, const float *y, const float *mean, long pixels, int CP) {
    for (long from = 0, n; from < pixels; from += n) {
        n = block_of(from, pixels);
        for (int c = 0; c < CP; c += PAIR) {
            const float *in = g + from * CP + c, *by = y + from * CP + c;
            vec a[2][2] = {{{0}}}, m[2] = {{0}};
            for (int v = 0; v < 2 && mean; v++) m[v] = load(mean + c + v * VL);
            EACH_PIXEL(n, for (int v = 0; v < 2; v++) a[q][v] +=
                          load(in + at + v * VL) * (load(by + at + v * VL) - m[v]););
            add_up(sums + c, a);
        }
    }
}

/* out = P * g + Q * y + R, by channel: the backward pass of a batch norm. */
ALONE void combine(float *out, const float *g, const float *y, const float *P, const float *Q, const float *R,
                   long pixels, int CP) {
    for (int c = 0; c < CP; c += PAIR) {
        vec s[2], t[2], u[2];
        for (int v = 0; v < 2; v++) s[v] = load(P + c + v * VL), t[v] = load(Q + c + v * VL), u[v] = load(R + c + v * VL);
        for (long p = 0; p < pixels; p++)
            for (int v = 0; v < 2; v++) {
                long at = p * CP + c + v * VL;
                store(out + at, s[v] * load(g + at) + (t[v] * load(y + at) + u[v]));
            }
    }
}

/* One of several images that are added: scale * y + shift, by channel. */
typedef struct {
    const float *y, *scale, *shift;
} Term;

INLINE void add_terms_of(const int n, const int add, float *out, const Term *terms, long pixels, int CP) {
    for (int c = 0; c < CP; c += PAIR) {
        vec scale[4][2], shift[4][2];
        for (int t = 0; t < n; t++)
            for (int v = 0; v < 2; v++)
                scale[t][v] = load(terms[t].scale + c + v * VL), shift[t][v] = load(terms[t].shift + c + v * VL);
        for (long p = 0; p < pixels; p++)
            for (int v = 0; v < 2; v++) {
                long at = p * CP + c + v * VL;
                vec sum = add ? load(out + at) : (vec){0};
                for (int t = 0; t < n; t++) sum += scale[t][v] * load(terms[t].y + at) + shift[t][v];
                store(out + at, sum);
            }
    }
}

/* out (+)= the sum of up to four images. */
ALONE void add_terms(float *out, const Term *terms, int n, long pixels, int CP, int add) {
    switch (2 * n + (add != 0)) {
#define CASE(N)                                                    \
    case 2 * N:                                                    \
        add_terms_of(N, 0, out, terms, pixels, CP);                \
        break;                                                     \
    case 2 * N + 1:                                                \
        add_terms_of(N, 1, out, terms, pixels, CP);                \
        break;
        CASE(1) CASE(2) CASE(3) CASE(4)
#undef CASE
    }
}

ALONE void stream_copy(float *to, const float *from, long floats) {
    for (long i = 0; i < floats; i += PAIR) stream(to + i, load(from + i)), stream(to + i + VL, load(from + i + VL));
}

/* to = relu(scale * from + shift) for pixels in a row; scale and shift may be NULL: 1 and 0. */
ALONE void rectify_row(float *to, const float *from, const float *scale, const float *shift, long pixels, int CP) {
    if (scale == NULL) {
        for (long i = 0; i < pixels * CP; i += PAIR)
            store(to + i, positive(load(from + i))), store(to + i + VL, positive(load(from + i + VL)));
        return;
    }
    for (int c = 0; c < CP; c += PAIR) {
        vec s0 = load(scale + c), s1 = load(scale + c + VL), b0 = load(shift + c), b1 = load(shift + c + VL);
        for (long at = c; at < pixels * CP; at += CP) {
            store(to + at, positive(s0 * load(from + at) + b0));
            store(to + at + VL, positive(s1 * load(from + at + VL) + b1));
        }
    }
}

/* to = (r > 0 ? d : 0) + extra; extra may be NULL, or be `to`. */
ALONE void mask_row(float *to, const float *extra, const float *r, const float *d, long floats) {
    for (long i = 0; i < floats; i += VL) {
        ivec on = load(r + i) > (vec){0};
        vec value = choose(on, load(d + i), (vec){0});
        if (extra) value += load(extra + i);
        store(to + i, value);
    }
}

#endif
