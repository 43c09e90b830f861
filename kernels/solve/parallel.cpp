// Threads that take jobs in turn.
#include <pthread.h>

#include "problem.h"

namespace edgec_solve {

struct Pool {
    Job job;
    void *context;
    int64_t count, next, failed;
    int status;
    pthread_mutex_t mutex;
};

struct Worker {
    Pool *pool;
    void *scratch;
    pthread_t thread;
};

static void *work(void *argument) {
    Worker &worker = *(Worker *)argument;
    Pool &pool = *worker.pool;
    for (;;) {
        pthread_mutex_lock(&pool.mutex);
        int64_t i = pool.next < pool.failed ? pool.next++ : pool.count;
        pthread_mutex_unlock(&pool.mutex);
        if (i >= pool.count) return nullptr;
        int status = pool.job(pool.context, i, worker.scratch);
        if (status == EDGEC_SOLVE_OK) continue;
        pthread_mutex_lock(&pool.mutex);
        if (i < pool.failed) pool.failed = i, pool.status = status;
        pthread_mutex_unlock(&pool.mutex);
    }
}

int run_parallel(Job job, void *context, int64_t count, int32_t threads, size_t scratch) {
    constexpr size_t kAlign = 64;
    if (threads > count) threads = (int32_t)(count > 1 ? count : 1);
    size_t each = (scratch + kAlign - 1) / kAlign * kAlign;
    Worker *workers = (Worker *)calloc((size_t)threads, sizeof(Worker));
    char *memory = (char *)malloc(each * (size_t)threads + kAlign);
    Pool pool = {job, context, count, 0, count, EDGEC_SOLVE_OK, PTHREAD_MUTEX_INITIALIZER};
    if (!workers || !memory) {
        pool.status = EDGEC_SOLVE_MEMORY;
    } else {
        char *aligned = memory + (kAlign - (uintptr_t)memory % kAlign) % kAlign;
        int32_t started = 1;
        for (int32_t i = 0; i < threads; ++i) workers[i] = {&pool, aligned + each * (size_t)i, {}};
        while (started < threads && pthread_create(&workers[started].thread, nullptr, work, &workers[started]) == 0)
            ++started;
        work(&workers[0]);
        while (--started > 0) pthread_join(workers[started].thread, nullptr);
    }
    free(memory);
    free(workers);
    return pool.status;
}

}  // namespace edgec_solve
