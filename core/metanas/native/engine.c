/* Forward and backward pass of a network of MetaNAS cells on a CPU, in training mode, float32.
 *
 * Built from a description (which cells, which operations on which edge), run on a batch with the weights of the
 * mixture and a mask of the operations that are run at all. The same sums as metanas/network.py, which is
 * the definition; here they are ordered so that an image stays in the cache while all operations that read it run:
 *
 *   source    an input of a cell or one of its nodes: raw, and rectified with a border of zeros
 *   row       one operation on one edge: source -> node; its raw output and the statistics of its batch norm
 *   stage     one function run on all images by all threads; batch norm needs all images, so a stage ends there
 *
 * A node is the sum of w * (y - mean) / deviation over its rows, done in one pass. Backward, the gradient of y is
 * P * g + Q * y + R with three numbers a channel, computed when it is used and never kept.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "description.h"
#include "kernels.h"
#include "passes.h"
#include "pooling.h"
#include "team.h"

#define EPSILON 1e-5
#define STRIP 112 /* pixels that are projected at a time, of all groups: they stay in the first cache */

typedef struct {
    float *mean, *inverse; /* of the batch norm */
    float *P, *Q, *R;      /* forward: scale P and shift R into the node; backward: the gradient of y */
} Norm;

typedef struct {
    int H, W;
    float *x;   /* (batch, H, W, CP); raw where there is a norm */
    float *g;   /* like x: the gradient of what the norm made of it */
    int normed; /* whether a batch norm comes before all that reads it: not in nodes */
    Norm norm, skip, pools[2];
    float *pool[2];
    unsigned char *place;
    double *sum; /* of g, for each channel */
    int pooled[2], skipped, rectified;
    int has_gradient; /* whether g has been written in this pass; what comes then is added */
} Source;

typedef struct {
    const RowSpec *spec;
    int run, stride, H, W; /* size of the output */
    float weight;
    float *y;   /* raw output; that of a weightless operation belongs to its source */
    float *mid; /* between the two convolutions */
    Norm norm, inner;
} Row;

typedef struct {
    const CellSpec *spec;
    int used;    /* whether the output depends on it */
    int read[2]; /* which of its inputs it reads */
    Source *source;
    Row *row;
} Cell;

typedef struct Pass Pass;
typedef void (*Stage)(Pass *pass, int image, int slot, float *scratch);

struct Pass {
    const Net *net;
    int batch;
    long offset; /* of the workspace, floats taken */
    float *base; /* NULL: only counting */
    Source *stem;
    Cell *cell;
    float *images; /* (batch, size + 2, size + 2, in_channels) */
    float *packed, *transposed, *gradients[SLOTS], *scratch[MAX_THREADS], *features;
    long scratch_floats;
    double *sums[SLOTS];
    long entries;
    Team team;
    Stage stage;
    int at, from, to; /* which cell, which sources or node */
};

/* Lines of an image that is worked on together, so that they stay in the first cache. */
static int band_of(int W) { return W < 180 ? 180 / W : 1; }

static int end_of(int from, int W, int H) { return from + band_of(W) < H ? from + band_of(W) : H; }

/* The last lines of an image that is written and read band by band; what is no longer read is overwritten. So it stays in
 * the caches, whatever its size. */
typedef struct {
    float *room;
    int lines, W, border;
} Ring;

/* keep: how many lines before a band are still read when it is there. A band lies in one piece. */
static Ring ring_of(float *room, int H, int W, int band, int keep, int border) {
    int lines = (keep + 2 * band - 1) / band * band;
    return (Ring){room, lines < H ? lines : H, W, border};
}

/* With one line more, which stays zero: those above and below the image. */
static long ring_floats(const Ring *ring, int CP) { return (ring->lines + 1L) * (ring->W + 2 * ring->border) * CP; }

static void clear_ring(const Ring *ring, int CP) { memset(ring->room, 0, ring_floats(ring, CP) * sizeof(float)); }

/* The first pixel of line y of an image of H lines. */
static float *ring_line(const Ring *ring, int CP, int y, int H) {
    int at = y < 0 || y >= H ? ring->lines : y % ring->lines;
    return ring->room + ((long)at * (ring->W + 2 * ring->border) + ring->border) * CP;
}

