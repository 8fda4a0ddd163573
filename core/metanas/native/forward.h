/* The forward pass: stages and their order. Part of engine.c. */

/* The depthwise part of a separable convolution: image with a border -> (H, W, CP). */
static void depthwise_image(const Row *row, float *out, float *in, int in_W, int border, int stride, const float *w,
                            int CP) {
    int kernel = row->spec->kernel, d = row->spec->dilation, half = kernel / 2;
    for (int y = 0; y < row->H; y++) {
        const float *rows[5];
        for (int k = 0; k < kernel; k++) rows[k] = pixel(in, in_W, border, CP, y * stride + (k - half) * d, -half * d);
        depthwise_row(kernel, out + (long)y * row->W * CP, CP, row->W, rows, (long)d * CP, (long)stride * CP, w, CP, 0);
    }
}

static void forward_factorized(Pass *pass, Row *row, Source *source, int image, float *r) {
    int CP = pass->net->CP, C = pass->net->C, s = row->stride, H = source->H;
    long line = (long)row->W * CP;
    float *mid = row->mid + image * H * line, *y = row->y + image * row->H * line;
    const float *across = matrices(pass, row->spec->packs[0]), *down = matrices(pass, row->spec->packs[1]);
    Tap taps[5];
    for (int v = 0; v < H; v++) {
        for (int t = 0; t < 5; t++)
            taps[t] = (Tap){pixel(r, source->W, pass->net->pad, CP, v, t - 2), across + (long)t * C * CP};
        product(mid + v * line, CP, row->W, taps, 5, (long)s * CP, C, CP, 0);
    }
    for (int v = 0; v < row->H; v++) {
        int n = 0;
        for (int t = 0; t < 5; t++) {
            int from = v * s + t - 2;
            if (from >= 0 && from < H) taps[n++] = (Tap){mid + from * line, down + (long)t * C * CP};
        }
        product(y + v * line, CP, row->W, taps, n, CP, C, CP, 0);
    }
}

static void forward_halving(Pass *pass, float *out, int H, int W, Source *sources, int groups, int image,
                            const int packs[2]) {
    const Net *net = pass->net;
    int CP = net->CP, W_in = sources[0].W;
    Tap taps[MAX_TAPS];
    for (int y = 0; y < H; y++) {
        for (int g = 0; g < groups; g++) {
            float *r = sources[g].r + image * padded_floats(net, sources[g].H, W_in);
            long matrix = (long)g * net->C * CP;
            taps[2 * g] = (Tap){pixel(r, W_in, net->pad, CP, 2 * y, 0), matrices(pass, packs[0]) + matrix};
            taps[2 * g + 1] = (Tap){pixel(r, W_in, net->pad, CP, 2 * y + 1, 1), matrices(pass, packs[1]) + matrix};
        }
        product(out + (long)y * W * CP, CP, W, taps, 2 * groups, 2L * CP, net->C, CP, 0);
    }
}

/* All that reads one source: pooling and the first round of every operation that leaves it. */
static void run_source(Pass *pass, int s, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    Cell *cell = &pass->cell[pass->at];
    Source *source = &cell->source[s];
    int CP = net->CP, H = source->H, W = source->W;
    float *x = image_of(source->x, image, H, W, CP), *r = source->r + image * padded_floats(net, H, W);
    int stride = cell->spec->reduces && s < 2 ? 2 : 1;
    for (int kind = MAX_POOL; kind <= MEAN_POOL; kind++) {
        if (!source->pooled[kind]) continue;
        int h = pooled_size(H, stride), w = pooled_size(W, stride);
        float *y = image_of(source->pool[kind], image, h, w, CP);
        if (kind == MAX_POOL)
            max_pool(y, image_of(source->place, image, h, w, CP), x, H, W, stride, CP);
        else
            mean_pool(y, x, H, W, stride, CP);
        moments(pass, slot, of_pool(pass, s, kind), y, (long)h * w);
    }
    for (int e = 0; e < cell->spec->rows; e++) {
        Row *row = &cell->row[e];
        if (!row->run || row->spec->source != s) continue;
        long pixels = (long)row->H * row->W;
        const int *packs = row->spec->packs;
        float *y = row->y + image * pixels * CP;
        int entry = of_row(e);
        switch (row->spec->kind) {
        case FACTORIZED:
            forward_factorized(pass, row, source, image, r);
            break;
        case HALVING:
            forward_halving(pass, y, row->H, row->W, source, 1, image, packs);
            break;
        case SEPARABLE:
            if (row->spec->rounds == 2) {
                y = row->mid + image * pixels * CP;
                entry = of_inner(e);
            }
            depthwise_image(row, scratch, r, W, net->pad, stride, matrices(pass, packs[0]), CP);
            product(y, CP, (int)pixels, &(Tap){scratch, matrices(pass, packs[1])}, 1, CP, net->C, CP, 0);
            break;
        default: /* of pooling and skip nothing is left to do */
            continue;
        }
        moments(pass, slot, entry, y, pixels);
    }
}

