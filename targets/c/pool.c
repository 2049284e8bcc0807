/* SPDX-License-Identifier: Apache-2.0
 *
 * Largest code and mean: sliding along time, and over whole axes. */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

/* n outputs of a row, from `kernel` codes each. */
typedef void slide(const ecg_pool_layer *p, const int8_t *x, int32_t kernel, int8_t *to, int32_t n);

static void slide_max(const ecg_pool_layer *p, const int8_t *x, int32_t kernel, int8_t *to, int32_t n)
{
    const int32_t stride = p->stride;

    if (kernel == 2 || kernel == 3) {
        for (const int8_t *last = x + kernel - 1; n > 0; n--, x += stride, last += stride) {
            const int8_t best = x[0] > x[1] ? x[0] : x[1];
            *to++ = best > *last ? best : *last;
        }
        return;
    }
    for (; n > 0; n--, x += stride) {
        int8_t best = -128;
        for (int32_t k = 0; k < kernel; k++)
            best = x[k] > best ? x[k] : best;
        *to++ = best;
    }
}

static void slide_mean(const ecg_pool_layer *p, const int8_t *x, int32_t kernel, int8_t *to, int32_t n)
{
    const int32_t stride = p->stride, mul = p->mul;
    const unsigned shift = p->shift;

    if (kernel == 2) {
        for (; n > 0; n--, x += stride)
            *to++ = ecg_requantize(x[0] + x[1], mul, shift, -128);
        return;
    }
    for (; n > 0; n--, x += stride) {
        int32_t sum = 0;
        for (int32_t k = 0; k < kernel; k++)
            sum += x[k];
        *to++ = ecg_requantize(sum, mul, shift, -128);
    }
}

/* All rows: outputs that see padding one by one, those between them at once. */
static void pool(const ecg_pool_layer *p, const ecg_view *in, const ecg_view *out, slide *row)
{
    const int32_t length = in->end - in->first, columns = out->end - out->first;
    const int32_t start = out->first * p->stride - p->pad - in->first;      /* of the first output's view of a row */
    const int8_t *x = in->data;
    int8_t *to = out->data;

    for (int32_t r = 0; r < p->rows; r++, x += in->pitch, to += out->pitch) {
        for (int32_t t = 0, n; t < columns; t += n) {
            int32_t from = start + t * p->stride, end = from + p->kernel;
            n = 1;
            if (from >= 0 && end <= length) {
                n += (length - end) / p->stride;
                n = n < columns - t ? n : columns - t;
            }
            from = from < 0 ? 0 : from;
            end = end > length ? length : end;
            row(p, x + (from < length ? from : 0), end - from, to + t, n);
        }
    }
}

/* in: x (row, time); out (row, column): the largest code of `kernel` columns from column * stride - pad on. */
void ecg_maxpool(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    (void)scratch;
    pool(layer, in, out, slide_max);
}

/* in: x (row, time); out (row, column): requantize(sum of `kernel` columns from column * stride - pad on) */
void ecg_meanpool(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    (void)scratch;
    pool(layer, in, out, slide_mean);
}

/* What y becomes with n codes more, `step` bytes apart. */
typedef int32_t fold(const int8_t *x, int32_t n, int32_t step, int32_t y);

static int32_t largest(const int8_t *x, int32_t n, int32_t step, int32_t y)
{
    for (; n > 0; n--, x += step)
        y = *x > y ? *x : y;
    return y;
}

static int32_t total(const int8_t *x, int32_t n, int32_t step, int32_t y)
{
    const int32_t two = 2 * step, three = 3 * step, four = 4 * step;
    const int8_t *end = x + (n >> 2) * four;

    for (; x != end; x += four)
        y += x[0] + x[step] + x[two] + x[three];
    n &= 3;
    for (; n > 0; n--, x += step)
        y += *x;
    return y;
}

/* Over whole axes. Rows that are reduced, `gone` of them, lie `apart` bytes apart; of those left, `kept`, each begins
 * `next` bytes behind the one before. mul 0: what comes out is a code. */
static void reduce(const ecg_reduce_layer *p, const ecg_view *in, const ecg_view *out, fold *more, int32_t start,
                   int32_t mul)
{
    const int32_t channel = p->leads * in->pitch, columns = out->end - out->first;
    const int over_time = p->over & 4;
    const int8_t *from = in->data + (over_time ? 0 : out->first - in->first);
    int32_t gone = 1, apart = in->pitch, kept = p->channels * p->leads, next = in->pitch;
    int8_t *to = out->data;

    switch (p->over & 3) {
    case 1:
        gone = p->channels;
        kept = p->leads;
        apart = channel;
        break;
    case 2:
        gone = p->leads;
        kept = p->channels;
        next = channel;
        break;
    case 3:
        gone = kept;
        kept = 1;
        break;
    default:
        break;
    }
    for (; kept > 0; kept--, from += next, to += over_time ? 1 : out->pitch) {
        for (int32_t t = 0; t < (over_time ? 1 : columns); t++) {
            int32_t y = start;
            if (over_time) {        /* what is left lies without gaps */
                for (int32_t g = 0; g < gone; g++)
                    y = more(from + g * apart, in->end - in->first, 1, y);
            } else {
                y = more(from + t, gone, apart, y);
            }
            to[t] = mul ? ecg_requantize(y, mul, p->shift, -128) : (int8_t)y;
        }
    }
}

/* in: x; out: the largest code over the axes `over`; mul and shift are not used. */
void ecg_reduce_max(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    (void)scratch;
    reduce(layer, in, out, largest, -128, 0);
}

/* in: x; out: requantize(sum over the axes `over`) */
void ecg_reduce_mean(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_reduce_layer *p = layer;

    (void)scratch;
    reduce(p, in, out, total, 0, p->mul);
}
