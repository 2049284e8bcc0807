/* SPDX-License-Identifier: Apache-2.0 */
#include "ecg_net.h"

#include <string.h>

#ifndef ECG_REBASE
#define ECG_REBASE (1 << 30)    /* samples after which the counters of a stream are moved back */
#endif

int ecg_net_complete(const ecg_program *program)
{
    for (uint16_t i = 0; i < program->count; i++) {
        uint8_t kernel = program->nodes[i].kernel;
        if (kernel >= ECG_KERNELS || !ecg_kernels[kernel] || program->nodes[i].inputs > ECG_INPUTS_MAX)
            return 0;
    }
    return 1;
}

static int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* Codes in flash are only ever read: a kernel's output is never a constant. */
static int8_t *codes_of(const ecg_net *net, const ecg_tensor *t)
{
    union {
        const int8_t *constant;
        int8_t *plain;
    } flash;
    if (t->flash) {
        flash.constant = t->flash;
        return flash.plain;
    }
    return (t->ring ? net->state : net->arena) + t->place;
}

static void copy_rows(int8_t *to, int32_t to_pitch, const int8_t *from, int32_t from_pitch, uint16_t rows, int32_t n)
{
    for (uint16_t row = 0; row < rows && n > 0; row++, to += to_pitch, from += from_pitch)
        memmove(to, from, (size_t)n);
}

/* ---- a window, and the part of a stream behind the boundary */

static ecg_view whole(const ecg_net *net, const ecg_tensor *t)
{
    ecg_view view = {codes_of(net, t), t->pitch, 0, t->columns};
    return view;
}

static const int8_t *evaluate(ecg_net *net, const ecg_program *program, uint16_t cut, const ecg_view *ring)
{
    ecg_view in[ECG_INPUTS_MAX], out;
    for (uint16_t i = 0; i < program->count; i++) {
        const ecg_node *n = &program->nodes[i];
        for (uint8_t k = 0; k < n->inputs; k++)
            in[k] = ring && n->in[k] == cut ? *ring : whole(net, &program->tensors[n->in[k]]);
        out = whole(net, &program->tensors[n->out]);
        ecg_kernels[n->kernel](n->layer, in, &out, net->scratch);
        if (net->watch)
            net->watch(net->context, i, &out);
    }
    return codes_of(net, &program->tensors[program->out]);
}

int8_t *ecg_net_input(const ecg_net *net, const ecg_program *program, uint16_t i)
{
    return codes_of(net, &program->tensors[program->given[i]]);
}

const int8_t *ecg_net_run(ecg_net *net, const ecg_program *program)
{
    return evaluate(net, program, 0, NULL);
}

/* ---- a stream */

void ecg_net_reset(ecg_net *net, const ecg_stream *stream)
{
    memset(net->have, 0, stream->front.tensor_count * sizeof *net->have);
    memset(net->fresh, 0, stream->front.tensor_count * sizeof *net->fresh);
    net->samples = net->waiting = 0;
}

/* Columns of a tensor that lie in front of its new ones: those that were kept, as far as they exist. A ring gives up as
 * many as `fresh` new ones need. */
static int32_t held(const ecg_tensor *t, int32_t have, int32_t fresh)
{
    return least(have, t->ring ? t->pitch - fresh : t->kept);
}

/* Columns that exist of a node's output once `have` of its inputs exist. */
static int32_t ready(const ecg_node *n, int32_t have)
{
    int32_t size = n->size;
    switch (n->flow) {
    case ECG_SLIDING:
        return have + n->pad < size ? 0 : (have + n->pad - size) / n->stride + 1;
    case ECG_BAND_WAITS:
        return have > size ? have - size : 0;
    case ECG_BLOCK_WAITS:
        return have / size * size;
    case ECG_NEIGHBOURHOOD_WAITS:
        return have >= size ? have - size / 2 : 0;
    default:
        return have;
    }
}

/* Puts the kept columns where new ones will follow them. */
static void recall(ecg_net *net, const ecg_tensor *t, int32_t have, int32_t fresh)
{
    int8_t *row = codes_of(net, t);
    int32_t keep = held(t, have, fresh);
    if (t->ring)
        copy_rows(row, t->pitch, row + held(t, have, 0) - keep, t->pitch, t->rows, keep);
    else if (t->kept)
        copy_rows(row, t->pitch, net->state + t->state, t->kept, t->rows, keep);
}

/* After the last reader: the newest columns of a row go into the state. */
static void keep(ecg_net *net, const ecg_tensor *t, int32_t have, int32_t fresh)
{
    const int32_t n = held(t, have + fresh, 0), count = held(t, have, fresh) + fresh;
    if (!t->ring && t->kept)
        copy_rows(net->state + t->state, t->kept, codes_of(net, t) + count - n, t->pitch, t->rows, n);
}

