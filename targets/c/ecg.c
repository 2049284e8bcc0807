/* SPDX-License-Identifier: Apache-2.0 */
#include "ecg.h"

#include <string.h>

static const ecg_rate same_rate = {NULL, 1, 1, 1};

/* ---- what a model looks at */

static int has(const ecg_model *m, uint8_t side)
{
    for (uint8_t i = 0; i < m->side_count; i++)
        if (m->sides[i] == side)
            return 1;
    return 0;
}

static int looks_at_beats(const ecg_model *m)
{
    return m->front && (m->trigger == ECG_R_PEAK || has(m, ECG_BEATS) || has(m, ECG_RR));
}

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* ---- memory: one block of parts */

enum {
    SCRATCH, ARENA, STATE, HAVE, SUMS, FRESH, LOGITS, VOTES, FRONT, HISTORY, RPEAK, BEATS, RHYTHM, QUEUE, CODES, PARTS
};

static int around_beats(const ecg_model *m)
{
    return m->front && m->trigger == ECG_R_PEAK;
}

static int takes_rhythm(const ecg_model *m)
{
    return m->front && has(m, ECG_BEATS);
}

/* Samples of the lead that are looked back on. */
static uint32_t history(const ecg_model *m)
{
    const uint32_t fs = m->fs;
    uint32_t back = looks_at_beats(m) ? ecg_rpeak_history(fs) : 0;
    back = around_beats(m) ? larger(back, ecg_beats_history(fs)) : back;
    return takes_rhythm(m) ? larger(back, ecg_rhythm_history(fs)) : back;
}

/* Codes kept of each lead for windows around beats: 10 s, as a beat may wait so long for the next one, and a window. */
static uint32_t room(const ecg_model *m)
{
    const uint32_t fs = m->fs;
    return around_beats(m) ? 10 * fs + ecg_rpeak_latency(fs) + m->r_offset + 2 : 0;
}

/* at[PARTS]: where each part begins. Returns the bytes of all. */
static uint32_t lay_out(const ecg_model *m, const ecg_rate *rate, uint32_t *at)
{
    static const uint8_t align[PARTS] = {8, 4, 4, 4, 4, 2, 1, 1, 4, 4, 4, 4, 4, 4, 1};
    uint32_t used = 0;
    at[SCRATCH] = m->scratch;
    at[ARENA] = m->arena;
    at[STATE] = m->state;
    at[HAVE] = m->counters * (uint32_t)sizeof(int32_t);
    at[SUMS] = m->classes * (uint32_t)sizeof(int32_t);
    at[FRESH] = m->counters * (uint32_t)sizeof(uint16_t);
    at[LOGITS] = m->classes;
    at[VOTES] = (uint32_t)m->vote * m->classes;
    at[FRONT] = m->front ? ecg_front_memory(m->front, rate) : 0;
    at[HISTORY] = history(m) * (uint32_t)sizeof(int16_t);
    at[RPEAK] = looks_at_beats(m) ? ecg_rpeak_memory(m->fs) : 0;
    at[BEATS] = around_beats(m) ? ecg_beats_memory(m->fs) : 0;
    at[RHYTHM] = takes_rhythm(m) ? ecg_rhythm_memory(m->fs) : 0;
    at[QUEUE] = around_beats(m) ? ECG_QUEUE * (uint32_t)sizeof(ecg_waiting) : 0;
    at[CODES] = room(m) * m->leads;
    for (int i = 0; i < PARTS; i++) {
        const uint32_t bytes = at[i];
        at[i] = (used + align[i] - 1) / align[i] * align[i];
        used = at[i] + bytes;
    }
    return (used + 7) / 8 * 8;
}

