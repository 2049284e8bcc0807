/* SPDX-License-Identifier: Apache-2.0
 *
 * Convolution for cores without vectors: two products in one 32-bit multiplication (Cortex-M0+, M3).
 *
 * Codes of two columns share a word: x = x0 + x1 * 2^16. Then w * x holds both products, and a sum of such
 * words holds both sums while each of them fits 16 bits. The packer knows the weights, so it cuts the taps
 * of an output channel into chunks whose sums fit whatever the input is. Behind each chunk the sum a = a0
 * + a1 * 2^16 is flushed:
 *
 *     total += a                      modulo 2^32
 *     high  += (a >> 16) + bit 15     exactly a1: bit 15 is set when a0 < 0 has borrowed from a1
 *
 * and at the end  sum of a1 = high,  sum of a0 = total - high * 2^16.
 *
 * Weights are a string of bytes. First, for every output channel, `split`: 0, or the number of low bits of
 * its multiplier that requantization takes apart. Then, for every output channel: chunks, each a byte that
 * tells the number of its taps (see below) and its weights; then a 0. One byte behind the last 0 may be
 * read. */
#include "ecg_swar.h"

enum {
    COLUMNS = SWAR_COLUMNS,
    GROUPS = 16,                /* of columns or channels that are summed before they are requantized */
    TILE = 16                   /* columns side by side in a lane of a FIR */
};

/* x0 + x1 * 2^16 */
static inline uint32_t pair(int8_t x0, int8_t x1)
{
    return (uint32_t)x0 + ((uint32_t)x1 << 16);
}

/* The code in a column of a row that starts at `row`; 0 where there is none */
static inline int8_t code_at(const ecg_view *in, const int8_t *row, int32_t column)
{
    return column >= in->first && column < in->end ? row[column - in->first] : 0;
}

/* The codes that the taps of COLUMNS output columns meet, as two words for each tap. row: the first
 * channel's; start: the input column that the first tap of the first column meets. */
static void gather(const ecg_conv_layer *l, const ecg_view *in, const int8_t *row, int32_t start, uint32_t *x)
{
    int32_t s = l->stride, kernel = l->kernel, rows = in->pitch * l->leads;

    if (start >= in->first && start + (COLUMNS - 1) * s + kernel <= in->end) {
        row += start - in->first;
        for (int32_t c = l->in / l->groups; c > 0; c--, row += rows)
            for (const int8_t *at = row, *end = row + kernel; at < end; at++, x += 2) {
                x[0] = pair(at[0], at[s]);
                x[1] = pair(at[2 * s], at[3 * s]);
            }
    } else {
        for (int32_t c = l->in / l->groups; c > 0; c--, row += rows)
            for (int32_t k = start; k < start + kernel; k++, x += 2) {
                x[0] = pair(code_at(in, row, k), code_at(in, row, k + s));
                x[1] = pair(code_at(in, row, k + 2 * s), code_at(in, row, k + 3 * s));
            }
    }
}

/* Whether ecg_swar_codes can requantize the layer */
static int quick(const ecg_conv_layer *l)
{
#if defined(__ARM_ARCH_7M__)
    return !l->shift;
#else
    return !l->shift && *(const uint8_t *)l->weight;
#endif
}

/* Any layer: the first `count` of COLUMNS sums of output channel o */
static void few_codes(const ecg_conv_layer *l, int32_t o, const int32_t *sum, int32_t apart, int32_t count,
                      int8_t *to)
{
    for (int32_t j = 0; j < count; j++)
        to[j * apart] = ecg_requantize(sum[j] + l->scale[o].bias, l->scale[o].mul, l->shift ? l->shift[o] : 0,
                                       l->relu ? 0 : -128);
}

/* `count` columns, at most COLUMNS, of the output channels o .. stop - 1. to: where the first one's go;
 * rows: bytes to the next channel. Returns what follows their weights. */
static const uint8_t *block(const ecg_conv_layer *l, int32_t o, int32_t stop, const uint8_t *weight,
                            const uint32_t *x, int32_t *sum, int32_t count, int8_t *to, int32_t rows)
{
    for (int32_t n; o < stop; o += n, to += n * rows) {
        n = stop - o < GROUPS ? stop - o : GROUPS;
        swar_run run = {x, weight, sum, n, 0, 0};

        weight = ecg_swar_sums(&run);
        if (count == COLUMNS && quick(l)) {
            swar_codes codes = {sum, to, 1, rows, n, l->relu ? 0 : -128, l->scale + o,
                                (const uint8_t *)l->weight + o, 1};

            ecg_swar_codes(&codes);
        } else {
            for (int32_t i = 0; i < n; i++)
                few_codes(l, o + i, sum + COLUMNS * i, 1, count, to + i * rows);
        }
    }
    return weight;
}

