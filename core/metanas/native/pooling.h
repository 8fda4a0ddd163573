/* 3x3 pooling with padding 1, which never counts. */
#ifndef METANAS_POOLING_H
#define METANAS_POOLING_H

#include "kernels.h"

/* The pixels that one output pixel sees. */
typedef struct {
    int top, bottom, left, right;
} Window;

static int clip(int from, int limit) { return from < 0 ? 0 : from > limit ? limit : from; }

static Window window_of(int y, int x, int stride, int H, int W) {
    return (Window){clip(y * stride - 1, H), clip(y * stride + 2, H), clip(x * stride - 1, W), clip(x * stride + 2, W)};
}

static vec share_of(Window seen) { return splat(1.0f / ((seen.bottom - seen.top) * (seen.right - seen.left))); }

static int pooled_size(int size, int stride) { return (size + stride - 1) / stride; }

/* `place` is which pixel of the window was the largest, the first of equals: 0 to 8. */
typedef unsigned char Places __attribute__((vector_size(VL), aligned(1), may_alias));

/* Lines `from` to `to` of the output; out and place begin at the first of them. */
static void max_pool(float *out, unsigned char *place, const float *in, int H, int W, int stride, int CP, int from,
                     int to) {
    int w = pooled_size(W, stride);
    for (int y = from; y < to; y++)
        for (int x = 0; x < w; x++) {
            Window seen = window_of(y, x, stride, H, W);
            for (int c = 0; c < CP; c += VL) {
                vec best = splat(-__builtin_inff());
                ivec at = {0};
                for (int v = seen.top; v < seen.bottom; v++)
                    for (int u = seen.left; u < seen.right; u++) {
                        vec value = load(in + ((long)v * W + u) * CP + c);
                        ivec more = value > best;
                        best = choose(more, value, best);
                        int number = (v - y * stride + 1) * 3 + u - x * stride + 1;
                        at = (more & (number - (ivec){0})) | (~more & at);
                    }
                long at_out = ((long)(y - from) * w + x) * CP + c;
                store(out + at_out, best);
                *(Places *)(place + at_out) = __builtin_convertvector(at, Places);
            }
        }
}

static void max_pool_transposed(float *din, const float *dout, const unsigned char *place, int H, int W, int stride,
                                int CP) {
    int h = pooled_size(H, stride), w = pooled_size(W, stride);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            Window seen = window_of(y, x, stride, H, W);
            for (int c = 0; c < CP; c += VL) {
                long from = ((long)y * w + x) * CP + c;
                vec d = load(dout + from);
                ivec at = __builtin_convertvector(*(const Places *)(place + from), ivec);
                for (int v = seen.top; v < seen.bottom; v++)
                    for (int u = seen.left; u < seen.right; u++) {
                        float *to = din + ((long)v * W + u) * CP + c;
                        int number = (v - y * stride + 1) * 3 + u - x * stride + 1;
                        store(to, load(to) + choose(at == number - (ivec){0}, d, (vec){0}));
                    }
            }
        }
}

static void mean_pool(float *out, const float *in, int H, int W, int stride, int CP, int from, int to) {
    int w = pooled_size(W, stride);
    for (int y = from; y < to; y++)
        for (int x = 0; x < w; x++) {
            Window seen = window_of(y, x, stride, H, W);
            for (int c = 0; c < CP; c += VL) {
                vec sum = {0};
                for (int v = seen.top; v < seen.bottom; v++)
                    for (int u = seen.left; u < seen.right; u++) sum += load(in + ((long)v * W + u) * CP + c);
                store(out + ((long)(y - from) * w + x) * CP + c, sum * share_of(seen));
            }
        }
}

static void mean_pool_transposed(float *din, const float *dout, int H, int W, int stride, int CP) {
    int h = pooled_size(H, stride), w = pooled_size(W, stride);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            Window seen = window_of(y, x, stride, H, W);
            for (int c = 0; c < CP; c += VL) {
                vec d = load(dout + ((long)y * w + x) * CP + c) * share_of(seen);
                for (int v = seen.top; v < seen.bottom; v++)
                    for (int u = seen.left; u < seen.right; u++) {
                        float *to = din + ((long)v * W + u) * CP + c;
                        store(to, load(to) + d);
                    }
            }
        }
}

#endif
