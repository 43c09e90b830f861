#include "threads.h"

namespace edgec {
namespace {

// About what a sleep and a wake-up cost together: spinning longer than that cannot pay.
constexpr uint64_t kSpinNs = 40000;

template <class T>
T load(const T &v) { return __atomic_load_n(&v, __ATOMIC_ACQUIRE); }
template <class T>
T load_relaxed(const T &v) { return __atomic_load_n(&v, __ATOMIC_RELAXED); }
template <class T>
void store_relaxed(T &v, T value) { __atomic_store_n(&v, value, __ATOMIC_RELAXED); }

// Spins until ready() or until the time is over; the clock is read rarely because it costs as much as many pauses.
template <class Ready>
bool spin(uint64_t ns, Ready ready) {
    if (ready()) return true;
    if (ns == 0) return false;
    const uint64_t start = now_ns();
    do {
        for (int i = 0; i < 32; i++) {
            cpu_pause();
            if (ready()) return true;
        }
    } while (now_ns() - start < ns);
    return false;
}

}  // namespace

bool Pool::start(const Allocator &allocator, uint32_t threads, const PoolHook &hook) {
    hook_ = hook;
    threads_ = threads;
    const uint32_t cores = core_count();
    // With more threads than cores, a spinning thread would keep the one it waits for from running.
    spin_ns_ = threads <= cores ? kSpinNs : 0;
    if (threads <= 1) return true;
    if (!shares_.allocate(allocator, threads)) return false;
    if (hook.run) return true;
    if (!workers_.allocate(allocator, threads - 1)) return false;
    for (uint32_t i = 0; i + 1 < threads; i++) {
        Worker &w = workers_[i];
        w.pool = this, w.index = i + 1;
        if (!thread_start(&w.thread, worker_main, &w)) {
            threads_ = i + 1;
            break;
        }
    }
    return true;
}

uint64_t Pool::bytes(uint32_t threads) { return uint64_t(threads) * (sizeof(Share) + sizeof(Worker)); }

void Pool::stop() {
    if (workers_.size() == 0) return;
    __atomic_store_n(&stopping_, 1u, __ATOMIC_RELEASE);
    __atomic_fetch_add(&ticket_, 1u, __ATOMIC_SEQ_CST);
    wake_all(&ticket_);
    for (uint32_t i = 0; i + 1 < threads_; i++) thread_join(&workers_[i].thread);
    workers_.release();
    threads_ = 1;
}

void Pool::worker_main(void *arg) {
    Worker &self = *static_cast<Worker *>(arg);
    Pool &pool = *self.pool;
    uint32_t seen = 0;
    while (true) {
        const auto changed = [&] { return load(pool.ticket_) != seen; };
        if (!spin(pool.spin_ns_, changed)) {
            // Order matters: announced as a sleeper before looking once more, or run() could miss it (see there).
            __atomic_fetch_add(&pool.sleepers_, 1u, __ATOMIC_SEQ_CST);
            while (__atomic_load_n(&pool.ticket_, __ATOMIC_SEQ_CST) == seen) wait_on(&pool.ticket_, seen);
            __atomic_fetch_sub(&pool.sleepers_, 1u, __ATOMIC_SEQ_CST);
        }
        seen = load(pool.ticket_);
        if (load(pool.stopping_)) return;
        pool.work(self.index, seen);
    }
}

// Claims chunks of job `ticket` until there are none, the thread's own share first: neighbouring calls then find in its
// cache what it left there, and a slow core's chunks are taken over all the same. A claim itself carries how many chunks
// of the share are left: a worker that comes late sees zero or another job's number, whatever the other fields say.
void Pool::work(uint32_t index, uint32_t ticket) {
    const uint32_t limit = load_relaxed(limit_);  // never above threads_; maybe of a later job, then every claim fails
    for (uint32_t k = 0; index < limit && k < limit; k++) {
        const uint32_t owner = index + k < limit ? index + k : index + k - limit;
        uint64_t &share = shares_[owner].claim;
        uint64_t claim = load(share);
        while (uint32_t(claim >> 32) == ticket && uint32_t(claim) != 0) {
            if (!__atomic_compare_exchange_n(&share, &claim, claim - 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
                continue;
            // Only now are the fields this job's for sure: run() cannot return before this chunk is counted.
            const int64_t n = load_relaxed(n_), chunk = load_relaxed(chunk_);
            const uint32_t chunks = load_relaxed(chunks_);
            const int64_t at = int64_t(share_end(chunks, owner, limit)) - uint32_t(claim);
            const int64_t begin = at * chunk, end = n - begin > chunk ? begin + chunk : n;
            load_relaxed(fn_)(load_relaxed(arg_), begin, end, index);
            finish(chunks);
            claim = load(share);
        }
        if (uint32_t(claim >> 32) != ticket) return;
    }
}

// Chunks 0..share_end-1 belong to the threads up to `owner`.
uint32_t Pool::share_end(uint32_t chunks, uint32_t owner, uint32_t limit) {
    return uint32_t(uint64_t(chunks) * (owner + 1) / limit);
}

// Counts one chunk as done. Between the claim and this, run() cannot return: the job's fields stand still.
void Pool::finish(uint32_t chunks) {
    const uint32_t done = __atomic_add_fetch(&done_, 1u, __ATOMIC_SEQ_CST);
    if (done == chunks && __atomic_load_n(&caller_sleeps_, __ATOMIC_SEQ_CST)) wake_all(&done_);
}

void Pool::hook_work(void *arg, uint32_t index) {
    Pool &pool = *static_cast<Pool *>(arg);
    pool.work(index, load(pool.ticket_));
}

void Pool::run(TileFn fn, void *arg, int64_t n, int64_t chunk, uint32_t limit) {
    if (n <= 0) return;
    if (limit > threads_) limit = threads_;
    if (limit <= 1 || n <= chunk) return fn(arg, 0, n, 0);
    // The low half of a claim counts chunks down; even a hostile number of tiles must fit it.
    const int64_t least = n / 0x40000000 + 1;
    if (chunk < least) chunk = least;
    const uint32_t chunks = uint32_t((n + chunk - 1) / chunk), ticket = load_relaxed(ticket_) + 1;
    store_relaxed(fn_, fn), store_relaxed(arg_, arg), store_relaxed(n_, n), store_relaxed(chunk_, chunk);
    store_relaxed(chunks_, chunks), store_relaxed(limit_, limit);
    store_relaxed(done_, 0u), store_relaxed(caller_sleeps_, 0u);
    for (uint32_t t = 0, begin = 0; t < limit; t++) {
        const uint32_t end = share_end(chunks, t, limit);
        __atomic_store_n(&shares_[t].claim, uint64_t(ticket) << 32 | (end - begin), __ATOMIC_RELEASE);
        begin = end;
    }
    __atomic_store_n(&ticket_, ticket, __ATOMIC_SEQ_CST);
    if (hook_.run) {
        hook_.run(hook_.user, hook_work, this, limit);
    } else if (__atomic_load_n(&sleepers_, __ATOMIC_SEQ_CST)) {
        // Either we see the sleeper here, or it sees the new ticket before sleeping: both sides write, then read.
        wake_all(&ticket_);
    }
    work(0, ticket);
    // Chunks of others are still under way. A worker may have lost its core while it holds one: do not spin for long.
    const auto finished = [&] { return load(done_) == chunks; };
    if (spin(spin_ns_, finished)) return;
    __atomic_store_n(&caller_sleeps_, 1u, __ATOMIC_SEQ_CST);
    for (uint32_t done; (done = __atomic_load_n(&done_, __ATOMIC_SEQ_CST)) != chunks;) wait_on(&done_, done);
}

}  // namespace edgec
