/* SPDX-License-Identifier: Apache-2.0
 *
 * Instructions of the DSP extension (Cortex-M4, M7, M33) by what they do here, and the same in portable C for every
 * other compiler, so that the loops written with them run under a host's sanitizers. A pair is two int16 in a word,
 * the first one in its low half. */
#ifndef ECG_DSP_H
#define ECG_DSP_H

#include "ecg_fixed.h"

/* ECG_DSP: the instructions are there. ECG_THUMB_DSP: so is the instruction set of the hand-written loops. */
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP
#define ECG_DSP 1
#else
#define ECG_DSP 0
#endif
#if ECG_DSP && defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define ECG_THUMB_DSP 1
#else
#define ECG_THUMB_DSP 0
#endif

#if ECG_DSP

/* acc + x.first * y.first + x.second * y.second */
static inline int32_t ecg_smlad(uint32_t x, uint32_t y, int32_t acc)
{
    int32_t sum;
    __asm__("smlad %0, %1, %2, %3" : "=r"(sum) : "r"(x), "r"(y), "r"(acc));
    return sum;
}

/* of four codes, the pair (0, 2) */
static inline uint32_t ecg_even(uint32_t codes)
{
    uint32_t pair;
    __asm__("sxtb16 %0, %1" : "=r"(pair) : "r"(codes));
    return pair;
}

/* of four codes, the pair (1, 3) */
static inline uint32_t ecg_odd(uint32_t codes)
{
    uint32_t pair;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(codes));
    return pair;
}

/* (x.first, y.first) */
static inline uint32_t ecg_firsts(uint32_t x, uint32_t y)
{
    uint32_t pair;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(pair) : "r"(x), "r"(y));
    return pair;
}

/* (x.second, y.second) */
static inline uint32_t ecg_seconds(uint32_t x, uint32_t y)
{
    uint32_t pair;
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(pair) : "r"(y), "r"(x));
    return pair;
}

/* clamped to -128 .. 127 */
static inline int32_t ecg_ssat8(int32_t x)
{
    int32_t code;
    __asm__("ssat %0, #8, %1" : "=r"(code) : "r"(x));
    return code;
}

/* both clamped to 0 .. 255 */
static inline uint32_t ecg_usat16(uint32_t pair)
{
    uint32_t clamped;
    __asm__("usat16 %0, #8, %1" : "=r"(clamped) : "r"(pair));
    return clamped;
}

/* clamped to 0 .. 1023 */
static inline int32_t ecg_usat10(int32_t x)
{
    int32_t index;
    __asm__("usat %0, #10, %1" : "=r"(index) : "r"(x));
    return index;
}

/* the low bytes of four values, side by side */
static inline uint32_t ecg_pack4(int32_t a, int32_t b, int32_t c, int32_t d)
{
    uint32_t word = (uint32_t)a;
    __asm__("bfi %0, %1, #8, #8\n\tbfi %0, %2, #16, #8\n\tbfi %0, %3, #24, #8"
            : "+r"(word) : "r"(b), "r"(c), "r"(d));
    return word;
}

/* of four unsigned bytes x - y, at least 0 */
static inline uint32_t ecg_uqsub8(uint32_t x, uint32_t y)
{
    uint32_t word;
    __asm__("uqsub8 %0, %1, %2" : "=r"(word) : "r"(x), "r"(y));
    return word;
}

#else

static inline int32_t ecg_smlad(uint32_t x, uint32_t y, int32_t acc)
{
    return acc + (int16_t)(x & 0xffff) * (int16_t)(y & 0xffff) + (int16_t)(x >> 16) * (int16_t)(y >> 16);
}

static inline uint32_t ecg_firsts(uint32_t x, uint32_t y)
{
    return (x & 0xffff) | y << 16;
}

static inline uint32_t ecg_seconds(uint32_t x, uint32_t y)
{
    return x >> 16 | (y & 0xffff0000);
}

static inline uint32_t ecg_even(uint32_t codes)
{
    return ecg_firsts((uint32_t)(int8_t)(codes & 0xff), (uint32_t)(int8_t)(codes >> 16 & 0xff));
}

static inline uint32_t ecg_odd(uint32_t codes)
{
    return ecg_even(codes >> 8);
}

static inline int32_t ecg_ssat8(int32_t x)
{
    return ecg_clamp(x, -128, 127);
}

static inline int32_t ecg_usat10(int32_t x)
{
    return ecg_clamp(x, 0, 1023);
}

static inline uint32_t ecg_usat16(uint32_t pair)
{
    return ecg_firsts((uint32_t)ecg_clamp((int16_t)(pair & 0xffff), 0, 255),
                      (uint32_t)ecg_clamp((int16_t)(pair >> 16), 0, 255));
}

static inline uint32_t ecg_pack4(int32_t a, int32_t b, int32_t c, int32_t d)
{
    return (uint32_t)(a & 0xff) | (uint32_t)(b & 0xff) << 8 | (uint32_t)(c & 0xff) << 16 | (uint32_t)d << 24;
}

static inline uint32_t ecg_uqsub8(uint32_t x, uint32_t y)
{
    uint32_t word = 0;

    for (int i = 0; i < 32; i += 8) {
        uint32_t code = x >> i & 0xff, less = y >> i & 0xff;

        word |= (code > less ? code - less : 0) << i;
    }
    return word;
}

#endif

#define ECG_RELU 0x80808080u

/* four codes, at least 0 where mask is ECG_RELU, as they are where it is 0 */
static inline uint32_t ecg_relu4(uint32_t codes, uint32_t mask)
{
    return ecg_uqsub8(codes ^ mask, mask);
}

/* requantize four sums that share a multiplier; no shift */
static inline uint32_t ecg_requantize4(int32_t a, int32_t b, int32_t c, int32_t d, int32_t mul, uint32_t mask)
{
    return ecg_relu4(ecg_pack4(ecg_ssat8(ecg_mulhi(a, mul)), ecg_ssat8(ecg_mulhi(b, mul)),
                               ecg_ssat8(ecg_mulhi(c, mul)), ecg_ssat8(ecg_mulhi(d, mul))), mask);
}

#endif
