/* SPDX-License-Identifier: Apache-2.0 */
#include "app.h"

#include <string.h>

enum { TEXT = 80 };             /* most bytes of a text of ours */

/* ---- out */

/* A frame into what waits for the line; 0 where there is no room for it, and nothing is sent then. */
static int send(app_t *a, uint8_t type, uint8_t flags, uint32_t time_us, const void *fixed, uint32_t fixed_bytes,
                const void *rest, uint32_t rest_bytes)
{
    ecg_link_head head = { flags, type, a->seq, time_us };
    if (a->tx_from && sizeof a->tx - a->tx_to < ECG_LINK_WIRE(ECG_LINK_HEAD + fixed_bytes + rest_bytes + 4u)) {
        memmove(a->tx, a->tx + a->tx_from, a->tx_to - a->tx_from);
        a->tx_to -= a->tx_from;
        a->tx_from = 0;
    }
    uint32_t bytes = ecg_link_encode(&head, fixed, fixed_bytes, rest, rest_bytes, a->tx + a->tx_to,
                                     (uint32_t)sizeof a->tx - a->tx_to);
    a->tx_to += bytes;
    a->seq = (uint16_t)(a->seq + (bytes != 0));
    return bytes != 0;
}

static void tell(app_t *a, uint8_t type, const void *fixed, uint32_t fixed_bytes, const void *rest, uint32_t rest_bytes)
{
    if (!send(a, type, 0, (uint32_t)a->now_us, fixed, fixed_bytes, rest, rest_bytes))
        a->status.dropped++;
}

int app_room(const app_t *a, uint32_t payload)
{
    return sizeof a->tx - (a->tx_to - a->tx_from) >= ECG_LINK_WIRE(ECG_LINK_HEAD + payload + 4u);
}

/* Of a text of ours; without a C library */
static uint32_t length(const char *text, uint32_t most)
{
    uint32_t n = 0;
    while (n < most && text[n])
        n++;
    return n;
}

void app_log(app_t *a, uint8_t level, const char *text)
{
    if (a->leased && level >= a->log_level)
        tell(a, ECG_LINK_LOG, &level, 1, text, length(text, TEXT));
}

static void error(app_t *a, uint16_t seq, uint8_t code, const char *text)
{
    ecg_link_error e = { seq, code, 0 };
    tell(a, ECG_LINK_ERROR, &e, sizeof e, text, length(text, TEXT));
}

void app_send_results(app_t *a)
{
    while (a->sending != a->made) {
        const app_result *r = &a->ring[a->sending % APP_RESULTS];
        if (!app_room(a, sizeof r->head + r->head.classes))
            return;             /* it stays in the ring */
        tell(a, ECG_LINK_RESULT, &r->head, sizeof r->head, r->scores, r->head.classes);
        a->sending++;
    }
}

static uint16_t permille(uint64_t part, uint64_t whole)
{
    return (uint16_t)(whole ? part * 1000u / whole : 0);
}

void app_send_status(app_t *a)
{
    uint64_t whole = a->now_us - a->measured_us;
    a->status.uptime_s = (uint32_t)(a->now_us / 1000000u);
    a->status.frames = a->rx.frames;
    a->status.damaged = a->rx.damaged;
    a->status.sleep_permille = permille(a->slept_us, whole);
    a->status.busy_permille = permille(a->worked_us, whole);
    tell(a, ECG_LINK_STATUS, &a->status, sizeof a->status, NULL, 0);
    a->slept_us = a->worked_us = 0;
    a->measured_us = a->now_us;
    a->status_at_us = a->now_us + a->status_us;
}

void app_send_samples(app_t *a, const hal_frame *frames, int32_t n)
{
    if (!a->send_samples) {
        a->out_head.n = 0;
        return;
    }
    for (int32_t i = 0; i < n; i++) {
        uint8_t *to = a->out + a->out_head.n * a->image->channels * 3u;
        if (!a->out_head.n) {
            a->out_head = (ecg_link_samples) { .first_index = a->stream.next + (uint32_t)i,
                                          .channels = a->image->channels, .width = 3 };
            a->out_time_us = (uint32_t)a->now_us - (uint32_t)(((uint64_t)(n - 1 - i) * a->stream.period) >> 16);
        }
        for (int k = 0; k < a->image->channels; k++, to += 3) {
            to[0] = (uint8_t)frames[i].uv[k];
            to[1] = (uint8_t)(frames[i].uv[k] >> 8);
            to[2] = (uint8_t)(frames[i].uv[k] >> 16);
        }
        a->out_head.lead_off |= frames[i].lead_off;
        if (++a->out_head.n == APP_SEND) {
            uint8_t flags = (uint8_t)(a->out_flags | (a->out_head.lead_off ? ECG_LINK_LEAD_OFF : 0));
            a->status.dropped += !send(a, ECG_LINK_SAMPLES, flags, a->out_time_us, &a->out_head, sizeof a->out_head,
                                       a->out, APP_SEND * a->image->channels * 3u);
            a->out_head.n = a->out_flags = 0;
        }
    }
}

