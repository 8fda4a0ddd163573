/* The backward pass: stages and their order. Part of engine.c. */

/* P, Q and R of a batch norm from the sums of g and of g * (y - mean) over `count` values. */
static void set_backward(Norm *norm, int c, double scale, double g, double gy, double count) {
    double inverse = norm->inverse[c], slope = -scale * inverse * inverse * inverse * gy / count;
    norm->P[c] = (float)(scale * inverse);
    norm->Q[c] = (float)slope;
    norm->R[c] = (float)(-scale * inverse * g / count - slope * norm->mean[c]);
}

static int leaves(const Pass *pass, const Row *row) {
    return row->run && row->spec->source >= pass->from && row->spec->source <= pass->to;
}

static float *node_gradient(const Pass *pass, const Row *row, int image) {
    Source *node = &pass->cell[pass->at].source[row->spec->node + 2];
    return image_of(node->g, image, node->H, node->W, pass->net->CP);
}

static void stage_row_sums(Pass *pass, int image, int slot, float *scratch) {
    Cell *cell = &pass->cell[pass->at];
    (void)scratch;
    for (int e = 0; e < cell->spec->rows; e++) {
        Row *row = &cell->row[e];
        if (!leaves(pass, row)) continue;
        long pixels = (long)row->H * row->W;
        products(pass, slot, of_row(e), node_gradient(pass, row, image), row->y + image * pixels * pass->net->CP,
                 row->norm.mean, pixels);
    }
}

/* The gradient of the raw output of a row, lines `from` to `to`. */
static void output_gradient(const Pass *pass, const Row *row, int image, float *out, int add, int from, int to) {
    long line = (long)row->W * pass->net->CP, first = from * line;
    combine(out, node_gradient(pass, row, image) + first, row->y + image * row->H * line + first, row->norm.P,
            row->norm.Q, row->norm.R, (long)(to - from) * row->W, pass->net->CP, add);
}

/* Back through a pointwise convolution, lines `from` to `to`: its weights, and the gradient of its input inside a border.
 * in, d: from the first of these lines on. */
static void backward_pointwise(Pass *pass, const Row *row, int slot, int pack, const float *in, const float *d,
                               float *din, int border, int from, int to) {
    int CP = pass->net->CP, C = pass->net->C;
    outer(gradient(pass, slot, pack), &in, 1, 0, CP, d, 0, CP, 1, (to - from) * row->W, C, CP);
    for (int y = from; y < to; y++)
        product(pixel(din, row->W, border, CP, y, 0), CP, row->W,
                &(Tap){d + (long)(y - from) * row->W * CP, transposed(pass, pack)}, 1, CP, C, CP, 0);
}

/* Back through a depthwise convolution to its weights, lines `from` to `to`. d has a border, as `in` has. */
static void depthwise_weights(Pass *pass, const Row *row, int slot, int pack, float *in, int in_W, int in_border,
                              int stride, float *d, int border, int from, int to) {
    int CP = pass->net->CP, kernel = row->spec->kernel, far = row->spec->dilation, half = kernel / 2;
    for (int y = from; y < to; y++) {
        const float *rows[5];
        for (int k = 0; k < kernel; k++)
            rows[k] = pixel(in, in_W, in_border, CP, y * stride + (k - half) * far, -half * far);
        depthwise_outer_row(kernel, gradient(pass, slot, pack), pixel(d, row->W, border, CP, y, 0), CP, row->W, rows,
                            (long)far * CP, (long)stride * CP, CP);
    }
}

/* The same to its input: din, with a border, is added to. */
static void depthwise_input(Pass *pass, const Row *row, int pack, float *din, int in_H, int in_W, int in_border,
                            int stride, float *d, int border) {
    int CP = pass->net->CP, kernel = row->spec->kernel, far = row->spec->dilation, half = kernel / 2;
    for (int y = 0; y < row->H && stride > 1; y++) {
        float *to[5];
        for (int k = 0; k < kernel; k++)
            to[k] = pixel(din, in_W, in_border, CP, y * stride + (k - half) * far, -half * far);
        depthwise_scatter_row(kernel, pixel(d, row->W, border, CP, y, 0), CP, row->W, to, (long)far * CP,
                              (long)stride * CP, matrices(pass, pack), CP);
    }
    for (int y = 0; y < in_H && stride == 1; y++) {
        const float *rows[5];
        for (int k = 0; k < kernel; k++) rows[k] = pixel(d, row->W, border, CP, y + (k - half) * far, -half * far);
        depthwise_row(kernel, pixel(din, in_W, in_border, CP, y, 0), CP, in_W, rows, (long)far * CP, CP,
                      transposed(pass, pack), CP, 1);
    }
}

