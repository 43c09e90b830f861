// A script of bytes as calls of the C interface with arguments that no careful caller would give: null pointers, other
// kinds of handle, structs of any size, strides that leave the memory, room for less than is written, damaged states.
// Every block is exactly as large as what is said about it, so that a sanitizer sees any access beyond.
#pragma once
#include <math.h>

#include "exercise.h"

namespace fuzz {

struct Script {
    const uint8_t *at;
    uint64_t left;

    uint8_t byte() { return left ? left--, *at++ : 0; }
    uint32_t below(uint32_t n) { return byte() % n; }
    uint32_t odd() {
        static const uint32_t values[] = {0,  1,  2,   3,     8,          31,         32,
                                          33, 64, 300, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF};
        return values[below(sizeof values / sizeof *values)];
    }
};

// A struct of the interface in a block of `struct_size` bytes: most often the right size, else another one.
template <class T>
class Sized {
  public:
    Sized(Script &in, const T &full) {
        const uint32_t sizes[] = {0, 1, 3, 4, 8, sizeof(T) / 2, sizeof(T) - 1, sizeof(T) + 8};
        const uint32_t choice = in.below(32);
        if (choice == 31) return;  // no struct at all
        const uint32_t size = choice < 8 ? sizes[choice] : sizeof(T), room = size < 4 ? 4 : size;
        memory_ = static_cast<T *>(need(calloc(1, room)));
        memcpy(static_cast<void *>(memory_), &full, room < sizeof(T) ? room : sizeof(T));
        memcpy(static_cast<void *>(memory_), &size, 4);
        // A newer caller, who may or may not ask for something.
        if (size > sizeof(T)) reinterpret_cast<uint8_t *>(memory_)[sizeof(T) + in.below(8)] = uint8_t(in.below(2));
    }
    Sized(const Sized &) = delete;
    ~Sized() { free(memory_); }
    operator T *() { return memory_; }

  private:
    T *memory_ = nullptr;
};

// The numbers of its pieces in another order, and for one style without the last: it then is the caller that does them.
inline void some_run(void *user, void (*work)(void *, uint32_t), void *arg, uint32_t n) {
    const uint32_t style = *static_cast<uint32_t *>(user) % 3;
    for (uint32_t i = n; i-- > 0;)
        if (style != 2 || i + 1 < n) work(arg, style == 1 ? n - 1 - i : i);
}

class Calls {
  public:
    Calls(edgec_model *model, const Bytes &file, Script script, Statistics *s)
        : model_(model), file_(file), in_(script), s_(s) {
        info_.struct_size = sizeof info_;
        edgec_model_get_info(model, &info_);
        nothing_ = need(calloc(1, 1 << 16));
    }
    Calls(const Calls &) = delete;
    ~Calls() {
        edgec_session_destroy(session_);
        free(nothing_);
        free(saved_.data);
    }

    void run() {
        void (Calls::*const all[])() = {
            &Calls::create, &Calls::generic, &Calls::generic, &Calls::step, &Calls::generate, &Calls::position,
            &Calls::save,   &Calls::load,    &Calls::text,    &Calls::open, &Calls::facts,    &Calls::profile,
            &Calls::again};
        for (int n = 0; n < 24 && in_.left; n++) (this->*all[in_.below(sizeof all / sizeof *all)])();
    }

  private:
    void expect(edgec_status status) { promise(status_known(status), "a call gave no status", s_); }

    // Rarely something else than a handle of that kind.
    edgec_model *model() {
        switch (in_.below(40)) {
            case 0: return nullptr;
            case 1: return static_cast<edgec_model *>(nothing_);
            case 2: return session_ ? reinterpret_cast<edgec_model *>(session_) : model_;
            default: return model_;
        }
    }
    edgec_session *session() {
        switch (in_.below(40)) {
            case 0: return nullptr;
            case 1: return static_cast<edgec_session *>(nothing_);
            case 2: return reinterpret_cast<edgec_session *>(model_);
            default: return session_;
        }
    }

