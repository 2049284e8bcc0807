/* SPDX-License-Identifier: Apache-2.0
 *
 * Plays a script of calls to one of several models, in memory of exactly the size that the engine asks for, and prints
 * what it decides. Python writes the script: words of 32 bits, each call its number, a count and its data. Every piece
 * of data is passed in a block of its own size, so that a sanitizer sees a byte too far.
 *
 *     hostile NUMBER SCRIPT [alone]       alone: frames are pushed one by one, and beats are counted */
#include "hostile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PUSH, RESET, BAD, PATIENT, WINDOW, CODES, LATER };

static ecg_t engine;
static unsigned beats, most;

static void *taken(FILE *file, size_t bytes)
{
    void *block = malloc(bytes ? bytes : 1);
    if (!block || fread(block, 1, bytes, file) != bytes)
        exit(3);
    return block;
}

static void show(const ecg_result *r)
{
    if (!r->ready)
        return;
    printf("%u %u %d %d", (unsigned)r->sample, (unsigned)r->present, r->top, r->unreliable);
    for (int k = 0; k < engine.model->classes; k++)
        printf(" %d", r->logits[k]);
    printf("\n");
}

static void push(const int32_t *uv, int32_t n, int alone)
{
    for (int32_t at = 0, more = 1; more;) {
        ecg_result r;
        const int32_t step = alone && n - at > 1 ? 1 : n - at;
        const int32_t took = ecg_push(&engine, uv + at * engine.model->leads, step, &r);
        show(&r);
        at += took;
        more = r.ready || at < n;
        if (alone && took) {                    /* where the rates are equal a frame is a sample */
            beats += engine.rpeak.had_beat && engine.rpeak.gap == 0;
            most = engine.waiting > most ? engine.waiting : most;
        }
    }
}

static void push_codes(const int8_t *codes, int32_t n)
{
    for (int32_t at = 0; at < n;) {
        ecg_result r;
        at += ecg_push_codes(&engine, codes + at * engine.model->leads, n - at, &r);
        show(&r);
    }
}

static void window(FILE *file)
{
    const ecg_program *p = engine.model->window;
    const int8_t *at[1 + ECG_SIDES];
    int8_t *blocks[1 + ECG_SIDES], *logits = malloc(engine.model->classes);
    for (int i = 0; i < p->given_count; i++) {
        const ecg_tensor *t = &p->tensors[p->given[i]];
        at[i] = blocks[i] = taken(file, (size_t)t->rows * t->columns);
    }
    if (!logits || ecg_window(&engine, at, logits) != ECG_OK)
        exit(4);
    for (int k = 0; k < engine.model->classes; k++)
        printf("%d%s", logits[k], k + 1 < engine.model->classes ? " " : "\n");
    for (int i = 0; i < p->given_count; i++)
        free(blocks[i]);
    free(logits);
}

int main(int count, char **words)
{
    const hostile_model *m = &hostile_models[atoi(words[1])];
    const uint32_t bytes = ecg_memory(m->model, m->rate);
    void *memory = malloc(bytes);
    FILE *file = fopen(words[2], "rb");
    int32_t call[2];
    /* what was in the memory must not matter */
    if (!file || !memory || ecg_init(&engine, m->model, m->rate, memset(memory, 0xa5, bytes), bytes) != ECG_OK)
        return 2;
    if (ecg_init(&engine, m->model, m->rate, memory, bytes - 8) != ECG_E_MEMORY)
        return 5;
    while (fread(call, sizeof call, 1, file) == 1) {
        const size_t frames = (size_t)call[1] * m->model->leads;
        void *data = taken(file, call[0] == PUSH ? frames * sizeof(int32_t) : call[0] == CODES ? frames : 0);
        switch (call[0]) {
        case PUSH: push(data, call[1], count > 3); break;
        case RESET: ecg_reset(&engine); break;
        case BAD: ecg_bad(&engine); break;
        case PATIENT: ecg_patient(&engine, call[1], call[1] & 3); break;
        case WINDOW: window(file); break;
        case CODES: push_codes(data, call[1]); break;
        case LATER: engine.now += (uint32_t)call[1]; break;
        default: return 6;
        }
        free(data);
    }
    if (count > 3)
        printf("beats %u waiting %d most %u\n", beats, engine.waiting, most);
    fclose(file);
    free(memory);
    return 0;
}
