/* SPDX-License-Identifier: Apache-2.0
 *
 * The application: samples in, decisions out, over a HAL of five functions (hal.h).
 *
 *   samples     from the board's sensor, always; or, on a board without one, from the host while it holds the lease
 *   inference   as they arrive, by every chosen model; a result is late when the next hop ended before it
 *   results     stay in a ring until the host says that it has them; the oldest make room for new ones, counted
 *   the lease   START grants it, any sound frame of the host renews it. Without it nothing but answers is sent
 *   watchdog    fed while samples and hops advance, or none are expected
 *
 * All state is in one app_t, which the image owns.
 */
#ifndef APP_H
#define APP_H

#include "ecg.h"
#include "ecg_link.h"
#include "hal.h"

#define APP_VERSION_MAJOR 0
#define APP_VERSION_MINOR 1
#define APP_VERSION_PATCH 0

/* What an image may choose; the defaults suit any model of at most 32 classes. */
#ifndef APP_MODELS
#define APP_MODELS 1
#endif
#ifndef APP_CLASSES
#define APP_CLASSES 32          /* most classes of a model */
#endif
#ifndef APP_RESULTS
#define APP_RESULTS 32          /* kept while nobody takes them */
#endif
#ifndef APP_FRAME
#define APP_FRAME 520u          /* most bytes of head, payload and CRC from the host */
#endif
#ifndef APP_TX
#define APP_TX 1024u            /* bytes that wait for the line; at least a HELLO_RSP */
#endif

enum {
    APP_BATCH = 16,             /* frames that are computed on at once */
    APP_SEND = 10,              /* frames in a SAMPLES of ours */
    APP_LEASE_MS = 5000, APP_LEASE_MOST_MS = 60000,
    APP_STATUS_MS = 1000,
    APP_STARVED_MS = 2000,      /* without a sample for so long, a sensor is dead */
    APP_SETTLE_S = 4,           /* the first decision may come so much later than a window */
    APP_SLEEP_US = 10000
};

/* A model of the image and the memory it works in. */
typedef struct {
    const ecg_model *model;
    const ecg_rate *rate;       /* from the rate of the samples to the model's */
    void *memory;               /* on 8 bytes */
    uint32_t bytes;
    const int8_t *leads;        /* lead k is channel leads[k] - 1, or -leads[k] - 1 turned over; NULL: channel k */
} app_model;

typedef struct {
    const char *board;          /* its key in boards.toml */
    const app_model *models;
    uint8_t count;              /* at most APP_MODELS */
    uint8_t channels;           /* of a frame of samples, at most HAL_CHANNELS */
    uint8_t sensor;             /* 1: hal_samples delivers */
    uint32_t fs_num, fs_den;    /* rate of the samples: fs_num / fs_den Hz */
    uint32_t clock_khz;
} app_image;

/* A model at work. */
typedef struct {
    ecg_t engine;
    uint32_t base;              /* index at the model's rate of the stream's first sample */
    uint32_t since;             /* samples since its last decision, or since the stream began */
    uint32_t busy_us;           /* time spent since then */
    uint8_t ok;                 /* its data is sound and it has started */
    uint8_t decided;            /* since the stream began */
} app_engine;

/* The stream of samples */
typedef struct {
    uint32_t next;              /* index of the sample to come */
    uint8_t fresh;              /* it is the first */
    uint64_t period;            /* microseconds, 16 fractional bits */
    uint64_t last_us;           /* when the sample in front of it came */
} app_stream;

typedef struct {
    ecg_link_result head;
    int8_t scores[APP_CLASSES];
} app_result;

typedef struct {
    const app_image *image;
    uint64_t now_us;            /* since the start */
    uint32_t clock_us;          /* of the HAL, when now_us was brought up to date */
    uint32_t boot_id;
    uint8_t state;              /* ECG_LINK_IDLE, ... */
    uint8_t active;             /* bit k: model k runs */
    uint8_t starved;            /* said once */
    uint8_t log_level;
    app_engine engine[APP_MODELS];
    app_stream stream;
    ecg_link_status status;

    /* the session */
    uint64_t lease_until_us;
    uint64_t lease_us;
    uint8_t leased, send_samples;
    uint64_t status_at_us, status_us;
    uint64_t slept_us, worked_us, measured_us;      /* since measured_us */

    /* the link */
    ecg_link_rx rx;
    uint32_t block[APP_FRAME / 4u];
    uint8_t tx[APP_TX];
    uint32_t tx_from, tx_to;
    uint16_t seq;
    uint32_t host_us, host_seen_us;                 /* our clock less the host's, and ours when a frame last told it */
    uint8_t host_known;

    /* results: numbers kept .. made - 1 are in the ring, those from `sending` on are still to be sent; of those in
     * front of `known` the host has been heard that it has them, or been told that they are lost */
    app_result ring[APP_RESULTS];
    uint32_t kept, sending, made, known;

    /* samples on their way */
    uint32_t sensed;                                /* index of the sensor's next frame */
    hal_frame batch[APP_BATCH];
    int32_t uv[APP_BATCH * HAL_CHANNELS];           /* of one model's leads */
    uint8_t out[APP_SEND * HAL_CHANNELS * 3];       /* SAMPLES to send, 3 bytes each */
    ecg_link_samples out_head;
    uint32_t out_time_us;
    uint8_t out_flags;
} app_t;

/* app.c */
void app_init(app_t *a, const app_image *image);
void app_step(app_t *a);                            /* one round of the main loop; sleeps at its end */
void app_clock(app_t *a);                           /* brings now_us up to date */
void app_choose(app_t *a, uint8_t models);          /* run these from a new stream on */

/* app_stream.c */
void app_stream_begin(app_t *a, uint32_t index);    /* the next sample has this index and nothing came before it */
void app_stream_take(app_t *a, int32_t n, uint64_t arrived_us, int injected);    /* a->batch[0 .. n - 1] */
void app_stream_codes(app_t *a, const int8_t *codes, int32_t n, int leads);     /* to the models with so many leads */
int app_window_put(app_t *a, const uint8_t *codes, uint32_t from, uint32_t n);   /* ECG_LINK_OK or an error */
void app_window_run(app_t *a);
int app_advances(const app_t *a);                   /* samples and hops come as they should */

/* app_link.c */
void app_link_poll(app_t *a);                       /* bytes both ways, frames answered */
void app_send_results(app_t *a);
void app_send_status(app_t *a);
void app_send_samples(app_t *a, const hal_frame *frames, int32_t n);     /* the sensor's, on to the host */
void app_log(app_t *a, uint8_t level, const char *text);
int app_room(const app_t *a, uint32_t payload);     /* a frame with such a payload fits into what waits for the line */

#endif