    void create() {
        edgec_session_destroy(session_);
        session_ = nullptr;
        edgec_session_options options = {};
        // Few threads, for they cost more than all the rest, or more than any session may have.
        options.threads = in_.below(8) ? 1 + (in_.below(8) == 0) : in_.odd() | 0x10000;
        options.max_memory = in_.below(4) ? kMaxMemory : in_.odd();
        if (!options.max_memory) options.max_memory = kMaxMemory;
        options.context = in_.below(4) ? 0 : in_.odd();
        options.profile = in_.below(3);
        Sized<edgec_allocator> allocator(in_, {0, meter_allocate, in_.below(16) ? meter_release : nullptr, &meter_});
        style_ = in_.byte();
        Sized<edgec_threadpool> pool(in_, {0, in_.below(16) ? some_run : nullptr, &style_});
        options.allocator = in_.below(2) ? static_cast<edgec_allocator *>(allocator) : nullptr;
        options.threadpool = in_.below(2) ? static_cast<edgec_threadpool *>(pool) : nullptr;
        Sized<edgec_session_options> given(in_, options);
        const uint32_t room = in_.below(64);
        char *message = static_cast<char *>(need(malloc(room ? room : 1)));
        const edgec_status status =
            edgec_session_create(model(), given, in_.below(40) ? &session_ : nullptr, message, room);
        expect(status);
        promise((status == EDGEC_OK) == (session_ != nullptr), "a failed create left a session", s_);
        free(message);
    }

    // One tensor of a run. `like`: what the model says.
    edgec_tensor tensor(const edgec_tensor &like, Bytes *memory) {
        edgec_tensor t = like;
        t.struct_size = in_.below(32) ? sizeof t : in_.odd();
        if (!in_.below(32)) t.dtype = in_.odd();
        if (!in_.below(16)) t.rank = in_.below(12);
        if (!in_.below(64)) t.rank = in_.odd();
        for (int64_t &d : t.shape)
            if (!in_.below(24)) d = int64_t(in_.odd()) - int64_t(in_.below(3));
        if (!in_.below(3) && t.rank && t.shape[0] > 1) t.shape[0] = 1 + in_.below(2);
        int64_t stride = 1;
        const bool strided = !in_.below(3), wild = !in_.below(4);
        for (uint32_t k = like.rank; strided && k-- > 0;) {
            t.strides[k] = wild && !in_.below(2) ? int64_t(in_.odd()) * (in_.below(2) ? 1 : -1) : stride;
            if (__builtin_mul_overflow(stride, like.shape[k] * (in_.below(4) ? 1 : 2), &stride)) stride = 1;
        }
        const uint32_t capacity = in_.below(16);
        memory->n = like.bytes;
        if (capacity < 6) memory->n = capacity == 0 ? like.bytes / 2 : capacity == 1 ? like.bytes - 1 : 2 * like.bytes;
        if (memory->n > (1 << 16)) memory->n = 1 << 16;
        const uint32_t off = in_.below(8) == 0;
        memory->data = static_cast<uint8_t *>(need(calloc(1, memory->n + off)));
        t.data = memory->data + off;
        t.bytes = memory->n;
        if (!in_.below(16)) t.data = nullptr;
        if (!in_.below(32)) t.name = in_.below(2) ? nullptr : "no such name";
        return t;
    }

    void generic() {
        constexpr uint32_t kMost = 4;
        edgec_tensor in[kMost] = {}, out[kMost] = {};
        Bytes memory[2 * kMost] = {};
        const uint32_t n_in = in_.below(16) ? info_.n_inputs : in_.below(kMost);
        const uint32_t n_out = in_.below(16) ? info_.n_outputs : in_.below(kMost);
        for (uint32_t i = 0; i < kMost; i++) {
            edgec_tensor like = {};
            like.struct_size = sizeof like;
            edgec_model_input(model_, i % (info_.n_inputs + 1), &like);
            in[i] = tensor(like, &memory[2 * i]);
            like = {};
            like.struct_size = sizeof like;
            edgec_model_output(model_, i % (info_.n_outputs + 1), &like);
            out[i] = tensor(like, &memory[2 * i + 1]);
            // Over an input, which is allowed.
            if (!in_.below(8)) out[i].data = in[i].data, out[i].bytes = in[i].bytes;
        }
        if (!in_.below(16)) {  // one struct of an older caller, or none
            Sized<edgec_tensor> one(in_, in[0]), other(in_, out[0]);
            expect(edgec_run(session(), one, 1, other, 1));
        }
        const bool none = !in_.below(32);
        expect(edgec_run(session(), none ? nullptr : in, n_in > kMost ? kMost : n_in,
                         none && in_.below(2) ? nullptr : out, n_out > kMost ? kMost : n_out));
        for (const Bytes &b : memory) free(b.data);
    }

    // Token ids, most of them in the vocabulary, in a block of exactly n.
    int32_t *tokens(uint32_t n) {
        int32_t *t = static_cast<int32_t *>(need(malloc(n ? 4 * n : 1)));
        for (uint32_t i = 0; i < n; i++) {
            t[i] = in_.below(64) ? int32_t(in_.byte()) : int32_t(in_.odd());
            if (t[i] >= int32_t(info_.vocab_size) && in_.below(4)) t[i] = 0;
        }
        return t;
    }

