/* SPDX-License-Identifier: Apache-2.0
 *
 * Front-end chips on SPI. A driver knows registers and frames; the board gives it a bus and calls it when the chip's
 * data-ready or interrupt line falls. */
#ifndef SENSOR_H
#define SENSOR_H

#include <stdint.h>

/* transfer: n bytes out and in at the same time, the chip selected from before the first until after the last; the bytes
 * that come in replace those that go out. wait: at least so long. */
typedef struct {
    void (*transfer)(void *bus, uint8_t *bytes, uint32_t n);
    void (*wait)(void *bus, uint32_t us);
    void *bus;
} sensor_bus;

enum { SENSOR_OK = 0, SENSOR_ABSENT = -1, SENSOR_DEAF = -2, SENSOR_SETTING = -3 };
/* absent: another chip or none answers; deaf: it does not keep what is written to it; setting: it cannot do that */

/* A code of the converter as microvolts, to the nearest; `scale` is microvolts per code in 32 fractional bits. */
static inline int32_t sensor_uv(int32_t code, uint32_t scale)
{
    return (int32_t)(((int64_t)code * scale + ((int64_t)1 << 31)) >> 32);
}

/* Sign of a number of `bits` bits. */
static inline int32_t sensor_signed(uint32_t value, unsigned bits)
{
    return (int32_t)(value << (32u - bits)) >> (32u - bits);
}

#endif
