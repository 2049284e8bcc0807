/* SPDX-License-Identifier: Apache-2.0
 *
 * An image that holds many models and compares what they say with what is expected. It reads jobs from the file named
 * on the emulator's command line (written by targets/parity_image.py; all numbers 32 bits, least byte first):
 *
 *     0 model windows inputs size...   then, for each window, its inputs' codes and the expected logits
 *     1 model frames decisions sides size...   then codes[frame][lead], sides of each decision, logits of each decision
 *     2                                the end
 *
 * and prints `window JOB INDEX: EXPECTED / GOT` or `decision ...` for what differs, the first few of a job in full. */
#include "ecg.h"
#include "ecg_boot.h"
#include "ecg_semihost.h"
#include "parity.h"

enum { CLASSES = 256, INPUTS = 8, SHOWN = 3, MEMORY = 2 << 20 };

static uint64_t memory[MEMORY / 8];
static int8_t got[CLASSES];
static char path[256];
static ecg_t engine;

typedef struct {
    int32_t file;
    uint32_t job, wrong, compared;
} report;

static uint32_t number(const report *r)
{
    uint32_t value;
    if (ecg_read(r->file, &value, sizeof value)) {
        ecg_print("the file of jobs ends early\n");
        ecg_exit(3);
    }
    return value;
}

static void fetch(const report *r, void *to, uint32_t bytes)
{
    if (bytes && ecg_read(r->file, to, bytes)) {
        ecg_print("the file of jobs ends early\n");
        ecg_exit(3);
    }
}

static void list(const int8_t *codes, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        ecg_print(" ");
        ecg_print_int(codes[i]);
    }
}

static void compare(report *r, const char *what, uint32_t index, const int8_t *expected, const int8_t *found,
                    uint32_t classes, uint32_t *shown)
{
    uint32_t k = 0;
    while (k < classes && expected[k] == found[k])
        k++;
    r->compared++;
    if (k == classes)
        return;
    r->wrong++;
    if ((*shown)++ >= SHOWN)
        return;
    ecg_print(what);
    ecg_print(" ");
    ecg_print_int((int32_t)r->job);
    ecg_print(" ");
    ecg_print_int((int32_t)index);
    ecg_print(":");
    list(expected, classes);
    ecg_print(" /");
    list(found, classes);
    ecg_print("\n");
}

static const ecg_model *start(const report *r)
{
    const uint32_t which = number(r);
    if (which >= parity_models_count) {
        ecg_print("there is no such model\n");
        ecg_exit(3);
    }
    const int error = ecg_init(&engine, parity_models[which], NULL, memory, sizeof memory);
    if (error != ECG_OK || parity_models[which]->classes > CLASSES) {
        ecg_print("model ");
        ecg_print_int((int32_t)which);
        ecg_print(" does not start: ");
        ecg_print_int(error);
        ecg_print("\n");
        ecg_exit(3);
    }
    return parity_models[which];
}

static void windows(report *r)
{
    const ecg_model *model = start(r);
    const uint32_t count = number(r), inputs = number(r);
    const int8_t *at[INPUTS];
    uint32_t used = 0, shown = 0;
    if (inputs > INPUTS)
        ecg_exit(3);
    for (uint32_t i = 0; i < inputs; i++) {
        at[i] = parity_data + used;
        used += number(r);
    }
    for (uint32_t w = 0; w < count; w++) {
        fetch(r, parity_data, used + model->classes);
        const int error = ecg_window(&engine, at, got);
        if (error != ECG_OK) {
            ecg_print("ecg_window says ");
            ecg_print_int(error);
            ecg_print("\n");
            ecg_exit(3);
        }
        compare(r, "window", w, parity_data + used, got, model->classes, &shown);
    }
}

/* Frames arrive in parts of changing length: the answer must not depend on them. */
static void stream(report *r)
{
    const ecg_model *model = start(r);
    const uint32_t frames = number(r), decisions = number(r), sides = number(r);
    const ecg_program *front = model->stream ? &model->stream->front : NULL;
    const uint32_t leads = front ? front->tensors[front->given[0]].rows : 1;
    const int8_t *at[INPUTS], *codes = parity_data;
    uint32_t sizes[INPUTS], used = frames * leads, decided = 0, shown = 0, random = 1;
    if (sides > INPUTS || !front)
        ecg_exit(3);
    for (uint32_t i = 0; i < sides; i++) {
        sizes[i] = number(r);
        at[i] = parity_data + used;
        used += decisions * sizes[i];
    }
    fetch(r, parity_data, used + decisions * model->classes);
    for (uint32_t taken = 0; taken < frames;) {
        random = random * 1664525u + 1013904223u;
        uint32_t part = 1 + (random >> 16) % 97;
        int due;
        part = part < frames - taken ? part : frames - taken;
        taken += (uint32_t)ecg_net_take(&engine.net, model->stream, codes + taken * leads, (int32_t)part, &due);
        const int8_t *logits = due ? ecg_net_step(&engine.net, model->stream, at) : NULL;
        if (!logits)
            continue;
        if (decided < decisions)
            compare(r, "decision", decided, parity_data + used + decided * model->classes, logits, model->classes, &shown);
        for (uint32_t i = 0; i < sides && decided + 1 < decisions; i++)
            at[i] += sizes[i];
        decided++;
    }
    if (decided != decisions) {
        ecg_print("decisions ");
        ecg_print_int((int32_t)r->job);
        ecg_print(": ");
        ecg_print_int((int32_t)decided);
        ecg_print("\n");
        r->wrong++;
    }
}

int main(void)
{
    report r = {0};
    uint32_t kind;
    if (ecg_command_line(path, sizeof path) || (r.file = ecg_open(path)) < 0) {
        ecg_print("the file of jobs cannot be opened\n");
        ecg_exit(3);
    }
    for (; (kind = number(&r)) != 2; r.job++)
        if (kind == 0)
            windows(&r);
        else
            stream(&r);
    ecg_print("done ");
    ecg_print_int((int32_t)r.compared);
    ecg_print(" wrong ");
    ecg_print_int((int32_t)r.wrong);
    ecg_print(" stack ");
    ecg_print_int((int32_t)ecg_stack_used());
    ecg_print("\n");
    ecg_exit(0);
}
