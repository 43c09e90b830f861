#include "unicode.h"

namespace edgec {
namespace {

// Index of the last range that starts at or below c; ranges hold start << shift | value and begin at 0.
template <int N>
uint32_t range_value(const uint32_t (&ranges)[N], uint32_t c, int shift) {
    uint32_t low = 0, high = N;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (ranges[middle] >> shift <= c) low = middle;
        else high = middle;
    }
    return ranges[low] & ((1u << shift) - 1);
}

// Index of `key` among n rising keys, or -1.
template <class Key>
int32_t find(int32_t n, uint64_t key, Key key_at) {
    int32_t low = 0, high = n;
    while (low < high) {
        const int32_t middle = (low + high) / 2;
        if (key_at(middle) < key) low = middle + 1;
        else high = middle;
    }
    return low < n && key_at(low) == key ? low : -1;
}

constexpr int32_t kDecompositionCount = sizeof kDecompositions / sizeof *kDecompositions;
constexpr int32_t kCompositionCount = sizeof kCompositions / sizeof *kCompositions;
constexpr uint64_t kParts = (uint64_t(1) << 42) - 1;

constexpr uint32_t kSyllable = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11A7;
constexpr uint32_t kVowels = 21, kTails = 28, kSyllables = 19 * kVowels * kTails;

uint32_t combining_class(uint32_t c) { return c < 0x300 ? 0 : range_value(kCombiningRanges, c, 8); }

// 0 when the two do not compose.
uint32_t compose(uint32_t a, uint32_t b) {
    if (a - kLead < 19 && b - kVowel < kVowels) return kSyllable + ((a - kLead) * kVowels + (b - kVowel)) * kTails;
    if (a - kSyllable < kSyllables && (a - kSyllable) % kTails == 0 && b - kTail - 1 < kTails - 1) return a + (b - kTail);
    const auto parts_at = [](int32_t i) { return kDecompositions[kCompositions[i]] & kParts; };
    const int32_t i = find(kCompositionCount, uint64_t(a) << 21 | b, parts_at);
    return i < 0 ? 0 : uint32_t(kDecompositions[kCompositions[i]] >> 42);
}

// Writes c's decomposition, at most 4 characters.
uint32_t decompose(uint32_t c, uint32_t *out) {
    if (c - kSyllable < kSyllables) {
        const uint32_t s = c - kSyllable;
        out[0] = kLead + s / (kVowels * kTails);
        out[1] = kVowel + s / kTails % kVowels;
        if (s % kTails == 0) return 2;
        out[2] = kTail + s % kTails;
        return 3;
    }
    uint32_t seconds[3], n = 0;
    while (c >= 0xC0) {
        const int32_t i = find(kDecompositionCount, c, [](int32_t k) { return kDecompositions[k] >> 42; });
        if (i < 0) break;
        const uint64_t parts = kDecompositions[i] & kParts;
        const uint32_t second = uint32_t(parts & 0x1FFFFF);
        if (second) seconds[n++] = second;
        c = uint32_t(parts >> 21);
    }
    out[0] = c;
    for (uint32_t k = 0; k < n; k++) out[1 + k] = seconds[n - 1 - k];
    return n + 1;
}

uint32_t encode(uint32_t c, uint8_t *out) {
    if (c < 0x80) {
        out[0] = uint8_t(c);
        return 1;
    }
    const uint32_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (uint32_t i = n - 1; i > 0; i--, c >>= 6) out[i] = uint8_t(0x80 | (c & 0x3F));
    out[0] = uint8_t((n == 2 ? 0xC0 : n == 3 ? 0xE0 : 0xF0) | c);
    return n;
}

// Sorts a run of combining characters by class, equal classes in place. Counting, because a hostile text may be one
// long run.
void reorder(uint32_t *run, uint64_t n, uint32_t *spare) {
    uint64_t at[257] = {};
    bool sorted = true;
    for (uint64_t i = 0; i < n; i++) {
        at[combining_class(run[i]) + 1]++;
        sorted = sorted && (i == 0 || combining_class(run[i - 1]) <= combining_class(run[i]));
    }
    if (sorted) return;
    for (uint32_t k = 1; k < 257; k++) at[k] += at[k - 1];
    for (uint64_t i = 0; i < n; i++) spare[at[combining_class(run[i])]++] = run[i];
    memcpy(run, spare, size_t(n) * sizeof *run);
}

// In place; the composed text is never longer.
uint64_t compose_all(uint32_t *text, uint64_t n) {
    uint64_t out = 0, starter = UINT64_MAX;
    uint32_t last = 0;  // the combining class of the newest character kept after the starter
    for (uint64_t i = 0; i < n; i++) {
        const uint32_t c = text[i], cls = combining_class(c);
        // A character is blocked by one between it and the starter whose class is not lower.
        const bool adjacent = starter != UINT64_MAX && starter + 1 == out;
        if (starter != UINT64_MAX && (adjacent || (last != 0 && last < cls))) {
            if (const uint32_t composed = compose(text[starter], c)) {
                text[starter] = composed;
                continue;
            }
        }
        if (cls == 0) starter = out;
        last = cls;
        text[out++] = c;
    }
    return out;
}

}  // namespace

