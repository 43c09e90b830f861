// Models and sessions: what the C interface's handles point to, and the parts of the runtime that work on them.
#pragma once
#include "isa.h"
#include "plan.h"
#include "sampler.h"
#include "threads.h"
#include "tokenizer.h"

namespace edgec {

constexpr uint32_t kMaxThreads = 1024;

// An allocator that refuses to go beyond a limit, in front of another one. Threads may share it.
struct Budget {
    Allocator inner;
    uint64_t live = 0, limit = 0;
    bool refused = false;

    Allocator allocator();
};

// Large memory: zero, aligned, and from the system's lazily filled pages unless the host has its own allocator.
class Block {
  public:
    Block() = default;
    Block(const Block &) = delete;
    Block &operator=(const Block &) = delete;
    ~Block() { release(); }
    bool allocate(const Allocator &allocator, uint64_t bytes);
    void release();
    uint8_t *data() const { return data_; }
    uint64_t bytes() const { return bytes_; }

  private:
    uint8_t *data_ = nullptr;
    uint64_t bytes_ = 0;
    bool pages_ = false;
    Allocator allocator_;
};

// A call of the plan, ready to run: its views, ints and floats are ranges of the entry's arrays.
struct ReadyCall {
    RunFn run;
    uint32_t view, integer, real;  // where its ranges begin
    uint8_t n_views, n_ints, n_floats;
    uint16_t threads;
    int64_t tiles, chunk;
    uint64_t count, nanoseconds, waited;
};

// A view whose address is the caller's and changes with every run.
struct PortUse {
    uint32_t view, port;
    bool output;
};

struct ReadyEntry {
    bool ready = false;  // everything below belongs to `symbols`
    int64_t symbols[kMaxSymbols] = {};
    Array<int64_t> values;
    Array<ReadyCall> calls;
    Array<View> views;
    Array<int64_t> ints;
    Array<float> floats;
    Array<PortUse> uses;
    Array<uint8_t *> inputs, outputs;
};

// Their addresses tell live handles of this runtime from closed ones, and from those of another one in the same program.
extern char kHandles[2];
void model_release(edgec_model *model);  // model.cpp

}  // namespace edgec

// Always inlined: functions of their own would be the same ones for all packages in a program.
#define EDGEC_SPECIAL __attribute__((always_inline)) inline

struct edgec_model {
    const void *kind = &edgec::kHandles[0];
    edgec::Allocator allocator;
    edgec::Budget budget;
    edgec::Mapping mapping;
    edgec::Bundle bundle;
    edgec::Plan plan;
    edgec::Tokenizer *tokenizer = nullptr;
    uint8_t isa = 0;
    char warning[256] = {};

    EDGEC_SPECIAL edgec_model() {}
    EDGEC_SPECIAL ~edgec_model() { edgec::model_release(this); }
};

struct edgec_session {
    const void *kind = &edgec::kHandles[1];
    edgec_model *model = nullptr;
    edgec::Allocator allocator;
    uint64_t max_memory = 0;
    edgec_memory memory = {};
    uint32_t context = 0, position = 0, thread_count = 1;
    bool profile = false;
    int32_t fault = 0;

    edgec::Block arena, scratch, state;
    uint64_t scratch_stride = 0;
    edgec::Array<uint8_t *> states;
    edgec::Array<uint64_t> state_bytes;
    edgec::Array<float> logits;  // of the newest token; language models
    edgec::ReadyEntry entry[edgec::kMaxEntries];
    edgec::Pool pool;
    mutable edgec::Message message;

    EDGEC_SPECIAL edgec_session() {}
    EDGEC_SPECIAL ~edgec_session() {}
};

namespace edgec {

// model.cpp. On failure *model is nullptr.
edgec_status model_open(const char *path, const void *data, uint64_t bytes, const edgec_open_options &options,
                        edgec_model **model, Message &message);
void model_close(edgec_model *model);

// golden.cpp and selftest.cpp
edgec_status golden_check(const Bundle &bundle, const Plan &plan, Message &message);  // the section's form
edgec_status golden_run(edgec_model *model, edgec_session_options options, Message &message);
// Every kernel that the plan uses, on small inputs, `isa` against scalar.
edgec_status kernels_compare(const Plan &plan, uint8_t isa, const Allocator &allocator, Message &message);

// session.cpp
edgec_status session_create(edgec_model *model, const edgec_session_options &options, edgec_session **session,
                            Message &message);
void session_destroy(edgec_session *session);
edgec_status session_reset(edgec_session *session);
edgec_status session_seek(edgec_session *session, uint32_t position);
edgec_status session_save(const edgec_session *session, void *data, uint64_t *bytes);
edgec_status session_load(edgec_session *session, const void *data, uint64_t bytes);

// executor.cpp
// Bytes of scratch that an entry's calls need per thread with these symbols; every argument is checked on the way.
edgec_status entry_scratch(const edgec_model &model, uint32_t entry, const int64_t *symbols, int64_t *values,
                           uint64_t *bytes, Message &message);
edgec_status entry_allocate(edgec_session *session, uint32_t entry);
uint64_t entry_bytes(const edgec_model &model, uint32_t entry);  // what entry_allocate will take
// Makes the entry ready for these symbols; nothing has run when it fails.
edgec_status entry_prepare(edgec_session *session, uint32_t entry, const int64_t *symbols);
// Runs a ready entry on the ports in entry.inputs and entry.outputs.
edgec_status entry_run(edgec_session *session, uint32_t entry);

// run.cpp: generic models
edgec_status run_tensors(edgec_session *session, const edgec_tensor *inputs, uint32_t n_inputs, edgec_tensor *outputs,
                         uint32_t n_outputs);

// lm.cpp: language models
edgec_status lm_step(edgec_session *session, const int32_t *tokens, uint32_t n, float *logits);
edgec_status lm_score(edgec_session *session, const int32_t *tokens, uint32_t n, float *logits);
edgec_status lm_generate(edgec_session *session, const int32_t *prompt, uint32_t n,
                         const edgec_generate_options &options, uint32_t *generated);

}  // namespace edgec