/* Every part gets its place, and what has a start of its own starts. */
static void take(ecg_t *e, const ecg_rate *rate, uint8_t *memory, const uint32_t *at)
{
    const ecg_model *m = e->model;
    e->net.scratch = memory + at[SCRATCH];
    e->net.arena = (int8_t *)(memory + at[ARENA]);
    e->net.state = (int8_t *)(memory + at[STATE]);
    e->net.have = (int32_t *)(void *)(memory + at[HAVE]);
    e->net.fresh = (uint16_t *)(void *)(memory + at[FRESH]);
    e->sums = (int32_t *)(void *)(memory + at[SUMS]);
    e->logits = (int8_t *)(memory + at[LOGITS]);
    e->votes = (int8_t *)(memory + at[VOTES]);
    e->queue = (ecg_waiting *)(void *)(memory + at[QUEUE]);
    e->codes = (int8_t *)(memory + at[CODES]);
    e->room = room(m);
    if (m->front)
        ecg_front_init(&e->front, m->front, rate, memory + at[FRONT]);
    if (looks_at_beats(m)) {
        ecg_history_init(&e->history, (int16_t *)(void *)(memory + at[HISTORY]), history(m));
        ecg_rpeak_init(&e->rpeak, m->fs, memory + at[RPEAK]);
    }
    if (around_beats(m))
        ecg_beats_init(&e->beats, m->fs, memory + at[BEATS]);
    if (takes_rhythm(m))
        ecg_rhythm_init(&e->rhythm, m->fs, memory + at[RHYTHM]);
}

uint32_t ecg_memory(const ecg_model *model, const ecg_rate *rate)
{
    uint32_t at[PARTS];
    return lay_out(model, rate ? rate : &same_rate, at);
}

int ecg_init(ecg_t *e, const ecg_model *model, const ecg_rate *rate, void *memory, uint32_t bytes)
{
    uint32_t at[PARTS];
    rate = rate ? rate : &same_rate;
    if (model->magic != ECG_MAGIC || model->version != ECG_API_VERSION)
        return ECG_E_VERSION;
    if (((uintptr_t)memory & 7u) || bytes < lay_out(model, rate, at))
        return ECG_E_MEMORY;
    if ((model->window && !ecg_net_complete(model->window))
        || (model->stream && !(ecg_net_complete(&model->stream->front) && ecg_net_complete(&model->stream->back))))
        return ECG_E_KERNEL;
    memset(e, 0, sizeof *e);
    e->model = model;
    take(e, rate, (uint8_t *)memory, at);
    ecg_patient(e, -1, 0);
    ecg_reset(e);
    return ECG_OK;
}

int ecg_check(const ecg_model *model)
{
    const uint8_t *bytes = (const uint8_t *)model;
    const uint32_t hole = offsetof(ecg_model, crc);
    uint32_t crc = 0xffffffffu;
    if (model->magic != ECG_MAGIC || model->length < sizeof *model || model->length != ~model->mirror)
        return ECG_E_DAMAGED;
    for (uint32_t i = 0; i < model->length; i++) {
        crc ^= i - hole < sizeof model->crc ? 0 : bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1u)));
    }
    return ~crc == model->crc ? ECG_OK : ECG_E_DAMAGED;
}

void ecg_patient(ecg_t *e, int age, int sex)
{
    e->age = (int8_t)(age < 0 ? -1 : age > 127 ? 127 : age);
    e->sex = (int8_t)(sex == 1 || sex == 2 ? sex : 0);
}

void ecg_bad(ecg_t *e)
{
    /* what a bad stretch leaves in the filters takes as long to settle as a start */
    e->good = e->now + (e->model->front ? e->model->front->settle : 0u);
}

void ecg_reset(ecg_t *e)
{
    const ecg_model *m = e->model;
    memset(e->sums, 0, m->classes * sizeof *e->sums);
    e->windows = e->now = e->good = 0;
    e->waiting = 0;
    if (m->stream)
        ecg_net_reset(&e->net, m->stream);
    if (m->front)
        ecg_front_reset(&e->front);
    if (!looks_at_beats(m))
        return;
    ecg_history_reset(&e->history);
    ecg_rpeak_reset(&e->rpeak);
    if (has(m, ECG_BEATS))
        ecg_rhythm_reset(&e->rhythm);
    if (m->trigger == ECG_R_PEAK) {
        ecg_beats_reset(&e->beats);
        e->at = e->held = 0;
    }
}

/* ---- decisions */

/* Adds a window's logits to the sums of the last `vote` windows, or of all: after 2^24 of these the sums are full, and
 * their means stay. */
