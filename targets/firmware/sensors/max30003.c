/* SPDX-License-Identifier: Apache-2.0 */
#include "max30003.h"

/* Registers, table "Register Map" */
enum {
    STATUS = 0x01, EN_INT = 0x02, MNGR_INT = 0x04, MNGR_DYN = 0x05, SW_RST = 0x08, SYNCH = 0x09, FIFO_RST = 0x0a,
    INFO = 0x0f, CNFG_GEN = 0x10, CNFG_EMUX = 0x14, CNFG_ECG = 0x15, ECG_FIFO = 0x21
};

/* ETAG of a FIFO word, table "ECG FIFO tag" */
enum { VALID, FAST, VALID_LAST, FAST_LAST, EMPTY = 6, OVERFLOWED };

static uint32_t read_register(const sensor_bus *bus, uint8_t address)
{
    uint8_t bytes[4] = { (uint8_t)(address << 1 | 1u), 0, 0, 0 };
    bus->transfer(bus->bus, bytes, sizeof bytes);
    return (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static void write_register(const sensor_bus *bus, uint8_t address, uint32_t value)
{
    uint8_t bytes[4] = { (uint8_t)(address << 1), (uint8_t)(value >> 16), (uint8_t)(value >> 8), (uint8_t)value };
    bus->transfer(bus->bus, bytes, sizeof bytes);
}

/* FMSTR (CNFG_GEN) in bit 2 and RATE (CNFG_ECG) in bits 1 and 0; above 7: there is none. */
static uint8_t rate_code(uint16_t rate)
{
    static const uint16_t rates[] = { 512, 256, 128, 0, 500, 250, 125 };
    uint8_t code = 0;
    while (code < 7 && rates[code] != rate)
        code++;
    return rate && code < 7 ? code : 8;
}

static uint8_t gain_code(uint8_t gain)
{
    return gain == 20 ? 0 : gain == 40 ? 1 : gain == 80 ? 2 : gain == 160 ? 3 : 8;
}

int max30003_start(max30003 *chip, const sensor_bus *bus, const max30003_setup *setup)
{
    uint8_t rate = rate_code(setup->rate), gain = gain_code(setup->gain);
    if (rate > 7 || gain > 3 || !setup->batch || setup->batch > MAX30003_FIFO)
        return SENSOR_SETTING;
    const struct {
        uint8_t address;
        uint32_t value;
    } set[] = {
        /* master clock; ECG on; DC lead-off with 10 nA, +-300 mV; both inputs biased by 100 Mohm */
        { CNFG_GEN, (uint32_t)(rate >> 2) << 20 | 1u << 19 | 1u << 12 | 2u << 8 | 1u << 4 | 1u << 2 | 3u },
        { CNFG_EMUX, 0 },                                       /* electrodes connected, no calibration voltage */
        /* rate, gain, high-pass 0.5 Hz, low-pass 40 Hz */
        { CNFG_ECG, (uint32_t)(rate & 3u) << 22 | (uint32_t)gain << 16 | 1u << 14 | 1u << 12 },
        { MNGR_INT, (uint32_t)(setup->batch - 1u) << 19 | 4u }, /* EFIT: a batch waits; the rest as after reset */
        { MNGR_DYN, 0x3f0000u },                                /* no fast recovery from overload, as after reset */
        { EN_INT, 1u << 23 | 1u << 22 | 3u },                   /* samples, overflow; open drain with pull-up */
    };
    /* 1 V / (2^17 * gain) */
    chip->scale = (uint32_t)((1000000ull << 15) / setup->gain);

    write_register(bus, SW_RST, 0);
    bus->wait(bus->bus, 10000);
    if (read_register(bus, INFO) >> 20 != 0x5u)
        return SENSOR_ABSENT;
    for (unsigned i = 0; i < sizeof set / sizeof *set; i++)
        write_register(bus, set[i].address, set[i].value);
    for (unsigned i = 0; i < sizeof set / sizeof *set; i++)
        if (read_register(bus, set[i].address) != set[i].value)
            return SENSOR_DEAF;
    bus->wait(bus->bus, 100000);                                /* the clock locks */
    write_register(bus, FIFO_RST, 0);
    write_register(bus, SYNCH, 0);
    return SENSOR_OK;
}

int max30003_read(const max30003 *chip, const sensor_bus *bus, max30003_sample *samples, int room, int *overflow)
{
    uint32_t status = read_register(bus, STATUS);
    uint8_t off = (uint8_t)((status & 0xfu) != 0);              /* LDOFF_PH, PL, NH, NL */
    int n = 0;
    *overflow = 0;
    while (n < room) {
        uint32_t word = read_register(bus, ECG_FIFO), tag = word >> 3 & 7u;
        if (tag == OVERFLOWED) {
            *overflow = 1;
            write_register(bus, FIFO_RST, 0);
            write_register(bus, SYNCH, 0);
            break;
        }
        if (tag > FAST_LAST)
            break;                                              /* empty */
        int32_t code = sensor_signed(word >> 6, 18);
        samples[n++] = (max30003_sample) { code, sensor_uv(code, chip->scale), off, tag == FAST || tag == FAST_LAST };
        if (tag == VALID_LAST || tag == FAST_LAST)
            break;
    }
    return n;
}