    void step() {
        const uint32_t n = in_.below(40);
        const bool score = in_.below(2) != 0;
        int32_t *t = tokens(n);
        const uint64_t floats = uint64_t(info_.vocab_size) * (score ? n : 1);
        float *logits = in_.below(8) ? static_cast<float *>(need(malloc(floats ? 4 * floats : 1))) : nullptr;
        int32_t *given = in_.below(32) ? t : nullptr;
        expect(score ? edgec_score(session(), given, n, logits) : edgec_step(session(), given, n, logits));
        free(logits);
        free(t);
    }

    static int stop_later(void *user, int32_t, const char *text, size_t bytes) {
        uint32_t sum = 0;
        for (size_t i = 0; i < bytes; i++) sum += uint8_t(text[i]);
        return --*static_cast<int32_t *>(user) == 0 || sum == 0xFFFFFFFF;
    }

    void generate() {
        static const float temperatures[] = {0, 1, 0.5f, -1, INFINITY, NAN, 1e-38f, 1e38f};
        static const float tops[] = {1, 0.9f, 0, -1, 2, NAN, 1e-30f, 0.5f};
        const uint32_t n = in_.below(12);
        int32_t *t = tokens(n), stop = int32_t(in_.below(6));
        volatile int cancel = in_.below(4) == 0;
        edgec_generate_options options = {};
        options.max_tokens = in_.below(8) ? in_.below(8) : in_.odd();
        options.temperature = temperatures[in_.below(8)], options.top_p = tops[in_.below(8)];
        options.top_k = in_.odd(), options.ignore_eos = in_.below(2), options.seed = in_.byte();
        options.on_token = in_.below(4) ? stop_later : nullptr, options.user = &stop;
        options.cancel = in_.below(2) ? &cancel : nullptr;
        Sized<edgec_generate_options> given(in_, options);
        uint32_t made = 0;
        const uint32_t before = edgec_session_position(session_);
        expect(edgec_generate(session(), in_.below(32) ? t : nullptr, n, given, in_.below(4) ? &made : nullptr));
        promise(made <= 32 && edgec_session_position(session_) >= before, "generate went backwards", s_);
        free(t);
    }

    void position() {
        edgec_session *s = session();
        if (in_.below(8) == 0) expect(edgec_session_reset(s));
        expect(edgec_session_seek(s, in_.below(2) ? in_.odd() : in_.below(32)));
        promise(edgec_session_position(s) <= info_.max_context, "the position is beyond the context", s_);
        Sized<edgec_memory> memory(in_, {});
        expect(edgec_session_memory(s, memory));
        promise(edgec_last_error(s) != nullptr, "no last error", s_);
    }

    void save() {
        uint64_t bytes = 0;
        edgec_session *s = session();
        if (edgec_session_save(s, nullptr, in_.below(32) ? &bytes : nullptr) != EDGEC_OK || bytes > kSlack) return;
        if (in_.below(8) == 0) bytes = bytes * in_.below(4) / 3;
        free(saved_.data);
        saved_ = {static_cast<uint8_t *>(need(calloc(1, bytes ? bytes : 1))), bytes};
        expect(edgec_session_save(s, saved_.data, &saved_.n));
        if (saved_.n > bytes) saved_.n = bytes;  // it was too small
    }

    void load() {
        Bytes copy = {static_cast<uint8_t *>(need(malloc(saved_.n + 1))), saved_.n};
        if (saved_.n) memcpy(copy.data, saved_.data, saved_.n);
        for (uint32_t n = in_.below(4); n && copy.n; n--) {
            const uint64_t at = in_.below(3) ? in_.byte() % copy.n : copy.n - 1;
            copy.data[at] = in_.byte();
        }
        uint64_t n = in_.below(8) ? copy.n : copy.n * in_.below(4) / 3;
        uint8_t *exact = static_cast<uint8_t *>(need(malloc(n ? n : 1)));
        memcpy(exact, copy.data, n);
        expect(edgec_session_load(session(), in_.below(32) ? exact : nullptr, n));
        free(exact);
        free(copy.data);
    }

