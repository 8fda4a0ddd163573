/* A network with fixed statistics on a CPU, float32: one image at a time, by one thread or several.
 *
 * A program is a list of steps; each makes lines of one image of others. Steps are in phases, and a phase is done in
 * bands: of every image that it makes, a band is the same share of the lines. What a step reads of images that its own
 * phase makes lies in its own band, so a band goes through all steps of the phase by itself, while it is in the cache.
 * Threads take bands as they come. A line is the same sums whoever makes it, so the number of threads never
 * changes a bit of the result.
 *
 * An image that only the phase that makes it reads is there for a band at a time, for each thread its own.
 *
 * Images lie pixel by pixel, channels padded to CP, lines with `pad` pixels of zeros at both ends. Lines outside are
 * left out of a sum.
 */
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#define MOST_HELPERS 3
#define MOST_CREWS 64
#define MOST_PHASES 128
#define NAPS_AFTER 4000 /* tries to get on, before a thread lets others run */

typedef struct {
    int64_t H, W, C, CP, pad, at; /* at: where it begins in the workspace */
    int64_t passes;               /* whether there is but a band of it, in the thread's own part of the workspace */
} Image;

enum { INPUT, CONVOLUTION, DEPTHWISE, MAXIMUM, MEAN, AFFINE };

typedef struct {
    int64_t kind, out, rectified, adds, relu; /* rectified: the image that gets max(0, out), or -1; adds: to `out` */
    int64_t stride, across, source;           /* across: along a line; source: -1 for convolutions */
    int64_t bias, gain;                       /* where in the weights, or -1 */
    int64_t first_tap, taps, kernel, dilation;
} Step;

typedef struct {
    int64_t source, dy, dx, weights;
} Place;

typedef struct {
    int64_t first, last, bands;
} Phase;

typedef struct {
    int64_t images, steps, places, phases, parts;
    int64_t shared_floats, band_floats;        /* of the workspace: for all threads, then for each */
    int64_t classes, channels, weight, bias; /* of the head */
} Sizes;

typedef struct {
    Sizes sizes;
    Image *image;
    Step *step;
    Place *place;
    Phase *phase;
    int64_t *part; /* images whose means are the features */
    float *nothing; /* a line of zeros */
} Program;

/* One image on its way. Counters hold the number of the run in their upper half, so that a helper that comes late, or
 * was stopped on its way, takes nothing from the next run. */
typedef struct {
    const Program *program;
    const float *weights, *input;
    float *work;
    uint64_t number;
    _Atomic uint64_t *next, *done; /* bands of each phase */
    int64_t band, bands;           /* what this thread is at */
    int thread;
} Run;

INLINE float *line_of(const Run *run, int64_t image, int64_t y) {
    const Image *one = &run->program->image[image];
    const Sizes *sizes = &run->program->sizes;
    float *from = run->work + one->at;
    if (one->passes) {
        from += sizes->shared_floats + run->thread * sizes->band_floats;
        y -= run->band * one->H / run->bands;
    }
    return from + (y * (one->W + 2 * one->pad) + one->pad) * one->CP;
}

static void clear_ends(float *line, const Image *image) {
    long floats = image->pad * image->CP;
    if (!floats) return;
    memset(line - floats, 0, floats * sizeof(float));
    memset(line + image->W * image->CP, 0, floats * sizeof(float));
}

/* What is still to be done to a line: add the bias, rectify, copy rectified. */
static void finish_line(const Run *run, const Step *step, float *line, float *rectified) {
    const Image *image = &run->program->image[step->out];
    long CP = image->CP, pixels = image->W;
    const float *bias = step->bias < 0 ? NULL : run->weights + step->bias;
    if (!bias && !step->relu && !rectified) return;
    for (long c = 0; c < CP; c += VL) {
        vec b = bias ? load(bias + c) : (vec){0};
        if (rectified) {
            for (long p = 0; p < pixels; p++) {
                vec v = load(line + p * CP + c) + b;
                store(line + p * CP + c, v);
                store(rectified + p * CP + c, positive(v));
            }
        } else if (step->relu) {
            for (long p = 0; p < pixels; p++) store(line + p * CP + c, positive(load(line + p * CP + c) + b));
        } else {
            for (long p = 0; p < pixels; p++) store(line + p * CP + c, load(line + p * CP + c) + b);
        }
    }
}