/* What exists of a tensor now: `before` columns were there before this step, `after` are there. */
static ecg_view seen(const ecg_net *net, const ecg_tensor *t, int32_t before, int32_t after)
{
    ecg_view view = {codes_of(net, t), t->pitch, before - held(t, before, after - before), after};
    return view;
}

/* Samples of the step that begins now. Steps end where decisions fall: at the window's length and at every hop before
 * and behind it, so the first one may be shorter. */
static int32_t step_size(const ecg_net *net, const ecg_stream *stream)
{
    const int32_t phase = (int32_t)(stream->window % stream->hop);
    return net->samples == 0 && phase ? phase : stream->hop;
}

int32_t ecg_net_take(ecg_net *net, const ecg_stream *stream, const int8_t *codes, int32_t n, int *due)
{
    const uint16_t number = stream->front.given[0];
    const ecg_tensor *t = &stream->front.tensors[number];
    const int32_t size = step_size(net, stream), took = least(n, size - net->waiting);
    int8_t *row = codes_of(net, t);

    if (net->waiting == 0)
        recall(net, t, net->have[number], size);
    row += held(t, net->have[number], size) + net->waiting;
    for (uint16_t lead = 0; lead < t->rows; lead++, row += t->pitch)
        for (int32_t i = 0; i < took; i++)
            row[i] = codes[i * t->rows + lead];
    net->waiting += took;
    *due = net->waiting == size;
    return took;
}

/* The new columns of one node of the front. */
static void advance(ecg_net *net, const ecg_program *front, uint16_t i)
{
    const ecg_node *n = &front->nodes[i];
    const ecg_tensor *t = &front->tensors[n->out];
    ecg_view in[ECG_INPUTS_MAX], out;
    int32_t there = INT32_MAX;
    for (uint8_t k = 0; k < n->inputs; k++) {
        const uint16_t number = n->in[k];
        const ecg_tensor *x = &front->tensors[number];
        in[k] = x->flash ? whole(net, x) : seen(net, x, net->have[number], net->have[number] + net->fresh[number]);
        if (!x->flash)
            there = least(there, in[k].end);
    }
    const int32_t before = net->have[n->out], after = ready(n, there);
    net->fresh[n->out] = (uint16_t)(after - before);
    recall(net, t, before, after - before);
    out = seen(net, t, before, after);
    out.data += before - out.first;
    out.first = before;
    if (after > before)
        ecg_kernels[n->kernel](n->layer, in, &out, net->scratch);
    if (net->watch)
        net->watch(net->context, i, &out);
}

/* Moves all counters back: a count of columns falls by the samples' part of its stride, and no phase changes. */
static void rebase(ecg_net *net, const ecg_stream *stream)
{
    const int32_t moved = ECG_REBASE / 2 / stream->hop * stream->hop;
    for (uint16_t i = 0; i < stream->front.tensor_count; i++)
        if (!stream->front.tensors[i].flash)
            net->have[i] -= moved / stream->front.tensors[i].stride;
    net->samples -= moved;
}

static const int8_t *decide(ecg_net *net, const ecg_stream *stream, const int8_t *const *sides)
{
    const ecg_tensor *ring = &stream->front.tensors[stream->ring], *cut = &stream->back.tensors[stream->cut];
    const int32_t have = net->have[stream->ring], column = (net->samples - (int32_t)stream->window) / stream->stride;
    ecg_view view = {codes_of(net, ring) + column + stream->start - (have - held(ring, have, 0)), ring->pitch, 0,
                     cut->columns};
    for (uint16_t i = 0; i < stream->back.given_count; i++) {
        const ecg_tensor *t = &stream->back.tensors[stream->back.given[i]];
        memcpy(codes_of(net, t), sides[i], (size_t)t->rows * t->columns);
    }
    return evaluate(net, &stream->back, stream->cut, &view);
}

const int8_t *ecg_net_step(ecg_net *net, const ecg_stream *stream, const int8_t *const *sides)
{
    const ecg_program *front = &stream->front;
    net->fresh[front->given[0]] = (uint16_t)net->waiting;
    for (uint16_t i = 0; i < front->count; i++) {
        advance(net, front, i);
        for (uint16_t t = 0; t < front->tensor_count; t++)
            if (stream->last_read[t] == i && !front->tensors[t].flash)
                keep(net, &front->tensors[t], net->have[t], net->fresh[t]);
    }
    for (uint16_t t = 0; t < front->tensor_count; t++)
        net->have[t] += net->fresh[t];
    net->samples += net->waiting;
    net->waiting = 0;
    if (net->samples >= ECG_REBASE)
        rebase(net, stream);
    return net->samples < (int32_t)stream->window ? NULL : decide(net, stream, sides);
}