    void text() {
        const uint64_t n = in_.below(64) < in_.left ? in_.below(64) : in_.left, bytes = n < in_.left ? n : in_.left;
        char *words = static_cast<char *>(need(malloc(bytes ? bytes : 1)));
        memcpy(words, in_.at, bytes);
        in_.at += bytes, in_.left -= bytes;
        uint64_t room = in_.below(48), count = room;
        int32_t *ids = static_cast<int32_t *>(need(malloc(room ? 4 * room : 1)));
        const edgec_model *m = model();
        const edgec_status status = edgec_tokenize(m, in_.below(32) ? words : nullptr, bytes, int(in_.byte()),
                                                   in_.below(8) ? ids : nullptr, in_.below(32) ? &count : nullptr);
        expect(status);
        const uint64_t known = status == EDGEC_OK && count <= room ? count : 0;
        uint64_t size = in_.below(48);
        for (uint64_t i = 0; i < known; i++) ids[i] = int32_t(in_.below(16) ? in_.byte() : in_.odd());
        char *back = static_cast<char *>(need(malloc(size ? size : 1)));
        expect(edgec_detokenize(m, in_.below(32) ? ids : nullptr, known, in_.below(8) ? back : nullptr,
                                in_.below(32) ? &size : nullptr));
        free(back);
        free(ids);
        free(words);
    }

    void open() {
        edgec_open_options options = {};
        options.skip_selftest = in_.below(16) != 0, options.verify_weights = in_.below(2);
        Sized<edgec_allocator> allocator(in_, {0, in_.below(16) ? meter_allocate : nullptr, meter_release, &meter_});
        options.allocator = in_.below(2) ? static_cast<edgec_allocator *>(allocator) : nullptr;
        uint8_t *key = static_cast<uint8_t *>(need(calloc(1, 32)));
        key[0] = in_.byte();
        options.public_key = in_.below(8) ? nullptr : key;
        Sized<edgec_open_options> given(in_, options);
        const uint32_t off = in_.below(8) == 0 ? in_.below(64) : 0, cut = in_.below(8) == 0 ? in_.byte() : 0;
        const uint64_t n = file_.n - (off > cut ? off : cut);
        uint8_t *copy = aligned(n + off);
        memcpy(copy + off, file_.data, n);
        edgec_model *opened = nullptr, **const to = in_.below(32) ? &opened : nullptr;
        char message[8];
        const uint32_t room = in_.below(9);
        const bool far = in_.below(64) == 0;
        const uint8_t *data = in_.below(32) ? copy + off : nullptr;
        char *words = in_.below(2) ? message : nullptr;
        const edgec_status status = far ? edgec_open(in_.below(2) ? nullptr : "/", given, to, words, room)
                                        : edgec_open_buffer(data, n, given, to, words, room);
        expect(status);
        promise((status == EDGEC_OK) == (opened != nullptr), "a failed open left a model", s_);
        edgec_close(opened);
        free(key);
        free(copy);
    }

    void facts() {
        edgec_model *m = model();
        Sized<edgec_model_info> info(in_, {});
        expect(edgec_model_get_info(m, info));
        Sized<edgec_tensor> tensor(in_, {});
        expect(in_.below(2) ? edgec_model_input(m, in_.odd(), tensor) : edgec_model_output(m, in_.odd(), tensor));
        const char *json;
        uint64_t bytes;
        expect(edgec_model_manifest(m, in_.below(16) ? &json : nullptr, in_.below(16) ? &bytes : nullptr));
        if (in_.below(4) == 0) expect(edgec_verify(m));
        promise(edgec_status_text(edgec_status(in_.below(16))) != nullptr, "no text for a status", s_);
    }

    void profile() {
        edgec_session *s = session();
        Sized<edgec_call_profile> profile(in_, {});
        const uint32_t n = edgec_profile_count(s), index = in_.below(4) ? in_.byte() : n;
        const edgec_status status = edgec_profile_get(s, index, profile);
        expect(status);
        promise(status != EDGEC_OK || index < n, "a profile of no call", s_);
        if (in_.below(2)) edgec_profile_reset(s);
    }

    void again() {
        // What is no handle of that kind is left alone; of handles that are gone, only null is known to be.
        edgec_session *s = session();
        edgec_session_destroy(s);
        if (s != session_) edgec_session_destroy(session_);
        session_ = nullptr;
        edgec_model *m = model();
        if (m != model_) edgec_close(m);
    }

    edgec_model *model_;
    const Bytes &file_;
    Script in_;
    Statistics *s_;
    edgec_model_info info_ = {};
    edgec_session *session_ = nullptr;
    void *nothing_;
    Bytes saved_ = {nullptr, 0};
    Meter meter_;
    uint32_t style_ = 0;
};

}  // namespace fuzz
