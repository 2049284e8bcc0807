/* SPDX-License-Identifier: Apache-2.0 */
#include "ads1292r.h"

/* Commands, table 13 */
enum { RESET = 0x06, START = 0x08, RDATAC = 0x10, SDATAC = 0x11, RREG = 0x20, WREG = 0x40 };

/* Registers, table 14 */
enum { ID, CONFIG1, CONFIG2, LOFF, CH1SET, CH2SET, RLD_SENS, LOFF_SENS, LOFF_STAT, RESP1, RESP2, GPIO, REGISTERS };

/* 8.6.1.1: 0x73 is an ADS1292R, 0x53 an ADS1292; the ADS1191 and ADS1192 have frames of another length. */
#define IS_ADS1292(id) (((id) & 0xdfu) == 0x53u)

static void command(const sensor_bus *bus, uint8_t code)
{
    bus->transfer(bus->bus, &code, 1);
}

/* The code of a gain in CHnSET, table 19; above 7: there is none. */
static uint8_t gain_code(uint8_t gain)
{
    static const uint8_t gains[] = { 6, 1, 2, 3, 4, 8, 12 };
    uint8_t code = 0;
    while (code < sizeof gains && gains[code] != gain)
        code++;
    return code < sizeof gains ? code : 8;
}

/* DR of CONFIG1, table 16 */
static uint8_t rate_code(uint16_t rate)
{
    return rate == 125 ? 0 : rate == 250 ? 1 : rate == 500 ? 2 : rate == 1000 ? 3 : 8;
}

static uint8_t read_register(const sensor_bus *bus, uint8_t address)
{
    uint8_t bytes[3] = { (uint8_t)(RREG | address), 0, 0 };
    bus->transfer(bus->bus, bytes, sizeof bytes);
    return bytes[2];
}

static void write_register(const sensor_bus *bus, uint8_t address, uint8_t value)
{
    uint8_t bytes[3] = { (uint8_t)(WREG | address), 0, value };
    bus->transfer(bus->bus, bytes, sizeof bytes);
}

int ads1292r_start(ads1292r *chip, const sensor_bus *bus, const ads1292r_setup *setup)
{
    uint8_t gain = gain_code(setup->gain), rate = rate_code(setup->rate);
    const uint8_t set[][2] = {
        { CONFIG2, 0xe0 },                      /* lead-off comparators and reference buffer on, VREF 2.42 V */
        { CONFIG1, rate },                      /* continuous conversion */
        { LOFF, 0x10 },                         /* 95 % and 5 %, 6 nA, direct current */
        { CH1SET, (uint8_t)(gain << 4) },       /* on, normal electrodes */
        { CH2SET, (uint8_t)(gain << 4) },
        { RLD_SENS, 0x2c },                     /* right-leg drive on, from both inputs of channel 2 */
        { LOFF_SENS, 0x0f },                    /* watch all four electrodes */
        { RESP1, 0x02 },                        /* no respiration: bit 1 must be 1 */
        { RESP2, 0x07 },                        /* reference of the right leg inside; bits 2 and 0 must be 1 */
    };
    if (gain > 7 || rate > 7)
        return SENSOR_SETTING;
    /* 2.42 V / gain / (2^23 - 1), rounded */
    chip->scale = (uint32_t)(((2420000ull << 32) / setup->gain + 4194303u) / 8388607u);

    /* section 10.1: the chip's clock starts; a reset takes 18 of its 2 us, and it wakes up sending data */
    bus->wait(bus->bus, 1000000);
    command(bus, RESET);
    bus->wait(bus->bus, 100);
    command(bus, SDATAC);
    if (!IS_ADS1292(read_register(bus, ID)))
        return SENSOR_ABSENT;
    for (unsigned i = 0; i < sizeof set / sizeof *set; i++) {
        write_register(bus, set[i][0], set[i][1]);
        if (set[i][0] == CONFIG2)
            bus->wait(bus->bus, 10000);         /* the reference settles */
    }
    for (unsigned i = 0; i < sizeof set / sizeof *set; i++)
        if (read_register(bus, set[i][0]) != set[i][1])
            return SENSOR_DEAF;
    command(bus, START);
    command(bus, RDATAC);
    return SENSOR_OK;
}

int ads1292r_read(const ads1292r *chip, const sensor_bus *bus, ads1292r_frame *frame)
{
    uint8_t bytes[9] = { 0 };
    bus->transfer(bus->bus, bytes, sizeof bytes);
    /* section 8.5.1.2: 1100, LOFF_STAT[4:0], GPIO[1:0], 13 zeros; then two channels */
    uint32_t status = (uint32_t)bytes[0] << 16 | (uint32_t)bytes[1] << 8 | bytes[2];
    if (status >> 20 != 0xcu)
        return 0;
    for (int k = 0; k < 2; k++) {
        const uint8_t *at = bytes + 3 + 3 * k;
        frame->code[k] = sensor_signed((uint32_t)at[0] << 16 | (uint32_t)at[1] << 8 | at[2], 24);
        frame->uv[k] = sensor_uv(frame->code[k], chip->scale);
    }
    /* LOFF_STAT: bits 0 and 1 the inputs of channel 1, 2 and 3 those of channel 2, 4 the right leg: then all is off */
    uint32_t off = status >> 15 & 0x1fu;
    frame->lead_off = (uint8_t)(((off & 0x13u) != 0) | ((off & 0x1cu) != 0) << 1);
    return 1;
}