/* Whether a row leaves source s and works band by band with a ring. */
static int has_ring(const Row *row, int s) {
    return row->run && row->spec->source == s && (row->spec->kind == FACTORIZED || row->spec->kind == SEPARABLE);
}

/* What a factorized convolution keeps between its two parts, of the source's lines. */
static Ring factorized_ring(const Row *row, const Source *source, float *room) {
    return ring_of(room, source->H, row->W, band_of(row->W) * row->stride, 4, 0);
}

/* Of the gradient of what comes after the (depthwise or second) convolution of a row, which its input needs. */
static Ring gradient_ring(const Row *row, float *room) {
    int reach = row->spec->kernel / 2 * row->spec->dilation, band = band_of(row->W);
    if (row->spec->kind == FACTORIZED) return ring_of(room, row->H, row->W, band, 4, 0);
    return ring_of(room, row->H, row->W, band, 2 * reach, reach);
}

static float *take(Pass *pass, long floats) {
    float *at = pass->base ? pass->base + pass->offset : NULL;
    pass->offset += (floats + 31) / 32 * 32;
    return at;
}

static Norm take_norm(Pass *pass) {
    int CP = pass->net->CP;
    return (Norm){take(pass, CP), take(pass, CP), take(pass, CP), take(pass, CP), take(pass, CP)};
}

static long padded_floats(const Net *net, int H, int W) {
    return (long)(H + 2 * net->pad) * (W + 2 * net->pad) * net->CP;
}

static Source take_source(Pass *pass, int H, int W, int normed) {
    const Net *net = pass->net;
    long floats = (long)pass->batch * H * W * net->CP;
    Source source = {.H = H, .W = W, .normed = normed, .norm = take_norm(pass)};
    source.x = take(pass, floats);
    source.g = take(pass, floats);
    source.sum = (double *)take(pass, 2 * net->CP);
    return source;
}

/* Room for the rings of all rows that leave one source. */
static long rings_floats(const Pass *pass) {
    long most = 0;
    for (int c = 0; c < pass->net->cells; c++)
        for (int s = 0; s < pass->net->nodes + 2; s++) {
            const Cell *cell = &pass->cell[c];
            long forward = 0, backward = 0;
            for (int e = 0; e < cell->spec->rows; e++) {
                const Row *row = &cell->row[e];
                if (!has_ring(row, s)) continue;
                Ring between = factorized_ring(row, &cell->source[s], NULL), gradient = gradient_ring(row, NULL);
                if (row->spec->kind == FACTORIZED) forward += ring_floats(&between, pass->net->CP);
                backward += ring_floats(&gradient, pass->net->CP);
            }
            if (forward > most) most = forward;
            if (backward > most) most = backward;
        }
    return most;
}

