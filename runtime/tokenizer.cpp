// Opening and verifying the TOKENIZER section, and decoding.
#include "tokenizer.h"

#include "memory.h"
#include "message.h"
#include "tokenizer_section.h"
#include "unicode.h"

namespace edgec {
namespace {

constexpr uint32_t kMaxAdded = 65536, kMaxSpecialList = 16, kMaxPattern = 255, kMaxPiece = 1024;

edgec_status bad(Message &message, const char *field, uint64_t found, const char *wanted) {
    return fail(message, EDGEC_ERROR_FORMAT, "tokenizer: %s: found %llu, wanted %s", field, ull(found), wanted);
}

edgec_status check_header(const SectionHeader &h, uint32_t vocab_size, Message &message) {
    if (h.version != 1) return bad(message, "version", h.version, "1");
    if (h.n_pieces == 0 || h.n_pieces > vocab_size) return bad(message, "pieces", h.n_pieces, "1..vocab_size");
    if (h.n_lookup > h.n_pieces) return bad(message, "lookup pieces", h.n_lookup, "at most the pieces");
    if (h.n_added > kMaxAdded) return bad(message, "added tokens", h.n_added, "at most 65536");
    if (h.n_special > h.n_pieces) return bad(message, "special tokens", h.n_special, "at most the pieces");
    const uint32_t lists[] = {h.n_prefix, h.n_suffix, h.n_stop};
    for (const uint32_t n : lists) {
        if (n > kMaxSpecialList) return bad(message, "prefix, suffix or stop tokens", n, "at most 16");
    }
    if (h.flags & ~uint32_t(FLAGS_ALL)) return bad(message, "flags", h.flags, "known bits only");
    if (h.pattern >= PATTERN_COUNT) return bad(message, "pattern", h.pattern, "0..7");
    if (h.digits >= DIGITS_COUNT) return bad(message, "digits", h.digits, "0..2");
    for (const uint32_t z : h.zero) {
        if (z) return bad(message, "reserved word", z, "0");
    }
    return EDGEC_OK;
}

// The bytes that the header's counts ask for; the counts are capped or below 2^32, so 64 bits hold it.
uint64_t section_bytes(const SectionHeader &h) {
    const uint64_t words = sizeof(SectionHeader) / 4 + 256 + h.n_prefix + h.n_suffix + h.n_stop + h.n_special +
                           h.n_lookup + 2 * (uint64_t(h.n_pieces) + 1) + 3 * uint64_t(h.n_merges) +
                           4 * uint64_t(h.n_added);
    return words * 4 + h.piece_bytes + h.pattern_bytes;
}

void set_pointers(Tokenizer *t, const uint8_t *arrays) {
    const SectionHeader &h = t->header;
    const uint32_t *word = reinterpret_cast<const uint32_t *>(arrays);
    const auto take = [&word](uint64_t n) {
        const uint32_t *begin = word;
        word += n;
        return begin;
    };
    t->byte_piece = take(256);
    t->prefix = take(h.n_prefix);
    t->suffix = take(h.n_suffix);
    t->stop = take(h.n_stop);
    t->special = take(h.n_special);
    t->lookup = take(h.n_lookup);
    t->piece_start = take(uint64_t(h.n_pieces) + 1);
    t->merge_start = take(uint64_t(h.n_pieces) + 1);
    t->merges = reinterpret_cast<const Merge *>(take(3 * uint64_t(h.n_merges)));
    t->added = reinterpret_cast<const Added *>(take(4 * uint64_t(h.n_added)));
    t->pieces = reinterpret_cast<const uint8_t *>(word);
    t->patterns = t->pieces + h.piece_bytes;
}

edgec_status check_ids(const Tokenizer &t, Message &message) {
    const SectionHeader &h = t.header;
    const struct {
        const char *name;
        const uint32_t *ids;
        uint64_t n;
        bool optional;
    } lists[] = {{"byte piece", t.byte_piece, 256, true}, {"prefix token", t.prefix, h.n_prefix, false},
                 {"suffix token", t.suffix, h.n_suffix, false}, {"stop token", t.stop, h.n_stop, false},
                 {"special token", t.special, h.n_special, false}, {"lookup piece", t.lookup, h.n_lookup, false},
                 {"unknown token", &h.unknown, 1, true}, {"bos token", &h.bos, 1, true}, {"eos token", &h.eos, 1, true}};
    for (const auto &list : lists) {
        for (uint64_t i = 0; i < list.n; i++) {
            if (list.optional && list.ids[i] == kNoToken) continue;
            if (list.ids[i] >= h.n_pieces) return bad(message, list.name, list.ids[i], "an id below the number of pieces");
        }
    }
    for (uint32_t i = 1; i < h.n_special; i++) {
        if (t.special[i] <= t.special[i - 1]) return bad(message, "special token", t.special[i], "rising ids");
    }
    return EDGEC_OK;
}

// `start` must rise from 0 to `last` over n + 1 values.
edgec_status check_rising(const uint32_t *start, uint64_t n, uint64_t last, const char *name, Message &message) {
    if (start[0] != 0) return bad(message, name, start[0], "0 first");
    for (uint64_t i = 0; i < n; i++) {
        if (start[i + 1] < start[i]) return bad(message, name, start[i + 1], "rising values");
    }
    return start[n] == last ? EDGEC_OK : bad(message, name, start[n], "the end last");
}

// The cap keeps the check of the merges linear in the section: every merge compares at most this much.
edgec_status check_pieces(Tokenizer *t, Message &message) {
    for (uint32_t id = 0; id < t->header.n_pieces; id++) {
        const uint32_t size = t->piece_start[id + 1] - t->piece_start[id];
        if (size > kMaxPiece) return bad(message, "piece length", size, "at most 1024 bytes");
        if (size > t->longest_piece) t->longest_piece = size;
    }
    return EDGEC_OK;
}

// Merges: ids in range, strictly rising so that a search finds at most one, and the result is the two parts joined, so
// that encoding and decoding agree and every merge shortens the word.
edgec_status check_merges(const Tokenizer &t, Message &message) {
    const uint32_t n = t.header.n_pieces;
    const auto size = [&t](uint32_t id) { return t.piece_start[id + 1] - t.piece_start[id]; };
    for (uint32_t left = 0; left < n; left++) {
        for (uint32_t i = t.merge_start[left]; i < t.merge_start[left + 1]; i++) {
            const Merge &m = t.merges[i];
            if (m.right >= n || m.result >= n) return bad(message, "merge", i, "ids below the number of pieces");
            if (i > t.merge_start[left] && m.right <= t.merges[i - 1].right) return bad(message, "merge", i, "rising pairs");
            const uint8_t *joined = t.pieces + t.piece_start[m.result];
            if (uint64_t(size(left)) + size(m.right) != size(m.result) ||
                memcmp(joined, t.pieces + t.piece_start[left], size(left)) != 0 ||
                memcmp(joined + size(left), t.pieces + t.piece_start[m.right], size(m.right)) != 0)
                return bad(message, "merge", i, "a result that is its two pieces joined");
        }
    }
    return EDGEC_OK;
}

edgec_status check_lookup(const Tokenizer &t, Message &message) {
    for (uint32_t i = 1; i < t.header.n_lookup; i++) {
        const uint32_t a = t.lookup[i - 1], b = t.lookup[i];
        if (compare(t.pieces + t.piece_start[a], t.piece_start[a + 1] - t.piece_start[a], t.pieces + t.piece_start[b],
                    t.piece_start[b + 1] - t.piece_start[b]) >= 0)
            return bad(message, "lookup piece", i, "rising bytes");
    }
    return EDGEC_OK;
}

edgec_status check_added(Tokenizer *t, Message &message) {
    const SectionHeader &h = t->header;
    for (uint32_t i = 0; i < h.n_added; i++) {
        const Added &a = t->added[i];
        if (a.id >= h.n_pieces) return bad(message, "added token", a.id, "an id below the number of pieces");
        if (a.flags & ~uint32_t(ADDED_ALL)) return bad(message, "added token flags", a.flags, "known bits only");
        if (a.length == 0 || a.length > kMaxPattern) return bad(message, "added token length", a.length, "1..255");
        if (a.length > h.pattern_bytes || a.start > h.pattern_bytes - a.length)
            return bad(message, "added token start", a.start, "a place inside the patterns");
        // A match must begin and end between characters, or the pieces around it would not be UTF-8.
        if (utf8_valid_prefix(t->patterns + a.start, a.length) != a.length)
            return bad(message, "added token", i, "a UTF-8 pattern");
        const bool late = a.flags & ADDED_LATE;
        if (i > 0) {
            const Added &before = t->added[i - 1];
            const bool before_late = before.flags & ADDED_LATE;
            if (before_late > late || (before_late == late && compare(t->patterns + before.start, before.length,
                                                                      t->patterns + a.start, a.length) >= 0))
                return bad(message, "added token", i, "early ones first, rising patterns");
        }
        t->first_byte[late][t->patterns[a.start]] = true;
        if (!late) t->n_early = i + 1;
    }
    return EDGEC_OK;
}

edgec_status verify(Tokenizer *t, Message &message) {
    const SectionHeader &h = t->header;
    edgec_status status = check_ids(*t, message);
    if (!status) status = check_rising(t->piece_start, h.n_pieces, h.piece_bytes, "piece start", message);
    if (!status) status = check_pieces(t, message);
    if (!status) status = check_rising(t->merge_start, h.n_pieces, h.n_merges, "merge start", message);
    if (!status) status = check_merges(*t, message);
    if (!status) status = check_lookup(*t, message);
    if (!status) status = check_added(t, message);
    return status;
}

const uint8_t kReplacement[3] = {0xEF, 0xBF, 0xBD};  // U+FFFD

// The first and last step of decoding: bytes in, whole characters out, U+FFFD for what is not UTF-8 (one for each
// maximal beginning of a character, as the Unicode standard recommends).
template <class Emit>
void feed(TextStream *s, const uint8_t *bytes, uint64_t n, Emit emit) {
    for (uint64_t i = 0; i < n;) {
        if (s->n_pending == 0) {
            uint64_t plain = i;
            while (plain < n && bytes[plain] < 0x80) plain++;
            if (plain > i) {
                emit(bytes + i, plain - i);
                i = plain;
                continue;
            }
            if (utf8_length(bytes[i])) s->pending[s->n_pending++] = bytes[i];
            else emit(kReplacement, sizeof kReplacement);
            i++;
            continue;
        }
        if (!utf8_continues(s->pending, s->n_pending, bytes[i])) {
            s->n_pending = 0;
            emit(kReplacement, sizeof kReplacement);
            continue;
        }
        s->pending[s->n_pending++] = bytes[i++];
        if (s->n_pending == utf8_length(s->pending[0])) {
            emit(s->pending, s->n_pending);
            s->n_pending = 0;
        }
    }
}

template <class Emit>
void feed_end(TextStream *s, Emit emit) {
    if (s->n_pending) emit(kReplacement, sizeof kReplacement);
    s->n_pending = 0;
}

bool is_byte_piece(const Tokenizer &t, uint32_t id) {
    const uint32_t start = t.piece_start[id];
    return t.piece_start[id + 1] - start == 1 && t.byte_piece[t.pieces[start]] == id;
}

template <class Emit>
void push_token(TextStream *s, uint32_t id, Emit emit) {
    const Tokenizer &t = *s->tokenizer;
    if (id >= t.header.n_pieces || is_special(t, id)) return;
    const uint8_t *bytes = t.pieces + t.piece_start[id];
    uint64_t n = t.piece_start[id + 1] - t.piece_start[id];
    if (!s->started && n) {
        if (t.has(FLAG_STRIP_ONE) && bytes[0] == ' ') bytes++, n--;
        while (t.has(FLAG_STRIP_FIRST) && n && bytes[0] == ' ') bytes++, n--;
        s->started = true;
    }
    feed(s, bytes, n, emit);
}

// Whether the byte pieces from tokens[i] on (special tokens between them give nothing) are UTF-8; *end: past them.
bool run_is_valid(const Tokenizer &t, const int32_t *tokens, uint64_t count, uint64_t i, uint64_t *end) {
    uint8_t begun[4] = {};
    uint32_t have = 0;
    bool valid = true;
    for (; i < count; i++) {
        const uint32_t id = uint32_t(tokens[i]);
        if (id >= t.header.n_pieces || is_special(t, id)) continue;
        if (!is_byte_piece(t, id)) break;
        const uint8_t byte = t.pieces[t.piece_start[id]];
        if (have == 0 ? utf8_length(byte) == 0 : !utf8_continues(begun, have, byte)) valid = false;
        if (!valid) continue;
        begun[have++] = byte;
        if (have == utf8_length(begun[0])) have = 0;
    }
    *end = i;
    return valid && have == 0;
}

}  // namespace

edgec_status tokenizer_open(const uint8_t *data, uint64_t n, uint32_t vocab_size, const Allocator &allocator,
                            Tokenizer **out, Message &message) {
    *out = nullptr;
    SectionHeader header;
    if (n < sizeof header) return bad(message, "bytes", n, "at least 96");
    memcpy(&header, data, sizeof header);
    if (const edgec_status status = check_header(header, vocab_size, message)) return status;
    if (section_bytes(header) != n) {
        return fail(message, EDGEC_ERROR_FORMAT, "tokenizer: bytes: found %llu, wanted %llu from its counts", ull(n),
                    ull(section_bytes(header)));
    }
    Tokenizer *t = create<Tokenizer>(allocator);
    if (!t) return fail(message, EDGEC_ERROR_MEMORY, "tokenizer: cannot be allocated");
    t->allocator = allocator;
    t->header = header;
    t->vocab_size = vocab_size;
    set_pointers(t, data + sizeof header);
    if (const edgec_status status = verify(t, message)) {
        destroy(allocator, t);
        return status;
    }
    for (uint32_t c = 0; c < 128; c++) {
        const uint8_t byte = uint8_t(c);
        t->ascii[c] = find_piece(*t, &byte, 1);
    }
    *out = t;
    return EDGEC_OK;
}

void tokenizer_close(Tokenizer *tokenizer) {
    if (!tokenizer) return;
    const Allocator allocator = tokenizer->allocator;
    destroy(allocator, tokenizer);
}

edgec_status tokenizer_decode(const Tokenizer *tokenizer, const int32_t *tokens, uint64_t count, char *out,
                              uint64_t *bytes, Message &message) {
    const Tokenizer &t = *tokenizer;
    const uint64_t capacity = out ? *bytes : 0;
    uint64_t size = 0;
    const auto emit = [&](const uint8_t *b, uint64_t n) {
        if (size <= capacity && n <= capacity - size) memcpy(out + size, b, static_cast<size_t>(n));
        size += n;
    };
    TextStream stream;
    text_stream_begin(&stream, tokenizer);
    uint64_t run_end = 0;
    bool run_valid = true;
    for (uint64_t i = 0; i < count; i++) {
        const uint32_t id = uint32_t(tokens[i]);
        if (id >= t.vocab_size) {
            return fail(message, EDGEC_ERROR_TENSOR, "detokenize: token %llu: found id %lld, wanted 0..%u", ull(i),
                        ll(tokens[i]), t.vocab_size - 1);
        }
        if (t.has(FLAG_BYTE_RUNS) && i >= run_end) run_valid = run_is_valid(t, tokens, count, i, &run_end);
        if (i < run_end && !run_valid) {
            const uint8_t never = 0xFF;  // on its own it is one U+FFFD
            if (id >= t.header.n_pieces || is_special(t, id)) continue;
            feed(&stream, &never, 1, emit);
            stream.started = true;
            continue;
        }
        push_token(&stream, id, emit);
    }
    feed_end(&stream, emit);
    *bytes = size;
    if (out && size > capacity) {
        return fail(message, EDGEC_ERROR_ARGUMENT, "detokenize: buffer: found %llu bytes, wanted %llu", ull(capacity),
                    ull(size));
    }
    return EDGEC_OK;
}

int32_t tokenizer_bos(const Tokenizer *tokenizer) { return int32_t(tokenizer->header.bos); }
int32_t tokenizer_eos(const Tokenizer *tokenizer) { return int32_t(tokenizer->header.eos); }

bool tokenizer_is_stop(const Tokenizer *tokenizer, int32_t token) {
    for (uint32_t i = 0; i < tokenizer->header.n_stop; i++) {
        if (tokenizer->stop[i] == uint32_t(token)) return true;
    }
    return token >= 0 && uint32_t(token) == tokenizer->header.eos;
}

uint64_t text_stream_capacity(const Tokenizer *tokenizer) {
    // Each byte, the pending ones included, may turn into a three-byte U+FFFD.
    return 3 * (uint64_t(tokenizer->longest_piece) + sizeof(TextStream::pending));
}

void text_stream_begin(TextStream *stream, const Tokenizer *tokenizer) {
    *stream = TextStream();
    stream->tokenizer = tokenizer;
}

uint64_t text_stream_push(TextStream *stream, int32_t token, char *out) {
    uint64_t size = 0;
    push_token(stream, uint32_t(token), [&](const uint8_t *b, uint64_t n) {
        memcpy(out + size, b, static_cast<size_t>(n));
        size += n;
    });
    return size;
}

uint64_t text_stream_end(TextStream *stream, char *out) {
    uint64_t size = 0;
    feed_end(stream, [&](const uint8_t *b, uint64_t n) {
        memcpy(out + size, b, static_cast<size_t>(n));
        size += n;
    });
    return size;
}

}  // namespace edgec
