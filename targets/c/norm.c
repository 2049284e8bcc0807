/* SPDX-License-Identifier: Apache-2.0
 *
 * Layer norm and RMS norm over groups of channels; formulas in compress/reference_norm.py. */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

/* floor(sqrt(x)), x < 2^62: of x moved up to the top of 64 bits, half of the root bit by bit from the upper half of x,
 * the other half by a division, which is too large by 1 at most (Zimmermann's Karatsuba square root). */
static uint32_t root_of(uint64_t x)
{
    unsigned up = 0;
    uint32_t rest, low, q, root = 0;

    if (x == 0)
        return 0;
    for (; x < (uint64_t)1 << 62; x <<= 2)
        up++;
    rest = (uint32_t)(x >> 32);
    low = (uint32_t)x;
    for (uint32_t bit = (uint32_t)1 << 30; bit; bit >>= 2) {
        const uint32_t tried = root + bit;
        root >>= 1;
        if (rest >= tried) {
            rest -= tried;
            root += bit;
        }
    }
    q = (rest << 15 | low >> 17) / root;            /* rest <= 2 * root < 2^17 */
    rest = ((rest << 15 | low >> 17) - q * root) << 1 | (low >> 16 & 1);
    root = (root << 16) + q;
    if (((uint64_t)rest << 16 | (low & 0xffff)) < (uint64_t)q * q)
        root--;
    return root >> up;
}

/* floor((2^44 + root / 2) / root), 2^14 <= root < 2^31: 31 steps of a long division whose rest stays below 2^32 */
static int32_t reciprocal(uint32_t root)
{
    const uint64_t top = ((uint64_t)1 << 44) + root / 2;
    uint32_t rest = (uint32_t)(top >> 31), low = (uint32_t)top << 1, found = 0;

    for (int i = 0; i < 31; i++) {
        rest = rest << 1 | low >> 31;
        low <<= 1;
        found <<= 1;
        if (rest >= root) {
            rest -= root;
            found |= 1;
        }
    }
    return (int32_t)found;
}

/* One group of n codes, `stride` bytes apart. */
static void group(const int8_t *from, int32_t from_stride, int8_t *to, int32_t to_stride, int32_t n,
                  const int32_t *mul, const int32_t *bias, int64_t eps, int rms)
{
    int32_t sum = 0, energy = 0;
    uint32_t root;
    int32_t r;

    for (int32_t c = 0; c < n; c++) {
        int32_t x = from[c * from_stride];
        sum += x;
        energy += x * x;
    }
    if (rms)
        sum = 0;
    root = root_of(((uint64_t)((int64_t)n * energy - (int64_t)sum * sum) << 28) + (uint64_t)eps);
    r = reciprocal(root < (1u << 14) ? 1u << 14 : root);
    for (int32_t c = 0; c < n; c++) {
        int32_t x = n * from[c * from_stride] - sum;
        int32_t t = (int32_t)(((int64_t)x * r + (1 << 9)) >> 10);
        int64_t y = (int64_t)t * mul[c] + (int64_t)bias[c] * (1 << 16) + ((int64_t)1 << 31);
        to[c * to_stride] = (int8_t)ecg_saturate((int32_t)(y >> 32));
    }
}

/* in: x (channel, lead, time); out: the same shape, or x's own memory. Every lead and column by itself. */
void ecg_norm(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_norm_layer *p = layer;
    const int32_t n = p->channels / p->groups, from_stride = p->leads * in->pitch, to_stride = p->leads * out->pitch;
    const int8_t *from = in->data + (out->first - in->first);

    (void)scratch;
    for (int32_t c = 0; c < p->channels; c += n) {
        for (int32_t l = 0; l < p->leads; l++) {
            const int8_t *x = from + c * from_stride + l * in->pitch;
            int8_t *to = out->data + c * to_stride + l * out->pitch;
            for (int32_t t = 0; t < out->end - out->first; t++)
                group(x + t, from_stride, to + t, to_stride, n, p->mul + c, p->bias + c, p->eps, p->rms);
        }
    }
}
