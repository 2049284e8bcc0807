/* SPDX-License-Identifier: Apache-2.0
 *
 * Text, files and the exit code of an image that runs in an emulator or under a debugger. Without one, each of these
 * calls is a fault: firmware for boards is linked without this file. */
#ifndef ECG_SEMIHOST_H
#define ECG_SEMIHOST_H

#include <stdint.h>

/* End with an exit code. */
void ecg_exit(int32_t code) __attribute__((noreturn));

void ecg_print(const char *text);
void ecg_print_int(int32_t value);
void ecg_print_hex(uint32_t value);

/* The words that the emulator was started with, as one string; 0, or -1 where they do not fit. */
int32_t ecg_command_line(char *text, uint32_t bytes);

/* Files of the computer: open for reading, a handle or -1; read until `bytes` are there, 0, or -1 at an early end. */
int32_t ecg_open(const char *path);
int32_t ecg_read(int32_t file, void *to, uint32_t bytes);

#endif
