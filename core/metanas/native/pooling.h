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

/* `place` is which pixel of the window was the largest, the first of equals, as a float. */
static void max_pool(float *out, float *place, const float *in, int H, int W, int stride, int CP) {
    int h = pooled_size(H, stride), w = pooled_size(W, stride);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            Window seen = window_of(y, x, stride, H, W);
            for (int c = 0; c < CP; c += VL) {
                vec best = splat(-__builtin_inff()), at = {0};
                for (int v = seen.top; v < seen.bottom; v++)
                    for (int u = seen.left; u < seen.right; u++) {
                        vec value = load(in + ((long)v * W + u) * CP + c);
                        ivec more = value > best;
                        best = choose(more, value, best);
                        at = choose(more, splat((float)(v * W + u)), at);
                    }
                long to = ((long)y * w + x) * CP + c;
                store(out + to, best);
                store(place + to, at);
            }
        }
}

static void max_pool_transposed(float *din, const float *dout, const float *place, int H, int W, int stride, int CP) {
    int h = pooled_size(H, stride), w = pooled_size(W, stride);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            Window seen = window_of(y, x, stride, H, W);
            for (int v = seen.top; v < seen.bottom; v++)
                for (int u = seen.left; u < seen.right; u++)
                    for (int c = 0; c < CP; c += VL) {
                        long from = ((long)y * w + x) * CP + c;
                        float *to = din + ((long)v * W + u) * CP + c;
                        ivec here = load(place + from) == splat((float)(v * W + u));
                        store(to, load(to) + choose(here, load(dout + from), (vec){0}));
                    }
        }
}

static void mean_pool(float *out, const float *in, int H, int W, int stride, int CP) {
    int h = pooled_size(H, stride), w = pooled_size(W, stride);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            Window seen = window_of(y, x, stride, H, W);
            for (int c = 0; c < CP; c += VL) {
                vec sum = {0};
                for (int v = seen.top; v < seen.bottom; v++)
                    for (int u = seen.left; u < seen.right; u++) sum += load(in + ((long)v * W + u) * CP + c);
                store(out + ((long)y * w + x) * CP + c, sum * share_of(seen));
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
