/* SPDX-License-Identifier: Apache-2.0
 *
 * Counts the instructions that an emulated core executes, for each address, between calls of ecg_mark(name).
 * A plugin of QEMU's interface version 1 (QEMU 4.2 and later); what is used of it is declared here, so that no header
 * of QEMU is needed. Build: gcc -O2 -shared -fPIC plugin.c -o plugin.so
 *
 * Options: base=, size= first address and bytes of the code; mark=, marked= address and bytes of ecg_mark;
 * out= file for the result. Numbers are decimal or 0x...
 *
 * The result, one item a line: `visit NAME TOTAL` for each region in the order in which they ran, NAME being the
 * address of the name's first letter and 0 in front of the first mark; then `region NAME` and `ADDRESS COUNT` for each
 * instruction executed in any of its visits. Code of ecg_mark is not counted. Address 1 stands for all code outside of
 * base .. base + size - 1. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* QEMU's side */
typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { CB_NO_REGS = 0, MEM_RW = 3, INLINE_ADD_U64 = 0 };    /* 7.2 does not call back for MEM_R alone */
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*cb)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *insn, int op, void *at, uint64_t value);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, void (*cb)(unsigned, void *), int flags,
                                            void *data);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn,
                                      void (*cb)(unsigned, qemu_plugin_meminfo_t, uint64_t, void *), int flags,
                                      int direction, void *data);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*cb)(qemu_plugin_id_t, void *), void *data);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;
__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc,
                                                               char **argv);

struct region {
    uint64_t name;
    uint64_t *counts;           /* one for each slot */
};

static uint64_t base, size, mark, marked;
static char out_path[4096];
static uint64_t slots;          /* halfwords of code, and one for all else */
static uint64_t *now;           /* counts since the last mark */
static uint32_t *used;          /* slots that have been translated: the only ones that can be above 0 */
static uint64_t used_count;
static bool *known;
static struct region *regions;
static size_t region_count;
static uint64_t current;        /* name of the running region */
static bool armed;              /* ecg_mark has just begun: 7.2 calls on_mark for some vector loads elsewhere as well */
static FILE *out;

static void *allocate(void *old, size_t bytes)
{
    void *memory = realloc(old, bytes);
    if (!memory) {
        fprintf(stderr, "counting: out of memory\n");
        exit(2);
    }
    return memory;
}

static struct region *find(uint64_t name)
{
    for (size_t i = 0; i < region_count; i++)
        if (regions[i].name == name)
            return &regions[i];
    regions = allocate(regions, (region_count + 1) * sizeof *regions);
    struct region *added = &regions[region_count++];
    added->name = name;
    added->counts = allocate(NULL, slots * sizeof *added->counts);
    memset(added->counts, 0, slots * sizeof *added->counts);
    return added;
}

/* The running region ends: its counts are added to those of its earlier visits. */
static void finish(void)
{
    struct region *region = find(current);
    uint64_t total = 0;
    for (uint64_t i = 0; i < used_count; i++) {
        uint32_t slot = used[i];
        region->counts[slot] += now[slot];
        total += now[slot];
        now[slot] = 0;
    }
    fprintf(out, "visit %" PRIu64 " %" PRIu64 "\n", current, total);
}

static void on_mark(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t address, void *data)
{
    (void)cpu, (void)info, (void)data;
    if (!armed)
        return;
    armed = false;
    finish();
    current = address;
}

static void arm(unsigned cpu, void *data)
{
    (void)cpu, (void)data;
    armed = true;
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    size_t count = qemu_plugin_tb_n_insns(tb);
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint64_t at = qemu_plugin_insn_vaddr(insn);
        if (at - mark < marked) {
            if (at == mark)
                qemu_plugin_register_vcpu_insn_exec_cb(insn, arm, CB_NO_REGS, NULL);
            qemu_plugin_register_vcpu_mem_cb(insn, on_mark, CB_NO_REGS, MEM_RW, NULL);
            continue;
        }
        uint64_t slot = at - base < size ? (at - base) / 2 : slots - 1;
        if (!known[slot]) {
            known[slot] = true;
            used[used_count++] = (uint32_t)slot;
        }
        qemu_plugin_register_vcpu_insn_exec_inline(insn, INLINE_ADD_U64, &now[slot], 1);
    }
}

static void on_end(qemu_plugin_id_t id, void *data)
{
    (void)id, (void)data;
    finish();
    for (size_t r = 0; r < region_count; r++) {
        fprintf(out, "region %" PRIu64 "\n", regions[r].name);
        for (uint64_t slot = 0; slot < slots; slot++)
            if (regions[r].counts[slot])
                fprintf(out, "%" PRIu64 " %" PRIu64 "\n", slot == slots - 1 ? 1 : base + 2 * slot,
                        regions[r].counts[slot]);
    }
    fclose(out);
}

static void option(const char *word)
{
    const struct { const char *name; uint64_t *value; } numbers[] = {
        { "base=", &base }, { "size=", &size }, { "mark=", &mark }, { "marked=", &marked } };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strncmp(word, numbers[i].name, strlen(numbers[i].name)))
            *numbers[i].value = strtoull(word + strlen(numbers[i].name), NULL, 0);
    if (!strncmp(word, "out=", 4))
        snprintf(out_path, sizeof out_path, "%s", word + 4);
}

int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        option(argv[i]);
    out = *out_path ? fopen(out_path, "w") : NULL;
    if (!out || !size) {
        fprintf(stderr, "counting: needs base=, size=, mark=, marked= and an out= that can be written\n");
        return 1;
    }
    slots = size / 2 + 1;
    now = allocate(NULL, slots * sizeof *now);
    memset(now, 0, slots * sizeof *now);
    known = allocate(NULL, slots * sizeof *known);
    memset(known, 0, slots * sizeof *known);
    used = allocate(NULL, slots * sizeof *used);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, on_end, NULL);
    return 0;
}