static void input_line(const Run *run, const Step *step, int64_t y) {
    const Image *to = &run->program->image[step->out];
    float *line = line_of(run, step->out, y);
    clear_ends(line, to);
    for (long c = 0; c < to->C; c++) {
        const float *from = run->input + (c * to->H + y) * to->W;
        for (long x = 0; x < to->W; x++) line[x * to->CP + c] = from[x];
    }
}

static void convolution_line(const Run *run, const Step *step, float *line, int64_t y) {
    const Program *program = run->program;
    const Place *place = program->place + step->first_tap;
    const Image *to = &program->image[step->out], *from = &program->image[place->source];
    Tap taps[MAX_TAPS];
    int n = 0;
    for (int64_t t = 0; t < step->taps; t++, place++) {
        int64_t at = y * step->stride + place->dy;
        if (at < 0 || at >= from->H) continue;
        taps[n++] = (Tap){line_of(run, place->source, at) + place->dx * from->CP, run->weights + place->weights};
    }
    product(line, to->CP, (int)to->W, taps, n, step->across * from->CP, (int)from->C, (int)to->CP, (int)step->adds);
}

static void depthwise_line(const Run *run, const Step *step, float *line, int64_t y) {
    const Image *to = &run->program->image[step->out], *from = &run->program->image[step->source];
    const float *rows[5];
    int64_t half = step->kernel / 2;
    for (int64_t k = 0; k < step->kernel; k++) {
        int64_t at = y * step->stride + (k - half) * step->dilation;
        rows[k] = at < 0 || at >= from->H ? run->program->nothing
                                          : line_of(run, step->source, at) - half * step->dilation * from->CP;
    }
    depthwise_row((int)step->kernel, line, to->CP, (int)to->W, rows, step->dilation * from->CP,
                  step->across * from->CP, run->weights + step->gain, (int)to->CP, (int)step->adds);
}

/* out (+)= gain * value; a gain of NULL is 1. */
INLINE void put(float *out, vec value, const float *gain, int adds) {
    if (gain) value *= load(gain);
    if (adds) value += load(out);
    store(out, value);
}

/* 3x3 with padding 1, which never counts: lines first, then pixels. */
INLINE void pool(const int is_mean, const Run *run, const Step *step, float *line, int64_t y) {
    const Image *to = &run->program->image[step->out], *from = &run->program->image[step->source];
    const float *gain = step->gain < 0 ? NULL : run->weights + step->gain;
    int64_t middle = y * step->stride, CP = to->CP, W = from->W, above = middle > 0, below = middle + 1 < from->H;
    const float *at = line_of(run, step->source, middle), *outside = is_mean ? run->program->nothing : at;
    const float *up = above ? line_of(run, step->source, middle - 1) : outside;
    const float *down = below ? line_of(run, step->source, middle + 1) : outside;
    float columns[(W + 2) * CP], *column = columns + CP;
    for (long c = 0; c < CP; c++) columns[c] = column[W * CP + c] = is_mean ? 0.0f : -__builtin_inff();
    for (long i = 0; i < W * CP; i += VL) {
        vec a = load(up + i), b = load(at + i), d = load(down + i);
        if (is_mean)
            store(column + i, a + b + d);
        else
            store(column + i, larger(larger(a, b), d));
    }
    const long lines = 1 + above + below;
    for (long c = 0; c < CP; c += VL)
        for (long x = 0; x < to->W; x++) {
            const long middle_x = x * step->across, seen = 1 + (middle_x > 0) + (middle_x + 1 < W);
            const float *p = column + middle_x * CP + c;
            vec a = load(p - CP), b = load(p), d = load(p + CP), value;
            if (is_mean)
                value = (a + b + d) * splat(1.0f / (float)(lines * seen));
            else
                value = larger(larger(a, b), d);
            put(line + x * CP + c, value, gain ? gain + c : NULL, (int)step->adds);
        }
}

