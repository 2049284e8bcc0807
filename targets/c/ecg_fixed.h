/* SPDX-License-Identifier: Apache-2.0
 *
 * The arithmetic that kernels share: rounding, saturation, loads of any alignment. */
#ifndef ECG_FIXED_H
#define ECG_FIXED_H

#include <stdint.h>
#include <string.h>

#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP
#include <arm_acle.h>
#endif

/* (acc * mul + 2^31) >> 32: one SMMULR where the core has it */
static inline int32_t ecg_mulhi(int32_t acc, int32_t mul)
{
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP
    int32_t high;
    __asm__("smmulr %0, %1, %2" : "=r"(high) : "r"(acc), "r"(mul));
    return high;
#else
    return (int32_t)(((int64_t)acc * mul + ((int64_t)1 << 31)) >> 32);
#endif
}

static inline int32_t ecg_clamp(int32_t x, int32_t low, int32_t high)
{
    return x < low ? low : x > high ? high : x;
}

/* requantize: acc << shift cannot overflow, the compiler of the model has proven it */
static inline int8_t ecg_requantize(int32_t acc, int32_t mul, unsigned shift, int32_t low)
{
    return (int8_t)ecg_clamp(ecg_mulhi((int32_t)((uint32_t)acc << shift), mul), low, 127);
}

/* four codes from any address */
static inline uint32_t ecg_load4(const void *at)
{
    uint32_t word;
    memcpy(&word, at, 4);
    return word;
}

static inline void ecg_store4(void *at, uint32_t word)
{
    memcpy(at, &word, 4);
}

#endif