/* Where everything lies in the workspace; the same for the same batch and rows. */
static void lay_out(Pass *pass, const Net *net, int batch, const unsigned char *const *run, float *base) {
    memset(pass, 0, sizeof *pass);
    pass->net = net;
    pass->batch = batch;
    pass->base = base;
    /* A vector that is streamed must lie at a multiple of its size. */
    pass->offset = base ? (64 - (uintptr_t)base % 64) % 64 / sizeof(float) : 16;
    int size = net->size, CP = net->CP, R = net->max_rows;
    pass->packed = take(pass, net->packed);
    pass->transposed = take(pass, net->transposed);
    pass->images = take(pass, (long)batch * (size + 2) * (size + 2) * net->in_channels);
    pass->entries = 2 * R + 3 * (net->nodes + 2) + net->groups;
    for (int s = 0; s < SLOTS; s++) {
        pass->sums[s] = (double *)take(pass, 2 * pass->entries * 2 * CP);
        pass->gradients[s] = take(pass, net->packed);
    }
    int border = net->pad > 4 ? net->pad : 4;
    long room = (long)(size + 2 * border) * (size + 2 * border);
    int groups = net->groups > net->nodes ? net->groups : net->nodes;
    pass->scratch_floats = (room > STRIP ? room : STRIP) * CP;
    pass->stem = calloc(net->groups, sizeof(Source));
    for (int g = 0; g < net->groups; g++) pass->stem[g] = take_source(pass, size, size, 1);
    pass->cell = calloc(net->cells, sizeof(Cell));
    int H = size;
    for (int c = 0; c < net->cells; c++) {
        Cell *cell = &pass->cell[c];
        const CellSpec *spec = cell->spec = &net->cell[c];
        int out = spec->reduces ? (H + 1) / 2 : H;
        cell->source = calloc(net->nodes + 2, sizeof(Source));
        for (int s = 0; s < net->nodes + 2; s++)
            cell->source[s] = take_source(pass, s < 2 ? H : out, s < 2 ? H : out, s < 2);
        cell->row = calloc(spec->rows, sizeof(Row));
        for (int e = 0; e < spec->rows; e++) {
            Row *row = &cell->row[e];
            row->spec = &spec->row[e];
            row->run = run[spec->type][e];
            if (!row->run) continue;
            Source *source = &cell->source[row->spec->source];
            row->stride = spec->reduces && row->spec->source < 2 ? 2 : 1;
            row->H = row->W = out;
            row->norm = take_norm(pass);
            long floats = (long)batch * out * out * CP;
            int kind = row->spec->kind;
            if (kind == SKIP) {
                if (!source->skipped) source->skip = take_norm(pass);
                source->skipped = 1;
                row->y = source->x;
                row->norm.mean = source->skip.mean;
                row->norm.inverse = source->skip.inverse;
            } else if (kind == MAX_POOL || kind == MEAN_POOL) {
                if (!source->pooled[kind]) {
                    source->pools[kind] = take_norm(pass);
                    source->pool[kind] = take(pass, floats);
                    if (kind == MAX_POOL) source->place = (unsigned char *)take(pass, floats / 4);
                }
                source->pooled[kind] = 1;
                row->y = source->pool[kind];
                row->norm.mean = source->pools[kind].mean;
                row->norm.inverse = source->pools[kind].inverse;
            } else {
                source->rectified = 1;
                row->y = take(pass, floats);
                if (kind == FACTORIZED) row->mid = take(pass, (long)batch * source->H * out * CP);
                if (kind == SEPARABLE && row->spec->rounds == 2) {
                    row->inner = take_norm(pass);
                    row->mid = take(pass, floats);
                }
            }
        }
        H = out;
    }
    for (int t = 0; t < MAX_THREADS; t++)
        pass->scratch[t] = take(pass, (groups > 8 ? groups + 1 : 9) * pass->scratch_floats + rings_floats(pass));
}

static void let_go(Pass *pass) {
    for (int c = 0; c < pass->net->cells; c++) {
        free(pass->cell[c].source);
        free(pass->cell[c].row);
    }
    free(pass->cell);
    free(pass->stem);
}

/* Bytes of workspace that a batch needs. */
long metanas_workspace(const Net *net, int batch, const unsigned char *const *run) {
    Pass pass;
    lay_out(&pass, net, batch, run, NULL);
    let_go(&pass);
    return pass.offset * (long)sizeof(float);
}

static void work(void *context, int slot, int thread) {
    Pass *pass = context;
    for (int i = pass->batch * slot / SLOTS; i < pass->batch * (slot + 1) / SLOTS; i++)
        pass->stage(pass, i, slot, pass->scratch[thread]);
    end_streams();
}

static void run_stage(Pass *pass, Stage stage) {
    pass->stage = stage;
    team_run(&pass->team, work, pass);
}

/* Entries of the table of sums. */
static int of_row(int e) { return 2 * e; }
static int of_inner(int e) { return 2 * e + 1; }
static int of_source(const Pass *pass, int s) { return 2 * pass->net->max_rows + s; }
static int of_pool(const Pass *pass, int s, int kind) {
    return 2 * pass->net->max_rows + pass->net->nodes + 2 + 2 * s + kind;
}
static int of_stem(const Pass *pass, int g) { return 2 * pass->net->max_rows + 3 * (pass->net->nodes + 2) + g; }

static double *sums(const Pass *pass, int slot, int entry) { return pass->sums[slot] + 2L * entry * pass->net->CP; }

static void clear_sums(Pass *pass) {
    for (int s = 0; s < SLOTS; s++) memset(pass->sums[s], 0, 2 * pass->entries * pass->net->CP * sizeof(double));
}

static double total(const Pass *pass, int entry, int which, int c) {
    double sum = 0;
    for (int s = 0; s < SLOTS; s++) sum += sums(pass, s, entry)[which * pass->net->CP + c];
    return sum;
}

