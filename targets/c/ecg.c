/* SPDX-License-Identifier: Apache-2.0 */
#include "ecg.h"

#include <string.h>

/* ---- memory: one block, cut into parts */

typedef struct {
    uint8_t *base;              /* NULL: only count */
    uint32_t used;
} cutter;

static void *cut(cutter *c, uint32_t bytes, uint32_t align)
{
    c->used = (c->used + align - 1) / align * align;
    void *at = c->base ? c->base + c->used : NULL;
    c->used += bytes;
    return at;
}

static uint32_t carve(ecg_t *e, const ecg_model *m, void *memory)
{
    cutter c = {(uint8_t *)memory, 0};
    e->net.scratch = cut(&c, m->scratch, 8);
    e->net.arena = (int8_t *)cut(&c, m->arena, 4);
    e->net.state = (int8_t *)cut(&c, m->state, 4);
    e->net.have = (int32_t *)cut(&c, m->counters * 4u, 4);
    e->sums = (int32_t *)cut(&c, m->classes * 4u, 4);
    e->net.fresh = (uint16_t *)cut(&c, m->counters * 2u, 2);
    e->logits = (int8_t *)cut(&c, m->classes, 1);
    e->votes = (int8_t *)cut(&c, (uint32_t)m->vote * m->classes, 1);
    return (c.used + 7) / 8 * 8;
}

uint32_t ecg_memory(const ecg_model *model)
{
    ecg_t e;
    return carve(&e, model, NULL);
}

int ecg_init(ecg_t *e, const ecg_model *model, void *memory, uint32_t bytes)
{
    if (model->magic != ECG_MAGIC || model->version != ECG_API_VERSION)
        return ECG_E_VERSION;
    if (((uintptr_t)memory & 7u) || bytes < ecg_memory(model))
        return ECG_E_MEMORY;
    if ((model->window && !ecg_net_complete(model->window))
        || (model->stream && !(ecg_net_complete(&model->stream->front) && ecg_net_complete(&model->stream->back))))
        return ECG_E_KERNEL;
    memset(e, 0, sizeof *e);
    e->model = model;
    carve(e, model, memory);
    ecg_patient(e, -1, 0);
    ecg_reset(e);
    return ECG_OK;
}

void ecg_patient(ecg_t *e, int age, int sex)
{
    e->age = (int8_t)(age < 0 ? -1 : age > 127 ? 127 : age);
    e->sex = (int8_t)(sex == 1 || sex == 2 ? sex : 0);
}

void ecg_reset(ecg_t *e)
{
    memset(e->sums, 0, e->model->classes * sizeof *e->sums);
    e->windows = 0;
    e->sample = 0;
    if (e->model->stream)
        ecg_net_reset(&e->net, e->model->stream);
}

/* ---- decisions */

/* Adds a window's logits to the sums of the last `vote` windows, or of all. */
static void vote(ecg_t *e, const int8_t *logits)
{
    const ecg_model *m = e->model;
    int8_t *old = m->vote ? e->votes + e->windows % m->vote * m->classes : NULL;
    for (uint16_t k = 0; k < m->classes; k++) {
        e->logits[k] = logits[k];
        e->sums[k] += logits[k];
        if (old) {
            e->sums[k] -= e->windows >= m->vote ? old[k] : 0;
            old[k] = logits[k];
        }
    }
    e->windows++;
}

/* The manifest's rule: 256 * sum against windows * offset. */
static void decide(ecg_t *e, const int8_t *logits, ecg_result *r)
{
    const ecg_model *m = e->model;
    int64_t best = INT64_MIN;
    vote(e, logits);
    const int64_t n = m->vote && e->windows > m->vote ? m->vote : e->windows;
    r->top = -1;
    r->present = 0;
    for (uint16_t k = 0; k < m->classes; k++) {
        const int64_t sum = (int64_t)e->sums[k] * 256, offset = n * m->offsets[k];
        if (m->rule == ECG_THRESHOLD) {
            r->present |= sum >= offset ? 1u << k : 0;
        } else if (sum + offset > best) {
            best = sum + offset;
            r->top = (int16_t)k;
            r->present = 1u << k;
        }
    }
    r->logits = e->logits;
    r->ready = 1;
}

int ecg_window(ecg_t *e, const int8_t *const *inputs, int8_t *logits)
{
    if (!e->model->window)
        return ECG_E_FORM;
    memcpy(logits, ecg_net_window(&e->net, e->model->window, inputs), e->model->classes);
    return ECG_OK;
}

int32_t ecg_push_codes(ecg_t *e, const int8_t *codes, int32_t n, ecg_result *r)
{
    const ecg_stream *stream = e->model->stream;
    int32_t taken = 0;
    memset(r, 0, sizeof *r);
    while (taken < n && stream && !r->ready) {
        int due;
        const int32_t took = ecg_net_take(&e->net, stream, codes + taken * e->model->leads, n - taken, &due);
        taken += took;
        e->sample += (uint32_t)took;
        const int8_t *logits = due ? ecg_net_step(&e->net, stream, NULL) : NULL;
        if (logits) {
            decide(e, logits, r);
            r->sample = e->sample - 1;
        }
    }
    return taken;
}
