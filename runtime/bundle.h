// A bundle (docs/format.md): container, strings and tensor table, verified in full before anything is used.
#pragma once
#include "../kernels/kernel.h"
#include "memory.h"
#include "message.h"
#include "platform.h"
#include "reader.h"

namespace edgec {

enum SectionKind : uint32_t {
    SECTION_STRINGS = 1, SECTION_TENSORS, SECTION_PLAN, SECTION_WEIGHTS, SECTION_TOKENIZER, SECTION_GOLDEN,
    SECTION_MANIFEST, SECTION_HASHES, SECTION_SIGNATURE, SECTION_KINDS
};

// data: our own copy, except for the weights, which stay in the mapped file. nullptr: the bundle has no such section.
struct Section {
    const uint8_t *data = nullptr;
    uint64_t bytes = 0;
};

struct Tensor {
    uint64_t offset, bytes;
    uint32_t name, dim[kMaxRank];
    uint8_t dtype, format, rank;
};

struct Bundle {
    const uint8_t *file = nullptr;
    uint64_t file_bytes = 0;
    Section section[SECTION_KINDS];
    uint8_t identity[32] = {};  // hash of the header, which covers every other hash
    uint32_t n_strings = 0;
    Array<Tensor> tensors;
    Array<uint8_t> copy;

    // Index must be below n_strings.
    const char *string(uint32_t index) const;
};

// Verifies container, strings, tensors and hash table of `file`, which must stay readable as long as the bundle is
// used. public_key: 32 bytes, then before strings and all that follow the signature by this key; or nullptr.
edgec_status bundle_open(const uint8_t *file, uint64_t bytes, const uint8_t *public_key, const Allocator &allocator,
                         Bundle *bundle, Message &message);
// Compares every chunk of the weights with its hash.
edgec_status bundle_verify_weights(const Bundle &bundle, Message &message);

bool valid_utf8(const uint8_t *text, uint64_t bytes, bool allow_control);

}  // namespace edgec
