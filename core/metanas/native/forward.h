/* The forward pass: stages and their order. Part of engine.c. */

/* The depthwise part of a separable convolution, lines `from` to `to`: image with a border -> (lines, W, CP). */
static void depthwise_lines(const Row *row, float *out, float *in, int in_W, int border, int stride, const float *w,
                            int CP, int from, int to) {
    int kernel = row->spec->kernel, d = row->spec->dilation, half = kernel / 2;
    for (int y = from; y < to; y++) {
        const float *rows[5];
        for (int k = 0; k < kernel; k++) rows[k] = pixel(in, in_W, border, CP, y * stride + (k - half) * d, -half * d);
        depthwise_row(kernel, out + (long)(y - from) * row->W * CP, CP, row->W, rows, (long)d * CP, (long)stride * CP, w,
                      CP, 0);
    }
}

/* The 1x5 part of lines `from` to `to` of the source. */
static void factorized_across(Pass *pass, Row *row, Source *source, int image, float *r, const Ring *mid, int from,
                              int to) {
    int CP = pass->net->CP, C = pass->net->C;
    long line = (long)row->W * CP;
    const float *w = matrices(pass, row->spec->packs[0]);
    Tap taps[5];
    for (int v = from; v < to; v++) {
        float *out = ring_line(mid, CP, v, source->H);
        for (int t = 0; t < 5; t++)
            taps[t] = (Tap){pixel(r, source->W, pass->net->pad, CP, v, t - 2), w + (long)t * C * CP};
        product(out, CP, row->W, taps, 5, (long)row->stride * CP, C, CP, 0);
        stream_copy(row->mid + ((long)image * source->H + v) * line, out, line);
    }
}

/* The 5x1 part: lines `from` to `to` of the output. */
static void factorized_down(Pass *pass, Row *row, int H, const Ring *mid, float *out, int from, int to) {
    int CP = pass->net->CP, C = pass->net->C;
    long line = (long)row->W * CP;
    const float *w = matrices(pass, row->spec->packs[1]);
    Tap taps[5];
    for (int v = from; v < to; v++) {
        int n = 0;
        for (int t = 0; t < 5; t++) {
            int at = v * row->stride + t - 2;
            if (at >= 0 && at < H) taps[n++] = (Tap){ring_line(mid, CP, at, H), w + (long)t * C * CP};
        }
        product(out + (v - from) * line, CP, row->W, taps, n, CP, C, CP, 0);
    }
}

/* Lines `from` to `to`. r: the rectified images of the groups, `room` floats apart. */
static void forward_halving(Pass *pass, float *out, int W, float *r, long room, int groups, int W_in,
                            const int packs[2], int from, int to) {
    const Net *net = pass->net;
    int CP = net->CP;
    Tap taps[MAX_TAPS];
    for (int y = from; y < to; y++) {
        for (int g = 0; g < groups; g++) {
            long matrix = (long)g * net->C * CP;
            taps[2 * g] = (Tap){pixel(r + g * room, W_in, net->pad, CP, 2 * y, 0), matrices(pass, packs[0]) + matrix};
            taps[2 * g + 1] =
                (Tap){pixel(r + g * room, W_in, net->pad, CP, 2 * y + 1, 1), matrices(pass, packs[1]) + matrix};
        }
        product(out + (long)(y - from) * W * CP, CP, W, taps, 2 * groups, 2L * CP, net->C, CP, 0);
    }
}

/* A band of a row's (first) convolution. mid: what is between the two parts of a factorized one, of which `done` lines
 * are there; out: room for an image. */
static void run_band(Pass *pass, Row *row, Source *source, int image, float *r, const Ring *mid, int *done, float *out,
                     float *y, int from, int to) {
    const Net *net = pass->net;
    const int *packs = row->spec->packs;
    if (row->spec->kind == FACTORIZED) {
        int ready = (to - 1) * row->stride + 3;
        if (ready > source->H) ready = source->H;
        factorized_across(pass, row, source, image, r, mid, *done, ready);
        *done = ready;
        factorized_down(pass, row, source->H, mid, y, from, to);
    } else if (row->spec->kind == HALVING) {
        forward_halving(pass, y, row->W, r, 0, 1, source->W, packs, from, to);
    } else {
        depthwise_lines(row, out, r, source->W, net->pad, row->stride, matrices(pass, packs[0]), net->CP, from, to);
        product(y, net->CP, (to - from) * row->W, &(Tap){out, matrices(pass, packs[1])}, 1, net->CP, net->C, net->CP, 0);
    }
}

/* All that reads one source: pooling and the first round of every operation that leaves it, a band of lines at a time.
 * x: its image, after the norm; r: that, rectified; scratch: room for two images and the rings. */
