/* SPDX-License-Identifier: Apache-2.0 */
#include "ecg_link.h"

#include <string.h>

/* The payloads are these structs as they lie in memory. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "EdgeLink needs a little-endian processor"
#endif
#define SIZE(type, bytes) typedef char type##_has_##bytes##_bytes[sizeof(type) == (bytes) ? 1 : -1]
SIZE(ecg_link_hello_req, 8);
SIZE(ecg_link_hello_rsp, 56);
SIZE(ecg_link_hello_model, 44);
SIZE(ecg_link_start, 12);
SIZE(ecg_link_set, 8);
SIZE(ecg_link_ack, 4);
SIZE(ecg_link_samples, 8);
SIZE(ecg_link_status, 52);
SIZE(ecg_link_result, 24);
SIZE(ecg_link_error, 4);
SIZE(ecg_link_head, 8);

uint16_t ecg_crc16(uint16_t crc, const void *data, uint32_t n)
{
    const uint8_t *at = data;
    uint32_t sum = crc;
    while (n--) {
        /* eight steps of x^16 + x^12 + x^5 + 1 at once */
        uint32_t x = (sum >> 8 ^ *at++) & 0xffu;
        x ^= x >> 4;
        sum = (sum << 8 ^ x << 12 ^ x << 5 ^ x) & 0xffffu;
    }
    return (uint16_t)sum;
}

uint32_t ecg_crc32c(uint32_t crc, const void *data, uint32_t n)
{
    /* four bits of the reflected polynomial 0x82f63b78 at once: a sixteenth of the usual table */
    static const uint32_t table[16] = {
        0x00000000u, 0x105ec76fu, 0x20bd8edeu, 0x30e349b1u, 0x417b1dbcu, 0x5125dad3u, 0x61c69362u, 0x7198540du,
        0x82f63b78u, 0x92a8fc17u, 0xa24bb5a6u, 0xb21572c9u, 0xc38d26c4u, 0xd3d3e1abu, 0xe330a81au, 0xf36e6f75u,
    };
    const uint8_t *at = data;
    crc = ~crc;
    while (n--) {
        crc ^= *at++;
        crc = crc >> 4 ^ table[crc & 15u];
        crc = crc >> 4 ^ table[crc & 15u];
    }
    return ~crc;
}

/* COBS, written byte by byte: `code` is where the length of the group goes that is being written. */
typedef struct {
    uint8_t *out;
    uint32_t at, code;
} stuffed;

static void stuff(stuffed *s, const void *data, uint32_t n)
{
    const uint8_t *from = data;
    while (n--) {
        uint8_t byte = *from++;
        if (s->at - s->code == 255u) {          /* a full group: no zero is meant behind it */
            s->out[s->code] = 255u;
            s->code = s->at++;
        }
        if (byte) {
            s->out[s->at++] = byte;
        } else {
            s->out[s->code] = (uint8_t)(s->at - s->code);
            s->code = s->at++;
        }
    }
}

uint32_t ecg_link_encode(const ecg_link_head *head, const void *fixed, uint32_t fixed_bytes, const void *rest,
                         uint32_t rest_bytes, uint8_t *out, uint32_t room)
{
    uint32_t bytes = ECG_LINK_HEAD + fixed_bytes + rest_bytes;
    int brief = bytes <= ECG_LINK_SHORT;
    if (ECG_LINK_WIRE(bytes + (brief ? 2u : 4u)) > room)
        return 0;
    uint8_t first[ECG_LINK_HEAD];
    memcpy(first, head, sizeof first);
    first[0] = (uint8_t)(ECG_LINK_MAJOR << 4 | (head->flags & 15u));
    uint32_t crc;
    if (brief) {
        uint16_t part = ecg_crc16(0xffffu, first, sizeof first);
        crc = ecg_crc16(ecg_crc16(part, fixed, fixed_bytes), rest, rest_bytes);
    } else {
        crc = ecg_crc32c(0, first, sizeof first);
        crc = ecg_crc32c(ecg_crc32c(crc, fixed, fixed_bytes), rest, rest_bytes);
    }
    uint8_t check[4] = { (uint8_t)crc, (uint8_t)(crc >> 8), (uint8_t)(crc >> 16), (uint8_t)(crc >> 24) };
    stuffed s = { out, 2, 1 };
    out[0] = 0;
    stuff(&s, first, sizeof first);
    stuff(&s, fixed, fixed_bytes);
    stuff(&s, rest, rest_bytes);
    stuff(&s, check, brief ? 2u : 4u);
    out[s.code] = (uint8_t)(s.at - s.code);
    out[s.at++] = 0;
    return s.at;
}

/* What comes next is the first byte of a frame. */
static void restart(ecg_link_rx *rx)
{
    rx->fill = 0;
    rx->code = 255u;
    rx->left = rx->bad = 0;
}

void ecg_link_clear(ecg_link_rx *rx)
{
    restart(rx);
    rx->frames = rx->damaged = rx->foreign = 0;
}

static void put(ecg_link_rx *rx, uint8_t byte)
{
    if (rx->fill < rx->room)
        rx->block[rx->fill++] = byte;
    else
        rx->bad = 1;
}

/* The CRC of the frame in the block: its bytes, or 0 where it is wrong. */
static uint32_t sound(const ecg_link_rx *rx)
{
    uint32_t width = rx->fill <= ECG_LINK_SHORT + 2u ? 2u : 4u;
    if (rx->bad || rx->left || rx->fill < ECG_LINK_HEAD + width)
        return 0;
    uint32_t bytes = rx->fill - width;
    if (width == 4u && bytes <= ECG_LINK_SHORT)
        return 0;
    uint32_t crc = width == 2u ? ecg_crc16(0xffffu, rx->block, bytes) : ecg_crc32c(0, rx->block, bytes);
    for (uint32_t i = 0; i < width; i++)
        if (rx->block[bytes + i] != (uint8_t)(crc >> 8 * i))
            return 0;
    return width;
}

/* A 00 has come: judge what lies in front of it. */
static int32_t finish(ecg_link_rx *rx, ecg_link_head *head)
{
    if (!rx->fill && rx->code == 255u && !rx->left)
        return -1;                              /* nothing between two 00 */
    uint32_t width = sound(rx);
    if (!width) {
        rx->damaged++;
        return -1;
    }
    memcpy(head, rx->block, sizeof *head);
    if (head->flags >> 4 != ECG_LINK_MAJOR) {
        rx->foreign++;
        return -1;
    }
    head->flags &= 15u;
    rx->frames++;
    return (int32_t)(rx->fill - width - ECG_LINK_HEAD);
}

int32_t ecg_link_take(ecg_link_rx *rx, uint8_t byte, ecg_link_head *head)
{
    if (!byte) {
        int32_t bytes = finish(rx, head);
        restart(rx);
        return bytes;
    }
    if (rx->left) {
        put(rx, byte);
        rx->left--;
    } else {
        if (rx->code != 255u)
            put(rx, 0);
        rx->code = byte;
        rx->left = (uint8_t)(byte - 1u);
    }
    return -1;
}
