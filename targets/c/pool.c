/* SPDX-License-Identifier: Apache-2.0
 *
 * Largest code and mean: sliding along time, and over whole axes. */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

/* What output column t sees: columns from .. to - 1 of the view, counted from its first. */
static void seen(const ecg_pool_layer *p, const ecg_view *in, int32_t t, int32_t *from, int32_t *to)
{
    *from = t * p->stride - p->pad - in->first;
    *to = *from + p->kernel;
    if (*from < 0)
        *from = 0;
    if (*to > in->end - in->first)
        *to = in->end - in->first;
}

/* in: x (row, time); out (row, column): the largest code of `kernel` columns from column * stride - pad on. */
void ecg_maxpool(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_pool_layer *p = layer;
    const int8_t *row = in->data;
    int8_t *to = out->data;

    (void)scratch;
    for (int32_t r = 0; r < p->rows; r++, row += in->pitch, to += out->pitch) {
        for (int32_t t = out->first; t < out->end; t++) {
            int32_t from, end;
            int8_t best = -128;
            seen(p, in, t, &from, &end);
            for (; from < end; from++)
                best = row[from] > best ? row[from] : best;
            to[t - out->first] = best;
        }
    }
}

/* in: x (row, time); out (row, column): requantize(sum of `kernel` columns from column * stride - pad on) */
void ecg_meanpool(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_pool_layer *p = layer;
    const int8_t *row = in->data;
    int8_t *to = out->data;

    (void)scratch;
    for (int32_t r = 0; r < p->rows; r++, row += in->pitch, to += out->pitch) {
        for (int32_t t = out->first; t < out->end; t++) {
            int32_t from, end, sum = 0;
            seen(p, in, t, &from, &end);
            for (; from < end; from++)
                sum += row[from];
            to[t - out->first] = ecg_requantize(sum, p->mul, p->shift, -128);
        }
    }
}

/* What a reduction walks over. `kept`: the codes of the result, as counts and strides of their axes (channel, lead,
 * time), 1 where an axis is reduced; `gone`: the axes reduced, 1 where an axis is kept. */
typedef struct {
    int32_t kept[3], gone[3], stride[3];
} walk;

static walk walk_of(const ecg_reduce_layer *p, const ecg_view *in, const ecg_view *out)
{
    const int32_t time = p->over & 4 ? in->end - in->first : out->end - out->first;
    const int32_t size[3] = { p->channels, p->leads, time };
    walk w = { { 1, 1, 1 }, { 1, 1, 1 }, { p->leads * in->pitch, in->pitch, 1 } };

    for (int i = 0; i < 3; i++) {
        if (p->over >> i & 1)
            w.gone[i] = size[i];
        else
            w.kept[i] = size[i];
    }
    return w;
}

/* The largest code, or the sum, of what one code of the result is made of. */
static int32_t fold(const walk *w, const int8_t *from, int largest)
{
    int32_t sum = 0, best = -128;

    for (int32_t c = 0; c < w->gone[0]; c++) {
        for (int32_t l = 0; l < w->gone[1]; l++) {
            const int8_t *x = from + c * w->stride[0] + l * w->stride[1];
            for (int32_t t = 0; t < w->gone[2]; t++) {
                sum += x[t];
                best = x[t] > best ? x[t] : best;
            }
        }
    }
    return largest ? best : sum;
}

static void reduce(const ecg_reduce_layer *p, const ecg_view *in, const ecg_view *out, int largest)
{
    const walk w = walk_of(p, in, out);
    const int8_t *from = in->data + (p->over & 4 ? 0 : out->first - in->first);
    const int32_t pitch = p->over & 4 ? 1 : out->pitch;     /* with time among the axes the result has no gaps */
    int8_t *to = out->data;

    for (int32_t c = 0; c < w.kept[0]; c++) {
        for (int32_t l = 0; l < w.kept[1]; l++, to += pitch) {
            for (int32_t t = 0; t < w.kept[2]; t++) {
                int32_t x = fold(&w, from + c * w.stride[0] + l * w.stride[1] + t, largest);
                to[t] = largest ? (int8_t)x : ecg_requantize(x, p->mul, p->shift, -128);
            }
        }
    }
}

/* in: x; out: the largest code over the axes `over`; mul and shift are not used. */
void ecg_reduce_max(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    (void)scratch;
    reduce(layer, in, out, 1);
}

/* in: x; out: requantize(sum over the axes `over`) */
void ecg_reduce_mean(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    (void)scratch;
    reduce(layer, in, out, 0);
}