CharClass class_of(uint32_t c) {
    if (c >= 0x80) return CharClass(range_value(kClassRanges, c, 4));
    if ((c | 0x20) - 'a' < 26) return c & 0x20 ? CLASS_LOWER : CLASS_UPPER;
    if (c - '0' < 10) return CLASS_NUMBER;
    return c == ' ' || c - '\t' < 5 ? CLASS_SPACE : CLASS_OTHER;
}

uint32_t utf8_length(uint8_t lead) {
    return lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
}

bool utf8_continues(const uint8_t *begun, uint32_t have, uint8_t byte) {
    if ((byte & 0xC0) != 0x80) return false;
    if (have > 1) return true;
    switch (begun[0]) {  // no overlong forms, no surrogates, nothing past U+10FFFF
        case 0xE0: return byte >= 0xA0;
        case 0xED: return byte < 0xA0;
        case 0xF0: return byte >= 0x90;
        case 0xF4: return byte < 0x90;
        default: return true;
    }
}

uint64_t utf8_valid_prefix(const uint8_t *text, uint64_t n) {
    for (uint64_t i = 0; i < n;) {
        const uint32_t length = utf8_length(text[i]);
        if (length == 0 || length > n - i) return i;
        for (uint32_t k = 1; k < length; k++) {
            if (!utf8_continues(text + i, k, text[i + k])) return i;
        }
        i += length;
    }
    return n;
}

bool nfc(const Allocator &allocator, const uint8_t *text, uint64_t n, Array<uint8_t> *out, bool *done) {
    uint64_t characters = 0;
    bool plain = true;
    uint32_t parts[4];
    for (uint64_t i = 0; i < n;) {
        uint32_t length;
        const uint32_t c = utf8_decode(text + i, &length);
        plain = plain && c < 0x300;  // every character below composes with nothing before it
        characters += decompose(c, parts);
        i += length;
    }
    *done = plain;
    if (plain) return true;
    Array<uint32_t> decomposed, spare;
    if (!decomposed.allocate(allocator, characters) || !spare.allocate(allocator, characters)) return false;
    uint64_t m = 0, run = 0;
    for (uint64_t i = 0; i < n;) {
        uint32_t length;
        const uint32_t c = utf8_decode(text + i, &length), k = decompose(c, parts);
        i += length;
        for (uint32_t j = 0; j < k; j++) {
            if (combining_class(parts[j]) == 0) {
                if (m - run > 1) reorder(&decomposed[run], m - run, spare.data());
                run = m + 1;
            }
            decomposed[m++] = parts[j];
        }
    }
    if (m > run && m - run > 1) reorder(&decomposed[run], m - run, spare.data());
    m = compose_all(decomposed.data(), m);
    uint8_t bytes[4];
    uint64_t size = 0;
    for (uint64_t i = 0; i < m; i++) size += encode(decomposed[i], bytes);
    if (!out->allocate(allocator, size)) return false;
    size = 0;
    for (uint64_t i = 0; i < m; i++) size += encode(decomposed[i], out->data() + size);
    return true;
}

}  // namespace edgec
