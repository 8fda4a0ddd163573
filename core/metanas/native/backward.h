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

/* A band of lines at a time, for rows share what they read: gradients of nodes, raw outputs of poolings. */
static void stage_row_sums(Pass *pass, int image, int slot, float *scratch) {
    Cell *cell = &pass->cell[pass->at];
    int size = cell->source[2].H, CP = pass->net->CP; /* of all that rows give */
    (void)scratch;
    for (int from = 0, to; from < size; from = to) {
        to = end_of(from, size, size);
        long first = (long)from * size * CP, whole = (long)size * size * CP;
        for (int e = 0; e < cell->spec->rows; e++) {
            Row *row = &cell->row[e];
            if (!leaves(pass, row)) continue;
            products(pass, slot, of_row(e), node_gradient(pass, row, image) + first, row->y + image * whole + first,
                     row->norm.mean, (long)(to - from) * size);
        }
    }
}

/* The gradient of the raw output of a row, lines `from` to `to`. */
static void output_gradient(const Pass *pass, const Row *row, int image, float *out, int from, int to) {
    long line = (long)row->W * pass->net->CP, first = from * line;
    combine(out, node_gradient(pass, row, image) + first, row->y + image * row->H * line + first, row->norm.P,
            row->norm.Q, row->norm.R, (long)(to - from) * row->W, pass->net->CP);
}

/* out = the gradient of what all rows of a kind without weights, of one source, read; lines `from` to `to`. They
 * have one raw output, so it is read once. False: there is no such row. */
static int weightless_gradient(const Pass *pass, int s, int kind, int image, float *out, int from, int to) {
    const Cell *cell = &pass->cell[pass->at];
    const Row *last = NULL;
    int CP = pass->net->CP, size = cell->source[2].H, n = 0, add = 0;
    long first = (long)from * size * CP, pixels = (long)(to - from) * size;
    float slopes[CP], none[CP];
    Term terms[4];
    memset(slopes, 0, sizeof slopes);
    memset(none, 0, sizeof none);
    for (int e = 0; e < cell->spec->rows; e++) {
        const Row *row = &cell->row[e];
        if (!row->run || row->spec->source != s || row->spec->kind != kind) continue;
        last = row;
        for (int c = 0; c < CP; c++) slopes[c] += row->norm.Q[c];
        terms[n++] = (Term){node_gradient(pass, row, image) + first, row->norm.P, row->norm.R};
        if (n < 4) continue;
        add_terms(out + first, terms, n, pixels, CP, add);
        n = 0;
        add = 1;
    }
    if (last == NULL) return 0;
    terms[n++] = (Term){last->y + (long)image * size * size * CP + first, slopes, none};
    add_terms(out + first, terms, n, pixels, CP, add);
    return 1;
}

/* Back through a round of a separable convolution, lines `from` to `to` of its output: to its weights, and into a ring
 * the gradient between depthwise and pointwise. in: with a border; out: what came between, d: the gradient of the
 * output, both from the first of these lines on. */
static void separable_weights(Pass *pass, const Row *row, int slot, const int *packs, float *in, int in_W, int in_border,
                              int stride, const float *out, const float *d, const Ring *ring, int from, int to) {
    int CP = pass->net->CP, C = pass->net->C, kernel = row->spec->kernel, far = row->spec->dilation, half = kernel / 2;
    outer(gradient(pass, slot, packs[1]), &out, 1, 0, CP, d, 0, CP, 1, (to - from) * row->W, C, CP);
    for (int y = from; y < to; y++) {
        float *between = ring_line(ring, CP, y, row->H);
        const float *rows[5];
        product(between, CP, row->W, &(Tap){d + (long)(y - from) * row->W * CP, transposed(pass, packs[1])}, 1, CP, C, CP,
                0);
        for (int k = 0; k < kernel; k++)
            rows[k] = pixel(in, in_W, in_border, CP, y * stride + (k - half) * far, -half * far);
        depthwise_outer_row(kernel, gradient(pass, slot, packs[0]), between, CP, row->W, rows, (long)far * CP,
                            (long)stride * CP, CP);
    }
}

/* Line y of the gradient of a depthwise convolution's input, from the ring; stride 1. */
static void depthwise_input(Pass *pass, const Row *row, int pack, float *din, const Ring *ring, int y, int add) {
    int CP = pass->net->CP, kernel = row->spec->kernel, far = row->spec->dilation, half = kernel / 2;
    const float *rows[5];
    for (int k = 0; k < kernel; k++) rows[k] = ring_line(ring, CP, y + (k - half) * far, row->H) - (long)half * far * CP;
    depthwise_row(kernel, din, CP, row->W, rows, (long)far * CP, CP, transposed(pass, pack), CP, add);
}

