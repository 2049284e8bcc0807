/* SPDX-License-Identifier: Apache-2.0
 *
 * EdgeLink v1: what a device and a host say to each other over a serial line. Frames and CRCs, without memory of its
 * own and without any knowledge of a model.
 *
 * On the wire    00  COBS(head | payload | CRC)  00
 * All numbers are little-endian. The first 00 ends whatever noise or text came before; a receiver skips empty frames.
 * CRC over head and payload: CRC-16/CCITT-FALSE where they have at most 256 bytes, else CRC-32C. So a decoded frame of
 * 10 .. 258 bytes has the former, of 261 bytes or more the latter, and one of 259 or 260 does not exist.
 * A frame with a wrong CRC is dropped and counted, never guessed at. A head with another version is dropped and
 * counted; a type that the receiver does not know is ignored. A payload may be longer than its table says: a later
 * minor version has added to its end. A shorter one is wrong.
 *
 * head           0 u8  version (high nibble, 1) and flags (low nibble)
 *                1 u8  type
 *                2 u16 number of the frame, counted by direction, for counting losses
 *                4 u32 microseconds since the sender's start; of SAMPLES: when the first of them was taken
 *
 * The payloads are the structs below: their fields in order, each at a multiple of its own size, nothing hidden.
 */
#ifndef ECG_LINK_H
#define ECG_LINK_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ECG_LINK_MAJOR 1u
#define ECG_LINK_MINOR 0u
#define ECG_LINK_HEAD 8u        /* bytes of a head */
#define ECG_LINK_SHORT 256u     /* head and payload of at most so many bytes carry CRC-16 */
/* Most bytes on the wire for a frame with so many bytes of head, payload and CRC */
#define ECG_LINK_WIRE(bytes) ((bytes) + (bytes) / 254u + 3u)

enum {
    ECG_LINK_HELLO_REQ = 0x01,  /* host: who are you? */
    ECG_LINK_HELLO_RSP = 0x02,  /* device: ecg_link_hello_rsp, then an ecg_link_hello_model for each model */
    ECG_LINK_START = 0x03,      /* host: begin, or go on; grants the lease. Any later frame renews it */
    ECG_LINK_STOP = 0x04,       /* host: the lease ends now; no payload */
    ECG_LINK_SET = 0x05,        /* host: change a setting */
    ECG_LINK_ACK = 0x06,        /* device: done or refused, for START, STOP, SET, INJECT */
    ECG_LINK_SAMPLES = 0x10,    /* both: ecg_link_samples, then the data */
    ECG_LINK_STATUS = 0x11,     /* device: once a second under a lease */
    ECG_LINK_RESULT = 0x20,     /* device: ecg_link_result, then one int8 score per class */
    ECG_LINK_INJECT = 0x21,     /* host: samples as SAMPLES, at any speed; answered once they are computed on */
    ECG_LINK_LOG = 0x40,        /* device: u8 level (0 debug .. 3 error), then UTF-8 text to the end */
    ECG_LINK_ERROR = 0x7f       /* device: ecg_link_error, then UTF-8 text to the end */
};

/* Flags of a head */
enum {
    ECG_LINK_LEAD_OFF = 1,      /* an electrode was off in these samples */
    ECG_LINK_OVERRUN = 2,       /* samples were lost on the device since the last frame of samples */
    ECG_LINK_LAST = 4           /* the last frame of a batch */
};

/* ecg_link_ack.error, ecg_link_error.code */
enum {
    ECG_LINK_OK, ECG_LINK_BAD_PAYLOAD, ECG_LINK_NOT_STARTED, ECG_LINK_OTHER_BOOT, ECG_LINK_BAD_MODEL,
    ECG_LINK_UNKNOWN_KEY, ECG_LINK_BAD_VALUE, ECG_LINK_NO_ROOM, ECG_LINK_VERSION
};

typedef struct {
    uint8_t oldest, newest;     /* major versions that the host speaks */
    uint16_t zero;
    uint32_t nonce;             /* comes back in the answer */
} ecg_link_hello_req;

typedef struct {
    uint8_t major, minor;       /* of the link */
    uint8_t firmware[3];        /* major, minor, patch */
    uint8_t channels;           /* of SAMPLES, in both directions */
    uint8_t models;
    uint8_t state;              /* ECG_LINK_IDLE, ... */
    uint32_t nonce;
    uint32_t boot_id;           /* another number after each reset */
    char board[16];             /* its key in boards.toml, filled up with 0 */
    uint32_t fs_num, fs_den;    /* rate of SAMPLES: fs_num / fs_den Hz */
    float nv_per_lsb;           /* of SAMPLES; input-referred nanovolts */
    uint16_t max_frame;         /* most bytes of head, payload and CRC that the device takes */
    uint16_t caps;              /* ECG_LINK_HAS_... */
    uint32_t clock_khz;         /* of the core: busy_us * clock_khz / 1000 are cycles. 0: not known */
    uint16_t results;           /* how many the device keeps while nobody takes them */
    uint16_t lease_ms;          /* that START grants unless it asks for another */
} ecg_link_hello_rsp;

enum { ECG_LINK_IDLE, ECG_LINK_RUNNING, ECG_LINK_INJECTED, ECG_LINK_REFUSED };     /* refused: model data is damaged */
enum { ECG_LINK_HAS_SENSOR = 1 };       /* samples come from a chip on the board; else from the host */

typedef struct {
    uint8_t identity[32];       /* SHA-256 of the model's promise */
    uint16_t fs, hop, window;   /* Hz, samples, samples; hop 0: at each R peak */
    uint8_t leads, classes;
    uint8_t ok;                 /* 1: the data's CRC is right */
    uint8_t forms;              /* ECG_LINK_WINDOW, ECG_LINK_STREAM */
    uint8_t zero[2];
} ecg_link_hello_model;

