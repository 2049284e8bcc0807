/* SPDX-License-Identifier: Apache-2.0 */
#include "app.h"

#include <string.h>

void app_clock(app_t *a)
{
    uint32_t clock = hal_time_us(), passed = clock - a->clock_us;
    if (passed >> 31)
        return;                 /* a clock that went back for a moment must not become an hour */
    a->now_us += passed;
    a->clock_us = clock;
}

void app_init(app_t *a, const app_image *image)
{
    memset(a, 0, sizeof *a);
    a->image = image;
    a->boot_id = hal_init();
    a->clock_us = hal_time_us();
    a->lease_us = APP_LEASE_MS * 1000u;
    a->status_us = APP_STATUS_MS * 1000u;
    a->log_level = 1;
    a->rx.block = (uint8_t *)a->block;
    a->rx.room = sizeof a->block;
    ecg_link_clear(&a->rx);
    uint8_t sound = 0;
    for (int k = 0; k < image->count; k++) {
        const app_model *m = &image->models[k];
        app_engine *e = &a->engine[k];
        e->ok = ecg_check(m->model) == ECG_OK && m->model->classes <= APP_CLASSES && m->model->leads <= HAL_CHANNELS
            && ecg_init(&e->engine, m->model, m->rate, m->memory, m->bytes) == ECG_OK;
        sound |= (uint8_t)(e->ok << k);
    }
    /* a model that is damaged keeps the whole image from starting: half of what was promised is not obvious to anyone */
    if (sound != (1u << image->count) - 1u)
        a->state = ECG_LINK_REFUSED;
    else if (image->sensor)
        app_choose(a, sound);
}

void app_choose(app_t *a, uint8_t models)
{
    a->active = models;
    a->state = ECG_LINK_RUNNING;
    a->stream.last_us = a->now_us;
    app_stream_begin(a, a->sensed);
}

/* Without the lease: what was not confirmed will be sent again, and samples from the host are over. */
static void lease_ends(app_t *a)
{
    a->leased = 0;
    a->send_samples = 0;
    a->sending = a->kept;
    if (a->state == ECG_LINK_INJECTED && a->image->sensor)
        app_choose(a, a->active);
    else if (a->state != ECG_LINK_REFUSED && !a->image->sensor)
        a->state = ECG_LINK_IDLE;
}

/* The sensor's frames; those that come during an injection are let go. Returns 1 when there may be more. */
static int take_sensor(app_t *a)
{
    uint32_t lost = 0, newest_us = a->clock_us;
    int32_t n = hal_samples(a->batch, APP_BATCH, &lost, &newest_us);
    uint32_t first = a->sensed + lost;
    a->sensed = first + (uint32_t)n;
    a->status.overruns += lost;
    a->out_flags |= lost ? ECG_LINK_OVERRUN : 0;
    if (lost && a->state == ECG_LINK_RUNNING) {
        a->status.gaps++;
        app_stream_begin(a, first);
    }
    if (n && a->state == ECG_LINK_RUNNING) {
        app_clock(a);
        app_send_samples(a, a->batch, n);
        app_stream_take(a, n, a->now_us - (a->clock_us - newest_us), 0);
    }
    return n == APP_BATCH;
}

static void feed_watchdog(app_t *a)
{
    if (a->state != ECG_LINK_RUNNING || app_advances(a)) {
        hal_watchdog();
        a->starved = 0;
    } else if (!a->starved) {
        a->starved = 1;
        app_log(a, 3, "samples or hops do not advance");
    }
}

static void doze(app_t *a)
{
    app_clock(a);
    uint64_t before = a->now_us;
    hal_sleep(APP_SLEEP_US);
    app_clock(a);
    a->slept_us += a->now_us - before;
}

void app_step(app_t *a)
{
    int more = 0;
    app_clock(a);
    app_link_poll(a);
    if (a->image->sensor)
        more = take_sensor(a);
    app_clock(a);
    if (a->leased && a->now_us >= a->lease_until_us)
        lease_ends(a);
    if (a->leased) {
        app_send_results(a);
        if (a->status_us && a->now_us >= a->status_at_us)
            app_send_status(a);
    }
    feed_watchdog(a);
    if (!more)
        doze(a);
}