static void stage_second_round_back(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    Cell *cell = &pass->cell[pass->at];
    int CP = net->CP;
    float *d = scratch, *in = d + pass->scratch_floats, *out = in + pass->scratch_floats;
    float *dout = out + pass->scratch_floats, *din = dout + pass->scratch_floats;
    for (int e = 0; e < cell->spec->rows; e++) {
        Row *row = &cell->row[e];
        if (!is_second_round(pass, row)) continue;
        int border = row->spec->kernel / 2;
        long pixels = (long)row->H * row->W;
        const int *packs = row->spec->packs;
        between_rounds(pass, row, image, in);
        clear_border(dout, row->H, row->W, border, CP);
        for (int from = 0, to; from < row->H; from = to) {
            to = end_of(from, row->W, row->H);
            output_gradient(pass, row, image, d, 0, from, to);
            depthwise_lines(row, out, in, row->W, border, 1, matrices(pass, packs[2]), CP, from, to);
            backward_pointwise(pass, row, slot, packs[3], out, d, dout, border, from, to);
            depthwise_weights(pass, row, slot, packs[2], in, row->W, border, 1, dout, border, from, to);
        }
        memset(din, 0, (long)(row->H + 2 * border) * (row->W + 2 * border) * CP * sizeof(float));
        depthwise_input(pass, row, packs[2], din, row->H, row->W, border, 1, dout, border);
        masked(d, NULL, in, din, row->H, row->W, border, CP);
        gradient_sums(pass, slot, of_inner(e), d, pixels);
        products(pass, slot, of_inner(e), d, row->mid + image * pixels * CP, row->inner.mean, pixels);
        /* What the row was is known by now: its place holds the gradient of the first norm's output. */
        stream_copy(row->y + image * pixels * CP, d, pixels * CP);
    }
}

/* The weights of the 5x1 convolution, by lines `from` to `to` of d. */
static void factorized_down_weights(Pass *pass, const Row *row, int H, const float *mid, const float *d, int slot,
                                    int from, int to) {
    int CP = pass->net->CP, C = pass->net->C, s = row->stride, w = row->W;
    long line = (long)w * CP;
    for (int t = 0; t < 5; t++) {
        int first = t < 2 ? (2 - t + s - 1) / s : 0, last = (H - 1 + 2 - t) / s;
        if (first < from) first = from;
        if (last >= to) last = to - 1;
        if (last < first) continue;
        const float *in = mid + (first * s + t - 2) * line;
        float *sum = gradient(pass, slot, row->spec->packs[1]) + (long)t * C * CP;
        if (s == 1)
            outer(sum, &in, 1, 0, CP, d + first * line, 0, CP, 1, (last - first + 1) * w, C, CP);
        else
            outer(sum, &in, 1, s * line, CP, d + first * line, line, CP, last - first + 1, w, C, CP);
    }
}