static void vote(ecg_t *e)
{
    const ecg_model *m = e->model;
    if (!m->vote && e->windows == 1u << 24)
        return;
    int8_t *old = m->vote ? e->votes + e->windows % m->vote * m->classes : NULL;
    for (uint16_t k = 0; k < m->classes; k++) {
        e->sums[k] += e->logits[k];
        if (old) {
            e->sums[k] -= e->windows >= m->vote ? old[k] : 0;
            old[k] = e->logits[k];
        }
    }
    e->windows++;
}

/* Nothing from sample `first` of a window on was marked bad; no later window begins before it. */
static int reliable(ecg_t *e, uint32_t first)
{
    if ((int32_t)(e->good - first) > 0)
        return 0;
    e->good = first;        /* never so far back that it would seem to come */
    return 1;
}

/* The manifest's rule: 256 * sum against windows * offset. */
static void decide(ecg_t *e, const int8_t *logits, int good, uint32_t sample, ecg_result *r)
{
    const ecg_model *m = e->model;
    int64_t best = INT64_MIN;
    memcpy(e->logits, logits, m->classes);
    r->top = -1;
    r->present = 0;
    r->sample = sample;
    r->logits = e->logits;
    r->ready = 1;
    r->unreliable = !good;
    if (!good || !m->offsets)
        return;
    vote(e);
    const int64_t n = m->vote && e->windows > m->vote ? m->vote : e->windows;
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
}

int ecg_window(ecg_t *e, const int8_t *const *inputs, int8_t *logits)
{
    const ecg_program *program = e->model->window;
    if (!program)
        return ECG_E_FORM;
    for (uint16_t i = 0; i < program->given_count; i++) {
        const ecg_tensor *t = &program->tensors[program->given[i]];
        memcpy(ecg_net_input(&e->net, program, i), inputs[i], (size_t)t->rows * t->columns);
    }
    memcpy(logits, ecg_net_run(&e->net, program), e->model->classes);
    return ECG_OK;
}

/* ---- a window at every hop */

/* One frame of codes into the stream; a decision where it completes one. */
static void hop(ecg_t *e, const int8_t *codes, ecg_result *r)
{
    const ecg_model *m = e->model;
    int8_t sequence[ECG_RHYTHM_STEPS * ECG_RHYTHM_FEATURES];
    const int8_t *sides[ECG_SIDES];
    int due;
    ecg_net_take(&e->net, m->stream, codes, 1, &due);
    if (!due)
        return;
    for (uint8_t i = 0; i < m->side_count; i++)
        sides[i] = m->sides[i] == ECG_AGE ? &e->age : m->sides[i] == ECG_SEX ? &e->sex : sequence;
    if (has(m, ECG_BEATS))
        ecg_rhythm_sequence(&e->rhythm, ecg_rhythm_unknown(&e->rhythm, e->now), sequence);
    const int8_t *logits = ecg_net_step(&e->net, m->stream, sides);
    if (logits)
        decide(e, logits, reliable(e, e->now + 1 - m->samples), e->now, r);
}

/* ---- a window around every beat */

/* A beat with all its features takes its place; `skip` rows of the sequence are of later beats. */
static void queue(ecg_t *e, uint32_t at, const int8_t *row, uint32_t skip)
{
    if (e->waiting == ECG_QUEUE)        /* cannot be: see ECG_QUEUE */
        return;
    ecg_waiting *w = &e->queue[e->waiting++];
    w->r = at;
    memcpy(w->rr, row, sizeof w->rr);
    if (has(e->model, ECG_BEATS))
        ecg_rhythm_sequence(&e->rhythm, skip, w->beats[0]);
}

/* Where a row is complete its beat queues: when the next one is decided or cannot come any more; or at once, where the
 * model does not ask for the beat behind. */
static void beat(ecg_t *e, int32_t back)
{
    const ecg_model *m = e->model;
    const uint32_t last = e->beats.r;
    int8_t row[ECG_BEATS_FEATURES];
    if (back >= 0) {
        const int complete = ecg_beats_push(&e->beats, &e->history, back, e->now - (uint32_t)back, row);
        if (m->beats_after == 0) {
            ecg_beats_last(&e->beats, row);
            queue(e, e->now - (uint32_t)back, row, 0);
        } else if (complete) {
            queue(e, last, row, 1);
        }
    } else if (m->beats_after && ecg_beats_overdue(&e->beats, e->now, row)) {
        queue(e, last, row, 0);
    }
}

