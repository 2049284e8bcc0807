/* SPDX-License-Identifier: Apache-2.0 */
#include "app.h"

#include <string.h>

/* Index at a model's rate of sample `index` of the stream. */
static uint32_t at_model(const app_t *a, const ecg_model *m, uint32_t index)
{
    return (uint32_t)((uint64_t)index * m->fs * a->image->fs_den / a->image->fs_num);
}

/* Samples of the stream that last as long as `n` at a model's rate, rounded up. */
static uint32_t at_stream(const app_t *a, const ecg_model *m, uint32_t n)
{
    uint64_t wide = (uint64_t)m->fs * a->image->fs_den;
    return (uint32_t)(((uint64_t)n * a->image->fs_num + wide - 1) / wide);
}

/* Samples at a model's rate within which the next result must come; at each R peak: a second. */
static uint32_t hop_of(const ecg_model *m)
{
    return m->trigger == ECG_HOP ? m->hop : m->fs;
}

void app_stream_begin(app_t *a, uint32_t index)
{
    app_stream *s = &a->stream;
    s->next = index;
    s->fresh = 1;
    s->period = ((uint64_t)1000000u << 16) * a->image->fs_den / a->image->fs_num;
    for (int k = 0; k < a->image->count; k++) {
        app_engine *e = &a->engine[k];
        if (e->ok)
            ecg_reset(&e->engine);
        e->base = at_model(a, a->image->models[k].model, index);
        e->since = e->busy_us = 0;
        e->decided = 0;
    }
}

/* ---- results */

/* The oldest result makes room. */
static app_result *slot(app_t *a)
{
    if (a->made - a->kept == APP_RESULTS) {
        a->sending += a->sending == a->kept;
        a->kept++;
    }
    return &a->ring[a->made % APP_RESULTS];
}

static void keep(app_t *a, int model, const ecg_result *r, uint32_t sample, uint32_t n, uint8_t flags, uint64_t waited)
{
    const ecg_model *m = a->image->models[model].model;
    app_engine *e = &a->engine[model];
    app_result *kept = slot(a);
    uint64_t ms = waited / 1000u;
    kept->head = (ecg_link_result) {
        .number = a->made, .first_index = sample + 1u - n, .present = r->present, .busy_us = e->busy_us,
        .n = (uint16_t)n, .top = (int8_t)r->top, .model = (uint8_t)model, .classes = (uint8_t)m->classes,
        .flags = flags, .latency_ms = (uint16_t)(ms < 0xffffu ? ms : 0xffffu),
    };
    memcpy(kept->scores, r->logits, m->classes);
    a->made++;
    a->status.results++;
    if (e->busy_us > a->status.worst_us)
        a->status.worst_us = e->busy_us;
    e->busy_us = 0;
    e->since = 0;
    e->decided = 1;
}

/* A decision after a sample that came at `arrived` (0: no matter, it was injected). */
static void decided(app_t *a, int model, const ecg_result *r, uint64_t arrived)
{
    const ecg_model *m = a->image->models[model].model;
    const app_engine *e = &a->engine[model];
    uint8_t flags = r->unreliable ? ECG_LINK_UNRELIABLE : 0;
    uint64_t waited = 0;
    if (arrived) {
        app_clock(a);
        waited = a->now_us > arrived ? a->now_us - arrived : 0;
        if (waited > (uint64_t)hop_of(m) * 1000000u / m->fs) {
            flags |= ECG_LINK_LATE;
            a->status.late++;
        }
    } else {
        flags |= ECG_LINK_FROM_INJECT;
    }
    keep(a, model, r, e->base + r->sample, m->trigger == ECG_HOP ? m->samples : 1u, flags, waited);
}

/* ---- samples */

/* The leads of a model, in its order, from the batch. */
static void map_leads(app_t *a, const app_model *m, int32_t n)
{
    int32_t *to = a->uv;
    for (int32_t i = 0; i < n; i++) {
        for (int lead = 0; lead < m->model->leads; lead++) {
            int channel = m->leads ? m->leads[lead] : lead + 1;
            *to++ = channel < 0 ? -a->batch[i].uv[-channel - 1] : a->batch[i].uv[channel - 1];
        }
    }
}

