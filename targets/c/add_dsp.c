/* SPDX-License-Identifier: Apache-2.0
 *
 * Sums for Cortex-M4, M7 and M33: four codes in 24 instructions. */
#include "ecg_dsp.h"
#include "ecg_kernels.h"

/* Four sums of codes. `half` is the rounding and 128 codes, so that a sum saturates as an unsigned number; they are
 * taken off by turning its top bit, or with relu by a subtraction that ends at 0. */
static inline uint32_t add4(uint32_t a, uint32_t b, uint32_t mul, int32_t half, unsigned shift,
                            uint32_t turn, uint32_t relu)
{
    const uint32_t first = ecg_firsts(a, b), last = ecg_seconds(a, b);      /* codes a0 a1 b0 b1 and a2 a3 b2 b3 */
    const int32_t y0 = ecg_smlad(ecg_even(first), mul, half) >> shift;
    const int32_t y1 = ecg_smlad(ecg_odd(first), mul, half) >> shift;
    const int32_t y2 = ecg_smlad(ecg_even(last), mul, half) >> shift;
    const int32_t y3 = ecg_smlad(ecg_odd(last), mul, half) >> shift;
    const uint32_t even = ecg_usat16(ecg_firsts((uint32_t)y0, (uint32_t)y2));
    const uint32_t odd = ecg_usat16(ecg_firsts((uint32_t)y1, (uint32_t)y3));

    return ecg_uqsub8((even | odd << 8) ^ turn, relu);
}

/* n codes that lie in order */
static inline void run(const int8_t *a, const int8_t *b, int8_t *to, int32_t n, const ecg_pair_layer *p)
{
    const uint32_t mul = ecg_firsts((uint32_t)p->mul[0], (uint32_t)p->mul[1]);
    const uint32_t relu = p->relu ? 0x80808080u : 0, turn = relu ^ 0x80808080u;
    const int32_t half = ((int32_t)1 << (p->shift - 1)) + ((int32_t)128 << p->shift);
    const unsigned shift = p->shift;
    const int8_t *end = to + (n & ~3);

    for (; to != end; a += 4, b += 4, to += 4)
        ecg_store4(to, add4(ecg_load4(a), ecg_load4(b), mul, half, shift, turn, relu));
    for (n &= 3; n > 0; n--)
        *to++ = (int8_t)(add4((uint8_t)*a++, (uint8_t)*b++, mul, half, shift, turn, relu) & 0xff);
}

/* ecg_add for operands that are not repeated, and sums that stay below 2^15 - 128 after the shift. */
void ecg_add_dsp(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_pair_layer *p = layer;
    const int8_t *a = in[0].data + (out->first - in[0].first), *b = in[1].data + (out->first - in[1].first);
    int32_t rows = p->channels * p->leads, n = out->end - out->first;
    int8_t *to = out->data;

    (void)scratch;
    if (in[0].pitch == n && in[1].pitch == n && out->pitch == n) {      /* no gaps: all rows at once */
        n *= rows;
        rows = 1;
    }
    for (; rows > 0; rows--, a += in[0].pitch, b += in[1].pitch, to += out->pitch)
        run(a, b, to, n, p);
}
