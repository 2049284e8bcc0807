/* SPDX-License-Identifier: Apache-2.0
 *
 * The front-end chip of a board: HAL_SENSOR is 1292 (ADS1292R, two channels) or 30003 (MAX30003, one). The build gives
 * HAL_SENSOR_FS in Hz and HAL_SENSOR_GAIN. Its line interrupts when samples wait; they are read right there and put into
 * the ring. */
#include "hal_core.h"

#if HAL_SENSOR == 1292
#include "sensors/ads1292r.h"
#if HAL_CHANNELS < 2
#error "the ADS1292R has two channels: its frames need HAL_CHANNELS 2"
#endif
enum { SPI_HZ = 1000000, SPI_MODE = 1 };
static ads1292r chip;
#elif HAL_SENSOR == 30003
#include "sensors/max30003.h"
enum { SPI_HZ = 4000000, SPI_MODE = 0, BATCH = 4 };
static max30003 chip;
#else
#error "HAL_SENSOR must be 1292 or 30003"
#endif

static void transfer(void *bus, uint8_t *bytes, uint32_t n)
{
    (void)bus;
    board_spi(bytes, n);
}

/* A second of start-up must not starve the watchdog's first round; it may be 8 seconds. */
static void wait(void *bus, uint32_t us)
{
    (void)bus;
    for (uint32_t since = hal_time_us(); hal_time_us() - since <= us;)
        ;
}

static const sensor_bus bus = { transfer, wait, 0 };

int hal_sensor_start(void)
{
#if HAL_SENSOR == 1292
    const ads1292r_setup setup = { HAL_SENSOR_FS, HAL_SENSOR_GAIN };
    board_spi_start(SPI_HZ, SPI_MODE);
    int error = ads1292r_start(&chip, &bus, &setup);
#else
    const max30003_setup setup = { HAL_SENSOR_FS, HAL_SENSOR_GAIN, BATCH };
    board_spi_start(SPI_HZ, SPI_MODE);
    int error = max30003_start(&chip, &bus, &setup);
#endif
    if (error == SENSOR_OK)
        board_ready_interrupt();
    return error;
}

void hal_sensor_ready(void)
{
    uint32_t now = hal_time_us();
    hal_frame frame = { .lead_off = 0 };
#if HAL_SENSOR == 1292
    ads1292r_frame got;
    if (!ads1292r_read(&chip, &bus, &got)) {
        hal_frames_lose(&hal_core_frames);
        return;
    }
    frame.uv[0] = got.uv[0];
    frame.uv[1] = got.uv[1];
    frame.lead_off = got.lead_off;
    hal_frames_put(&hal_core_frames, &frame, now);
#else
    max30003_sample got[BATCH];
    int overflow;
    int n = max30003_read(&chip, &bus, got, BATCH, &overflow);
    for (int i = 0; i < n; i++) {
        frame.uv[0] = got[i].uv;
        frame.lead_off = got[i].lead_off;
        hal_frames_put(&hal_core_frames, &frame, now - (uint32_t)(n - 1 - i) * (1000000u / HAL_SENSOR_FS));
    }
    if (overflow)
        hal_frames_lose(&hal_core_frames);
#endif
}
