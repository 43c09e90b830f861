// The TOKENIZER section once opened (docs/tokenizer.md): pointers into the bundle's own copy of it.
#pragma once
#include <stdint.h>

#include "memory.h"
#include "pretokenize.h"
#include "tokenizer.h"

namespace edgec {

constexpr uint32_t kNoToken = 0xFFFFFFFF;

enum SectionFlags : uint32_t {
    FLAG_CHARACTERS = 1,       // words begin as characters, not as bytes
    FLAG_NORMALIZE_SPACE = 2,  // U+2581 becomes a space before the second look for added tokens
    FLAG_NORMALIZE_PREFIX = 4, // and a space is put in front
    FLAG_NFC = 8,
    FLAG_WORD_SPACE = 16,      // U+2581 becomes a space after it
    FLAG_WORD_PREFIX = 32,     // a space is put in front unless there is one
    FLAG_FIRST_PREFIX = 64,    // the same, only where the text begins
    FLAG_WHOLE_WORDS = 128,    // a word that is a piece is that token, whatever the merges say
    FLAG_FUSE_UNKNOWN = 256,   // neighbouring unknown characters are one unknown token
    FLAG_BYTE_RUNS = 512,      // a malformed run of byte pieces decodes to one U+FFFD for each
    FLAG_STRIP_ONE = 1024,     // decoding drops one leading space
    FLAG_STRIP_FIRST = 2048,   // decoding drops all spaces of the first piece
    FLAGS_ALL = 4095
};

enum AddedFlags : uint32_t { ADDED_LATE = 1, ADDED_STRIP_LEFT = 2, ADDED_STRIP_RIGHT = 4, ADDED_ALL = 7 };

struct SectionHeader {
    uint32_t version, n_pieces, n_lookup, n_merges, n_added, n_special, n_prefix, n_suffix, n_stop;
    uint32_t piece_bytes, pattern_bytes, flags, pattern, digits, unknown, bos, eos;
    uint32_t zero[7];
};
static_assert(sizeof(SectionHeader) == 96, "the header of docs/tokenizer.md");

struct Merge {
    uint32_t right, rank, result;
};

struct Added {
    uint32_t id, flags, start, length;
};

struct Tokenizer {
    Allocator allocator;
    SectionHeader header;
    const uint32_t *byte_piece;  // [256], kNoToken where there is none
    const uint32_t *prefix, *suffix, *stop;
    const uint32_t *special;      // [n_special] rising
    const uint32_t *lookup;       // [n_lookup] ids by rising bytes
    const uint32_t *piece_start;  // [n_pieces + 1]
    const uint32_t *merge_start;  // [n_pieces + 1]: merges whose left piece is i are merge_start[i] .. [i + 1]
    const Merge *merges;          // rising by right within one left
    const Added *added;           // the early ones, then the late ones, each by rising pattern
    const uint8_t *pieces, *patterns;
    uint32_t vocab_size = 0, n_early = 0, longest_piece = 0;
    uint32_t ascii[128];             // piece of a one-byte character, or kNoToken
    bool first_byte[2][256] = {};    // whether an early / late pattern begins with it

    bool has(SectionFlags flag) const { return header.flags & flag; }
};

inline bool contains(const uint32_t *sorted, uint32_t n, uint32_t value) {
    uint32_t low = 0, high = n;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (sorted[middle] < value) low = middle + 1;
        else high = middle;
    }
    return low < n && sorted[low] == value;
}

inline bool is_special(const Tokenizer &t, uint32_t id) { return contains(t.special, t.header.n_special, id); }

// < 0, 0, > 0 by bytes, the shorter first.
inline int compare(const uint8_t *a, uint64_t na, const uint8_t *b, uint64_t nb) {
    const int order = memcmp(a, b, static_cast<size_t>(na < nb ? na : nb));
    return order ? order : na < nb ? -1 : na > nb;
}

// The piece with these bytes, or kNoToken.
inline uint32_t find_piece(const Tokenizer &t, const uint8_t *bytes, uint64_t n) {
    uint32_t low = 0, high = t.header.n_lookup;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2, id = t.lookup[middle], start = t.piece_start[id];
        const int order = compare(t.pieces + start, t.piece_start[id + 1] - start, bytes, n);
        if (order == 0) return id;
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return kNoToken;
}

}  // namespace edgec
