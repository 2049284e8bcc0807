/* SPDX-License-Identifier: Apache-2.0 */
#include "ecg_semihost.h"

#include "ecg_boot.h"

enum { SYS_OPEN = 0x01, SYS_WRITE0 = 0x04, SYS_READ = 0x06, SYS_GET_CMDLINE = 0x15, SYS_EXIT_EXTENDED = 0x20 };

int32_t ecg_semihost(uint32_t operation, const void *argument);

void ecg_exit(int32_t code)
{
    uint32_t words[2] = { 0x20026u, (uint32_t)code };   /* the application ended by itself */
    ecg_semihost(SYS_EXIT_EXTENDED, words);
    for (;;)
        ;
}

void ecg_print(const char *text)
{
    ecg_semihost(SYS_WRITE0, text);
}

void ecg_print_int(int32_t value)
{
    char text[12];
    char *at = text + sizeof text - 1;
    uint32_t left = value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
    *at = 0;
    do {
        *--at = (char)('0' + left % 10);
        left /= 10;
    } while (left);
    if (value < 0)
        *--at = '-';
    ecg_print(at);
}

void ecg_print_hex(uint32_t value)
{
    char text[9];
    for (int i = 7; i >= 0; i--, value >>= 4)
        text[i] = "0123456789abcdef"[value & 15];
    text[8] = 0;
    ecg_print(text);
}

int32_t ecg_command_line(char *text, uint32_t bytes)
{
    uint32_t words[2] = { (uint32_t)(uintptr_t)text, bytes };
    return ecg_semihost(SYS_GET_CMDLINE, words);
}

int32_t ecg_open(const char *path)
{
    uint32_t length = 0;
    while (path[length])
        length++;
    uint32_t words[3] = { (uint32_t)(uintptr_t)path, 1, length };       /* 1: "rb" */
    return ecg_semihost(SYS_OPEN, words);
}

int32_t ecg_read(int32_t file, void *to, uint32_t bytes)
{
    uint8_t *at = to;
    while (bytes) {
        uint32_t words[3] = { (uint32_t)file, (uint32_t)(uintptr_t)at, bytes };
        uint32_t left = (uint32_t)ecg_semihost(SYS_READ, words);        /* bytes that were not read */
        if (left >= bytes)
            return -1;
        at += bytes - left;
        bytes = left;
    }
    return 0;
}

#ifndef ECG_FAULT_RESETS
/* A fault ends the run and says where it was. */
void ecg_fault(const ecg_fault_note *note)
{
    ecg_print("fault at ");
    ecg_print_hex(note->pc);
    ecg_print(" called from ");
    ecg_print_hex(note->lr);
    ecg_print(" status ");
    ecg_print_hex(note->status);
    ecg_print(" address ");
    ecg_print_hex(note->address);
    ecg_print(note->pc ? "\n" : " (stack overflow?)\n");
    ecg_exit(70);
}
#endif