/* ---- in */

static void ack(app_t *a, const ecg_link_head *head, int code)
{
    ecg_link_ack answer = { head->seq, head->type, (uint8_t)code };
    tell(a, ECG_LINK_ACK, &answer, sizeof answer, NULL, 0);
}

static uint32_t least(uint32_t x, uint32_t y)
{
    return x < y ? x : y;
}

static uint8_t forms(const ecg_model *m)
{
    return (uint8_t)((m->window ? ECG_LINK_WINDOW : 0) | (m->stream ? ECG_LINK_STREAM : 0));
}

static void hello(app_t *a, const ecg_link_head *head, const uint8_t *payload)
{
    const app_image *image = a->image;
    ecg_link_hello_req request;
    memcpy(&request, payload, sizeof request);
    if (request.oldest > ECG_LINK_MAJOR || request.newest < ECG_LINK_MAJOR) {
        error(a, head->seq, ECG_LINK_VERSION, "this device speaks version 1");
        return;
    }
    ecg_link_hello_rsp answer = {
        .major = ECG_LINK_MAJOR, .minor = ECG_LINK_MINOR,
        .firmware = { APP_VERSION_MAJOR, APP_VERSION_MINOR, APP_VERSION_PATCH },
        .channels = image->channels, .models = image->count, .state = a->state, .nonce = request.nonce,
        .boot_id = a->boot_id, .fs_num = image->fs_num, .fs_den = image->fs_den, .nv_per_lsb = 1000.0f,
        .max_frame = sizeof a->block, .clock_khz = image->clock_khz, .results = APP_RESULTS, .lease_ms = APP_LEASE_MS,
        .caps = (uint16_t)(image->sensor ? ECG_LINK_HAS_SENSOR : 0),
    };
    memcpy(answer.board, image->board, length(image->board, sizeof answer.board));
    ecg_link_hello_model models[APP_MODELS];
    for (int k = 0; k < image->count; k++) {
        const ecg_model *m = image->models[k].model;
        models[k] = (ecg_link_hello_model) {
            .fs = m->fs, .hop = m->trigger == ECG_HOP ? m->hop : 0, .window = m->samples, .leads = (uint8_t)m->leads,
            .classes = (uint8_t)m->classes, .ok = a->engine[k].ok, .forms = forms(m),
        };
        memcpy(models[k].identity, m->identity, sizeof models[k].identity);
    }
    tell(a, ECG_LINK_HELLO_RSP, &answer, sizeof answer, models, image->count * sizeof models[0]);
    if (a->state == ECG_LINK_REFUSED)
        error(a, head->seq, ECG_LINK_BAD_MODEL, "the model's data in flash is damaged or of another version");
}

static int before(uint32_t x, uint32_t y)
{
    return (int32_t)(x - y) < 0;
}

/* Results in front of `number` have arrived. `again`: go on from there, whatever was sent before. */
static void confirm(app_t *a, uint32_t number, int again)
{
    if (before(a->made, number))
        number = a->made;       /* of another device? nothing follows from it */
    if (before(a->known, number))
        a->known = number;
    if (before(a->known, a->kept)) {
        a->status.results_lost += a->kept - a->known;
        a->known = a->kept;
    }
    if (before(a->kept, number))
        a->kept = number;
    if (again || before(a->sending, a->kept))
        a->sending = a->kept;
}

static int start(app_t *a, const uint8_t *payload)
{
    ecg_link_start want;
    memcpy(&want, payload, sizeof want);
    if (want.boot_id != a->boot_id)
        return ECG_LINK_OTHER_BOOT;
    if (a->state == ECG_LINK_REFUSED)
        return ECG_LINK_BAD_MODEL;
    uint8_t all = (uint8_t)((1u << a->image->count) - 1u), models = want.models ? want.models : all;
    if (models & ~all)
        return ECG_LINK_BAD_VALUE;
    confirm(a, want.next_result, (want.flags & ECG_LINK_AGAIN) || !a->leased);
    if (a->state == ECG_LINK_IDLE || models != a->active) {
        app_choose(a, models);
    }
    if (!a->leased) {
        a->measured_us = a->status_at_us = a->now_us;
        a->host_known = 0;
        a->slept_us = a->worked_us = 0;
    }
    a->leased = 1;
    a->lease_us = (want.lease_ms ? least(want.lease_ms, APP_LEASE_MOST_MS) : APP_LEASE_MS) * 1000u;
    a->send_samples = a->image->sensor && (want.flags & ECG_LINK_SAMPLES_TOO);
    return ECG_LINK_OK;
}