enum { ECG_LINK_WINDOW = 1, ECG_LINK_STREAM = 2 };      /* what the build of the model evaluates */

typedef struct {
    uint8_t flags;              /* ECG_LINK_SAMPLES_TOO, ECG_LINK_AGAIN */
    uint8_t models;             /* bit k: run model k; 0: all */
    uint16_t lease_ms;          /* 0: the device's own */
    uint32_t boot_id;           /* as HELLO_RSP said; another one is refused, so that nothing is confirmed by mistake */
    uint32_t next_result;       /* results in front of it have arrived, the device lets go of them */
} ecg_link_start;

enum {
    ECG_LINK_SAMPLES_TOO = 1,   /* send what the sensor delivers */
    ECG_LINK_AGAIN = 2          /* send from next_result on again: a RESULT was lost on the way */
};

typedef struct {
    uint8_t key;                /* ECG_LINK_KEY_... */
    uint8_t zero[3];
    int32_t value;
} ecg_link_set;

enum { ECG_LINK_KEY_STATUS_MS = 1, ECG_LINK_KEY_LOG_LEVEL = 2, ECG_LINK_KEY_AGE = 3, ECG_LINK_KEY_SEX = 4 };

typedef struct {
    uint16_t seq;               /* of the frame that is answered */
    uint8_t type;
    uint8_t error;              /* ECG_LINK_OK, ... */
} ecg_link_ack;

/* Data: for each moment the channels, two's complement of `width` bytes. INJECT also takes width 1: codes at the
 * model's rate, behind the front end; and width 0: `n` bytes of one window, all inputs of the model in order, from byte
 * `first_index` on; the window is evaluated at the frame with ECG_LINK_LAST. Samples that are missing between two
 * SAMPLES were lost: the stream begins anew, as it does at first_index 0. INJECT must have none missing. */
typedef struct {
    uint32_t first_index;       /* since the start of the stream */
    uint8_t n;                  /* moments */
    uint8_t lead_off;           /* bit k: the electrode of channel k was off in some of them */
    uint8_t channels;
    uint8_t width;
} ecg_link_samples;

typedef struct {
    uint32_t uptime_s;
    uint32_t samples;           /* index of the next sample */
    uint32_t overruns;          /* samples lost on the device */
    uint32_t missing;           /* samples that did not arrive over the link */
    uint32_t gaps;              /* how often the stream began anew */
    uint32_t results;           /* made since the start */
    uint32_t results_lost;      /* wanted by the host, but others had taken their place in the ring */
    uint32_t late;              /* hops whose result came after the next hop's end */
    uint32_t dropped;           /* frames for which the line was too slow */
    uint32_t frames, damaged;   /* from the host: taken, and with a wrong CRC or length */
    uint32_t worst_us;          /* longest time on one hop */
    uint16_t sleep_permille;    /* of the time since the last STATUS */
    uint16_t busy_permille;     /* of it: inference and front end */
} ecg_link_status;

typedef struct {
    uint32_t number;            /* counts up from 0 after each reset */
    uint32_t first_index;       /* the samples that were judged, at the model's rate: first_index .. + n - 1; */
    uint32_t present;           /* bit k: class k is present */
    uint32_t busy_us;           /* time spent on this hop */
    uint16_t n;                 /* 1: the R peak of a model that runs at each R peak */
    int8_t top;                 /* the class of an argmax rule, else -1 */
    uint8_t model;
    uint8_t flags;              /* ECG_LINK_UNRELIABLE, ... */
    uint8_t classes;
    uint16_t latency_ms;        /* from the arrival of the last sample to the result */
} ecg_link_result;

enum { ECG_LINK_UNRELIABLE = 1, ECG_LINK_LATE = 2, ECG_LINK_FROM_INJECT = 4 };

typedef struct {
    uint16_t seq;               /* of the frame that is the cause, 0: none */
    uint8_t code;
    uint8_t zero;
} ecg_link_error;

typedef struct {
    uint8_t flags;              /* low nibble of the first byte */
    uint8_t type;
    uint16_t seq;
    uint32_t time_us;
} ecg_link_head;

/* CRC-16/CCITT-FALSE and CRC-32C of `n` bytes that follow others; begin with 0xffff and with 0. */
uint16_t ecg_crc16(uint16_t crc, const void *data, uint32_t n);
uint32_t ecg_crc32c(uint32_t crc, const void *data, uint32_t n);

/* Write a frame to `out`: the payload is `fixed` and then `rest` (either may be empty). Returns its bytes on the wire,
 * both 00 included, or 0 where `room` is too small. */
uint32_t ecg_link_encode(const ecg_link_head *head, const void *fixed, uint32_t fixed_bytes, const void *rest,
                         uint32_t rest_bytes, uint8_t *out, uint32_t room);

/* A receiver. The caller sets `block` (on 4 bytes) and `room`, its bytes, and calls ecg_link_clear. */
typedef struct {
    uint8_t *block;             /* head, payload and CRC of the frame that is coming in */
    uint32_t room;
    uint32_t fill;
    uint8_t code, left;         /* COBS: length of the group, bytes of it to come */
    uint8_t bad;                /* too long: wait for the next 00 */
    uint32_t frames, damaged, foreign;  /* sound; with a wrong CRC or length; sound, of another version */
} ecg_link_rx;

void ecg_link_clear(ecg_link_rx *rx);

/* Take a byte. Returns the length of the payload, which lies at rx->block + ECG_LINK_HEAD, when the byte ends a sound
 * frame, and fills `head`; else -1. */
int32_t ecg_link_take(ecg_link_rx *rx, uint8_t byte, ecg_link_head *head);

#ifdef __cplusplus
}
#endif
#endif