static void pool_line(const Run *run, const Step *step, float *line, int64_t y) {
    if (step->kind == MEAN)
        pool(1, run, step, line, y);
    else
        pool(0, run, step, line, y);
}

static void affine_line(const Run *run, const Step *step, float *line, int64_t y) {
    const Image *to = &run->program->image[step->out];
    const float *gain = step->gain < 0 ? NULL : run->weights + step->gain, *from = line_of(run, step->source, y);
    for (long c = 0; c < to->CP; c += VL)
        for (long x = 0; x < to->W; x++)
            put(line + x * to->CP + c, load(from + x * to->CP + c), gain ? gain + c : NULL, (int)step->adds);
}

static void run_line(const Run *run, const Step *step, int64_t y) {
    const Image *image = run->program->image;
    if (step->kind == INPUT) {
        input_line(run, step, y);
        return;
    }
    float *line = line_of(run, step->out, y), *rectified = NULL;
    if (!step->adds) clear_ends(line, image + step->out);
    if (step->rectified >= 0) {
        rectified = line_of(run, step->rectified, y);
        clear_ends(rectified, image + step->rectified);
    }
    switch (step->kind) {
    case CONVOLUTION: convolution_line(run, step, line, y); break;
    case DEPTHWISE: depthwise_line(run, step, line, y); break;
    case AFFINE: affine_line(run, step, line, y); break;
    default: pool_line(run, step, line, y);
    }
    finish_line(run, step, line, rectified);
}

static void run_band(Run *run, const Phase *phase, int64_t band) {
    const Program *program = run->program;
    run->band = band;
    run->bands = phase->bands;
    for (int64_t s = phase->first; s < phase->last; s++) {
        const Step *step = &program->step[s];
        int64_t H = program->image[step->out].H;
        for (int64_t y = band * H / phase->bands; y < (band + 1) * H / phase->bands; y++) run_line(run, step, y);
    }
}