/* The lines whose gradient is known once lines up to `to` of what they are read by is there. */
static int ready_lines(const Row *row, int to) {
    return to == row->H ? row->H : to - row->spec->kernel / 2 * row->spec->dilation;
}

static void stage_second_round_back(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    Cell *cell = &pass->cell[pass->at];
    int CP = net->CP;
    float *d = scratch, *in = d + pass->scratch_floats, *out = in + pass->scratch_floats;
    float *din = out + pass->scratch_floats, *spare = din + pass->scratch_floats;
    for (int e = 0; e < cell->spec->rows; e++) {
        Row *row = &cell->row[e];
        if (!is_second_round(pass, row)) continue;
        int border = row->spec->kernel / 2, W = row->W, done = 0;
        const int *packs = row->spec->packs + 2;
        Ring ring = gradient_ring(row, spare);
        clear_ring(&ring, CP);
        between_rounds(pass, row, image, in);
        for (int from = 0, to; from < row->H; from = to) {
            to = end_of(from, W, row->H);
            output_gradient(pass, row, image, d, from, to);
            depthwise_lines(row, out, in, W, border, 1, matrices(pass, packs[0]), CP, from, to);
            separable_weights(pass, row, slot, packs, in, W, border, 1, out, d, &ring, from, to);
            int ready = ready_lines(row, to), some = (ready - done) * W;
            long at = ((long)image * row->H + done) * W * CP;
            if (some <= 0) continue;
            for (int y = done; y < ready; y++) {
                float *line = din + (long)(y - done) * W * CP;
                depthwise_input(pass, row, packs[0], line, &ring, y, 0);
                mask_row(line, NULL, pixel(in, W, border, CP, y, 0), line, (long)W * CP);
            }
            gradient_sums(pass, slot, of_inner(e), din, some);
            products(pass, slot, of_inner(e), din, row->mid + at, row->inner.mean, some);
            /* What these lines of the row were is known by now: their place holds the gradient of the first norm's output. */
            stream_copy(row->y + at, din, (long)some * CP);
            done = ready;
        }
    }
}

/* The weights of the 5x1 convolution, by lines `from` to `to` of the output. d: from the first of them on. */
static void factorized_down_weights(Pass *pass, const Row *row, int H, const float *mid, const float *d, int slot,
                                    int from, int to) {
    int CP = pass->net->CP, C = pass->net->C, s = row->stride, w = row->W;
    long line = (long)w * CP;
    for (int t = 0; t < 5; t++) {
        int first = t < 2 ? (2 - t + s - 1) / s : 0, last = (H - 1 + 2 - t) / s;
        if (H + 1 < t) continue; /* so few lines that none is read through this tap; the division would round up to 0 */
        if (first < from) first = from;
        if (last >= to) last = to - 1;
        if (last < first) continue;
        const float *in = mid + (first * s + t - 2) * line, *by = d + (first - from) * line;
        float *sum = gradient(pass, slot, row->spec->packs[1]) + (long)t * C * CP;
        if (s == 1)
            outer(sum, &in, 1, 0, CP, by, 0, CP, 1, (last - first + 1) * w, C, CP);
        else
            outer(sum, &in, 1, s * line, CP, by, line, CP, last - first + 1, w, C, CP);
    }
}

/* Back through the 5x1 and then the 1x5 convolution, lines `from` to `to` of what lies between them. dmid: room for
 * them, inside a border of zeros. */
static void factorized_lines_back(Pass *pass, const Row *row, const Source *source, int slot, float *r, float *dr,
                                  const Ring *d, float *dmid, int from, int to) {
    const Net *net = pass->net;
    int CP = net->CP, C = net->C, s = row->stride, W = source->W, h = row->H, w = row->W;
    long matrix = (long)C * CP;
    const int *packs = row->spec->packs;
    Tap taps[5];
    if (to <= from) return;
    for (int v = from; v < to; v++) {
        int n = 0;
        for (int t = 0; t < 5; t++) {
            int at = v + 2 - t;
            if (at >= 0 && at % s == 0 && at / s < h)
                taps[n++] = (Tap){ring_line(d, CP, at / s, h), transposed(pass, packs[1]) + t * matrix};
        }
        product(pixel(dmid, w, 2, CP, v - from, 0), CP, w, taps, n, CP, C, CP, 0);
    }
    const float *in[5];
    for (int t = 0; t < 5; t++) in[t] = pixel(r, W, net->pad, CP, from, t - 2);
    outer(gradient(pass, slot, packs[0]), in, 5, (long)(W + 2 * net->pad) * CP, (long)s * CP, pixel(dmid, w, 2, CP, 0, 0),
          (long)(w + 4) * CP, CP, to - from, w, C, CP);
    for (int v = from; v < to; v++)
        for (int phase = 0; phase < s; phase++) {
            int n = 0;
            for (int t = 0; t < 5; t++)
                if ((phase + 2 - t) % s == 0)
                    taps[n++] = (Tap){pixel(dmid, w, 2, CP, v - from, (phase + 2 - t) / s),
                                      transposed(pass, packs[0]) + t * matrix};
            product(pixel(dr, W, net->pad, CP, v, phase), (long)s * CP, (W - phase + s - 1) / s, taps, n, CP, C, CP, 1);
        }
}