/* Back through the 5x1 and then the 1x5 convolution, lines `from` to `to` of what lies between them. */
static void factorized_lines_back(Pass *pass, const Row *row, const Source *source, int slot, float *r, float *dr,
                                  const float *d, float *dmid, int from, int to) {
    const Net *net = pass->net;
    int CP = net->CP, C = net->C, s = row->stride, W = source->W, h = row->H, w = row->W;
    long line = (long)w * CP, matrix = (long)C * CP;
    const int *packs = row->spec->packs;
    Tap taps[5];
    if (to <= from) return;
    for (int v = from; v < to; v++) {
        int n = 0;
        for (int t = 0; t < 5; t++) {
            int at = v + 2 - t;
            if (at >= 0 && at % s == 0 && at / s < h)
                taps[n++] = (Tap){d + at / s * line, transposed(pass, packs[1]) + t * matrix};
        }
        product(pixel(dmid, w, 2, CP, v, 0), CP, w, taps, n, CP, C, CP, 0);
    }
    const float *in[5];
    for (int t = 0; t < 5; t++) in[t] = pixel(r, W, net->pad, CP, from, t - 2);
    outer(gradient(pass, slot, packs[0]), in, 5, (long)(W + 2 * net->pad) * CP, (long)s * CP,
          pixel(dmid, w, 2, CP, from, 0), (long)(w + 4) * CP, CP, to - from, w, C, CP);
    for (int v = from; v < to; v++)
        for (int phase = 0; phase < s; phase++) {
            int n = 0;
            for (int t = 0; t < 5; t++)
                if ((phase + 2 - t) % s == 0)
                    taps[n++] = (Tap){pixel(dmid, w, 2, CP, v, (phase + 2 - t) / s), transposed(pass, packs[0]) + t * matrix};
            product(pixel(dr, W, net->pad, CP, v, phase), (long)s * CP, (W - phase + s - 1) / s, taps, n, CP, C, CP, 1);
        }
}

static void backward_factorized(Pass *pass, const Row *row, const Source *source, int image, int slot, float *r,
                                float *dr, float *d, float *dmid) {
    int CP = pass->net->CP, H = source->H;
    long line = (long)row->W * CP;
    clear_border(dmid, H, row->W, 2, CP);
    for (int from = 0, to, done = 0; from < row->H; from = to) {
        to = end_of(from, row->W, row->H);
        output_gradient(pass, row, image, d + from * line, 0, from, to);
        factorized_down_weights(pass, row, H, row->mid + image * H * line, d, slot, from, to);
        int ready = to == row->H ? H : to * row->stride - 2; /* what needs no later line of d */
        factorized_lines_back(pass, row, source, slot, r, dr, d, dmid, done, ready);
        if (ready > done) done = ready;
    }
}

/* dr, with the border of r, is added to. */
static void backward_halving(Pass *pass, const float *d, int h, int w, float *r, float *dr, int W, int group, int slot,
                             const int packs[2]) {
    const Net *net = pass->net;
    int CP = net->CP, C = net->C, pad = net->pad;
    long row = (long)(W + 2 * pad) * CP;
    for (int half = 0; half < 2; half++) {
        const Pack *pack = &net->pack[packs[half]];
        const float *in = pixel(r, W, pad, CP, half, half);
        outer(gradient(pass, slot, packs[half]) + (long)group * C * CP, &in, 1, 2 * row, 2L * CP, d, (long)w * CP, CP, h,
              w, C, CP);
        for (int y = 0; y < h; y++)
            product(pixel(dr, W, pad, CP, 2 * y + half, half), 2L * CP, w,
                    &(Tap){d + (long)y * w * CP + pack->col0,
                           transposed(pass, packs[half]) + (long)group * pack->cols * CP},
                    1, CP, pack->cols, CP, 1);
    }
}

/* The first round; of two, row->y holds the gradient of the first norm's output by now. */
static void backward_separable(Pass *pass, const Row *row, int image, int slot, float *r, float *dr,
                               const Source *source, float *d, float *out, float *dout) {
    int CP = pass->net->CP, pad = pass->net->pad, border = row->spec->kernel / 2 * row->spec->dilation;
    const int *packs = row->spec->packs;
    clear_border(dout, row->H, row->W, border, CP);
    for (int from = 0, to; from < row->H; from = to) {
        to = end_of(from, row->W, row->H);
        long first = ((long)image * row->H + from) * row->W * CP;
        if (row->spec->rounds == 2)
            combine(d, row->y + first, row->mid + first, row->inner.P, row->inner.Q, row->inner.R,
                    (long)(to - from) * row->W, CP, 0);
        else
            output_gradient(pass, row, image, d, 0, from, to);
        depthwise_lines(row, out, r, source->W, pad, row->stride, matrices(pass, packs[0]), CP, from, to);
        backward_pointwise(pass, row, slot, packs[1], out, d, dout, border, from, to);
        depthwise_weights(pass, row, slot, packs[0], r, source->W, pad, row->stride, dout, border, from, to);
    }
    depthwise_input(pass, row, packs[0], dr, source->H, source->W, pad, row->stride, dout, border);
}

