// Text to token ids and back, from the TOKENIZER section (docs/tokenizer.md). No regular expressions, no recursion;
// encoding is n log n in the text. A Tokenizer never changes after opening, so threads may share it.
#pragma once
#include <stdint.h>

#include "edgec.h"

namespace edgec {

struct Allocator;
struct Message;
struct Tokenizer;

// Verifies the whole section; every id of it is below vocab_size afterwards. `data` is 4-byte aligned, and the caller
// sees to it that nothing changes it before tokenizer_close.
edgec_status tokenizer_open(const uint8_t *data, uint64_t n, uint32_t vocab_size, const Allocator &allocator,
                            Tokenizer **out, Message &message);
void tokenizer_close(Tokenizer *tokenizer);  // nullptr allowed

// *count: capacity of `out` in, tokens out; out == nullptr only counts. EDGEC_ERROR_ARGUMENT for invalid UTF-8 or a
// buffer that is too small (*count then says what is needed).
edgec_status tokenizer_encode(const Tokenizer *tokenizer, const char *text, uint64_t bytes, bool add_special,
                              int32_t *out, uint64_t *count, Message &message);

// *bytes: capacity of `out` in, bytes out; out == nullptr only counts. Special tokens give no text; bytes that are not
// UTF-8 become U+FFFD. EDGEC_ERROR_TENSOR for an id outside the vocabulary.
edgec_status tokenizer_decode(const Tokenizer *tokenizer, const int32_t *tokens, uint64_t count, char *out,
                              uint64_t *bytes, Message &message);

int32_t tokenizer_bos(const Tokenizer *tokenizer);  // -1: none
int32_t tokenizer_eos(const Tokenizer *tokenizer);  // -1: none
// Whether generation ends with this token: the section's stop tokens, the eos token among them.
bool tokenizer_is_stop(const Tokenizer *tokenizer, int32_t token);

// Decoding one token at a time. `push` and `end` give only whole characters; what they give, joined, is what
// tokenizer_decode gives, except that a malformed run of byte tokens may be replaced character by character.
struct TextStream {
    const Tokenizer *tokenizer = nullptr;
    uint8_t pending[4] = {};  // the beginning of a character
    uint32_t n_pending = 0;
    bool started = false;
};

// The largest number of bytes one push or end can give.
uint64_t text_stream_capacity(const Tokenizer *tokenizer);
void text_stream_begin(TextStream *stream, const Tokenizer *tokenizer);
uint64_t text_stream_push(TextStream *stream, int32_t token, char *out);  // out: text_stream_capacity bytes
uint64_t text_stream_end(TextStream *stream, char *out);

}  // namespace edgec
