// Encoding: added tokens, normalization, words, byte-pair merges.
#include "message.h"
#include "tokenizer_section.h"
#include "unicode.h"

namespace edgec {
namespace {

constexpr uint64_t kMaxText = 1u << 30;  // positions are 32-bit

// One symbol of a word while it is merged: a doubly linked list, so that a merge touches its neighbours only.
struct Symbol {
    uint32_t piece;  // kNoToken once merged into the one before
    int32_t before, after;
};

// A possible merge. The lowest rank goes first, the leftmost of equals.
struct Candidate {
    uint32_t rank, at, result;

    bool operator<(const Candidate &o) const { return rank != o.rank ? rank < o.rank : at < o.at; }
};

struct Out {
    int32_t *tokens;
    uint64_t capacity, count;

    void push(uint32_t id) {
        if (count < capacity) tokens[count] = int32_t(id);
        count++;
    }
};

class Encoder {
  public:
    Encoder(const Tokenizer &tokenizer, Out *out) : t_(tokenizer), out_(out) {}

    // Each returns false when memory is out.
    bool early(const uint8_t *text, uint64_t n) {
        return split(text, n, false, true, [this](const uint8_t *part, uint64_t m, bool first) {
            return normalized(part, m, first);
        });
    }

  private:
    const Merge *find_merge(uint32_t left, uint32_t right) const {
        uint32_t low = t_.merge_start[left], high = t_.merge_start[left + 1];
        const uint32_t end = high;
        while (low < high) {
            const uint32_t middle = low + (high - low) / 2;
            if (t_.merges[middle].right < right) low = middle + 1;
            else high = middle;
        }
        return low < end && t_.merges[low].right == right ? &t_.merges[low] : nullptr;
    }

    // The longest pattern, early or late, that `text` begins with. The sorted patterns are narrowed byte by byte.
    const Added *match(const uint8_t *text, uint64_t n, bool late) const {
        if (!t_.first_byte[late][text[0]]) return nullptr;
        uint32_t low = late ? t_.n_early : 0, high = late ? t_.header.n_added : t_.n_early;
        const Added *found = nullptr;
        for (uint32_t depth = 0; low < high; depth++) {
            const auto pattern = [&](uint32_t i) { return t_.patterns + t_.added[i].start; };
            // Shorter patterns sort first: at this depth at most one ends.
            if (t_.added[low].length == depth) {
                found = &t_.added[low++];
                if (low == high) break;
            }
            if (depth >= n) break;
            const uint8_t byte = text[depth];
            if (pattern(low)[depth] == byte && pattern(high - 1)[depth] == byte) continue;
            const auto bound = [&](uint32_t limit) {  // first pattern whose byte at depth is >= limit
                uint32_t a = low, b = high;
                while (a < b) {
                    const uint32_t middle = a + (b - a) / 2;
                    if (pattern(middle)[depth] < limit) a = middle + 1;
                    else b = middle;
                }
                return a;
            };
            const uint32_t begin = bound(byte), end = bound(byte + 1u);
            low = begin;
            high = end;
        }
        return found;
    }

    // Cuts out the added tokens of one kind, leftmost first and the longest there; the text between goes to `rest`.
    template <class Rest>
    bool split(const uint8_t *text, uint64_t n, bool late, bool first, Rest rest) {
        uint64_t done = 0, spaces_end = 0;
        for (uint64_t i = 0; i < n;) {
            const Added *a = match(text + i, n - i, late);
            if (!a) {
                i++;
                continue;
            }
            uint64_t begin = i, end = i + a->length;
            i = end;
            // No space is looked at twice, or a pattern made of spaces would cost the square of the text.
            if (a->flags & ADDED_STRIP_LEFT && begin > done) begin -= trailing_space(text + done, begin - done);
            if (a->flags & ADDED_STRIP_RIGHT) {
                if (end >= spaces_end) spaces_end = end + leading_space(text + end, n - end);
                end = spaces_end;
            }
            if (begin > done && !rest(text + done, begin - done, first && done == 0)) return false;
            out_->push(a->id);
            done = end;
        }
        return done == n || rest(text + done, n - done, first && done == 0);
    }

