/* SPDX-License-Identifier: Apache-2.0
 *
 * What Python calls: the engine behind functions of plain arguments. On a computer only; here memory may be allocated. */
#include "ecg.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    ecg_t engine;
    void *memory;
} ecg_host;

extern const ecg_model model;

/* A classifier of the library's model, or NULL and why in *error. `rate` must outlive it. */
ecg_host *ecg_host_open(const ecg_rate *rate, int *error)
{
    ecg_host *h = calloc(1, sizeof *h);
    const uint32_t bytes = ecg_memory(&model, rate);
    *error = ECG_E_MEMORY;
    if (h && (h->memory = aligned_alloc(8, bytes)))
        *error = ecg_init(&h->engine, &model, rate, h->memory, bytes);
    if (*error != ECG_OK && h) {
        free(h->memory);
        free(h);
        h = NULL;
    }
    return h;
}

void ecg_host_close(ecg_host *h)
{
    free(h->memory);
    free(h);
}

void ecg_host_reset(ecg_host *h)
{
    ecg_reset(&h->engine);
}

uint32_t ecg_host_memory(const ecg_rate *rate)
{
    return ecg_memory(&model, rate);
}

void ecg_host_patient(ecg_host *h, int age, int sex)
{
    ecg_patient(&h->engine, age, sex);
}

void ecg_host_bad(ecg_host *h)
{
    ecg_bad(&h->engine);
}

/* A decision as Python reads it: sample, present, top, unreliable; its logits lie in another array. */
typedef struct {
    uint32_t sample, present;
    int32_t top, unreliable;
} ecg_host_decision;

/* n frames of microvolts at the input's rate, (frame, lead). Returns the decisions made, at most `room`; *taken frames
 * were read. */
int32_t ecg_host_push(ecg_host *h, const int32_t *uv, int32_t n, int32_t *taken, ecg_host_decision *found, int8_t *logits,
                      int32_t room)
{
    int32_t made = 0;
    for (*taken = 0; made < room;) {
        ecg_result r;
        *taken += ecg_push(&h->engine, uv + (size_t)*taken * model.leads, n - *taken, &r);
        if (!r.ready)
            break;
        found[made] = (ecg_host_decision){r.sample, r.present, r.top, r.unreliable};
        memcpy(logits + (size_t)made * model.classes, r.logits, model.classes);
        made++;
    }
    return made;
}

/* n windows one after the other: inputs[i] are the codes of input i, sizes[i] of them for each window. */
int ecg_host_windows(ecg_host *h, int32_t n, const int8_t *const *inputs, const int32_t *sizes, int8_t *logits)
{
    const int8_t *at[1 + ECG_SIDES];
    for (int32_t w = 0; w < n; w++) {
        for (int i = 0; i <= model.side_count && i <= ECG_SIDES; i++)
            at[i] = inputs[i] + (size_t)w * (size_t)sizes[i];
        const int error = ecg_window(&h->engine, at, logits + (size_t)w * model.classes);
        if (error != ECG_OK)
            return error;
    }
    return ECG_OK;
}

static void copy_out(void *context, uint16_t node, const ecg_view *out)
{
    const ecg_node *n = &model.window->nodes[node];
    int8_t **to = context;
    for (uint16_t row = 0; row < model.window->tensors[n->out].rows; row++, *to += out->end - out->first)
        memcpy(*to, out->data + row * out->pitch, (size_t)(out->end - out->first));
}

/* One window; every node's output goes to `out`, one behind the other. */
int ecg_host_trace(ecg_host *h, const int8_t *const *inputs, int8_t *out)
{
    int8_t logits[256];
    h->engine.net.watch = copy_out;
    h->engine.net.context = &out;
    const int error = model.classes > sizeof logits ? ECG_E_MEMORY : ecg_window(&h->engine, inputs, logits);
    h->engine.net.watch = NULL;
    return error;
}

/* n frames of codes through the stream, without decision rule: logits of every decision, at most `room`. sides[i]: codes
 * of side input i, sizes[i] of them for each decision, counted from the stream's start by *decided. */
int32_t ecg_host_stream(ecg_host *h, const int8_t *codes, int32_t n, const int8_t *const *sides, const int32_t *sizes,
                        int32_t *decided, int8_t *logits, int32_t room)
{
    const int8_t *at[ECG_SIDES] = {0};
    int32_t found = 0;
    for (int32_t taken = 0; taken < n && found < room;) {
        int due;
        for (int i = 0; i < model.side_count; i++)
            at[i] = sides[i] + (size_t)*decided * (size_t)sizes[i];
        taken += ecg_net_take(&h->engine.net, model.stream, codes + taken * model.leads, n - taken, &due);
        const int8_t *got = due ? ecg_net_step(&h->engine.net, model.stream, at) : NULL;
        for (uint16_t k = 0; got && k < model.classes; k++)
            logits[found * model.classes + k] = got[k];
        found += got != NULL;
        *decided += got != NULL;
    }
    return found;
}
