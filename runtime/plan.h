// The plan: dimensions, states, entries and calls of a bundle, parsed from the PLAN section and resolved into the
// views that kernels take.
#pragma once
#include "bundle.h"

namespace edgec {

constexpr uint32_t kMaxEntries = 16, kMaxOperands = 64, kMaxInts = 64, kMaxFloats = 16, kMaxSymbols = 64;

enum DimOp : uint32_t {
    DIM_CONST, DIM_SYMBOL, DIM_ADD, DIM_SUB, DIM_MUL, DIM_FLOORDIV, DIM_CEILDIV, DIM_MAX, DIM_MIN, DIM_OPS
};
enum Space : uint32_t { SPACE_NONE, SPACE_ARENA, SPACE_WEIGHT, SPACE_INPUT, SPACE_OUTPUT, SPACE_STATE, SPACES };

struct PlanDim {
    uint32_t op, a, b, c;
};

// A declared input, output or state.
struct Port {
    uint32_t name, dtype, rank, axis;  // axis: the sequence axis of a state, else 0
    uint32_t dim[kMaxRank];            // indices in the dim table
};

struct Call {
    uint64_t symbols;  // which symbols its dims and ints depend on, bit i = symbol i
    uint32_t at;       // offset of its record in the PLAN section
    uint16_t kernel;   // index in kKernels
    uint8_t n_operands, n_ints;
};

struct Entry {
    uint32_t name = 0;
    uint64_t arena_bytes = 0, scratch_bytes = 0;
    Array<Port> inputs, outputs;
    Array<Call> calls;
};

struct Plan {
    uint32_t kind = 0, max_context = 0, vocab = 0, prefill_chunk = 0;
    Array<PlanDim> dims;
    Array<uint64_t> dim_symbols;  // which symbols each dim depends on
    uint32_t n_symbols = 0;
    uint32_t symbol[kMaxSymbols] = {};  // its dim
    Array<Port> states;
    uint32_t n_entries = 0;
    Entry entry[kMaxEntries];
    // Language models: which entry and which symbol is which; -1 for a symbol the plan does not use.
    uint32_t prefill = 0, decode = 0, score = 0;
    int32_t seq = -1, past = -1, context = -1;
};

// One operand as the plan writes it.
struct OperandRecord {
    uint32_t space, index, dtype, format, rank;
    uint64_t offset;
    uint32_t dim[kMaxRank];
};

struct CallRecord {
    uint32_t layer;  // string
    uint32_t n_operands, n_ints, n_floats;
    OperandRecord operand[kMaxOperands];
    bool int_is_dim[kMaxInts];
    int64_t ints[kMaxInts];  // the value, or the dim's index
    float floats[kMaxFloats];
};

// Where the spaces of one entry are. A base may be any non-null address while nothing is run.
struct Spaces {
    uint8_t *arena = nullptr;
    uint64_t arena_bytes = 0;
    const uint8_t *weights = nullptr;
    uint8_t *const *inputs = nullptr;   // one per port
    uint8_t *const *outputs = nullptr;
    uint8_t *const *states = nullptr;
};

// Parses the whole PLAN section; every index in it is in range afterwards, every number a known one.
edgec_status plan_parse(const Bundle &bundle, const Allocator &allocator, Plan *plan, Message &message);

// The record of a parsed call.
void plan_read_call(const Bundle &bundle, const Call &call, CallRecord *record);

// values[n dims] from values of the symbols, each inside its range.
edgec_status plan_evaluate(const Plan &plan, const Bundle &bundle, const int64_t *symbols, int64_t *values,
                           Message &message);

// Bytes of a declared tensor; false when they overflow.
bool port_bytes(const Port &port, const int64_t *values, uint64_t *bytes);

// Views (record.n_operands of them) and ints of one call. Every extent is checked against its space, and the operands
// of the call against each other.
edgec_status plan_resolve(const Plan &plan, const Bundle &bundle, const Entry &entry, const Call &call,
                          const CallRecord &record, const int64_t *values, const Spaces &spaces, View *views,
                          int64_t *ints, Message &message);

// The largest values of the symbols that one run of an entry can meet in a session of `context` tokens.
void plan_largest(const Plan &plan, uint32_t entry, uint32_t context, int64_t *symbols);

// The rules that need the whole plan: entries and ports of each kind of model, the order of writes and reads with every
// symbol at its maximum, and that the kernels accept their arguments (verify.cpp).
edgec_status plan_verify(Plan *plan, const Bundle &bundle, const Allocator &allocator, Message &message);

// "entry 'main', call 3 (linear at model.fc)", for messages.
struct CallName {
    char text[320];
    CallName(const Bundle &bundle, const Entry &entry, const Call &call);
};

}  // namespace edgec