/* keep: where y is streamed to; NULL: nowhere. */
static void moments(Pass *pass, int slot, int entry, const float *y, float *keep, long pixels) {
    double *to = sums(pass, slot, entry);
    add_moments(to, to + pass->net->CP, y, keep, pixels, pass->net->CP);
}

/* Sums of g * (y - mean); mean may be NULL: 0. */
static void products(Pass *pass, int slot, int entry, const float *g, const float *y, const float *mean, long pixels) {
    add_products(sums(pass, slot, entry) + pass->net->CP, g, y, mean, pixels, pass->net->CP);
}

static void gradient_sums(Pass *pass, int slot, int entry, const float *g, long pixels) {
    add_sums(sums(pass, slot, entry), g, pixels, pass->net->CP);
}

static void set_norm(Pass *pass, Norm *norm, int entry, long pixels) {
    double count = (double)pass->batch * pixels;
    for (int c = 0; c < pass->net->CP; c++) {
        double mean = total(pass, entry, 0, c) / count, variance = total(pass, entry, 1, c) / count - mean * mean;
        norm->mean[c] = (float)mean;
        norm->inverse[c] = (float)(1.0 / sqrt((variance < 0 ? 0 : variance) + EPSILON));
    }
}

static float *image_of(float *tensor, int image, int H, int W, int CP) { return tensor + (long)image * H * W * CP; }

/* Pixel (y, x) of an image with a border. */
static float *pixel(float *image, int W, int border, int CP, int y, int x) {
    return image + ((long)(y + border) * (W + 2 * border) + x + border) * CP;
}

static void clear_border(float *image, int H, int W, int border, int CP) {
    long row = (long)(W + 2 * border) * CP, side = (long)border * CP;
    memset(image, 0, border * row * sizeof(float));
    memset(image + (border + H) * row, 0, border * row * sizeof(float));
    for (int y = 0; y < H; y++) {
        float *line = image + (border + y) * row;
        memset(line, 0, side * sizeof(float));
        memset(line + row - side, 0, side * sizeof(float));
    }
}

/* to = relu(scale * from + shift), inside a border of zeros. */
static void rectify(float *to, const float *from, const float *scale, const float *shift, int H, int W, int border,
                    int CP) {
    clear_border(to, H, W, border, CP);
    for (int y = 0; y < H; y++)
        rectify_row(pixel(to, W, border, CP, y, 0), from + (long)y * W * CP, scale, shift, W, CP);
}

/* What the convolutions read of an image of a source: rectified, inside a border of zeros. */
static void rectify_source(const Pass *pass, const Source *source, int image, float *to) {
    int H = source->H, W = source->W, CP = pass->net->CP;
    rectify(to, image_of(source->x, image, H, W, CP), source->normed ? source->norm.P : NULL, source->norm.R, H, W,
            pass->net->pad, CP);
}

/* g = extra + mask(r) * d, lines `from` to `to`; r and d have a border; extra may be NULL, or be g: both from the first
 * of these lines on. */
static void masked(float *g, const float *extra, float *r, float *d, int from, int to, int W, int border, int CP) {
    for (int y = from; y < to; y++) {
        long line = (long)(y - from) * W * CP;
        mask_row(g + line, extra ? extra + line : NULL, pixel(r, W, border, CP, y, 0), pixel(d, W, border, CP, y, 0),
                 (long)W * CP);
    }
}

static const float *matrices(const Pass *pass, int pack) { return pass->packed + pass->net->pack[pack].at; }
static const float *transposed(const Pass *pass, int pack) { return pass->transposed + pass->net->pack[pack].back; }
static float *gradient(const Pass *pass, int slot, int pack) {
    return pass->gradients[slot] + pass->net->pack[pack].at;
}

static int pack_runs(const Param *params, const Pack *pack) { return params[pack->param].data != NULL; }