static void stage_stem(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    int size = net->size, CP = net->CP, n = net->in_channels;
    (void)scratch;
    float *in = pass->images + (long)image * (size + 2) * (size + 2) * n;
    Tap taps[9];
    for (int g = 0; g < net->groups; g++) {
        float *y = image_of(pass->stem[g].x, image, size, size, CP);
        for (int v = 0; v < size; v++) {
            for (int t = 0; t < 9; t++)
                taps[t] = (Tap){in + ((long)(v + t / 3) * (size + 2) + t % 3) * n, matrices(pass, g) + (long)t * n * CP};
            product(y + (long)v * size * CP, CP, size, taps, 9, n, n, CP, 0);
        }
        moments(pass, slot, of_stem(pass, g), y, (long)size * size);
    }
}

static void stage_stem_norm(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    int size = net->size;
    (void)slot, (void)scratch;
    for (int g = 0; g < net->groups; g++) {
        Source *source = &pass->stem[g];
        rectify(source->r + image * padded_floats(net, size, size), image_of(source->x, image, size, size, net->CP),
                source->norm.P, source->norm.R, size, size, net->pad, net->CP);
    }
}

/* Both inputs of a cell brought to C channels. */
static void stage_project(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    const CellSpec *spec = pass->cell[pass->at].spec;
    int CP = net->CP;
    (void)scratch;
    for (int j = 0; j < 2; j++) {
        if (!pass->cell[pass->at].read[j]) continue;
        int groups;
        Source *from = level(pass, pass->at, j, &groups), *source = &pass->cell[pass->at].source[j];
        int H = source->H, W = source->W;
        float *x = image_of(source->x, image, H, W, CP);
        if (spec->halves[j]) {
            forward_halving(pass, x, H, W, from, groups, image, spec->inputs[j]);
        } else {
            Tap taps[MAX_TAPS];
            for (int y = 0; y < H; y++) {
                for (int g = 0; g < groups; g++)
                    taps[g] = (Tap){pixel(from[g].r + image * padded_floats(net, H, W), W, net->pad, CP, y, 0),
                                    matrices(pass, spec->inputs[j][0]) + (long)g * net->C * CP};
                product(x + (long)y * W * CP, CP, W, taps, groups, CP, net->C, CP, 0);
            }
        }
        moments(pass, slot, of_source(pass, j), x, (long)H * W);
    }
}

static void stage_inputs(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    for (int j = 0; j < 2; j++) {
        if (!pass->cell[pass->at].read[j]) continue;
        Source *source = &pass->cell[pass->at].source[j];
        int H = source->H, W = source->W;
        float *x = image_of(source->x, image, H, W, net->CP);
        scale_shift(x, x, source->norm.P, source->norm.R, (long)H * W, net->CP, 0);
        if (source->rectified)
            rectify(source->r + image * padded_floats(net, H, W), x, NULL, NULL, H, W, net->pad, net->CP);
        run_source(pass, j, image, slot, scratch);
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
        float *y = row->y + image * pixels * net->CP, *out = scratch + pass->scratch_floats;
        float *in = between_rounds(pass, row, image, scratch);
        depthwise_image(row, out, in, row->W, row->spec->kernel / 2, 1, matrices(pass, row->spec->packs[2]), net->CP);
        product(y, net->CP, (int)pixels, &(Tap){out, matrices(pass, row->spec->packs[3])}, 1, net->CP, net->C, net->CP,
                0);
        moments(pass, slot, of_row(e), y, pixels);
    }
}

/* Sum up one node, then run all that reads it. */
static void stage_node(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    Cell *cell = &pass->cell[pass->at];
    Source *source = &cell->source[pass->to];
    int CP = net->CP, H = source->H, W = source->W, node = pass->to - 2;
    long pixels = (long)H * W, block = 64;
    float *x = image_of(source->x, image, H, W, CP);
    for (long from = 0; from < pixels; from += block) {
        long some = pixels - from < block ? pixels - from : block;
        int add = 0;
        for (int e = 0; e < cell->spec->rows; e++) {
            Row *row = &cell->row[e];
            if (!row->run || row->spec->node != node) continue;
            scale_shift(x + from * CP, row->y + (image * pixels + from) * CP, row->norm.P, row->norm.R, some, CP, add);
            add = 1;
        }
    }
    rectify(source->r + image * padded_floats(net, H, W), x, NULL, NULL, H, W, net->pad, CP);
    if (source->skipped) moments(pass, slot, of_source(pass, pass->to), x, pixels);
    run_source(pass, pass->to, image, slot, scratch);
    if (pass->at == net->cells - 1)
        for (int c = 0; c < net->C; c++) {
            double sum = 0;
            for (long p = 0; p < pixels; p++) sum += x[p * CP + c];
            pass->features[((long)image * net->nodes + node) * net->C + c] = (float)(sum / pixels);
        }
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
                /* The input is a batch norm's output: its mean is 0, its variance v / (v + epsilon). */
                double inverse = source->norm.inverse[c], kept = 1.0 - EPSILON * inverse * inverse;
                source->skip.mean[c] = 0;
                source->skip.inverse[c] = (float)(1.0 / sqrt((kept < 0 ? 0 : kept) + EPSILON));
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
    run_stage(pass, stage_stem_norm);
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