/* conv1d with channels or taps to sum over. layer: ecg_conv_layer, weight as above. scratch: GROUPS *
 * COLUMNS sums, and two words for each of in / groups * kernel taps and one tap more. */
void ecg_conv_swar(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_conv_layer *l = layer;
    int32_t depth = l->in / l->groups, share = l->out / l->groups;
    int32_t columns = out->end - out->first, count = columns < COLUMNS ? columns : COLUMNS;
    uint32_t *x = (uint32_t *)scratch + GROUPS * COLUMNS;

    for (int32_t lead = 0; lead < l->leads; lead++) {
        const uint8_t *weight = (const uint8_t *)l->weight + l->out;

        for (int32_t g = 0; g < l->groups; g++) {
            const int8_t *row = in->data + (g * depth * l->leads + lead) * in->pitch;
            int8_t *to = out->data + (g * share * l->leads + lead) * out->pitch;
            const uint8_t *next = weight;

            for (int32_t t = 0; t < columns; t += COLUMNS) {
                if (t > columns - count)
                    t = columns - count;            /* some columns are computed again, to the same values */
                gather(l, in, row, (out->first + t) * l->stride - l->pad, x);
                next = block(l, g * share, (g + 1) * share, weight, x, scratch, count, to + t,
                             out->pitch * l->leads);
            }
            weight = next;
        }
    }
}

/* The codes that the columns j, j + side, j + 2 * side, j + 3 * side, j = 0 .. side - 1, meet: two words
 * for each input column that the first lane sees. start: the first of these. */
static void spread(const ecg_conv_layer *l, const ecg_view *in, const int8_t *row, int32_t start,
                   int32_t side, uint32_t *x)
{
    int32_t stop = start + (side - 1) * l->stride + l->kernel, apart = side * l->stride;
    int32_t low = ecg_clamp(in->first, start, stop), high = ecg_clamp(in->end - 3 * apart, low, stop);

    for (int32_t k = start; k < stop; k++, x += 2) {
        if (k == low) {             /* from here to high all lanes have codes */
            const int8_t *at = row + (low - in->first);

            for (k = low; k < high; k++, at++, x += 2) {
                x[0] = pair(at[0], at[apart]);
                x[1] = pair(at[2 * apart], at[3 * apart]);
            }
            if (k == stop)
                break;
        }
        x[0] = pair(code_at(in, row, k), code_at(in, row, k + apart));
        x[1] = pair(code_at(in, row, k + 2 * apart), code_at(in, row, k + 3 * apart));
    }
}

/* conv1d with one channel in each group: a filter along time. layer: ecg_conv_layer, weight as above.
 * scratch: TILE * COLUMNS sums, and two words for each of (TILE - 1) * stride + kernel input columns and
 * one more. */
void ecg_fir_swar(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_conv_layer *l = layer;
    int32_t share = l->out / l->groups;
    int32_t columns = out->end - out->first, count = columns < COLUMNS ? columns : COLUMNS;
    int32_t *sum = scratch;
    uint32_t *x = (uint32_t *)scratch + TILE * COLUMNS;

    for (int32_t lead = 0; lead < l->leads; lead++) {
        const uint8_t *weight = (const uint8_t *)l->weight + l->out;

        for (int32_t g = 0; g < l->groups; g++) {
            const int8_t *row = in->data + (g * l->leads + lead) * in->pitch;
            const uint8_t *next = weight;

            for (int32_t t = 0, side; t < columns; t += side * COLUMNS) {
                if (t > columns - count)
                    t = columns - count;            /* as above */
                side = ecg_clamp((columns - t) / COLUMNS, 1, TILE);
                spread(l, in, row, (out->first + t) * l->stride - l->pad, side, x);
                next = weight;
                for (int32_t o = g * share; o < (g + 1) * share; o++) {
                    int8_t *to = out->data + (o * l->leads + lead) * out->pitch + t;
                    swar_run run = {x, next, sum, side, 8 * l->stride, 1};
                    swar_codes codes = {sum, to, side, 1, side, l->relu ? 0 : -128, l->scale + o,
                                        (const uint8_t *)l->weight + o, 0};

                    next = ecg_swar_sums(&run);
                    if (count == COLUMNS && quick(l))
                        ecg_swar_codes(&codes);
                    else
                        for (int32_t i = 0; i < side; i++)
                            few_codes(l, o, sum + COLUMNS * i, side, count, to + i);
                }
            }
            weight = next;
        }
    }
}
