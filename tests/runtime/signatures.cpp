// Answers with one character per line of standard input, "KEY SIGNATURE MESSAGE" in hexadecimal ("-": no bytes): 1 for a
// valid Ed25519 signature, 0 for another, ? for a line that is none.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../runtime/ed25519.h"

namespace {

char line[1 << 16], word[3][1 << 15];

// The bytes in memory of exactly that size, so that a sanitizer sees a read beyond; nullptr when there are others.
uint8_t *bytes_of(const char *text, size_t wanted, size_t *found) {
    *found = strcmp(text, "-") == 0 ? 0 : strlen(text) / 2;
    if (wanted && *found != wanted) return nullptr;
    uint8_t *bytes = static_cast<uint8_t *>(malloc(*found ? *found : 1));
    for (size_t i = 0; bytes && i < *found; i++) {
        const char pair[3] = {text[2 * i], text[2 * i + 1], 0};
        bytes[i] = uint8_t(strtoul(pair, nullptr, 16));
    }
    return bytes;
}

}  // namespace

int main() {
    while (fgets(line, sizeof line, stdin)) {
        size_t n = 0, length = 0;
        if (sscanf(line, "%32767s %32767s %32767s", word[0], word[1], word[2]) != 3) return puts("?"), 1;
        uint8_t *key = bytes_of(word[0], 32, &n), *signature = bytes_of(word[1], 64, &n);
        uint8_t *message = bytes_of(word[2], 0, &length);
        if (!key || !signature || !message) return puts("?"), 1;
        putchar(edgec::ed25519_verify(key, signature, message, length) ? '1' : '0');
        free(key), free(signature), free(message);
    }
    return 0;
}