static int set(app_t *a, const uint8_t *payload)
{
    ecg_link_set s;
    memcpy(&s, payload, sizeof s);
    switch (s.key) {
    case ECG_LINK_KEY_STATUS_MS:
        if (s.value < 0 || s.value > 3600000)
            return ECG_LINK_BAD_VALUE;
        a->status_us = (uint64_t)s.value * 1000u;
        a->status_at_us = a->now_us + a->status_us;
        return ECG_LINK_OK;
    case ECG_LINK_KEY_LOG_LEVEL:
        if (s.value < 0 || s.value > 4)
            return ECG_LINK_BAD_VALUE;
        a->log_level = (uint8_t)s.value;
        return ECG_LINK_OK;
    case ECG_LINK_KEY_AGE:
    case ECG_LINK_KEY_SEX:
        if (s.key == ECG_LINK_KEY_AGE ? s.value < -1 || s.value > 127 : s.value < 0 || s.value > 2)
            return ECG_LINK_BAD_VALUE;
        for (int k = 0; k < a->image->count; k++) {
            ecg_t *e = &a->engine[k].engine;
            ecg_patient(e, s.key == ECG_LINK_KEY_AGE ? s.value : e->age, s.key == ECG_LINK_KEY_SEX ? s.value : e->sex);
        }
        return ECG_LINK_OK;
    default:
        return ECG_LINK_UNKNOWN_KEY;
    }
}

/* Moments from .. from + n - 1 of a frame of samples into the batch. */
static void unpack(app_t *a, const ecg_link_samples *s, const uint8_t *data, int32_t from, int32_t n)
{
    const uint8_t *at = data + (uint32_t)from * s->channels * s->width;
    for (int32_t i = 0; i < n; i++) {
        for (int k = 0; k < s->channels; k++, at += s->width) {
            uint32_t value = 0;
            for (int byte = 0; byte < s->width; byte++)
                value |= (uint32_t)at[byte] << (8 * (4 - s->width + byte));
            a->batch[i].uv[k] = (int32_t)value >> (8 * (4 - s->width));
        }
        a->batch[i].lead_off = s->lead_off;
    }
}

/* When the last sample of a frame was here, had nobody kept it waiting: the least delay seen so far, from the time that
 * the host states, is that of the line. It may grow by 1/4096, for the two clocks run at different speeds. */
static uint64_t arrival(app_t *a, const ecg_link_head *head, const ecg_link_samples *s)
{
    uint32_t now = (uint32_t)a->now_us, taken = head->time_us + (uint32_t)((s->n - 1u) * a->stream.period >> 16);
    uint32_t delay = now - taken;
    if (a->host_known)
        a->host_us += (now - a->host_seen_us) >> 12;
    if (!a->host_known || before(delay, a->host_us))
        a->host_us = delay;
    a->host_known = 1;
    a->host_seen_us = now;
    uint32_t waited = delay - a->host_us;
    return a->now_us > waited ? a->now_us - waited : 1u;
}

static void take(app_t *a, const ecg_link_samples *s, const uint8_t *data, uint64_t arrived, int injected)
{
    for (int32_t from = 0; from < s->n; from += APP_BATCH) {
        int32_t n = (int32_t)least((uint32_t)(s->n - from), APP_BATCH);
        uint64_t behind = (uint64_t)(s->n - from - n) * a->stream.period >> 16;
        unpack(a, s, data, from, n);
        app_stream_take(a, n, arrived > behind ? arrived - behind : 1u, injected);
    }
}

/* Live samples from the host: gaps are lost, what comes twice is dropped. */
static void live(app_t *a, const ecg_link_head *head, const ecg_link_samples *s, const uint8_t *data)
{
    int32_t ahead = (int32_t)(s->first_index - a->stream.next);
    int untouched = a->stream.fresh && a->stream.next == 0;
    if (a->image->sensor || a->state != ECG_LINK_RUNNING || !s->n)
        return;
    if (ahead < 0 && s->first_index)
        return;
    if (ahead) {
        if (!untouched && ahead > 0) {
            a->status.missing += (uint32_t)ahead;
            a->status.gaps++;
        }
        app_stream_begin(a, s->first_index);
    }
    take(a, s, data, arrival(a, head, s), 0);
}

/* Samples whose results the host compares: none may be missing, so each frame is answered. A frame whose answer got lost
 * comes again, and is answered again only. */
