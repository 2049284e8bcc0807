/* SPDX-License-Identifier: Apache-2.0
 *
 * TI ADS1292R and ADS1292: two channels of 24 bits. Sections and tables are those of the data sheet SBAS502.
 * Its SPI is mode 1, most significant bit first, at most 1 MHz, so that a byte takes the four clocks that a command needs
 * to be decoded (section 8.5.1.3). DRDY falls when a frame is ready. */
#ifndef ADS1292R_H
#define ADS1292R_H

#include "sensor.h"

typedef struct {
    uint16_t rate;              /* 125, 250, 500 or 1000 Hz */
    uint8_t gain;               /* 1, 2, 3, 4, 6, 8 or 12 */
} ads1292r_setup;

typedef struct {
    int32_t code[2];            /* 24 bits */
    int32_t uv[2];              /* input-referred */
    uint8_t lead_off;           /* bit k: an electrode of channel k + 1 is off */
} ads1292r_frame;

typedef struct {
    uint32_t scale;             /* microvolts per code, 32 fractional bits */
} ads1292r;

/* Reset, set up both channels with lead-off detection, check that it was kept, start. SENSOR_OK or an error. */
int ads1292r_start(ads1292r *chip, const sensor_bus *bus, const ads1292r_setup *setup);

/* Read the frame that DRDY announced. 1, or 0 where the answer is none: it does not begin with 1100. */
int ads1292r_read(const ads1292r *chip, const sensor_bus *bus, ads1292r_frame *frame);

#endif
