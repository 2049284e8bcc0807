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

/* A core that multiplies to 32 bits only, Cortex-M0 and M0+: there a product of 64 bits is a call. */
#if defined(__ARM_ARCH_ISA_THUMB) && __ARM_ARCH_ISA_THUMB == 1 && !defined(__ARM_ARCH_ISA_ARM)
#define ECG_SHORT_PRODUCTS 1
#else
#define ECG_SHORT_PRODUCTS 0
#endif

/* the low half, from 0 on; gcc makes two shifts of a cast */
static inline int32_t ecg_low(int32_t x)
{
#if ECG_SHORT_PRODUCTS
    int32_t low;
    __asm__("uxth %0, %1" : "=l"(low) : "l"(x));
    return low;
#else
    return (uint16_t)x;
#endif
}

/* ecg_mulhi from four products of 16 bits; no sum leaves 32 bits. (x + 2^15) >> 16 is ((x >> 15) + 1) >> 1. */
static inline int32_t ecg_mulhi_short(int32_t acc, int32_t mul)
{
    const int32_t low = ecg_low(acc), high = acc >> 16, mul_low = ecg_low(mul), mul_high = mul >> 16;
    const int32_t middle = (int32_t)((uint32_t)low * (uint32_t)mul_low >> 16) + low * mul_high;

    return high * mul_high + (middle >> 16) + ((((high * mul_low + ecg_low(middle)) >> 15) + 1) >> 1);
}

/* (acc * mul + 2^31) >> 32: one SMMULR where the core has it */
static inline int32_t ecg_mulhi(int32_t acc, int32_t mul)
{
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP
    int32_t high;
    __asm__("smmulr %0, %1, %2" : "=r"(high) : "r"(acc), "r"(mul));
    return high;
#elif ECG_SHORT_PRODUCTS
    return ecg_mulhi_short(acc, mul);
#else
    return (int32_t)(((int64_t)acc * mul + ((int64_t)1 << 31)) >> 32);
#endif
}

/* In front of a loop whose turns may run in any order or at once, although its output may be its input's memory. Where
 * there are no vectors, or -Os keeps them out, clang would warn that it cannot use that. */
#if defined(__clang__) && !defined(__OPTIMIZE_SIZE__) && !(defined(__arm__) && !defined(__ARM_FEATURE_MVE))
#define ECG_ANY_ORDER _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__) && !defined(__clang__)
#define ECG_ANY_ORDER _Pragma("GCC ivdep")
#else
#define ECG_ANY_ORDER
#endif

static inline int32_t ecg_clamp(int32_t x, int32_t low, int32_t high)
{
    return x < low ? low : x > high ? high : x;
}

/* held between -128 and 127: one SSAT where the core has it, which no compiler finds */
static inline int32_t ecg_saturate(int32_t x)
{
#if defined(__ARM_FEATURE_SAT) && __ARM_FEATURE_SAT
    int32_t code;
    __asm__("ssat %0, #8, %1" : "=r"(code) : "r"(x));
    return code;
#else
    return ecg_clamp(x, -128, 127);
#endif
}

/* a code, at least `low`, which costs nothing where it is -128 */
static inline int8_t ecg_code(int32_t x, int32_t low)
{
    const int32_t code = ecg_saturate(x);

    if (__builtin_constant_p(low) && low == -128)
        return (int8_t)code;
    return (int8_t)(code < low ? low : code);
}

/* requantize: acc << shift cannot overflow, the compiler of the model has proven it */
static inline int8_t ecg_requantize(int32_t acc, int32_t mul, unsigned shift, int32_t low)
{
    return ecg_code(ecg_mulhi((int32_t)((uint32_t)acc << shift), mul), low);
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
