/* What a network is made of, as the engine reads it: cells, rows, and how each convolution's weights are packed. */
#ifndef METANAS_DESCRIPTION_H
#define METANAS_DESCRIPTION_H

#include <stdlib.h>

#include "kernels.h"

enum { MAX_POOL, MEAN_POOL, SKIP, FACTORIZED, SEPARABLE, HALVING };

/* A parameter of the network in the memory of its owner. */
typedef struct {
    const float *data;
    float *grad; /* NULL: not wanted */
    long strides[4];
} Param;

/* How a convolution's weights are packed into matrices: (taps, K, CP), `cols` output channels from `col0` on. */
typedef struct {
    int param, taps, K, cols, col0, first_out, group, width;
    long at, back; /* into the packed floats; back: of the transposed matrices, (taps, cols, CP) */
} Pack;

typedef struct {
    int node, source, kind, kernel, rounds, dilation;
    int packs[4];
} RowSpec;

typedef struct {
    int reduces, halves[2], type, rows;
    int inputs[2][2]; /* packs of the projections; a halving one has two */
    RowSpec *row;
} CellSpec;

typedef struct {
    int C, CP, in_channels, size, groups, nodes, cells, pad, stem, packs, max_rows;
    CellSpec *cell;
    Pack *pack;
    long packed, transposed; /* floats */
} Net;

/* Those of a depthwise kernel are the same taps the other way round. */
static long transposed_floats(const Pack *pack, int CP) {
    return (long)pack->taps * (pack->K == 1 ? 1 : pack->cols) * CP;
}

static int add_pack(Net *net, Pack pack) {
    pack.at = net->packed;
    pack.back = net->transposed;
    net->packed += (long)pack.taps * pack.K * net->CP;
    net->transposed += transposed_floats(&pack, net->CP);
    net->pack = realloc(net->pack, (net->packs + 1) * sizeof(Pack));
    net->pack[net->packs] = pack;
    return net->packs++;
}

static int pack_spatial(Net *net, int param, int taps, int width) {
    return add_pack(net, (Pack){.param = param, .taps = taps, .K = net->C, .cols = net->C, .width = width});
}

/* A 1x1 convolution over the channels of several groups; `half` 1, 2: the first or second half of the outputs. */
static int pack_groups(Net *net, int param, int groups, int half) {
    int even = net->C / 2, cols = half == 0 ? net->C : half == 1 ? even : net->C - even;
    return add_pack(net, (Pack){.param = param, .taps = groups, .K = net->C, .cols = cols,
                                .col0 = half == 2 ? even : 0, .group = net->C, .width = 1});
}

static int pack_depthwise(Net *net, int param, int kernel) {
    return add_pack(net, (Pack){.param = param, .taps = kernel * kernel, .K = 1, .cols = net->C, .width = kernel});
}

void metanas_destroy(Net *net) {
    if (net == NULL) return;
    for (int c = 0; c < net->cells; c++) free(net->cell[c].row);
    free(net->cell);
    free(net->pack);
    free(net);
}

/* spec: channels, image channels, image size, groups of the stem, nodes, cells, border, first parameter of the stem;
 * for each cell: reduces, halves the first input, its parameter, parameter of the second input, type, rows;
 * for each row: node, source, kind, kernel, rounds, dilation, first parameter. */
Net *metanas_create(const int *spec) {
    Net *net = calloc(1, sizeof(Net));
    net->C = spec[0];
    net->CP = (spec[0] + PAIR - 1) / PAIR * PAIR;
    net->in_channels = spec[1];
    net->size = spec[2];
    net->groups = spec[3];
    net->nodes = spec[4];
    net->cells = spec[5];
    net->pad = spec[6];
    net->stem = spec[7];
    net->cell = calloc(net->cells, sizeof(CellSpec));
    for (int g = 0; g < net->groups; g++)
        add_pack(net, (Pack){.param = net->stem, .taps = 9, .K = net->in_channels, .cols = net->C,
                             .first_out = g * net->C, .width = 3});
    spec += 8;
    for (int c = 0; c < net->cells; c++) {
        CellSpec *cell = &net->cell[c];
        cell->reduces = spec[0];
        cell->halves[0] = spec[1];
        cell->type = spec[4];
        cell->rows = spec[5];
        for (int j = 0; j < 2; j++) {
            int level = c - 1 + j, groups = level > 0 ? net->nodes : net->groups;
            if (cell->halves[j]) {
                cell->inputs[j][0] = pack_groups(net, spec[2 + j], groups, 1);
                cell->inputs[j][1] = pack_groups(net, spec[2 + j] + 1, groups, 2);
            } else {
                cell->inputs[j][0] = pack_groups(net, spec[2 + j], groups, 0);
            }
        }
        spec += 6;
        cell->row = calloc(cell->rows, sizeof(RowSpec));
        if (cell->rows > net->max_rows) net->max_rows = cell->rows;
        for (int e = 0; e < cell->rows; e++, spec += 7) {
            RowSpec *row = &cell->row[e];
            *row = (RowSpec){spec[0], spec[1], spec[2], spec[3], spec[4], spec[5], {0}};
            int param = spec[6];
            if (row->kind == FACTORIZED) {
                row->packs[0] = pack_spatial(net, param, 5, 5);
                row->packs[1] = pack_spatial(net, param + 1, 5, 1);
            } else if (row->kind == SEPARABLE) {
                /* All depthwise parameters come before the pointwise ones. */
                for (int round = 0; round < row->rounds; round++) {
                    row->packs[2 * round] = pack_depthwise(net, param + round, row->kernel);
                    row->packs[2 * round + 1] = pack_spatial(net, param + row->rounds + round, 1, 1);
                }
            } else if (row->kind == HALVING) {
                row->packs[0] = pack_groups(net, param, 1, 1);
                row->packs[1] = pack_groups(net, param + 1, 1, 2);
            }
        }
    }
    return net;
}

static long packed_index(const Pack *pack, int CP, int t, int k, int column) {
    return (long)t * pack->K * CP + (long)(column / PAIR) * PAIR * pack->K + (long)k * PAIR + column % PAIR;
}

static long param_index(const Pack *pack, const Param *param, int t, int k, int c) {
    long in = (long)pack->group * t + k, at = (long)(pack->first_out + c) * param->strides[0] + in * param->strides[1];
    return pack->group ? at : at + t / pack->width * param->strides[2] + t % pack->width * param->strides[3];
}

#endif