static void run_source(Pass *pass, int s, int image, int slot, float *x, float *r, float *scratch) {
    const Net *net = pass->net;
    Cell *cell = &pass->cell[pass->at];
    Source *source = &cell->source[s];
    int CP = net->CP, H = source->H, W = source->W;
    int stride = cell->spec->reduces && s < 2 ? 2 : 1, h = pooled_size(H, stride), w = pooled_size(W, stride);
    float *y = scratch, *out = y + pass->scratch_floats, *spare = out + pass->scratch_floats;
    Ring mid[net->max_rows];
    int done[net->max_rows];
    for (int e = 0; e < cell->spec->rows; e++) {
        Row *row = &cell->row[e];
        if (!has_ring(row, s) || row->spec->kind != FACTORIZED) continue;
        mid[e] = factorized_ring(row, source, spare);
        spare += ring_floats(&mid[e], CP);
        done[e] = 0;
    }
    for (int from = 0, to; from < h; from = to) {
        to = end_of(from, w, h);
        long first = ((long)image * h + from) * w * CP, pixels = (long)(to - from) * w;
        for (int kind = MAX_POOL; kind <= MEAN_POOL; kind++) {
            if (!source->pooled[kind]) continue;
            if (kind == MAX_POOL)
                max_pool(y, source->place + first, x, H, W, stride, CP, from, to);
            else
                mean_pool(y, x, H, W, stride, CP, from, to);
            moments(pass, slot, of_pool(pass, s, kind), y, source->pool[kind] + first, pixels);
        }
        for (int e = 0; e < cell->spec->rows; e++) {
            Row *row = &cell->row[e];
            int kind = row->spec->kind, two = row->spec->rounds == 2;
            if (!row->run || row->spec->source != s) continue;
            if (kind != FACTORIZED && kind != HALVING && kind != SEPARABLE) continue; /* nothing is left to do */
            run_band(pass, row, source, image, r, &mid[e], &done[e], out, y, from, to);
            moments(pass, slot, two ? of_inner(e) : of_row(e), y, (two ? row->mid : row->y) + first, pixels);
        }
    }
}

static void stage_stem(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    int size = net->size, CP = net->CP, n = net->in_channels;
    float *in = pass->images + (long)image * (size + 2) * (size + 2) * n;
    long line = (long)size * CP;
    Tap taps[9];
    for (int g = 0; g < net->groups; g++) {
        for (int v = 0; v < size; v++) {
            for (int t = 0; t < 9; t++)
                taps[t] = (Tap){in + ((long)(v + t / 3) * (size + 2) + t % 3) * n, matrices(pass, g) + (long)t * n * CP};
            product(scratch + v * line, CP, size, taps, 9, n, n, CP, 0);
        }
        moments(pass, slot, of_stem(pass, g), scratch, image_of(pass->stem[g].x, image, size, size, CP),
                (long)size * size);
    }
}

/* A cell's input brought to C channels, a few pixels at a time. */
static void project(Pass *pass, int j, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    Source *to = &pass->cell[pass->at].source[j];
    int groups, CP = net->CP;
    Source *from = level(pass, pass->at, j, &groups);
    const float *w = matrices(pass, pass->cell[pass->at].spec->inputs[j][0]);
    long first = (long)image * to->H * to->W, pixels = (long)to->H * to->W, room = (long)STRIP * CP;
    float *y = scratch + groups * room;
    Tap taps[MAX_TAPS];
    for (long at = 0; at < pixels; at += STRIP) {
        long some = pixels - at < STRIP ? pixels - at : STRIP;
        for (int g = 0; g < groups; g++) {
            taps[g] = (Tap){scratch + g * room, w + (long)g * net->C * CP};
            rectify_row(scratch + g * room, from[g].x + (first + at) * CP, from[g].normed ? from[g].norm.P : NULL,
                        from[g].norm.R, some, CP);
        }
        product(y, CP, (int)some, taps, groups, CP, net->C, CP, 0);
        moments(pass, slot, of_source(pass, j), y, to->x + (first + at) * CP, some);
    }
}

/* The same, and half as high and wide. */
static void project_halving(Pass *pass, int j, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    const CellSpec *spec = pass->cell[pass->at].spec;
    Source *to = &pass->cell[pass->at].source[j];
    int groups;
    Source *from = level(pass, pass->at, j, &groups);
    long room = pass->scratch_floats;
    for (int g = 0; g < groups; g++) rectify_source(pass, &from[g], image, scratch + (1 + g) * room);
    forward_halving(pass, scratch, to->W, scratch + room, room, groups, from[0].W, spec->inputs[j], 0, to->H);
    moments(pass, slot, of_source(pass, j), scratch, image_of(to->x, image, to->H, to->W, net->CP),
            (long)to->H * to->W);
}