    // U+2581 becomes a space; `prefix` puts one in front.
    bool spaced(const uint8_t *text, uint64_t n, bool prefix, bool replace, Array<uint8_t> *out, uint64_t *size) {
        if (!out->allocate(t_.allocator, n + 1)) return false;
        uint8_t *to = out->data();
        if (prefix) *to++ = ' ';
        for (uint64_t i = 0; i < n;) {
            if (replace && n - i >= 3 && text[i] == 0xE2 && text[i + 1] == 0x96 && text[i + 2] == 0x81) {
                *to++ = ' ';
                i += 3;
            } else {
                *to++ = text[i++];
            }
        }
        *size = uint64_t(to - out->data());
        return true;
    }

    bool normalized(const uint8_t *text, uint64_t n, bool first) {
        Array<uint8_t> memory;
        if (t_.has(FLAG_NFC)) {
            bool already;
            if (!nfc(t_.allocator, text, n, &memory, &already)) return false;
            if (!already) text = memory.data(), n = memory.size();
        } else if (t_.has(FLAG_NORMALIZE_SPACE) || t_.has(FLAG_NORMALIZE_PREFIX)) {
            uint64_t size;
            if (!spaced(text, n, t_.has(FLAG_NORMALIZE_PREFIX), t_.has(FLAG_NORMALIZE_SPACE), &memory, &size))
                return false;
            text = memory.data(), n = size;
        }
        return split(text, n, true, first, [this](const uint8_t *part, uint64_t m, bool at_start) {
            return words(part, m, at_start);
        });
    }

    bool words(const uint8_t *text, uint64_t n, bool first) {
        Array<uint8_t> memory;
        const bool replace = t_.has(FLAG_WORD_SPACE);
        const bool begins = text[0] == ' ' || (replace && n >= 3 && memcmp(text, "\xE2\x96\x81", 3) == 0);
        const bool prefix = !begins && (t_.has(FLAG_WORD_PREFIX) || (t_.has(FLAG_FIRST_PREFIX) && first));
        if (replace || prefix) {
            uint64_t size;
            if (!spaced(text, n, prefix, replace, &memory, &size)) return false;
            text = memory.data(), n = size;
        }
        const Pattern pattern = Pattern(t_.header.pattern);
        const Digits digits = Digits(t_.header.digits);
        for (uint64_t i = 0; i < n;) {
            const uint64_t piece_end = i + next_digits(digits, text + i, n - i);
            while (i < piece_end) {
                const uint64_t length = next_word(pattern, text + i, piece_end - i);
                if (!word(text + i, length)) return false;
                i += length;
            }
        }
        return true;
    }

    bool word(const uint8_t *text, uint64_t n) {
        if (t_.has(FLAG_WHOLE_WORDS)) {
            const uint32_t id = find_piece(t_, text, n);
            if (id != kNoToken) {
                out_->push(id);
                return true;
            }
        }
        if (n > symbols_.size() && !reserve(n)) return false;
        n_symbols_ = 0;
        bool unknown = false;
        for (uint64_t i = 0; i < n;) {
            uint32_t length = 1, id;
            if (t_.has(FLAG_CHARACTERS)) {
                if (text[i] < 0x80) {
                    id = t_.ascii[text[i]];
                } else {
                    utf8_decode(text + i, &length);
                    id = find_piece(t_, text + i, length);
                }
            } else {
                id = t_.byte_piece[text[i]];
            }
            if (id == kNoToken && t_.has(FLAG_CHARACTERS) && t_.byte_piece[text[i]] != kNoToken) {
                for (uint32_t k = 0; k < length; k++) add(t_.byte_piece[text[i + k]]);
                unknown = false;
            } else if (id != kNoToken) {
                add(id);
                unknown = false;
            } else if (t_.header.unknown != kNoToken) {
                if (!unknown || !t_.has(FLAG_FUSE_UNKNOWN)) add(t_.header.unknown);
                unknown = true;
            }  // else the character is left out, as byte-pair encoding without an unknown token does
            i += length;
        }
        merge();
        for (int32_t i = 0; i >= 0 && i < n_symbols_; i = symbols_[uint64_t(i)].after) out_->push(symbols_[uint64_t(i)].piece);
        return true;
    }

