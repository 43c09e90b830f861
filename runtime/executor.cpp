// Runs the calls of one entry: resolved once per set of symbol values, then tile by tile on the pool.
#include "session.h"

namespace edgec {
namespace {

// Work that one more thread must bring along to pay for waking it.
constexpr int64_t kNsPerThread = 6000;
// Chunks per thread: enough to even out cores of unequal speed, few enough that claiming costs nothing.
constexpr int64_t kChunksPerThread = 4;

Args args_of(const edgec_session &session, const ReadyEntry &e, const ReadyCall &c) {
    return {e.views.data() + c.view, e.ints.data() + c.integer, e.floats.data() + c.real, c.n_views, c.n_ints,
            c.n_floats,
            const_cast<int32_t *>(&session.fault)};
}

struct Job {
    const Args *args;
    RunFn run;
    uint8_t *scratch;
    uint64_t stride;
    bool prepares;
    uint64_t *busy;  // nanoseconds of all threads together; nullptr: nobody asks
    uint64_t prepared[kMaxThreads / 64];  // a bit for each thread whose scratch is
};

void run_tiles(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    Job &job = *static_cast<Job *>(arg);
    uint8_t *scratch = job.scratch ? job.scratch + job.stride * thread : nullptr;
    const uint64_t start = job.busy ? now_ns() : 0;
    const uint64_t bit = uint64_t(1) << thread % 64;
    if (job.prepares && !(__atomic_fetch_or(&job.prepared[thread / 64], bit, __ATOMIC_RELAXED) & bit))
        job.run(*job.args, 0, 0, scratch);
    job.run(*job.args, begin, end, scratch);
    if (job.busy) __atomic_fetch_add(job.busy, now_ns() - start, __ATOMIC_RELAXED);
}

edgec_status refuse(const edgec_model &model, uint32_t entry, const Call &call, const char *why, Message &message) {
    return fail(message, EDGEC_ERROR_FORMAT, "run: %s: %s", CallName(model.bundle, model.plan.entry[entry], call).text,
                why);
}

// check() is the kernel's whole safety argument, so nothing else of the kernel is asked before it.
edgec_status check_call(const edgec_model &model, uint32_t entry, const Call &call, const Args &args, uint64_t *scratch,
                        Message &message) {
    const Kernel &kernel = kKernels[call.kernel];
    if (const char *why = kernel.check(args)) return refuse(model, entry, call, why, message);
    const int64_t bytes = kernel.scratch(args);
    if (bytes < 0) return refuse(model, entry, call, "needs more scratch memory than a machine has", message);
    *scratch = uint64_t(bytes);
    return EDGEC_OK;
}

}  // namespace

edgec_status entry_scratch(const edgec_model &model, uint32_t entry, const int64_t *symbols, int64_t *values,
                           uint64_t *bytes, Message &message) {
    const Plan &plan = model.plan;
    const Entry &e = plan.entry[entry];
    if (edgec_status s = plan_evaluate(plan, model.bundle, symbols, values, message)) return s;
    // Nothing runs: any address that is not null stands for memory.
    uint8_t *nowhere = reinterpret_cast<uint8_t *>(uintptr_t(kAlignment));
    struct Frame {
        CallRecord record;
        View views[kMaxOperands];
        int64_t ints[kMaxInts];
    };
    Array<uint8_t *> bases;
    Array<Frame> frame;
    const uint64_t ports = e.inputs.size() + e.outputs.size() + plan.states.size();
    if (!frame.allocate(model.allocator, 1) || !bases.allocate(model.allocator, ports))
        return fail(message, EDGEC_ERROR_MEMORY, "session: cannot be allocated");
    for (uint8_t *&base : bases) base = nowhere;
    const Spaces spaces = {nowhere, e.arena_bytes, nowhere, bases.data(), bases.data(), bases.data()};
    Frame &f = frame[0];
    *bytes = e.scratch_bytes;
    for (const Call &call : e.calls) {
        plan_read_call(model.bundle, call, &f.record);
        edgec_status s = plan_resolve(plan, model.bundle, e, call, f.record, values, spaces, f.views, f.ints, message);
        if (s != EDGEC_OK) return s;
        int32_t fault = 0;
        const Args args = {f.views, f.ints, f.record.floats, call.n_operands, call.n_ints, int32_t(f.record.n_floats),
                           &fault};
        uint64_t needed;
        if ((s = check_call(model, entry, call, args, &needed, message)) != EDGEC_OK) return s;
        *bytes = needed > *bytes ? needed : *bytes;
    }
    return EDGEC_OK;
}

namespace {

struct EntryCounts {
    uint64_t views = 0, ints = 0, floats = 0, uses = 0;
};

EntryCounts count_entry(const edgec_model &model, uint32_t entry, CallRecord *record) {
    EntryCounts n;
    for (const Call &call : model.plan.entry[entry].calls) {
        plan_read_call(model.bundle, call, record);
        n.views += record->n_operands, n.ints += record->n_ints, n.floats += record->n_floats;
        for (uint32_t i = 0; i < record->n_operands; i++)
            n.uses += record->operand[i].space == SPACE_INPUT || record->operand[i].space == SPACE_OUTPUT;
    }
    return n;
}

}  // namespace

uint64_t entry_bytes(const edgec_model &model, uint32_t entry) {
    const Entry &e = model.plan.entry[entry];
    CallRecord record;
    // None of these can overflow: each is a small multiple of bytes that the plan itself has.
    const EntryCounts n = count_entry(model, entry, &record);
    return model.plan.dims.size() * sizeof(int64_t) + e.calls.size() * sizeof(ReadyCall) + n.views * sizeof(View) +
           n.ints * sizeof(int64_t) + n.floats * sizeof(float) + n.uses * sizeof(PortUse) +
           (e.inputs.size() + e.outputs.size()) * sizeof(uint8_t *);
}

edgec_status entry_allocate(edgec_session *session, uint32_t entry) {
    const edgec_model &model = *session->model;
    const Entry &e = model.plan.entry[entry];
    ReadyEntry &ready = session->entry[entry];
    const Allocator &a = session->allocator;
    CallRecord record;
    const EntryCounts n = count_entry(model, entry, &record);
    if (!ready.values.allocate(a, model.plan.dims.size()) || !ready.calls.allocate(a, e.calls.size()) ||
        !ready.views.allocate(a, n.views) || !ready.ints.allocate(a, n.ints) || !ready.floats.allocate(a, n.floats) ||
        !ready.uses.allocate(a, n.uses) || !ready.inputs.allocate(a, e.inputs.size()) ||
        !ready.outputs.allocate(a, e.outputs.size()))
        return fail(session->message, EDGEC_ERROR_MEMORY, "session: entry '%.100s': its tables cannot be allocated",
                    model.bundle.string(e.name));
    EntryCounts at;
    for (uint64_t c = 0; c < e.calls.size(); c++) {
        ReadyCall &call = ready.calls[c];
        plan_read_call(model.bundle, e.calls[c], &record);
        call.run = kernel_run(kKernels[e.calls[c].kernel], model.isa);
        call.view = uint32_t(at.views), call.integer = uint32_t(at.ints), call.real = uint32_t(at.floats);
        call.n_views = uint8_t(record.n_operands), call.n_ints = uint8_t(record.n_ints);
        call.n_floats = uint8_t(record.n_floats);
        if (record.n_floats) memcpy(ready.floats.data() + at.floats, record.floats, record.n_floats * sizeof(float));
        for (uint32_t i = 0; i < record.n_operands; i++) {
            const OperandRecord &o = record.operand[i];
            if (o.space == SPACE_INPUT || o.space == SPACE_OUTPUT)
                ready.uses[at.uses++] = {uint32_t(at.views + i), o.index, o.space == SPACE_OUTPUT};
        }
        at.views += record.n_operands, at.ints += record.n_ints, at.floats += record.n_floats;
    }
    return EDGEC_OK;
}

edgec_status entry_prepare(edgec_session *session, uint32_t entry, const int64_t *symbols) {
    const edgec_model &model = *session->model;
    const Plan &plan = model.plan;
    const Entry &e = plan.entry[entry];
    ReadyEntry &ready = session->entry[entry];
    uint64_t changed = 0;
    for (uint32_t i = 0; i < plan.n_symbols; i++)
        if (!ready.ready || ready.symbols[i] != symbols[i]) changed |= uint64_t(1) << i;
    if (ready.ready && changed == 0) return EDGEC_OK;
    const bool all = !ready.ready;
    ready.ready = false;
    if (edgec_status s = plan_evaluate(plan, model.bundle, symbols, ready.values.data(), session->message)) return s;
    // Ports get their addresses at each run; until then any address that is not null will do.
    for (uint8_t *&p : ready.inputs) p = session->arena.data();
    for (uint8_t *&p : ready.outputs) p = session->arena.data();
    const Spaces spaces = {session->arena.data(), session->arena.bytes(), model.bundle.section[SECTION_WEIGHTS].data,
                           ready.inputs.data(), ready.outputs.data(), session->states.data()};
    CallRecord record;
    for (uint64_t i = 0; i < e.calls.size(); i++) {
        const Call &call = e.calls[i];
        if (!all && !(call.symbols & changed)) continue;
        ReadyCall &c = ready.calls[i];
        plan_read_call(model.bundle, call, &record);
        edgec_status s = plan_resolve(plan, model.bundle, e, call, record, ready.values.data(), spaces,
                                      ready.views.data() + c.view, ready.ints.data() + c.integer, session->message);
        if (s != EDGEC_OK) return s;
        const Args args = args_of(*session, ready, c);
        uint64_t scratch;
        if ((s = check_call(model, entry, call, args, &scratch, session->message)) != EDGEC_OK) return s;
        if (scratch > session->scratch_stride)
            return refuse(model, entry, call, "needs more scratch memory at these shapes than at the largest ones",
                          session->message);
        const Kernel &kernel = kKernels[call.kernel];
        c.tiles = kernel.tiles(args);
        int64_t wanted = kernel.cost(args) / kNsPerThread + 1;
        wanted = wanted < c.tiles ? wanted : c.tiles;
        wanted = wanted < session->pool.threads() ? wanted : session->pool.threads();
        c.threads = uint16_t(wanted < 1 ? 1 : wanted);
        const int64_t chunk = c.tiles / (c.threads * kChunksPerThread);
        c.chunk = chunk < 1 ? 1 : chunk;
    }
    memcpy(ready.symbols, symbols, sizeof(int64_t) * plan.n_symbols);
    ready.ready = true;
    return EDGEC_OK;
}

edgec_status entry_run(edgec_session *session, uint32_t entry) {
    const edgec_model &model = *session->model;
    ReadyEntry &ready = session->entry[entry];
    for (const PortUse &use : ready.uses)
        ready.views[use.view].data = (use.output ? ready.outputs : ready.inputs)[use.port];
    session->fault = 0;
    for (uint64_t i = 0; i < ready.calls.size(); i++) {
        ReadyCall &c = ready.calls[i];
        if (c.tiles <= 0) continue;
        const uint64_t start = session->profile ? now_ns() : 0;
        const Args args = args_of(*session, ready, c);
        const bool prepares = kKernels[model.plan.entry[entry].calls[i].kernel].prepares;
        uint64_t busy = 0;
        Job job = {&args, c.run, session->scratch.data(), session->scratch_stride, prepares,
                   session->profile && c.threads > 1 ? &busy : nullptr, {}};
        if (c.threads == 1) run_tiles(&job, 0, c.tiles, 0);
        else session->pool.run(run_tiles, &job, c.tiles, c.chunk, c.threads);
        if (session->profile) {
            const uint64_t spent = now_ns() - start;
            c.nanoseconds += spent, c.count++;
            if (job.busy && spent * c.threads > busy) c.waited += spent * c.threads - busy;
        }
        if (__atomic_load_n(&session->fault, __ATOMIC_RELAXED))
            return fail(session->message, EDGEC_ERROR_FAULT, "run: %s: an index inside the data is out of range",
                        CallName(model.bundle, model.plan.entry[entry], model.plan.entry[entry].calls[i]).text);
    }
    return EDGEC_OK;
}

}  // namespace edgec