static void stage_project(Pass *pass, int image, int slot, float *scratch) {
    const Cell *cell = &pass->cell[pass->at];
    for (int j = 0; j < 2; j++)
        if (cell->read[j]) (cell->spec->halves[j] ? project_halving : project)(pass, j, image, slot, scratch);
}

static void stage_inputs(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    float *x = scratch, *r = x + pass->scratch_floats;
    for (int j = 0; j < 2; j++) {
        if (!pass->cell[pass->at].read[j]) continue;
        Source *source = &pass->cell[pass->at].source[j];
        if (source->pooled[MAX_POOL] || source->pooled[MEAN_POOL]) {
            Term normed = {image_of(source->x, image, source->H, source->W, net->CP), source->norm.P, source->norm.R};
            add_terms(x, &normed, 1, (long)source->H * source->W, net->CP, 0);
        }
        if (source->rectified) rectify_source(pass, source, image, r);
        run_source(pass, j, image, slot, x, r, r + pass->scratch_floats);
    }
}

/* relu(batch norm) of the first round, inside a border of zeros. */
static float *between_rounds(Pass *pass, const Row *row, int image, float *to) {
    int CP = pass->net->CP;
    rectify(to, image_of(row->mid, image, row->H, row->W, CP), row->inner.P, row->inner.R, row->H, row->W,
            row->spec->kernel / 2, CP);
    return to;
}

static int is_second_round(const Pass *pass, const Row *row) {
    return row->run && row->spec->kind == SEPARABLE && row->spec->rounds == 2 && row->spec->source >= pass->from &&
           row->spec->source <= pass->to;
}

static void stage_second_round(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    Cell *cell = &pass->cell[pass->at];
    for (int e = 0; e < cell->spec->rows; e++) {
        Row *row = &cell->row[e];
        if (!is_second_round(pass, row)) continue;
        long pixels = (long)row->H * row->W;
        float *out = scratch + pass->scratch_floats, *y = out + pass->scratch_floats;
        float *in = between_rounds(pass, row, image, scratch);
        for (int from = 0, to; from < row->H; from = to) {
            to = end_of(from, row->W, row->H);
            int some = (to - from) * row->W;
            depthwise_lines(row, out, in, row->W, row->spec->kernel / 2, 1, matrices(pass, row->spec->packs[2]), net->CP,
                            from, to);
            product(y, net->CP, some, &(Tap){out, matrices(pass, row->spec->packs[3])}, 1, net->CP, net->C, net->CP, 0);
            moments(pass, slot, of_row(e), y, row->y + (image * pixels + from * row->W) * net->CP, some);
        }
    }
}

/* x = the sum of a node's rows, for some of its pixels. */
static void sum_rows(const Pass *pass, int node, float *x, long from, long pixels) {
    const Cell *cell = &pass->cell[pass->at];
    Term terms[4];
    int n = 0, add = 0;
    for (int e = 0; e < cell->spec->rows; e++) {
        const Row *row = &cell->row[e];
        if (!row->run || row->spec->node != node) continue;
        terms[n++] = (Term){row->y + from * pass->net->CP, row->norm.P, row->norm.R};
        if (n < 4) continue;
        add_terms(x, terms, n, pixels, pass->net->CP, add);
        n = 0;
        add = 1;
    }
    if (n > 0) add_terms(x, terms, n, pixels, pass->net->CP, add);
}

/* Sum up one node, then run all that reads it. */
static void stage_node(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    Source *source = &pass->cell[pass->at].source[pass->to];
    int CP = net->CP, H = source->H, W = source->W, node = pass->to - 2;
    long pixels = (long)H * W, first = image * pixels;
    float *x = scratch, *r = x + pass->scratch_floats;
    for (long from = 0, some; from < pixels; from += some) {
        some = block_of(from, pixels);
        float *part = x + from * CP, *keep = source->x + (first + from) * CP;
        sum_rows(pass, node, part, first + from, some);
        if (source->skipped)
            moments(pass, slot, of_source(pass, pass->to), part, keep, some);
        else
            stream_copy(keep, part, some * CP);
    }
    if (source->rectified) rectify(r, x, NULL, NULL, H, W, net->pad, CP);
    run_source(pass, pass->to, image, slot, x, r, r + pass->scratch_floats);
    if (pass->at < net->cells - 1) return;
    double mean[CP];
    memset(mean, 0, sizeof mean);
    add_sums(mean, x, pixels, CP);
    for (int c = 0; c < net->C; c++)
        pass->features[((long)image * net->nodes + node) * net->C + c] = (float)(mean[c] / pixels);
}