    // Room for a word of n bytes: as many symbols, and the candidates between them. A merge takes one candidate out
    // and puts at most two in, and there are fewer merges than symbols: two for each symbol are enough.
    bool reserve(uint64_t n) {
        uint64_t capacity = symbols_.size() ? symbols_.size() : 64;
        while (capacity < n) capacity *= 2;
        symbols_.release();
        heap_.release();
        return symbols_.allocate(t_.allocator, capacity) && heap_.allocate(t_.allocator, 2 * capacity);
    }

    void add(uint32_t piece) {
        if (n_symbols_ > 0) symbols_[uint64_t(n_symbols_ - 1)].after = n_symbols_;
        symbols_[uint64_t(n_symbols_)] = Symbol{piece, n_symbols_ - 1, -1};
        n_symbols_++;
    }

    void consider(int32_t at) {
        const Symbol &s = symbols_[uint64_t(at)];
        if (s.after < 0) return;
        const Merge *m = find_merge(s.piece, symbols_[uint64_t(s.after)].piece);
        if (m) push(Candidate{m->rank, uint32_t(at), m->result});
    }

    void push(const Candidate &c) {
        uint64_t i = n_heap_++;
        for (; i > 0 && c < heap_[(i - 1) / 2]; i = (i - 1) / 2) heap_[i] = heap_[(i - 1) / 2];
        heap_[i] = c;
    }

    Candidate pop() {
        const Candidate top = heap_[0], last = heap_[--n_heap_];
        uint64_t i = 0;
        for (uint64_t child = 1; child < n_heap_; child = 2 * i + 1) {
            if (child + 1 < n_heap_ && heap_[child + 1] < heap_[child]) child++;
            if (!(heap_[child] < last)) break;
            heap_[i] = heap_[child];
            i = child;
        }
        heap_[i] = last;
        return top;
    }

    void merge() {
        n_heap_ = 0;
        for (int32_t i = 0; i < n_symbols_; i++) consider(i);
        while (n_heap_) {
            const Candidate c = pop();
            Symbol &left = symbols_[c.at];
            if (left.piece == kNoToken || left.after < 0) continue;
            Symbol &right = symbols_[uint64_t(left.after)];
            // Out of date unless the pair still gives the same piece; another pair that does is merged at the old
            // rank, as the original does.
            const Merge *m = find_merge(left.piece, right.piece);
            if (!m || m->result != c.result) continue;
            left.piece = c.result;
            right.piece = kNoToken;
            left.after = right.after;
            if (left.after >= 0) symbols_[uint64_t(left.after)].before = int32_t(c.at);
            if (left.before >= 0) consider(left.before);
            consider(int32_t(c.at));
        }
    }

    const Tokenizer &t_;
    Out *out_;
    Array<Symbol> symbols_;
    Array<Candidate> heap_;
    int32_t n_symbols_ = 0;
    uint64_t n_heap_ = 0;
};

}  // namespace

edgec_status tokenizer_encode(const Tokenizer *tokenizer, const char *text, uint64_t bytes, bool add_special,
                              int32_t *out, uint64_t *count, Message &message) {
    const Tokenizer &t = *tokenizer;
    const uint8_t *data = reinterpret_cast<const uint8_t *>(text);
    if (bytes > kMaxText)
        return fail(message, EDGEC_ERROR_LIMIT, "tokenize: text: found %llu bytes, wanted at most %llu", ull(bytes), ull(kMaxText));
    const uint64_t valid = utf8_valid_prefix(data, bytes);
    if (valid != bytes)
        return fail(message, EDGEC_ERROR_ARGUMENT, "tokenize: text: found a byte at %llu that is not UTF-8, wanted UTF-8", ull(valid));
    Out tokens{out, out ? *count : 0, 0};
    for (uint32_t i = 0; add_special && i < t.header.n_prefix; i++) tokens.push(t.prefix[i]);
    Encoder encoder(t, &tokens);
    if (!encoder.early(data, bytes)) return fail(message, EDGEC_ERROR_MEMORY, "tokenize: cannot allocate working memory");
    for (uint32_t i = 0; add_special && i < t.header.n_suffix; i++) tokens.push(t.suffix[i]);
    *count = tokens.count;
    if (out && tokens.count > tokens.capacity) {
        return fail(message, EDGEC_ERROR_ARGUMENT, "tokenize: buffer: found room for %llu tokens, wanted %llu",
                    ull(tokens.capacity), ull(tokens.count));
    }
    return EDGEC_OK;
}

}  // namespace edgec
