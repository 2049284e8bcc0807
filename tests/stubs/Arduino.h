/* SPDX-License-Identifier: Apache-2.0
 * As much of Arduino as the example sketches use, for a computer. */
#ifndef ARDUINO_H
#define ARDUINO_H

#include <stddef.h>
#include <stdint.h>

class Port {
public:
    void begin(unsigned long) {}
    operator bool() const { return true; }
    void print(const char *);
    void print(int);
    void print(unsigned long);
    void println(const char * = "");
    void println(int n);
};
extern Port Serial;
void delay(unsigned long ms);   /* ends the program: a sketch that is done waits */

#endif
