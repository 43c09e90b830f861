// UTF-8, character classes and NFC, as far as tokenizers need them.
#pragma once
#include <stdint.h>

#include "memory.h"
#include "unicode_tables.h"

namespace edgec {

CharClass class_of(uint32_t c);
inline bool is_letter(CharClass c) { return c >= CLASS_UPPER && c <= CLASS_LETTER; }

// Whether `byte` may follow the first `have` (1..3) bytes of a character, and how many bytes it has; 0: not a lead byte.
uint32_t utf8_length(uint8_t lead);
bool utf8_continues(const uint8_t *begun, uint32_t have, uint8_t byte);

// Index of the first byte that is not UTF-8, or n.
uint64_t utf8_valid_prefix(const uint8_t *text, uint64_t n);

// The character at text[0] of valid UTF-8, and its length.
inline uint32_t utf8_decode(const uint8_t *t, uint32_t *length) {
    if (t[0] < 0x80) {
        *length = 1;
        return t[0];
    }
    if (t[0] < 0xE0) {
        *length = 2;
        return (t[0] & 0x1Fu) << 6 | (t[1] & 0x3Fu);
    }
    if (t[0] < 0xF0) {
        *length = 3;
        return (t[0] & 0x0Fu) << 12 | (t[1] & 0x3Fu) << 6 | (t[2] & 0x3Fu);
    }
    *length = 4;
    return (t[0] & 0x07u) << 18 | (t[1] & 0x3Fu) << 12 | (t[2] & 0x3Fu) << 6 | (t[3] & 0x3Fu);
}

// Normalization form C of valid UTF-8. *done: `out` was left empty because the text is in that form already.
// false: memory is out.
bool nfc(const Allocator &allocator, const uint8_t *text, uint64_t n, Array<uint8_t> *out, bool *done);

}  // namespace edgec