/* All that reads sources `from` to `to`, back to their gradients. */
static void stage_sources_back(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    Cell *cell = &pass->cell[pass->at];
    int CP = net->CP;
    long room = pass->scratch_floats;
    float *dr = scratch, *dx = dr + room, *d = dx + room, *out = d + room, *dout = out + room, *r = dout + room;
    float *dpool[2] = {r + room, r + 2 * room};
    for (int s = pass->from; s <= pass->to; s++) {
        if (s < 2 && !cell->read[s]) continue;
        Source *source = &cell->source[s];
        int H = source->H, W = source->W, stride = cell->spec->reduces && s < 2 ? 2 : 1;
        int h = pooled_size(H, stride), w = pooled_size(W, stride);
        long pixels = (long)H * W;
        float *x = image_of(source->x, image, H, W, CP), *g = image_of(source->g, image, H, W, CP);
        memset(dx, 0, pixels * CP * sizeof(float));
        if (source->rectified) {
            rectify_source(pass, source, image, r);
            memset(dr, 0, padded_floats(net, H, W) * sizeof(float));
        }
        for (int kind = MAX_POOL; kind <= MEAN_POOL; kind++)
            if (source->pooled[kind]) memset(dpool[kind], 0, (long)h * w * CP * sizeof(float));
        for (int e = 0; e < cell->spec->rows; e++) {
            Row *row = &cell->row[e];
            if (!row->run || row->spec->source != s) continue;
            const int *packs = row->spec->packs;
            switch (row->spec->kind) {
            case MAX_POOL:
            case MEAN_POOL:
                output_gradient(pass, row, image, dpool[row->spec->kind], 1, 0, row->H);
                break;
            case SKIP:
                output_gradient(pass, row, image, dx, 1, 0, row->H);
                break;
            case HALVING:
                output_gradient(pass, row, image, d, 0, 0, row->H);
                backward_halving(pass, d, row->H, row->W, r, dr, W, 0, slot, packs);
                break;
            case FACTORIZED:
                backward_factorized(pass, row, source, image, slot, r, dr, d, dout);
                break;
            case SEPARABLE:
                backward_separable(pass, row, image, slot, r, dr, source, d, out, dout);
                break;
            }
        }
        if (source->pooled[MAX_POOL])
            max_pool_transposed(dx, dpool[MAX_POOL], source->place + (long)image * h * w * CP, H, W, stride, CP);
        if (source->pooled[MEAN_POOL]) mean_pool_transposed(dx, dpool[MEAN_POOL], H, W, stride, CP);
        if (source->rectified) masked(dx, dx, r, dr, H, W, net->pad, CP);
        if (s < 2) {
            products(pass, slot, of_source(pass, s), dx, x, source->norm.mean, pixels);
        } else {
            for (long i = 0; i < pixels * CP; i += VL) store(dx + i, load(dx + i) + load(g + i));
        }
        gradient_sums(pass, slot, of_source(pass, s), dx, pixels);
        stream_copy(g, dx, pixels * CP);
    }
}

/* Back through the projections of one level, by all inputs of the cell that read it: one, or in the first cell both. */
static void project_back(Pass *pass, Source *to, int groups, const int *inputs, int n, int image, int slot,
                         float *scratch) {
    const Net *net = pass->net;
    const Cell *cell = &pass->cell[pass->at];
    int CP = net->CP, C = net->C;
    long pixels = (long)to[0].H * to[0].W, first = image * pixels, room = (long)STRIP * CP;
    float *r = scratch, *dr = r + room, *d = dr + room;
    for (long at = 0; at < pixels; at += STRIP) {
        int some = (int)(pixels - at < STRIP ? pixels - at : STRIP);
        for (int i = 0; i < n; i++) {
            const Source *source = &cell->source[inputs[i]];
            combine(d + i * room, source->g + (first + at) * CP, source->x + (first + at) * CP, source->norm.P,
                    source->norm.Q, source->norm.R, some, CP, 0);
        }
        for (int g = 0; g < groups; g++) {
            float *total = to[g].g + (first + at) * CP;
            rectify_row(r, to[g].x + (first + at) * CP, to[g].normed ? to[g].norm.P : NULL, to[g].norm.R, some, CP);
            Tap taps[2];
            for (int i = 0; i < n; i++) {
                int pack = cell->spec->inputs[inputs[i]][0];
                outer(gradient(pass, slot, pack) + (long)g * C * CP, &(const float *){r}, 1, 0, CP, d + i * room, 0, CP, 1,
                      some, C, CP);
                taps[i] = (Tap){d + i * room, transposed(pass, pack) + (long)g * C * CP};
            }
            product(dr, CP, some, taps, n, CP, C, CP, 0);
            mask_row(dr, to[g].has_gradient ? total : NULL, r, dr, (long)some * CP);
            stream_copy(total, dr, (long)some * CP);
        }
    }
}