/* The code of a lead `back` samples before the newest; before the start it was 0. */
static int8_t code(const ecg_t *e, uint16_t lead, uint32_t back)
{
    const uint32_t newest = e->at ? e->at - 1 : e->room - 1;
    if (back >= e->held)
        return 0;
    return e->codes[lead * e->room + (newest >= back ? newest - back : newest + e->room - back)];
}

/* The oldest beat that waits, once its window is whole. */
static void around(ecg_t *e, ecg_result *r)
{
    const ecg_model *m = e->model;
    const ecg_waiting *w = e->queue;
    const uint32_t first = w->r - m->r_offset;      /* of the window; before the start the codes are 0 */
    if (e->now - first + 1 < m->samples || e->now - first >= 1u << 31)
        return;
    int8_t *to = ecg_net_input(&e->net, m->window, 0);
    for (uint16_t lead = 0; lead < m->leads; lead++)
        for (uint32_t i = 0; i < m->samples; i++)
            *to++ = code(e, lead, e->now - first - i);
    for (uint8_t i = 0; i < m->side_count; i++) {
        int8_t *side = ecg_net_input(&e->net, m->window, (uint16_t)(i + 1));
        if (m->sides[i] == ECG_RR)
            memcpy(side, w->rr, sizeof w->rr);
        else if (m->sides[i] == ECG_BEATS)
            memcpy(side, w->beats, sizeof w->beats);
        else
            *side = m->sides[i] == ECG_AGE ? e->age : e->sex;
    }
    const uint32_t at = w->r;
    decide(e, ecg_net_run(&e->net, m->window), at >= m->front->settle && reliable(e, first), at, r);
    e->waiting--;
    memmove(e->queue, e->queue + 1, e->waiting * sizeof *e->queue);
}

/* ---- samples */

/* One frame of the front end's output. */
static void sample(ecg_t *e, const int16_t *uv, int settled, ecg_result *r)
{
    const ecg_model *m = e->model;
    const int beats = looks_at_beats(m);
    int8_t codes[ECG_LEADS_MAX];
    for (uint16_t lead = 0; lead < m->leads; lead++)
        codes[lead] = ecg_front_code(uv[lead], m->front->uv_per_lsb);
    if (beats) {
        ecg_history_put(&e->history, uv[0]);
        const int32_t back = ecg_rpeak_push(&e->rpeak, &e->history);
        if (back >= 0 && has(m, ECG_BEATS))
            ecg_rhythm_push(&e->rhythm, &e->history, back, e->now - (uint32_t)back);
        if (m->trigger == ECG_R_PEAK)
            beat(e, back);
    }
    if (m->trigger == ECG_R_PEAK) {
        for (uint16_t lead = 0; lead < m->leads; lead++)
            e->codes[lead * e->room + e->at] = codes[lead];
        e->at = e->at + 1 < e->room ? e->at + 1 : 0;
        e->held += e->held < e->room;
        if (e->waiting)
            around(e, r);
    } else if (settled && m->stream) {
        hop(e, codes, r);
    }
    e->now++;
}

int32_t ecg_push(ecg_t *e, const int32_t *uv, int32_t n, ecg_result *r)
{
    int16_t frame[ECG_LEADS_MAX];
    int32_t taken = 0;
    memset(r, 0, sizeof *r);
    for (;;) {
        /* one input may make several outputs: they come first, also those left over from the last call */
        const int settled = e->front.settle == 0;
        if (ecg_front_get(&e->front, frame)) {
            sample(e, frame, settled, r);
            if (r->ready)
                break;
        } else if (taken == n) {
            break;
        } else {
            ecg_front_put(&e->front, uv + taken++ * e->model->leads);
        }
    }
    return taken;
}

int32_t ecg_push_codes(ecg_t *e, const int8_t *codes, int32_t n, ecg_result *r)
{
    int32_t taken = 0;
    memset(r, 0, sizeof *r);
    if (!e->model->stream || looks_at_beats(e->model))
        return 0;
    while (taken < n && !r->ready) {
        hop(e, codes + taken++ * e->model->leads, r);
        e->now++;
    }
    return taken;
}
