/* SPDX-License-Identifier: Apache-2.0
 * Stands in for libcudart: the host's memory, one stream. Copies back wait for cudaStreamSynchronize, so an output that
 * is read too early is an old one. STANDIN_CUDA names a call that fails. */
#include <stdlib.h>
#include <string.h>

#define STREAM ((void *)0x1234)

static struct { void *to; const void *from; size_t size; } waiting[16];
static int count;

static int fails(const char *name)
{
    const char *which = getenv("STANDIN_CUDA");
    return which && !strcmp(which, name) ? 2 : 0;
}

int cudaMalloc(void **place, size_t size)
{
    *place = calloc(1, size);
    return fails("cudaMalloc");
}

int cudaMallocHost(void **place, size_t size)
{
    *place = calloc(1, size);
    return fails("cudaMallocHost");
}

int cudaStreamCreate(void **stream)
{
    *stream = STREAM;
    return fails("cudaStreamCreate");
}

int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream)
{
    if (stream != STREAM || (kind != 1 && kind != 2))
        return 400;
    if (kind == 1) {
        memcpy(to, from, size);
    } else {
        waiting[count].to = to;
        waiting[count].from = from;
        waiting[count++].size = size;
    }
    return fails("cudaMemcpyAsync");
}

int cudaStreamSynchronize(void *stream)
{
    while (count) {
        count--;
        memcpy(waiting[count].to, waiting[count].from, waiting[count].size);
    }
    return stream == STREAM ? fails("cudaStreamSynchronize") : 400;
}

const char *cudaGetErrorString(int status)
{
    return status == 2 ? "out of memory" : "invalid resource handle";
}