/* The same through a projection that halves. */
static void project_halving_back(Pass *pass, Source *to, int groups, int j, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    const Cell *cell = &pass->cell[pass->at];
    const Source *source = &cell->source[j];
    int CP = net->CP, H = to[0].H, W = to[0].W;
    float *r = scratch, *dr = r + pass->scratch_floats, *d = dr + pass->scratch_floats;
    combine(d, image_of(source->g, image, source->H, source->W, CP),
            image_of(source->x, image, source->H, source->W, CP), source->norm.P, source->norm.Q, source->norm.R,
            (long)source->H * source->W, CP, 0);
    for (int g = 0; g < groups; g++) {
        float *total = image_of(to[g].g, image, H, W, CP);
        rectify_source(pass, &to[g], image, r);
        memset(dr, 0, padded_floats(net, H, W) * sizeof(float));
        backward_halving(pass, d, source->H, source->W, r, dr, W, g, slot, cell->spec->inputs[j]);
        masked(total, to[g].has_gradient ? total : NULL, r, dr, H, W, net->pad, CP);
    }
}

static void stage_project_back(Pass *pass, int image, int slot, float *scratch) {
    const Cell *cell = &pass->cell[pass->at];
    int groups[2];
    Source *to[2] = {level(pass, pass->at, 0, &groups[0]), level(pass, pass->at, 1, &groups[1])};
    if (cell->read[0] && cell->read[1] && to[0] == to[1])
        project_back(pass, to[0], groups[0], (int[]){0, 1}, 2, image, slot, scratch);
    else
        for (int j = 0; j < 2; j++)
            if (cell->read[j] && cell->spec->halves[j])
                project_halving_back(pass, to[j], groups[j], j, image, slot, scratch);
            else if (cell->read[j])
                project_back(pass, to[j], groups[j], &j, 1, image, slot, scratch);
}

/* What the projections of this cell read has a gradient now. */
static void mark_levels(Pass *pass) {
    for (int j = 0; j < 2; j++) {
        int groups;
        Source *to = level(pass, pass->at, j, &groups);
        for (int g = 0; g < groups && pass->cell[pass->at].read[j]; g++) to[g].has_gradient = 1;
    }
}

static void stage_stem_sums(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    int size = net->size;
    (void)scratch;
    for (int g = 0; g < net->groups; g++) {
        Source *source = &pass->stem[g];
        gradient_sums(pass, slot, of_stem(pass, g), image_of(source->g, image, size, size, net->CP), (long)size * size);
        products(pass, slot, of_stem(pass, g), image_of(source->g, image, size, size, net->CP),
                 image_of(source->x, image, size, size, net->CP), source->norm.mean, (long)size * size);
    }
}

static void stage_stem_back(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    int size = net->size, n = net->in_channels, CP = net->CP;
    const float *in[9];
    for (int t = 0; t < 9; t++)
        in[t] = pass->images + (((long)image * (size + 2) + t / 3) * (size + 2) + t % 3) * n;
    for (int g = 0; g < net->groups; g++) {
        Source *source = &pass->stem[g];
        combine(scratch, image_of(source->g, image, size, size, CP), image_of(source->x, image, size, size, CP),
                source->norm.P, source->norm.Q, source->norm.R, (long)size * size, CP, 0);
        outer(gradient(pass, slot, g), in, 9, (long)(size + 2) * n, n, scratch, (long)size * CP, CP, size, size, n, CP);
    }
}

