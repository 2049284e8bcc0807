/* SPDX-License-Identifier: Apache-2.0
 *
 * Maxim (Analog Devices) MAX30003: one channel of 18 bits, high-pass and low-pass filters and a FIFO of 32 samples inside.
 * Sections are those of the data sheet 19-7797. SPI mode 0, most significant bit first, up to 12 MHz; each access is an
 * address with a read bit and 24 bits of data. INTB falls when samples wait. */
#ifndef MAX30003_H
#define MAX30003_H

#include "sensor.h"

typedef struct {
    uint16_t rate;              /* 125, 250 or 500 Hz; 128, 256 or 512 Hz */
    uint8_t gain;               /* 20, 40, 80 or 160 */
    uint8_t batch;              /* samples that wait before INTB falls, 1 .. 32 */
} max30003_setup;

typedef struct {
    int32_t code;               /* 18 bits */
    int32_t uv;                 /* input-referred */
    uint8_t lead_off;           /* bit 0 */
    uint8_t fast;               /* the input was recovering from an overload */
} max30003_sample;

typedef struct {
    uint32_t scale;             /* microvolts per code, 32 fractional bits */
} max30003;

enum { MAX30003_FIFO = 32 };

/* Reset, set up, check that it was kept, start. SENSOR_OK or an error. */
int max30003_start(max30003 *chip, const sensor_bus *bus, const max30003_setup *setup);

/* Read what waits, up to `room` samples; returns how many. *overflow: 1 where the FIFO had run over; it is started anew
 * then, and samples are missing behind those returned. */
int max30003_read(const max30003 *chip, const sensor_bus *bus, max30003_sample *samples, int room, int *overflow);

#endif