/* scale and shift of a batch norm, weighted. */
static void set_scale(Norm *norm, float weight, const float *scale, const float *shift, int C, int CP) {
    for (int c = 0; c < CP; c++) {
        float by = scale ? (c < C ? scale[c] : 0.0f) : 1.0f;
        norm->P[c] = weight * by * norm->inverse[c];
        norm->R[c] = (shift && c < C ? shift[c] : 0.0f) - norm->P[c] * norm->mean[c];
    }
}

/* Statistics of all that was run from sources `from` to `to`, and the second rounds. */
static void finish_sources(Pass *pass, int from, int to) {
    const Net *net = pass->net;
    Cell *cell = &pass->cell[pass->at];
    int second = 0;
    pass->from = from;
    pass->to = to;
    for (int s = from; s <= to; s++) {
        Source *source = &cell->source[s];
        for (int kind = MAX_POOL; kind <= MEAN_POOL; kind++) {
            int stride = cell->spec->reduces && s < 2 ? 2 : 1, h = pooled_size(source->H, stride);
            if (source->pooled[kind]) set_norm(pass, &source->pools[kind], of_pool(pass, s, kind), (long)h * h);
        }
        if (source->skipped && s >= 2)
            set_norm(pass, &source->skip, of_source(pass, s), (long)source->H * source->W);
        else if (source->skipped)
            for (int c = 0; c < net->CP; c++) {
                /* A norm of a norm's output: its mean is 0, its variance v / (v + epsilon). Both in one, of x. */
                double inverse = source->norm.inverse[c], kept = 1.0 - EPSILON * inverse * inverse;
                source->skip.mean[c] = source->norm.mean[c];
                source->skip.inverse[c] = (float)(inverse / sqrt((kept < 0 ? 0 : kept) + EPSILON));
            }
    }
    for (int e = 0; e < cell->spec->rows; e++) {
        Row *row = &cell->row[e];
        int kind = row->spec->kind;
        if (!row->run || row->spec->source < from || row->spec->source > to) continue;
        if (is_second_round(pass, row)) {
            set_norm(pass, &row->inner, of_inner(e), (long)row->H * row->W);
            set_scale(&row->inner, 1.0f, NULL, NULL, net->C, net->CP);
            second = 1;
        } else if (kind == FACTORIZED || kind == SEPARABLE || kind == HALVING) {
            set_norm(pass, &row->norm, of_row(e), (long)row->H * row->W);
        }
    }
    if (second) run_stage(pass, stage_second_round);
    for (int e = 0; e < cell->spec->rows; e++) {
        Row *row = &cell->row[e];
        if (!row->run || row->spec->source < from || row->spec->source > to) continue;
        if (is_second_round(pass, row)) set_norm(pass, &row->norm, of_row(e), (long)row->H * row->W);
        set_scale(&row->norm, row->weight, NULL, NULL, net->C, net->CP);
    }
}

static void copy_images(Pass *pass, const float *images, const long *strides) {
    const Net *net = pass->net;
    int size = net->size, n = net->in_channels;
    memset(pass->images, 0, (long)pass->batch * (size + 2) * (size + 2) * n * sizeof(float));
    for (int i = 0; i < pass->batch; i++)
        for (int y = 0; y < size; y++)
            for (int x = 0; x < size; x++)
                for (int c = 0; c < n; c++)
                    pass->images[(((long)i * (size + 2) + y + 1) * (size + 2) + x + 1) * n + c] =
                        images[i * strides[0] + c * strides[1] + y * strides[2] + x * strides[3]];
}

static void forward(Pass *pass, const float *images, const long *strides, const Param *params) {
    const Net *net = pass->net;
    copy_images(pass, images, strides);
    clear_sums(pass);
    run_stage(pass, stage_stem);
    for (int g = 0; g < net->groups; g++) {
        Norm *norm = &pass->stem[g].norm;
        set_norm(pass, norm, of_stem(pass, g), (long)net->size * net->size);
        set_scale(norm, 1.0f, params[net->stem + 1].data + g * net->C, params[net->stem + 2].data + g * net->C, net->C,
                  net->CP);
    }
    for (int c = 0; c < net->cells; c++) {
        pass->at = c;
        Cell *cell = &pass->cell[c];
        if (!cell->used) continue;
        clear_sums(pass);
        run_stage(pass, stage_project);
        for (int j = 0; j < 2; j++) {
            if (!cell->read[j]) continue;
            Source *source = &cell->source[j];
            set_norm(pass, &source->norm, of_source(pass, j), (long)source->H * source->W);
            set_scale(&source->norm, 1.0f, NULL, NULL, net->C, net->CP);
        }
        run_stage(pass, stage_inputs);
        finish_sources(pass, 0, 1);
        for (int s = 2; s < net->nodes + 2; s++) {
            pass->to = s;
            run_stage(pass, stage_node);
            finish_sources(pass, s, s);
        }
    }
}
