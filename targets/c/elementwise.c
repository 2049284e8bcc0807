/* SPDX-License-Identifier: Apache-2.0
 *
 * Sum, product and table of codes, one output for each column. */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

/* n codes of an output row from those of its operands, which move on by 1 or, where a column is repeated, by 0. */
typedef void run(const ecg_pair_layer *p, const int8_t *a, int32_t step_a, const int8_t *b, int32_t step_b, int8_t *to,
                 int32_t n);

/* Calls `kernel` for each output row (channel, lead). */
static void rows(const ecg_pair_layer *p, const ecg_view *in, const ecg_view *out, run *kernel)
{
    const int8_t *from[2];
    int32_t channel[2], lead[2], step[2];       /* bytes to the next one, 0 where it is repeated */
    int8_t *to = out->data;

    for (int i = 0; i < 2; i++) {
        const unsigned repeat = p->repeat[i];
        step[i] = repeat & 4 ? 0 : 1;
        lead[i] = repeat & 2 ? 0 : in[i].pitch;
        channel[i] = repeat & 1 ? -p->leads * lead[i] : repeat & 2 ? in[i].pitch : 0;       /* behind the last lead */
        from[i] = in[i].data + step[i] * (out->first - in[i].first);
    }
    for (int32_t c = p->channels; c > 0; c--, from[0] += channel[0], from[1] += channel[1])
        for (int32_t l = p->leads; l > 0; l--, from[0] += lead[0], from[1] += lead[1], to += out->pitch)
            kernel(p, from[0], step[0], from[1], step[1], to, out->end - out->first);
}

static void add(const ecg_pair_layer *p, const int8_t *a, int32_t step_a, const int8_t *b, int32_t step_b, int8_t *to,
                int32_t n)
{
    const int32_t mul_a = p->mul[0], mul_b = p->mul[1], half = (int32_t)1 << (p->shift - 1), low = p->relu ? 0 : -128;
    const unsigned shift = p->shift;

    if (step_a & step_b) {
        ECG_ANY_ORDER
        for (int32_t t = 0; t < n; t++)
            to[t] = (int8_t)ecg_clamp((a[t] * mul_a + b[t] * mul_b + half) >> shift, low, 127);
        return;
    }
    for (; n > 0; n--, a += step_a, b += step_b)
        *to++ = (int8_t)ecg_clamp((*a * mul_a + *b * mul_b + half) >> shift, low, 127);
}

static void mul(const ecg_pair_layer *p, const int8_t *a, int32_t step_a, const int8_t *b, int32_t step_b, int8_t *to,
                int32_t n)
{
    const int32_t factor = p->mul[0];
    const unsigned shift = p->shift;

    for (; n > 0; n--, a += step_a, b += step_b)
        *to++ = ecg_requantize(*a * *b, factor, shift, -128);
}

/* in: a, b; out = clamp((a * mul[0] + b * mul[1] + 2^(shift - 1)) >> shift), at least 0 with relu. shift 1 .. 22. */
void ecg_add(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    (void)scratch;
    rows(layer, in, out, add);
}

/* in: a, b; out = requantize(a * b, mul[0], shift) */
void ecg_mul(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    (void)scratch;
    rows(layer, in, out, mul);
}

/* in: x; out = table[x + 128] */
void ecg_table(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_table_layer *p = layer;
    const int8_t *table = p->table + 128, *row = in->data + (out->first - in->first);
    int32_t rows = p->rows, columns = out->end - out->first;
    int8_t *to_row = out->data;

    (void)scratch;
    if (in->pitch == columns && out->pitch == columns) {    /* no gaps: all rows at once */
        columns *= rows;
        rows = 1;
    }
    for (; rows > 0; rows--, row += in->pitch, to_row += out->pitch) {
        const int8_t *x = row, *end = row + columns, *four = row + (columns & ~3);
        int8_t *to = to_row;
        for (; x != four; x += 4, to += 4) {
            to[0] = table[x[0]];
            to[1] = table[x[1]];
            to[2] = table[x[2]];
            to[3] = table[x[3]];
        }
        while (x != end)
            *to++ = table[*x++];
    }
}