static void backward_sources(Pass *pass, int from, int to, float *dweights) {
    const Net *net = pass->net;
    Cell *cell = &pass->cell[pass->at];
    int some = 0, second = 0;
    pass->from = from;
    pass->to = to;
    for (int e = 0; e < cell->spec->rows; e++) some |= leaves(pass, &cell->row[e]);
    if (some) run_stage(pass, stage_row_sums);
    for (int e = 0; e < cell->spec->rows; e++) {
        Row *row = &cell->row[e];
        if (!leaves(pass, row)) continue;
        second |= is_second_round(pass, row);
        double count = (double)pass->batch * row->H * row->W, slope = 0;
        for (int c = 0; c < net->CP; c++) {
            double gy = total(pass, of_row(e), 1, c);
            if (c < net->C) slope += gy * row->norm.inverse[c];
            /* Of a skip's norm of a norm only the outer one is undone here. */
            const Source *source = &cell->source[row->spec->source];
            int twice = row->spec->kind == SKIP && source->normed;
            double scale = twice ? row->weight / source->norm.inverse[c] : row->weight;
            set_backward(&row->norm, c, scale, cell->source[row->spec->node + 2].sum[c], gy, count);
        }
        dweights[e] += (float)slope;
    }
    if (second) run_stage(pass, stage_second_round_back);
    for (int e = 0; e < cell->spec->rows; e++) {
        Row *row = &cell->row[e];
        if (!is_second_round(pass, row)) continue;
        double count = (double)pass->batch * row->H * row->W;
        for (int c = 0; c < net->CP; c++)
            set_backward(&row->inner, c, 1.0, total(pass, of_inner(e), 0, c), total(pass, of_inner(e), 1, c), count);
    }
    run_stage(pass, stage_sources_back);
    for (int s = from; s <= to; s++) {
        if (s < 2 && !cell->read[s]) continue;
        Source *source = &cell->source[s];
        double count = (double)pass->batch * source->H * source->W;
        for (int c = 0; c < net->CP; c++) {
            double g = total(pass, of_source(pass, s), 0, c);
            source->sum[c] = g;
            if (s >= 2) continue;
            set_backward(&source->norm, c, 1.0, g, total(pass, of_source(pass, s), 1, c), count);
        }
    }
}

static void backward(Pass *pass, const float *dfeatures, const Param *params, float *const *dweights) {
    const Net *net = pass->net;
    int CP = net->CP;
    clear_gradients(pass, params);
    for (int n = 0; n < net->nodes; n++) {
        Source *node = &pass->cell[net->cells - 1].source[n + 2];
        long pixels = (long)node->H * node->W;
        node->has_gradient = 1;
        for (int i = 0; i < pass->batch; i++)
            for (long p = 0; p < pixels; p++)
                for (int k = 0; k < CP; k++)
                    node->g[(i * pixels + p) * CP + k] =
                        k < net->C ? dfeatures[((long)i * net->nodes + n) * net->C + k] / (float)pixels : 0.0f;
    }
    for (int c = net->cells - 1; c >= 0; c--) {
        if (!pass->cell[c].used) continue;
        pass->at = c;
        clear_sums(pass);
        float *slopes = dweights[net->cell[c].type];
        for (int s = net->nodes + 1; s >= 2; s--) backward_sources(pass, s, s, slopes);
        backward_sources(pass, 0, 1, slopes);
        run_stage(pass, stage_project_back);
        mark_levels(pass);
    }
    clear_sums(pass);
    run_stage(pass, stage_stem_sums);
    for (int g = 0; g < net->groups; g++) {
        const Param *scale = &params[net->stem + 1], *shift = &params[net->stem + 2];
        double count = (double)pass->batch * net->size * net->size;
        Norm *norm = &pass->stem[g].norm;
        for (int c = 0; c < CP; c++) {
            double sum = total(pass, of_stem(pass, g), 0, c), gy = total(pass, of_stem(pass, g), 1, c);
            int at = g * net->C + c;
            set_backward(norm, c, c < net->C ? scale->data[at] : 0.0, sum, gy, count);
            if (c < net->C && scale->grad) scale->grad[at] = (float)(gy * norm->inverse[c]);
            if (c < net->C && shift->grad) shift->grad[at] = (float)sum;
        }
    }
    run_stage(pass, stage_stem_back);
}
