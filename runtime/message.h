// A bounded place for the words of an error. No allocation, so that running out of memory can be reported too.
#pragma once
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "edgec.h"

namespace edgec {

struct Message {
    char text[512] = {};

    void clear() { text[0] = 0; }

    __attribute__((format(printf, 2, 0))) void vset(const char *format, va_list arguments) {
        vsnprintf(text, sizeof text, format, arguments);
    }

    // Copies into the caller's buffer; always terminated when there is room for anything at all.
    void copy_to(char *buffer, size_t bytes) const {
        if (!buffer || bytes == 0) return;
        const size_t length = strlen(text), n = length < bytes - 1 ? length : bytes - 1;
        memcpy(buffer, text, n);
        buffer[n] = 0;
    }
};

// Sets the words and returns `status`, so that a check reads `return fail(message, STATUS, "...")`.
// Form: "<stage>: <field>: found ..., wanted ...".
__attribute__((format(printf, 3, 4))) inline edgec_status fail(Message &message, edgec_status status,
                                                               const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    message.vset(format, arguments);
    va_end(arguments);
    return status;
}

// For %llu and %lld: u64 and i64 are `long` on some systems.
inline unsigned long long ull(uint64_t v) { return v; }
inline long long ll(int64_t v) { return v; }

}  // namespace edgec