static int inject(app_t *a, const ecg_link_samples *s, const uint8_t *data)
{
    if (!s->first_index || a->state != ECG_LINK_INJECTED) {
        if (s->first_index)
            return ECG_LINK_BAD_VALUE;
        a->state = ECG_LINK_INJECTED;
        app_stream_begin(a, 0);
    }
    int32_t ahead = (int32_t)(s->first_index - a->stream.next);
    if (ahead)
        return ahead < 0 ? ECG_LINK_OK : ECG_LINK_BAD_VALUE;
    if (s->width == 1)
        app_stream_codes(a, (const int8_t *)data, s->n, s->channels);
    else
        take(a, s, data, a->now_us, 1);
    return ECG_LINK_OK;
}

static int inject_window(app_t *a, const ecg_link_head *head, const ecg_link_samples *s, const uint8_t *data)
{
    if (a->state != ECG_LINK_INJECTED)
        app_stream_begin(a, 0);
    a->state = ECG_LINK_INJECTED;
    int code = app_window_put(a, data, s->first_index, s->n);
    if (code == ECG_LINK_OK && (head->flags & ECG_LINK_LAST))
        app_window_run(a);
    return code;
}

static void samples(app_t *a, const ecg_link_head *head, const uint8_t *payload, uint32_t bytes)
{
    ecg_link_samples s;
    memcpy(&s, payload, sizeof s);
    const uint8_t *data = payload + sizeof s;
    int injected = head->type == ECG_LINK_INJECT, code = ECG_LINK_OK;
    if (a->state == ECG_LINK_REFUSED || !a->leased)
        code = ECG_LINK_NOT_STARTED;
    else if (injected && !s.width)
        code = bytes - sizeof s < s.n ? ECG_LINK_BAD_PAYLOAD : inject_window(a, head, &s, data);
    else if (s.width > 4 || s.width < (injected ? 1 : 2) || (s.width > 1 && s.channels != a->image->channels)
             || bytes - sizeof s < (uint32_t)s.n * s.channels * s.width)
        code = ECG_LINK_BAD_PAYLOAD;
    else if (injected)
        code = inject(a, &s, data);
    else
        live(a, head, &s, data);
    if (injected)
        app_send_results(a);    /* they go in front of the answer */
    if (injected && a->sending == a->made)
        ack(a, head, code);     /* else the host will ask again, and find that the samples are in */
    else if (!injected && code)
        error(a, head->seq, (uint8_t)code, "samples are not taken");
}

static void stop(app_t *a)
{
    if (a->leased)
        a->lease_until_us = a->now_us;
}

static uint32_t shortest(uint8_t type)
{
    switch (type) {
    case ECG_LINK_HELLO_REQ: return sizeof(ecg_link_hello_req);
    case ECG_LINK_START: return sizeof(ecg_link_start);
    case ECG_LINK_SET: return sizeof(ecg_link_set);
    case ECG_LINK_SAMPLES:
    case ECG_LINK_INJECT: return sizeof(ecg_link_samples);
    default: return 0;
    }
}

static void answer(app_t *a, const ecg_link_head *head, const uint8_t *payload, uint32_t bytes)
{
    if (bytes < shortest(head->type)) {
        ack(a, head, ECG_LINK_BAD_PAYLOAD);
        return;
    }
    switch (head->type) {
    case ECG_LINK_HELLO_REQ:
        hello(a, head, payload);
        break;
    case ECG_LINK_START:
        ack(a, head, start(a, payload));
        break;
    case ECG_LINK_SET:
        ack(a, head, set(a, payload));
        break;
    case ECG_LINK_SAMPLES:
    case ECG_LINK_INJECT:
        samples(a, head, payload, bytes);
        break;
    case ECG_LINK_STOP:
        ack(a, head, ECG_LINK_OK);
        break;
    default:
        return;                 /* of a later minor version; it renews nothing */
    }
    if (a->leased)
        a->lease_until_us = a->now_us + a->lease_us;
    if (head->type == ECG_LINK_STOP)
        stop(a);
}

void app_link_poll(app_t *a)
{
    uint8_t in[64];
    int32_t got;
    do {
        int32_t took = hal_link(a->tx + a->tx_from, (int32_t)(a->tx_to - a->tx_from), in, (int32_t)sizeof in, &got);
        a->tx_from += (uint32_t)took;
        if (a->tx_from == a->tx_to)
            a->tx_from = a->tx_to = 0;
        for (int32_t i = 0; i < got; i++) {
            ecg_link_head head;
            int32_t bytes = ecg_link_take(&a->rx, in[i], &head);
            if (bytes >= 0) {
                app_clock(a);
                answer(a, &head, (const uint8_t *)a->block + ECG_LINK_HEAD, (uint32_t)bytes);
            }
        }
    } while (got == (int32_t)sizeof in);
}
