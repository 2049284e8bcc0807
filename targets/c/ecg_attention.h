/* SPDX-License-Identifier: Apache-2.0
 *
 * What the forms of attention share: which keys a query sees, and the arithmetic behind the sums. */
#ifndef ECG_ATTENTION_H
#define ECG_ATTENTION_H

#include "ecg_fixed.h"
#include "ecg_kernels.h"

enum { ECG_EXP_ENTRIES = 1024 };

/* columns from .. to - 1 */
typedef struct {
    int32_t from, to;
} ecg_range;

/* The keys of query t. Columns are absolute: blocks count from column 0. */
static inline ecg_range ecg_attention_keys(const ecg_attention_layer *a, const ecg_view *k, int32_t t)
{
    const int32_t size = a->size;
    int32_t from = k->first, to = k->end;
    if (a->window == ECG_BAND) {
        from = t - size;
        to = t + size + 1;
    } else if (a->window == ECG_BLOCK) {
        from = t / size * size;
        to = from + size;
    } else if (a->window == ECG_NEIGHBOURHOOD) {
        from = ecg_clamp(t - (size - 1) / 2, k->first, k->end - size);
        to = from + size;
    }
    return (ecg_range){from > k->first ? from : k->first, to < k->end ? to : k->end};
}

/* floor(2^40 / sum) for 2^14 <= sum < 2^24, the sums of 1 .. 1023 weights of which the largest is 2^14.
 * Long division: 2^31 = high * sum + rest, then 2^39 = (high * 2^8 + mid) * sum + rest, then one more bit.
 * Every rest is below sum, so rest << 8 stays below 2^32, and no step rounds. */
static inline int32_t ecg_attention_reciprocal(int32_t sum)
{
    const uint32_t by = (uint32_t)sum, half = (uint32_t)1 << 31;
    const uint32_t high = half / by, rest = half % by;
    const uint32_t mid = (rest << 8) / by, last = (rest << 8) % by;
    return (int32_t)((high << 9) + (mid << 1) + (last << 1 >= by));
}

/* What a sum of e * v is multiplied with to become 2^40 output codes. |out_mul| < 2^28, so it stays below
 * 2^30. */
static inline int32_t ecg_attention_factor(int32_t sum, int32_t out_mul)
{
    return (int32_t)(((int64_t)ecg_attention_reciprocal(sum) * out_mul + (1 << 23)) >> 24);
}

/* floor(sum * factor / 2^32) from four products of 16 bits. |sum| <= 1023 * 2^14 * 128 and |factor| < 2^30
 * keep all of them inside 32 bits. */
static inline int32_t ecg_attention_high_short(int32_t sum, int32_t factor)
{
    const int32_t low = ecg_low(sum), high = sum >> 16;
    const int32_t factor_low = ecg_low(factor), factor_high = factor >> 16;
    const int32_t middle = (int32_t)((uint32_t)low * (uint32_t)factor_low >> 16) + low * factor_high;
    return high * factor_high + (middle >> 16) + ((high * factor_low + ecg_low(middle)) >> 16);
}

/* 2^8 output codes -> code. Of sums of 2^40 codes the low 32 bits decide nothing. */
static inline int8_t ecg_attention_code(int32_t codes)
{
    return (int8_t)ecg_saturate((codes + 128) >> 8);
}

/* Code of a weighted sum */
static inline int8_t ecg_attention_out(int32_t sum, int32_t factor)
{
#if ECG_SHORT_PRODUCTS
    return ecg_attention_code(ecg_attention_high_short(sum, factor));
#else
    return ecg_attention_code((int32_t)(((int64_t)sum * factor) >> 32));
#endif
}

/* Code of the difference of two maps' sums */
static inline int8_t ecg_attention_out2(int32_t sum, int32_t factor, int32_t sum2, int32_t factor2)
{
    return ecg_attention_code((int32_t)(((int64_t)sum * factor - (int64_t)sum2 * factor2) >> 32));
}

#endif
