// A pool that runs the tiles of one kernel call at a time. The caller works too; workers spin briefly between calls, so
// that the next one starts within a microsecond, then sleep.
#pragma once
#include "memory.h"
#include "platform.h"

namespace edgec {

// Runs tiles begin..end as worker `thread` (0: the caller), which no other thread is at the same time.
using TileFn = void (*)(void *arg, int64_t begin, int64_t end, uint32_t thread);

// A host's own pool, see edgec_threadpool.
struct PoolHook {
    void (*run)(void *user, void (*work)(void *work_arg, uint32_t index), void *work_arg, uint32_t n) = nullptr;
    void *user = nullptr;
};

class Pool {
  public:
    ~Pool() { stop(); }

    // threads >= 1, the caller included. Threads that the system refuses are done without. With a hook, none are made.
    bool start(const Allocator &allocator, uint32_t threads, const PoolHook &hook);
    static uint64_t bytes(uint32_t threads);  // at most what start() allocates
    void stop();  // joins all workers; start() may not follow
    uint32_t threads() const { return threads_; }

    // Returns when tiles 0..n-1 are done, by at most `limit` threads that each take `chunk` tiles at a time.
    void run(TileFn fn, void *arg, int64_t n, int64_t chunk, uint32_t limit);

  private:
    struct Worker {
        Pool *pool;
        Thread thread;
        uint32_t index;
    };
    // A thread's part of the job. High half: number of the job; low half: chunks of the part nobody has claimed.
    struct alignas(64) Share {
        uint64_t claim;
    };
    static uint32_t share_end(uint32_t chunks, uint32_t owner, uint32_t limit);
    static void worker_main(void *arg);
    static void hook_work(void *arg, uint32_t index);
    void work(uint32_t index, uint32_t ticket);
    void finish(uint32_t chunks);

    // The job. Written by the caller only while no chunk is left to claim; a worker reads it only while it holds one.
    TileFn fn_ = nullptr;
    void *arg_ = nullptr;
    int64_t n_ = 0, chunk_ = 0;
    uint32_t chunks_ = 0, limit_ = 0;

    alignas(64) uint32_t done_ = 0;      // chunks finished
    uint32_t caller_sleeps_ = 0;
    alignas(64) uint32_t ticket_ = 0;    // number of the newest job; workers sleep on it
    uint32_t sleepers_ = 0, stopping_ = 0;

    uint32_t threads_ = 1;
    uint64_t spin_ns_ = 0;
    PoolHook hook_;
    Array<Share> shares_;
    Array<Worker> workers_;
};

}  // namespace edgec
