// SPDX-License-Identifier: Apache-2.0
#include "Arduino.h"

#include <cstdio>
#include <cstdlib>

Port Serial;
void Port::print(const char *s) { fputs(s, stdout); }
void Port::print(int n) { printf("%d", n); }
void Port::print(unsigned long n) { printf("%lu", n); }
void Port::println(const char *s) { puts(s); }
void Port::println(int n) { printf("%d\n", n); }
void delay(unsigned long) { exit(0); }

void setup();
void loop();

int main()
{
    setup();
    for (;;)
        loop();
}