static void run(app_t *a, int model, int32_t n, int live, int off)
{
    app_engine *e = &a->engine[model];
    const app_model *m = &a->image->models[model];
    map_leads(a, m, n);
    if (off)
        ecg_bad(&e->engine);    /* what is decided inside of this batch sees the electrode too */
    for (int32_t at = 0; at < n;) {
        ecg_result r;
        uint32_t before = hal_time_us();
        int32_t took = ecg_push(&e->engine, a->uv + at * m->model->leads, n - at, &r);
        uint32_t spent = hal_time_us() - before;
        e->busy_us += spent;
        a->worked_us += spent;
        if (took <= 0 && !r.ready)
            break;              /* never, by its contract; a loop without end would be worse than a missing hop */
        at += took;
        e->since += (uint32_t)took;
        if (r.ready)
            decided(a, model, &r, live ? a->stream.last_us - ((uint64_t)(n - at) * a->stream.period >> 16) : 0);
    }
    if (off)
        ecg_bad(&e->engine);
}

void app_stream_take(app_t *a, int32_t n, uint64_t arrived_us, int injected)
{
    app_stream *s = &a->stream;
    int off = 0;
    s->last_us = arrived_us;
    s->fresh = 0;
    for (int32_t i = 0; i < n; i++)
        off |= a->batch[i].lead_off;
    for (int k = 0; k < a->image->count; k++)
        if (a->active >> k & 1)
            run(a, k, n, !injected, off);
    s->next += (uint32_t)n;
    a->status.samples = s->next;
}

void app_stream_codes(app_t *a, const int8_t *codes, int32_t n, int leads)
{
    for (int k = 0; k < a->image->count; k++) {
        app_engine *e = &a->engine[k];
        if (!(a->active >> k & 1) || a->image->models[k].model->leads != leads)
            continue;
        for (int32_t at = 0; at < n;) {
            ecg_result r;
            uint32_t before = hal_time_us();
            int32_t took = ecg_push_codes(&e->engine, codes + at * leads, n - at, &r);
            e->busy_us += hal_time_us() - before;
            if (took <= 0 && !r.ready)
                break;
            at += took;
            if (r.ready)
                decided(a, k, &r, 0);
        }
    }
    a->stream.next += (uint32_t)n;
}

/* ---- single windows */

/* The one model that single windows are for: the first that runs; NULL where its build does not evaluate any. */
static const ecg_model *window_model(const app_t *a, int *k)
{
    for (*k = 0; *k < a->image->count; ++*k)
        if (a->active >> *k & 1)
            return a->image->models[*k].model->window ? a->image->models[*k].model : NULL;
    return NULL;
}

/* Inputs lie in the arena, where the network reads them. */
int app_window_put(app_t *a, const uint8_t *codes, uint32_t from, uint32_t n)
{
    int k;
    const ecg_model *m = window_model(a, &k);
    for (uint16_t i = 0; m && n && i < m->window->given_count; i++) {
        const ecg_tensor *t = &m->window->tensors[m->window->given[i]];
        uint32_t size = (uint32_t)t->rows * t->columns, part = from < size ? size - from : 0;
        part = part < n ? part : n;
        if (part)
            memcpy(ecg_net_input(&a->engine[k].engine.net, m->window, i) + from, codes, part);
        codes += part;
        n -= part;
        from = part ? 0 : from - size;
    }
    return m && !n ? ECG_LINK_OK : ECG_LINK_NO_ROOM;
}

void app_window_run(app_t *a)
{
    int k;
    const ecg_model *m = window_model(a, &k);
    if (!m)
        return;
    app_engine *e = &a->engine[k];
    uint32_t before = hal_time_us();
    ecg_result r = { .top = -1, .ready = 1, .logits = ecg_net_run(&e->engine.net, m->window) };
    e->busy_us = hal_time_us() - before;
    keep(a, k, &r, m->samples - 1u, m->samples, ECG_LINK_FROM_INJECT, 0);
}

/* ---- the watchdog's question */

static int hops_advance(const app_t *a, int k)
{
    const app_engine *e = &a->engine[k];
    const ecg_model *m = a->image->models[k].model;
    if (m->trigger != ECG_HOP)
        return 1;               /* a heart may stand still */
    uint32_t first = m->samples + (uint32_t)APP_SETTLE_S * m->fs, most = 2u * m->hop + (e->decided ? 0u : first);
    return e->since <= at_stream(a, m, most);
}

int app_advances(const app_t *a)
{
    /* what the host does not send is no fault of ours */
    if (a->image->sensor && a->now_us - a->stream.last_us > APP_STARVED_MS * 1000u)
        return 0;
    for (int k = 0; k < a->image->count; k++)
        if ((a->active >> k & 1) && !hops_advance(a, k))
            return 0;
    return 1;
}