static void rest(int *tries) {
    if (++*tries > NAPS_AFTER) sched_yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* The next band of a phase that nobody has taken, or -1; -2: the run is over. One thread takes the first ones and another
 * the last, of every phase, so that each finds near what it made before. */
static int64_t next_band(const Run *run, int64_t p) {
    const uint64_t bands = (uint64_t)run->program->phase[p].bands, is_last = run->thread & 1;
    uint64_t next = atomic_load(&run->next[p]);
    for (;;) {
        uint64_t first = next & 0xffff, last = next >> 16 & 0xffff; /* taken from either end */
        if (next >> 32 != run->number) return -2;
        if (first + last >= bands) return -1;
        if (atomic_compare_exchange_weak(&run->next[p], &next, next + (is_last ? 1 << 16 : 1)))
            return (int64_t)(is_last ? bands - 1 - last : first);
    }
}

/* Take bands until all are done, or the run is over. */
static void take_bands(Run *run) {
    for (int64_t p = 0; p < run->program->sizes.phases; p++) {
        const Phase *phase = &run->program->phase[p];
        int64_t band;
        while ((band = next_band(run, p)) >= 0) {
            run_band(run, phase, band);
            atomic_fetch_add(&run->done[p], 1);
        }
        if (band == -2) return;
        const uint64_t end = run->number << 32 | (uint64_t)phase->bands;
        uint64_t done;
        for (int tries = 0; (done = atomic_load(&run->done[p])) != end; rest(&tries))
            if (done >> 32 != run->number) return;
    }
}

/* ---- helpers: threads of the process, which sleep while nothing wants them ---------------------------------------- */

typedef struct Crew Crew;

/* As many threads as one image takes, less the one that brings it. */
struct Crew {
    pthread_mutex_t lock;
    pthread_cond_t wanted, left;
    int count, inside, is_used;
    int wanting; /* helpers that the run still takes: each has its own part of the workspace */
    Run run;     /* what there is to help with, while it is used */
    uint64_t number; /* of the last run that was helped with */
    _Atomic uint64_t next[MOST_PHASES], done[MOST_PHASES];
};

static Crew crews[MOST_CREWS];
static pthread_mutex_t all_crews = PTHREAD_MUTEX_INITIALIZER;
static int crew_count;

static void *help(void *argument) {
    Crew *crew = argument;
    uint64_t seen = 0;
    pthread_mutex_lock(&crew->lock);
    for (;;) {
        while (!crew->is_used || crew->number == seen || !crew->wanting) pthread_cond_wait(&crew->wanted, &crew->lock);
        Run run = crew->run;
        run.thread = crew->wanting--;
        seen = crew->number;
        crew->inside++;
        pthread_mutex_unlock(&crew->lock);
        take_bands(&run);
        pthread_mutex_lock(&crew->lock);
        if (--crew->inside == 0) pthread_cond_broadcast(&crew->left);
    }
    return NULL;
}

/* Helpers do not live on in a process that was forked. */
static void forget_crews(void) {
    crew_count = 0;
    pthread_mutex_init(&all_crews, NULL);
}

static void start_crews(int wanted, int helpers) {
    static int is_known;
    pthread_mutex_lock(&all_crews);
    if (!is_known) is_known = pthread_atfork(NULL, NULL, forget_crews) == 0;
    while (helpers > 0 && crew_count < wanted && crew_count < MOST_CREWS) {
        Crew *crew = &crews[crew_count];
        memset(crew, 0, sizeof *crew);
        pthread_mutex_init(&crew->lock, NULL);
        pthread_cond_init(&crew->wanted, NULL);
        pthread_cond_init(&crew->left, NULL);
        crew_count++;
    }
    for (int c = 0; c < crew_count; c++) {
        Crew *crew = &crews[c];
        pthread_t handle;
        while (crew->count < helpers && crew->count < MOST_HELPERS) {
            if (pthread_create(&handle, NULL, help, crew) != 0) break;
            pthread_detach(handle);
            pthread_mutex_lock(&crew->lock);
            crew->count++;
            pthread_mutex_unlock(&crew->lock);
        }
    }
    pthread_mutex_unlock(&all_crews);
}

static void begin(Run *run, uint64_t number, _Atomic uint64_t *next, _Atomic uint64_t *done) {
    run->number = number;
    run->next = next;
    run->done = done;
    for (int64_t p = 0; p < run->program->sizes.phases; p++) {
        atomic_store(&next[p], number << 32);
        atomic_store(&done[p], number << 32);
    }
}

/* A crew that nobody uses, with the run given to it; NULL: there is none. */
static Crew *helped(Run *run, int threads) {
    pthread_mutex_lock(&all_crews);
    int count = threads > 1 ? crew_count : 0;
    pthread_mutex_unlock(&all_crews);
    for (int c = 0; c < count; c++) {
        Crew *crew = &crews[c];
        pthread_mutex_lock(&crew->lock);
        int is_free = !crew->is_used && crew->count > 0;
        if (is_free) {
            crew->is_used = 1;
            crew->number = (crew->number + 1) & UINT32_MAX;
            begin(run, crew->number, crew->next, crew->done);
            crew->run = *run;
            crew->wanting = threads - 1;
            for (int helper = 1; helper < threads; helper++) pthread_cond_signal(&crew->wanted);
        }
        pthread_mutex_unlock(&crew->lock);
        if (is_free) return crew;
    }
    return NULL;
}

/* With helpers where some are free; alone otherwise: slower, not another result. */
static void run_phases(Run *run, int threads) {
    Crew *crew = helped(run, threads);
    if (crew == NULL) {
        _Atomic uint64_t next[MOST_PHASES], done[MOST_PHASES];
        begin(run, 1, next, done);
        take_bands(run);
        return;
    }
    take_bands(run);
    pthread_mutex_lock(&crew->lock);
    crew->is_used = 0;
    pthread_mutex_unlock(&crew->lock);
}

/* ---- what Python calls ------------------------------------------------------------------------------------------- */

static void *copied(const void *from, size_t bytes) {
    void *to = malloc(bytes ? bytes : 1);
    if (bytes) memcpy(to, from, bytes);
    return to;
}

/* Columns of a matrix that are packed together: as many as two registers hold. */
int metanas_columns(void) { return PAIR; }

/* Tables of 64-bit numbers, as the structures above; with how many helpers an image is run, and how many images at a
 * time. */
Program *metanas_program(const int64_t *sizes, const int64_t *images, const int64_t *steps, const int64_t *places,
                         const int64_t *phases, const int64_t *parts, int helpers, int at_once) {
    Program *program = calloc(1, sizeof *program);
    Sizes *size = &program->sizes;
    memcpy(size, sizes, sizeof *size);
    program->image = copied(images, size->images * sizeof(Image));
    program->step = copied(steps, size->steps * sizeof(Step));
    program->place = copied(places, size->places * sizeof(Place));
    program->phase = copied(phases, size->phases * sizeof(Phase));
    program->part = copied(parts, size->parts * sizeof(int64_t));
    long longest = 0;
    for (int64_t i = 0; i < size->images; i++) {
        long floats = (program->image[i].W + 2 * program->image[i].pad) * program->image[i].CP;
        if (floats > longest) longest = floats;
    }
    program->nothing = calloc(longest, sizeof(float));
    start_crews(at_once, helpers);
    return program;
}

void metanas_program_free(Program *program) {
    if (program == NULL) return;
    pthread_mutex_lock(&all_crews);
    int count = crew_count;
    pthread_mutex_unlock(&all_crews);
    for (int c = 0; c < count; c++) { /* helpers that came late look at it once more */
        pthread_mutex_lock(&crews[c].lock);
        while (crews[c].inside) pthread_cond_wait(&crews[c].left, &crews[c].lock);
        pthread_mutex_unlock(&crews[c].lock);
    }
    free(program->image);
    free(program->step);
    free(program->place);
    free(program->phase);
    free(program->part);
    free(program->nothing);
    free(program);
}

/* The means of the last images, made as long as 1, times the head's matrix. */
static void score(const Run *run, float *logits) {
    const Program *program = run->program;
    const Sizes *size = &program->sizes;
    long n = size->parts * size->channels;
    double features[n], length = 0;
    memset(features, 0, sizeof features);
    for (int64_t i = 0; i < size->parts; i++) {
        const Image *image = &program->image[program->part[i]];
        double *mean = features + i * size->channels;
        for (int64_t y = 0; y < image->H; y++) {
            const float *line = line_of(run, program->part[i], y);
            for (int64_t x = 0; x < image->W; x++)
                for (int64_t c = 0; c < size->channels; c++) mean[c] += line[x * image->CP + c];
        }
        for (int64_t c = 0; c < size->channels; c++) mean[c] /= (double)(image->H * image->W);
    }
    for (long i = 0; i < n; i++) length += features[i] * features[i];
    length = sqrt(length);
    const float *weight = run->weights + size->weight, *bias = run->weights + size->bias, least = bias[size->classes];
    if (length < least) length = least;
    for (int64_t k = 0; k < size->classes; k++) {
        double sum = 0;
        for (long i = 0; i < n; i++) sum += features[i] * weight[k * n + i];
        logits[k] = (float)(sum / length + bias[k]);
    }
}

/* inputs: (count, channels, height, width); logits: (count, classes); work: floats that all threads share, and each
 * thread's own. */
void metanas_classify(const Program *program, const float *weights, float *work, const float *inputs, float *logits,
                      int count, int threads) {
    const Image *first = &program->image[program->step[0].out];
    Run run = {.program = program, .weights = weights, .work = work};
    for (int i = 0; i < count; i++) {
        run.input = inputs + (long)i * first->C * first->H * first->W;
        run_phases(&run, threads);
        score(&run, logits + (long)i * program->sizes.classes);
    }
}
