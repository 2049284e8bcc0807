/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs kernels for tests/ckernels.py: reads calls from stdin, writes outputs to stdout, until stdin ends. Every array,
 * tensor and scratch is an allocation of its own that ends with its last byte, so that the address sanitizer sees each
 * byte read or written behind it; guard bytes show what was written in front of it or between rows. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ecg_kernels.h"

#define ECG_KERNEL(number, name) extern ecg_kernel ecg_##name __attribute__((weak));
#include "ecg_kernels.def"
#undef ECG_KERNEL

enum { GUARD = 16, MAX_INPUTS = 16, MAX_ARRAYS = 16 };

typedef struct {
    int32_t kernel, layer_bytes, arrays, inputs, in_place, scratch;
} call_header;

typedef struct {
    int32_t bytes, offset, align;       /* offset: of the pointer in the layer */
} array_header;

typedef struct {
    int32_t rows, pitch, first, end, offset;    /* offset: of the data from an address that 16 divides */
} view_header;

static ecg_kernel *find(int32_t number)
{
    switch (number) {
#define ECG_KERNEL(number, name) case number: return ecg_##name;
#include "ecg_kernels.def"
#undef ECG_KERNEL
    default: return NULL;
    }
}

static void stop(const char *why)
{
    fprintf(stderr, "%s\n", why);
    exit(3);
}

static void get(void *at, size_t bytes)
{
    if (bytes && fread(at, 1, bytes, stdin) != bytes)
        stop("a call ends early");
}

/* `bytes` at GUARD + offset of an allocation that ends behind them */
static uint8_t *allocate(size_t bytes, size_t offset)
{
    uint8_t *block = malloc(GUARD + offset + bytes);
    if (!block)
        stop("out of memory");
    memset(block, 0xA5, GUARD + offset + bytes);
    return block + GUARD + offset;
}

static void intact(const uint8_t *at, size_t offset)
{
    for (size_t i = 1; i <= GUARD + offset; i++)
        if (at[-(ptrdiff_t)i] != 0xA5)
            stop("bytes in front of a tensor, an array or scratch were written");
}

static void release(uint8_t *at, size_t offset)
{
    intact(at, offset);
    free(at - GUARD - offset);
}

static size_t extent(const view_header *h)
{
    return h->rows ? (size_t)(h->rows - 1) * (size_t)h->pitch + (size_t)(h->end - h->first) : 0;
}

static uint8_t *view(const view_header *h, ecg_view *v)
{
    uint8_t *data = allocate(extent(h), (size_t)h->offset);
    *v = (ecg_view){(int8_t *)data, h->pitch, h->first, h->end};
    return data;
}

int main(void)
{
    static call_header call;
    static array_header array[MAX_ARRAYS];
    static view_header header[MAX_INPUTS + 1];
    static uint8_t *arrays[MAX_ARRAYS], *tensors[MAX_INPUTS + 1], *before[MAX_INPUTS];
    static ecg_view views[MAX_INPUTS + 1];

    while (fread(&call, 1, sizeof call, stdin) == sizeof call) {
        if (call.arrays > MAX_ARRAYS || call.inputs > MAX_INPUTS)
            stop("too many arrays or inputs");
        ecg_kernel *kernel = find(call.kernel);
        if (!kernel)
            stop("the kernel is not linked");
        uint8_t *layer = allocate((size_t)call.layer_bytes, 0);
        get(layer, (size_t)call.layer_bytes);
        for (int32_t i = 0; i < call.arrays; i++) {
            get(&array[i], sizeof array[i]);
            arrays[i] = allocate((size_t)array[i].bytes, (size_t)array[i].align);
            get(arrays[i], (size_t)array[i].bytes);
            memcpy(layer + array[i].offset, &arrays[i], sizeof arrays[i]);
        }
        for (int32_t i = 0; i <= call.inputs; i++) {    /* the output is the last */
            get(&header[i], sizeof header[i]);
            if (i == call.inputs && call.in_place >= 0) {
                tensors[i] = tensors[call.in_place];
                views[i] = views[call.in_place];
                continue;
            }
            tensors[i] = view(&header[i], &views[i]);
            if (i < call.inputs) {
                before[i] = allocate(extent(&header[i]), 0);
                get(before[i], extent(&header[i]));
                memcpy(tensors[i], before[i], extent(&header[i]));
            }
        }
        uint8_t *scratch = allocate((size_t)call.scratch, 0);
        kernel(layer, views, &views[call.inputs], call.scratch ? scratch : NULL);
        for (int32_t i = 0; i < call.inputs; i++) {
            if (i != call.in_place && memcmp(tensors[i], before[i], extent(&header[i])))
                stop("an input was written");
            release(before[i], 0);
        }
        intact(tensors[call.inputs], call.in_place < 0 ? (size_t)header[call.inputs].offset : 0);
        if (fwrite(tensors[call.inputs], 1, extent(&header[call.inputs]), stdout) != extent(&header[call.inputs]))
            stop("stdout is closed");
        for (int32_t i = 0; i < call.inputs + (call.in_place < 0); i++)
            release(tensors[i], (size_t)header[i].offset);
        release(scratch, 0);
        for (int32_t i = 0; i < call.arrays; i++)
            release(arrays[i], (size_t)array[i].align);
        release(layer, 0);
        putchar('.');       /* the call has ended well */
        fflush(stdout);
    }
    return 0;
}
