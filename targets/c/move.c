/* SPDX-License-Identifier: Apache-2.0
 *
 * Codes in other places: side by side, a part, other axes. */
#include "ecg_fixed.h"
#include "ecg_kernels.h"

/* What is moved: extents (channel, lead, time), and the bytes from one code of each axis to the next. */
typedef struct {
    int32_t size[3], from[3], to[2];    /* a column of the output is 1 byte from the next */
} block;

/* Codes, brought to another scale where mul is not 0. Small code: one copy serves three kernels. */
static __attribute__((noinline)) void move(const block *b, const int8_t *from, int8_t *to, int32_t mul, unsigned shift)
{
    const int32_t step = b->from[2];

    for (int32_t c = 0; c < b->size[0]; c++) {
        for (int32_t l = 0; l < b->size[1]; l++) {
            const int8_t *x = from + c * b->from[0] + l * b->from[1];
            int8_t *y = to + c * b->to[0] + l * b->to[1];
            int32_t n = b->size[2];
            if (mul) {
                for (; n > 0; n--, x += step)
                    *y++ = ecg_requantize(*x, mul, shift, -128);
            } else if (step == 1) {
                memcpy(y, x, (size_t)n);
            } else {
                for (; n > 0; n--, x += step)
                    *y++ = *x;
            }
        }
    }
}

/* in: `inputs` views, input i with count[i] steps along `axis`; out: all of them, one behind the other. */
void ecg_concat(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_concat_layer *p = layer;
    const int32_t pitch = out->pitch, channel = p->leads * pitch;
    const int32_t step = p->axis == 0 ? channel : p->axis == 1 ? pitch : 1;
    int32_t start = 0;      /* step along the axis at which an input begins */

    (void)scratch;
    for (int32_t i = 0; i < p->inputs; start += p->count[i], i++, in++) {
        block b = { { p->channels, p->leads, out->end - out->first }, { 0, in->pitch, 1 }, { channel, pitch } };
        int32_t first = out->first;         /* column of the input to begin with, and where it goes */
        int8_t *to = out->data + start * step;

        b.size[p->axis] = p->count[i];
        b.from[0] = b.size[1] * in->pitch;
        if (p->axis == 2) {                 /* the output may be a part of the columns */
            const int32_t before = first - start, behind = start + p->count[i] - out->end;
            first = before > 0 ? before : 0;
            to = out->data + (first - before);
            b.size[2] -= first + (behind > 0 ? behind : 0);
        }
        move(&b, in->data + (first - in->first), to, p->mul[i], p->shift[i]);
    }
}

/* in: x; out: its steps start .. stop - 1 along `axis`, from 0 on. */
void ecg_slice(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_slice_layer *p = layer;
    const int32_t pitch = in->pitch, channel = p->leads * pitch;
    const int32_t step = p->axis == 0 ? channel : p->axis == 1 ? pitch : 1;
    block b = { { p->channels, p->leads, 0 }, { channel, pitch, 1 }, { 0, out->pitch } };

    (void)scratch;
    b.size[p->axis] = p->stop - p->start;
    b.size[2] = out->end - out->first;
    b.to[0] = b.size[1] * out->pitch;
    move(&b, in->data + p->start * step + (out->first - in->first), out->data, 0, 0);
}

/* in: x; out: axis i of the output is axis perm[i] of the input. */
void ecg_transpose(const void *layer, const ecg_view *in, const ecg_view *out, void *scratch)
{
    const ecg_transpose_layer *p = layer;
    const int32_t size[3] = { p->channels, p->leads, in->end - in->first };
    const int32_t stride[3] = { p->leads * in->pitch, in->pitch, 1 };
    const int32_t first = out->first - (p->perm[2] == 2 ? in->first : 0);
    block b = { { 0, 0, 0 }, { 0, 0, 0 }, { 0, out->pitch } };

    (void)scratch;
    for (int i = 0; i < 3; i++) {
        b.size[i] = size[p->perm[i]];
        b.from[i] = stride[p->perm[i]];
    }
    b.size[2] = out->end - out->first;
    b.to[0] = b.size[1] * out->pitch;
    move(&b, in->data + first * b.from[2], out->data, 0, 0);
}
