// A bundle as parts that can be damaged and put together again with offsets and hashes that fit: without them nothing
// behind the hash check would ever be reached. Shared by fuzz_bundle and the libFuzzer targets.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../runtime/bundle.h"
#include "../../runtime/sha256.h"

namespace fuzz {

constexpr uint32_t kMaxParts = 16, kScript = 100;  // SCRIPT: tests/fuzz/seeds.py

struct Random {
    uint64_t state;
    uint64_t next() {
        uint64_t z = (state += 0x9E3779B97F4A7C15u);
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        return z ^ z >> 31;
    }
    uint64_t below(uint64_t n) { return n ? next() % n : 0; }
    bool chance(uint32_t percent) { return below(100) < percent; }
};

struct Bytes {
    uint8_t *data;
    uint64_t n;
};

struct Part {
    uint32_t kind, flags;
    Bytes bytes;
};

struct File {
    Part part[kMaxParts];
    uint32_t count;
};

inline bool verbose;

inline uint32_t get32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
inline uint64_t get64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}
inline void put32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
inline void put64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }

inline void *need(void *memory) {
    if (memory) return memory;
    fprintf(stderr, "fuzz: out of memory\n");
    exit(2);
}

// 64-byte aligned and exactly as long as asked for, so that a sanitizer sees a read of the byte behind it.
inline uint8_t *aligned(uint64_t bytes) {
    void *memory = nullptr;
    if (posix_memalign(&memory, 64, bytes)) memory = nullptr;
    return static_cast<uint8_t *>(need(memory));
}

inline Bytes copy_of(const uint8_t *data, uint64_t n) {
    const Bytes copy = {aligned(n), n};
    if (n) memcpy(copy.data, data, n);
    return copy;
}

inline void release(File *file) {
    for (uint32_t i = 0; i < file->count; i++) free(file->part[i].bytes.data);
    file->count = 0;
}

// False, with nothing to release, for bytes that are no bundle.
inline bool split(const uint8_t *data, uint64_t n, File *file) {
    *file = {};
    if (n < 128) return false;
    const uint32_t count = get32(data + 32);
    if (count < 1 || count > kMaxParts || 128 + 64 * uint64_t(count) > n) return false;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t at = get64(data + 128 + 64 * i + 8), bytes = get64(data + 128 + 64 * i + 16);
        if (bytes == 0 || at > n || bytes > n - at) return false;
    }
    file->count = count;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *record = data + 128 + 64 * i;
        Part &p = file->part[i];
        p.kind = get32(record), p.flags = get32(record + 4);
        p.bytes.n = get64(record + 16);
        p.bytes.data = static_cast<uint8_t *>(need(malloc(p.bytes.n)));
        memcpy(p.bytes.data, data + get64(record + 8), p.bytes.n);
    }
    return true;
}

inline void hash_header(const Bytes &whole) {
    const uint64_t table = 64 * uint64_t(get32(whole.data + 32));
    if (128 + table <= whole.n) edgec::sha256(whole.data + 128, table, whole.data + 40);
    edgec::sha256(whole.data, 96, whole.data + 96);
}

// The file with offsets, lengths and hashes that fit its parts again. `like`: a header to start from.
inline Bytes join(const File &file, const uint8_t *like) {
    uint64_t at = 128 + 64 * uint64_t(file.count), total = at;
    for (uint32_t i = 0; i < file.count; i++) total = (total + 63) / 64 * 64 + file.part[i].bytes.n;
    const Bytes whole = {aligned(total), total};
    memset(whole.data, 0, total);
    memcpy(whole.data, like, 40);
    put64(whole.data + 24, total);
    put32(whole.data + 32, file.count);
    for (uint32_t i = 0; i < file.count; i++) {
        const Part &p = file.part[i];
        at = (at + 63) / 64 * 64;
        uint8_t *record = whole.data + 128 + 64 * i;
        put32(record, p.kind), put32(record + 4, p.flags);
        put64(record + 8, at), put64(record + 16, p.bytes.n);
        memcpy(whole.data + at, p.bytes.data, p.bytes.n);
        if (p.kind != edgec::SECTION_WEIGHTS) edgec::sha256(p.bytes.data, p.bytes.n, record + 24);
        at += p.bytes.n;
    }
    hash_header(whole);
    return whole;
}

inline uint32_t interesting(Random &r, uint32_t old) {
    static const uint32_t values[] = {0, 1, 2, 3, 7, 8, 16, 63, 64, 65, 255, 256, 4095, 4096, 65535, 65536, 65537,
                                      0xFFFFFF, 0x7FFFFFFE, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF,
                                      0x7F800000, 0x7FC00000, 0xFF800000};
    switch (r.below(6)) {
        case 0: return old + 1;
        case 1: return old - 1;
        case 2: return old * 2;
        case 3: return old ^ 1u << r.below(32);
        case 4: return uint32_t(r.below(40));
        default: return values[r.below(sizeof values / sizeof *values)];
    }
}

