/* SPDX-License-Identifier: Apache-2.0
 *
 * An image that runs models of one layer each: compares every code with what is expected, then calls the layer's kernel
 * once more, marked for the counting emulator. bench/kernels.py writes kernels.h: the cases and the largest memory. */
#include "ecg.h"
#include "ecg_boot.h"
#include "ecg_semihost.h"
#include "kernels.h"

#include <string.h>

static uint64_t memory[KERNELS_MEMORY / 8];
static ecg_t engine;

static ecg_view view(const ecg_tensor *t)
{
    ecg_view v = {engine.net.arena + t->place, t->pitch, 0, t->columns};
    return v;
}

static void run(const kernels_case *c)
{
    const ecg_program *p = c->model->window;
    const ecg_node *n = &p->nodes[0];
    ecg_view in[ECG_INPUTS_MAX], out;
    const int error = ecg_init(&engine, c->model, NULL, memory, sizeof memory);
    if (error != ECG_OK || p->count != 1) {
        ecg_print("a model does not start\n");
        ecg_exit(2);
    }
    out = view(&p->tensors[n->out]);
    for (uint8_t k = 0; k < n->inputs; k++) {
        in[k] = view(&p->tensors[n->in[k]]);
        memcpy(ecg_net_input(&engine.net, p, k), c->inputs[k], c->sizes[k]);
    }
    const int8_t *got = ecg_net_run(&engine.net, p);
    for (uint32_t i = 0; i < c->codes; i++)
        if (got[i] != c->expected[i]) {
            ecg_print(c->name);
            ecg_print(" differs at ");
            ecg_print_int((int32_t)i);
            ecg_print("\n");
            ecg_exit(3);
        }
    ecg_mark(c->name);
    ecg_kernels[n->kernel](n->layer, in, &out, engine.net.scratch);
    ecg_mark("");
}

int main(void)
{
    for (uint32_t i = 0; i < sizeof kernels_cases / sizeof *kernels_cases; i++)
        run(&kernels_cases[i]);
    ecg_exit(0);
}