static void pack_all(Pass *pass, const Param *params, int backward) {
    const Net *net = pass->net;
    for (int i = 0; i < net->packs; i++) {
        const Pack *pack = &net->pack[i];
        const Param *param = &params[pack->param];
        if (!pack_runs(params, pack)) continue;
        float *to = backward ? pass->transposed + pack->back : pass->packed + pack->at;
        long floats = backward ? transposed_floats(pack, net->CP) : (long)pack->taps * pack->K * net->CP;
        memset(to, 0, floats * sizeof(float));
        for (int t = 0; t < pack->taps; t++)
            for (int c = 0; c < pack->cols; c++)
                for (int k = 0; k < pack->K; k++) {
                    float value = param->data[param_index(pack, param, t, k, c)];
                    if (!backward)
                        to[packed_index(pack, net->CP, t, k, pack->col0 + c)] = value;
                    else if (pack->K == 1) /* depthwise: the taps the other way round */
                        to[(long)(pack->taps - 1 - t) * net->CP + c] = value;
                    else
                        to[(long)t * pack->cols * net->CP + (long)(k / PAIR) * PAIR * pack->cols + (long)c * PAIR +
                           k % PAIR] = value;
                }
    }
}

static void clear_gradients(Pass *pass, const Param *params) {
    const Net *net = pass->net;
    for (int i = 0; i < net->packs; i++) {
        const Pack *pack = &net->pack[i];
        for (int s = 0; s < SLOTS && pack_runs(params, pack); s++)
            memset(pass->gradients[s] + pack->at, 0, (long)pack->taps * pack->K * net->CP * sizeof(float));
    }
}

static void unpack_gradients(Pass *pass, const Param *params) {
    const Net *net = pass->net;
    for (int i = 0; i < net->packs; i++) {
        const Pack *pack = &net->pack[i];
        const Param *param = &params[pack->param];
        if (!pack_runs(params, pack) || param->grad == NULL) continue;
        for (int t = 0; t < pack->taps; t++)
            for (int c = 0; c < pack->cols; c++)
                for (int k = 0; k < pack->K; k++) {
                    long from = pack->at + packed_index(pack, net->CP, t, k, pack->col0 + c);
                    float sum = 0;
                    for (int s = 0; s < SLOTS; s++) sum += pass->gradients[s][from];
                    param->grad[param_index(pack, param, t, k, c)] = sum;
                }
    }
}

/* The tensors that input j of a cell reads: the stem's or an earlier cell's nodes. */
static Source *level(const Pass *pass, int cell, int j, int *groups) {
    int before = cell - 2 + j;
    *groups = before < 0 ? pass->net->groups : pass->net->nodes;
    return before < 0 ? pass->stem : pass->cell[before].source + 2;
}

#include "forward.h"

#include "backward.h"

static void begin(Pass *pass, const Param *params, const float *const *weights, int backward, int threads) {
    /* The caller gives no values for what the output does not depend on. */
    for (int c = 0; c < pass->net->cells; c++)
        for (int j = 0; j < 2; j++) {
            Cell *cell = &pass->cell[c];
            cell->read[j] = pack_runs(params, &pass->net->pack[cell->spec->inputs[j][0]]);
            cell->used |= cell->read[j];
        }
    for (int c = 0; c < pass->net->cells; c++)
        for (int e = 0; e < pass->net->cell[c].rows; e++)
            pass->cell[c].row[e].weight = weights[pass->net->cell[c].type][e];
    pack_all(pass, params, backward);
    team_begin(&pass->team, threads);
}

/* images: (batch, in_channels, size, size) with the given strides, in floats. features: (batch, nodes * channels). */
void metanas_forward(const Net *net, int batch, int threads, const float *images, const long *strides,
                     const Param *params, const float *const *weights, const unsigned char *const *run,
                     float *features, float *workspace) {
    Pass pass;
    lay_out(&pass, net, batch, run, workspace);
    pass.features = features;
    begin(&pass, params, weights, 0, threads);
    forward(&pass, images, strides, params);
    team_end(&pass.team);
    let_go(&pass);
}

/* After metanas_forward with the same arguments; fills the gradients of params and of weights. */
void metanas_backward(const Net *net, int batch, int threads, const Param *params, const float *const *weights,
                      const unsigned char *const *run, const float *dfeatures, float *const *dweights,
                      float *workspace) {
    Pass pass;
    lay_out(&pass, net, batch, run, workspace);
    begin(&pass, params, weights, 1, threads);
    backward(&pass, dfeatures, params, dweights);
    team_end(&pass.team);
    unpack_gradients(&pass, params);
    let_go(&pass);
}