// One change inside a part. Word changes keep to multiples of four: the sections are made of words.
inline void damage(Random &r, Part *p) {
    Bytes &b = p->bytes;
    const uint64_t words = b.n / 4;
    if (words < 4) {
        if (b.n) b.data[r.below(b.n)] ^= uint8_t(1u << r.below(8));
        return;
    }
    const uint64_t at = 4 * r.below(words), other = 4 * r.below(words), action = r.below(10);
    if (verbose)
        printf("  section %u: action %u at word %llu (%u)\n", p->kind, uint32_t(action),
               static_cast<unsigned long long>(at / 4), get32(b.data + at));
    if (action == 0) {
        b.data[r.below(b.n)] ^= uint8_t(1u << r.below(8));
    } else if (action <= 5) {
        put32(b.data + at, interesting(r, get32(b.data + at)));
    } else if (action == 6) {
        const uint32_t word = get32(b.data + at);
        put32(b.data + at, get32(b.data + other));
        if (r.chance(50)) put32(b.data + other, word);
    } else if (action == 7) {  // some words out
        const uint64_t n = 4 * (1 + r.below(4)), cut = n < b.n - at ? n : b.n - at;
        memmove(b.data + at, b.data + at + cut, b.n - at - cut);
        b.n -= cut;
        if (b.n == 0) b.n = 1;
    } else if (action == 8) {  // some words twice
        const uint64_t n = 4 * (1 + r.below(4)), twice = n < b.n - at ? n : b.n - at;
        b.data = static_cast<uint8_t *>(need(realloc(b.data, b.n + twice)));
        memmove(b.data + at + twice, b.data + at, b.n - at);
        b.n += twice;
    } else {  // a range over another
        const uint64_t from = at < other ? other : at, n = 4 * (1 + r.below(16));
        const uint64_t take = n < b.n - from ? n : b.n - from;
        memmove(b.data + at, b.data + other, take);
    }
}

// How often a kind of section is chosen for damage, in percent of the times that it is looked at; never 0.
using Weigh = uint32_t (*)(uint32_t kind);

// The plan is where the rules are; the weights have none.
inline uint32_t weigh_all(uint32_t kind) {
    switch (kind) {
        case edgec::SECTION_PLAN: return 100;
        case edgec::SECTION_TOKENIZER: return 60;
        case edgec::SECTION_WEIGHTS: return 10;
        case kScript: return 2;
        default: return 35;
    }
}

inline Part *choose(Random &r, File *file, Weigh weigh) {
    for (;;) {
        Part *p = &file->part[r.below(file->count)];
        if (r.chance(weigh(p->kind))) return p;
    }
}

// A damaged copy of a bundle. `change` damages one part.
template <class Change>
Bytes mutate(Random &r, const Bytes &original, Weigh weigh, Change change) {
    File file;
    if (!split(original.data, original.n, &file)) return copy_of(original.data, original.n);
    const uint64_t style = r.below(100);
    if (style < 70) {
        for (uint64_t n = 1 + (r.chance(30) ? r.below(4) : 0); n; n--) change(r, choose(r, &file, weigh));
    } else if (style < 75) {  // parts in another order, missing, or twice
        const uint32_t a = uint32_t(r.below(file.count)), b = uint32_t(r.below(file.count));
        const Part part = file.part[a];
        if (r.chance(50)) {
            file.part[a] = file.part[b], file.part[b] = part;
        } else if (r.chance(50)) {
            file.part[a].kind = uint32_t(r.below(edgec::SECTION_KINDS + 2));
        } else {
            free(part.bytes.data);
            file.part[a] = file.part[--file.count];
        }
    }
    Bytes whole = join(file, original.data);
    const uint64_t end = 128 + 64 * uint64_t(file.count);
    release(&file);
    if (style >= 75 && style < 88) {  // header and table
        for (uint64_t n = 1 + r.below(3); n; n--) {
            const uint64_t at = 4 * r.below(end / 4);
            if (verbose) printf("  header or table: word at byte %llu\n", static_cast<unsigned long long>(at));
            put32(whole.data + at, interesting(r, get32(whole.data + at)));
        }
        if (r.chance(85)) hash_header(whole);
    } else if (style >= 88 && style < 94) {  // anywhere, hashes as they were
        for (uint64_t n = 1 + r.below(8); n; n--) whole.data[r.below(whole.n)] ^= uint8_t(1u << r.below(8));
    } else if (style >= 94) {
        const Bytes cut = copy_of(whole.data, r.below(whole.n));
        free(whole.data);
        whole = cut;
        if (whole.n >= 128 && r.chance(60)) {
            put64(whole.data + 24, whole.n);
            hash_header(whole);
        }
    }
    return whole;
}

}  // namespace fuzz