/* Lines `from` to `to` of the output; `done` lines of what lies between the parts have gone back. */
static void backward_factorized(Pass *pass, const Row *row, const Source *source, int image, int slot, float *r,
                                float *dr, const Ring *ring, float *dmid, int *done, int from, int to) {
    int CP = pass->net->CP, H = source->H, s = row->stride;
    long line = (long)row->W * CP;
    float *d = ring_line(ring, CP, from, row->H), *mid = row->mid + (long)image * H * line;
    output_gradient(pass, row, image, d, from, to);
    factorized_down_weights(pass, row, H, mid, d, slot, from, to);
    int ready = to == row->H ? H : to * s - 2; /* what needs no later line of d */
    factorized_lines_back(pass, row, source, slot, r, dr, ring, dmid, *done, ready);
    if (ready > *done) *done = ready;
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

/* The first round, lines `from` to `to` of its output; of two, row->y holds the gradient of the first norm's output by
 * now. `done` lines of the input have their gradient. */
static void backward_separable(Pass *pass, const Row *row, int image, int slot, float *r, float *dr,
                               const Source *source, float *d, float *out, const Ring *ring, int *done, int from, int to) {
    int CP = pass->net->CP, pad = pass->net->pad, W = source->W, kernel = row->spec->kernel, far = row->spec->dilation;
    const int *packs = row->spec->packs;
    if (row->spec->rounds == 2) {
        long first = ((long)image * row->H + from) * row->W * CP;
        combine(d, row->y + first, row->mid + first, row->inner.P, row->inner.Q, row->inner.R,
                (long)(to - from) * row->W, CP);
    } else {
        output_gradient(pass, row, image, d, from, to);
    }
    depthwise_lines(row, out, r, W, pad, row->stride, matrices(pass, packs[0]), CP, from, to);
    separable_weights(pass, row, slot, packs, r, W, pad, row->stride, out, d, ring, from, to);
    for (int y = from; y < to && row->stride > 1; y++) {
        float *at[5];
        for (int k = 0; k < kernel; k++)
            at[k] = pixel(dr, W, pad, CP, y * row->stride + (k - kernel / 2) * far, -(kernel / 2) * far);
        depthwise_scatter_row(kernel, ring_line(ring, CP, y, row->H), CP, row->W, at, (long)far * CP,
                              (long)row->stride * CP, matrices(pass, packs[0]), CP);
    }
    for (int ready = ready_lines(row, to); *done < ready && row->stride == 1; ++*done)
        depthwise_input(pass, row, packs[0], pixel(dr, W, pad, CP, *done, 0), ring, *done, 1);
}

/* Have what the next row reads fetched while this one computes: of this band, or after the last row of the next. */
static void look_to_next(const Pass *pass, int s, int e, int image, int from, int to) {
    const Cell *cell = &pass->cell[pass->at];
    int size = cell->source[2].H, next = e + 1, CP = pass->net->CP;
    while (next < cell->spec->rows && !has_ring(&cell->row[next], s)) next++;
    if (next == cell->spec->rows) {
        from = to;
        to = end_of(from, size, size);
        for (next = 0; !has_ring(&cell->row[next], s);) next++;
    }
    const Row *row = &cell->row[next];
    long line = (long)size * CP, first = ((long)image * size + from) * line, floats = (to - from) * line;
    if (floats <= 0) return;
    look_ahead(0, row->y + first, floats);
    if (row->spec->rounds == 2)
        look_ahead(1, row->mid + first, floats);
    else
        look_ahead(1, node_gradient(pass, row, image) + from * line, floats);
    if (row->spec->kind == FACTORIZED) {
        int H = cell->source[s].H, top = from * row->stride + 2, end = to * row->stride + 2;
        if (top < H) look_ahead(2, row->mid + ((long)image * H + top) * line, ((end < H ? end : H) - top) * line);
    }
}

/* All that reads sources `from` to `to`, back to their gradients: a band of lines at a time, in all rows, for they share
 * what they read. */
static void stage_sources_back(Pass *pass, int image, int slot, float *scratch) {
    const Net *net = pass->net;
    Cell *cell = &pass->cell[pass->at];
    int CP = net->CP;
    long room = pass->scratch_floats;
    float *dr = scratch, *dx = dr + room, *d = dx + room, *out = d + room, *dmid = out + room, *r = dmid + room;
    float *dpool[2] = {r + room, r + 2 * room};
    Ring ring[net->max_rows];
    int done[net->max_rows];
    for (int s = pass->from; s <= pass->to; s++) {
        if (s < 2 && !cell->read[s]) continue;
        Source *source = &cell->source[s];
        int H = source->H, W = source->W, stride = cell->spec->reduces && s < 2 ? 2 : 1;
        int h = pooled_size(H, stride), w = pooled_size(W, stride);
        long pixels = (long)H * W;
        float *x = image_of(source->x, image, H, W, CP), *g = image_of(source->g, image, H, W, CP);
        float *spare = r + 3 * room;
        int has_skips = 0;
        if (source->rectified) {
            rectify_source(pass, source, image, r);
            memset(dr, 0, padded_floats(net, H, W) * sizeof(float));
            clear_border(dmid, H, w, 2, CP);
        }
        for (int e = 0; e < cell->spec->rows; e++) {
            Row *row = &cell->row[e];
            if (!has_ring(row, s)) continue;
            ring[e] = gradient_ring(row, spare);
            spare += ring_floats(&ring[e], CP);
            clear_ring(&ring[e], CP);
            done[e] = 0;
        }
        for (int from = 0, to; from < h; from = to) {
            to = end_of(from, w, h);
            for (int kind = MAX_POOL; kind <= MEAN_POOL; kind++)
                weightless_gradient(pass, s, kind, image, dpool[kind], from, to);
            has_skips = weightless_gradient(pass, s, SKIP, image, dx, from, to);
            for (int e = 0; e < cell->spec->rows; e++) {
                Row *row = &cell->row[e];
                if (!has_ring(row, s)) continue;
                look_to_next(pass, s, e, image, from, to);
                if (row->spec->kind == FACTORIZED)
                    backward_factorized(pass, row, source, image, slot, r, dr, &ring[e], dmid, &done[e], from, to);
                else if (row->spec->kind == SEPARABLE)
                    backward_separable(pass, row, image, slot, r, dr, source, d, out, &ring[e], &done[e], from, to);
            }
        }
        for (int e = 0; e < cell->spec->rows; e++) {
            Row *row = &cell->row[e];
            if (!row->run || row->spec->source != s || row->spec->kind != HALVING) continue;
            output_gradient(pass, row, image, d, 0, row->H);
            backward_halving(pass, d, row->H, row->W, r, dr, W, 0, slot, row->spec->packs);
        }
        if (!has_skips) memset(dx, 0, pixels * CP * sizeof(float));
        if (source->pooled[MAX_POOL])
            max_pool_transposed(dx, dpool[MAX_POOL], source->place + (long)image * h * w * CP, H, W, stride, CP);
        if (source->pooled[MEAN_POOL]) mean_pool_transposed(dx, dpool[MEAN_POOL], H, W, stride, CP);
        for (int from = 0, to; from < H; from = to) {
            to = end_of(from, W, H);
            long at = (long)from * W * CP, some = (long)(to - from) * W;
            if (source->rectified) masked(dx + at, dx + at, r, dr, from, to, W, net->pad, CP);
            if (s < 2) {
                products(pass, slot, of_source(pass, s), dx + at, x + at, source->norm.mean, some);
            } else {
                for (long i = at; i < at + some * CP; i += VL) store(dx + i, load(dx + i) + load(g + i));
            }
            gradient_sums(pass, slot, of_source(pass, s), dx + at, some);
            stream_copy(g + at, dx + at, some * CP);
        }
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
                    source->norm.Q, source->norm.R, some, CP);
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
            (long)source->H * source->W, CP);
    for (int g = 0; g < groups; g++) {
        float *total = image_of(to[g].g, image, H, W, CP);
        rectify_source(pass, &to[g], image, r);
        memset(dr, 0, padded_floats(net, H, W) * sizeof(float));
        backward_halving(pass, d, source->H, source->W, r, dr, W, g, slot, cell->spec->inputs[j]);
        masked(total, to[g].has_gradient ? total : NULL, r, dr, 0, H, W, net->pad, CP);
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
                source->norm.P, source->norm.Q, source->norm.R, (long)size * size, CP);
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
