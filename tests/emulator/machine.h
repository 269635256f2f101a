// The machine under the shim: the threads of a block, the barriers between them, and who touches which memory.
//
// Two ways to run a block, of the same interface:
//   turns    (default) its threads are fibers that take turns on one CPU thread; blocks are shared out over the cores.
//            Fast: a switch is a setjmp and a longjmp. A deadlock is found and named.
//   EMULATOR_THREADS   every CUDA thread is a thread of the system, one block at a time: for the sanitizers, which then
//            see shared-memory races and wild addresses as they see those of any C++ program.
#pragma once

#include "sectors.h"

#include <algorithm>
#include <atomic>
#include <csetjmp>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <ucontext.h>
#include <vector>

#ifdef EMULATOR_THREADS
#define EMULATOR_SHARED // one block at a time
#else
#define EMULATOR_SHARED thread_local
#endif

namespace emulator {

constexpr unsigned ALL_LANES = 0xffffffffu;

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    unsigned count() const { return x * y * z; }
};

struct Block;
struct Warp;

struct Thread {
    dim3 index, block_index, block_size, grid_size;
    int lane = 0, number = 0;
    Block *block = nullptr;
    Warp *warp = nullptr;
    unsigned collectives = 0; // how many this thread has passed
};

inline thread_local Thread *self = nullptr;

// ---------------------------------------------------------------------------------------------------- failures

struct Failure { // the first one of a launch
    std::mutex mutex;
    std::string text;
    std::atomic<bool> happened{false};
};
inline Failure failure;

void give_up(); // leaves the running CUDA thread for good

[[noreturn]] inline void fail(const char *format, ...)
{
    char line[512], where[128];
    va_list values;
    va_start(values, format);
    std::vsnprintf(line, sizeof line, format, values);
    va_end(values);
    std::snprintf(where, sizeof where, " (block %u,%u,%u thread %u,%u,%u)", self->block_index.x, self->block_index.y,
                  self->block_index.z, self->index.x, self->index.y, self->index.z);
    {
        std::lock_guard<std::mutex> lock(failure.mutex);
        if (!failure.happened)
            failure.text = std::string(line) + where;
        failure.happened = true;
    }
    give_up();
    std::abort();
}

// ---------------------------------------------------------------------------------------------------- barriers

#ifdef EMULATOR_THREADS

// Opens when as many threads as expected have come. Atomics and not a mutex: a thread that leaves a mutex late would
// seem, to the sanitizer, to come after what others did beyond the barrier meanwhile, and hide races with them. Shuffles
// and votes let lanes meet but do not order their memory on the device, and so must not here.
class Gate {
  public:
    void wait(unsigned expected, bool orders_memory)
    {
        const auto in = orders_memory ? std::memory_order_acquire : std::memory_order_relaxed;
        const auto out = orders_memory ? std::memory_order_acq_rel : std::memory_order_relaxed;
        const unsigned generation = generation_.load(in);
        std::atomic_signal_fence(std::memory_order_seq_cst); // for the compiler alone
        if (arrived_.fetch_add(1, out) + 1 == expected) {
            arrived_.store(0, std::memory_order_relaxed);
            generation_.fetch_add(1, out);
        } else
            while (generation_.load(in) == generation)
                std::this_thread::yield();
        std::atomic_signal_fence(std::memory_order_seq_cst);
    }

  private:
    std::atomic<unsigned> arrived_{0}, generation_{0};
};

#else

void wait_for(const unsigned &generation); // let other threads of the block run until it has changed

class Gate {
  public:
    void wait(unsigned expected, bool)
    {
        if (++arrived_ == expected) {
            arrived_ = 0;
            ++generation_;
        } else
            wait_for(generation_);
    }

  private:
    unsigned arrived_ = 0, generation_ = 0;
};

#endif

// ------------------------------------------------------------------------------------------- warps, blocks, barriers

struct Warp {
    // Two sets of slots: nobody comes back to a set before all have passed the collective in between.
    struct Meeting {
        std::atomic<unsigned> mask{0};
        Gate gate;
        std::atomic<unsigned long long> values[2][32] = {};
        std::atomic<const char *> names[2][32] = {};
        unsigned met[32] = {};
    };
    unsigned lanes = 0; // there are: fewer in a block's last warp
    Meeting meetings[8]; // one a mask; claimed without a lock, which would order memory

    Meeting &meeting(unsigned mask);
};

inline Warp::Meeting &Warp::meeting(unsigned mask)
{
    for (Meeting &m : meetings) {
        unsigned known = 0;
        if (m.mask.compare_exchange_strong(known, mask, std::memory_order_relaxed) || known == mask)
            return m;
    }
    fail("more than 8 masks in one warp");
}

using Lanes = std::atomic<unsigned long long>;

// Every lane of the mask gives a value and sees those of the others.
inline const Lanes *exchange(unsigned mask, unsigned long long value, const char *name, bool orders_memory = false)
{
    const int lane = self->lane;
    if (!(mask >> lane & 1))
        fail("%s with mask %08x by lane %d, which is not in it", name, mask, lane);
    Warp::Meeting &m = self->warp->meeting(mask);
    const unsigned turn = m.met[lane]++ % 2;
    m.values[turn][lane].store(value, std::memory_order_relaxed);
    m.names[turn][lane].store(name, std::memory_order_relaxed);
    m.gate.wait(__builtin_popcount(mask & self->warp->lanes), orders_memory);
    const char *first = m.names[turn][__builtin_ctz(mask)].load(std::memory_order_relaxed);
    if (first != name) // each lane compares itself with the first
        fail("lanes of a warp meet at %s and %s", name, first);
    ++self->collectives;
    return m.values[turn];
}

// ------------------------------------------------------------------------------------------------------- loads

#ifdef EMULATOR_COUNT
void note(int kind, std::uintptr_t address, unsigned bytes, int site);
#else
inline void note(int, std::uintptr_t, unsigned, int) {}
#endif

template <class T> T load(const T *pointer, int site)
{
    note(LOADS, (std::uintptr_t)pointer, sizeof(T), site);
    return *pointer;
}

struct Block {
    std::vector<Thread> threads;
    std::unique_ptr<Warp[]> warps;
    Gate gate;
    std::vector<std::atomic<int>> lines[2]; // the barrier at which each thread waits
    std::vector<std::atomic<int>> votes[2]; // and its vote there
    std::vector<unsigned> met;
    std::once_flag poisoned; // its shared memory, by translated PTX
    Log log;

    Block(dim3 index, dim3 block, dim3 grid)
        : threads(block.count()), warps(new Warp[(block.count() + 31) / 32]),
          lines{std::vector<std::atomic<int>>(block.count()), std::vector<std::atomic<int>>(block.count())},
          votes{std::vector<std::atomic<int>>(block.count()), std::vector<std::atomic<int>>(block.count())},
          met(block.count())
    {
        for (unsigned n = 0; n < block.count(); ++n) {
            Thread &t = threads[n];
            t.index = {n % block.x, n / block.x % block.y, n / block.x / block.y};
            t.block_index = index, t.block_size = block, t.grid_size = grid;
            t.lane = n % 32, t.number = n, t.block = this, t.warp = &warps[n / 32];
            t.warp->lanes |= 1u << t.lane;
        }
        log.seen.resize(block.count());
    }
};

// A barrier of the block; which of the two sets of votes is that of this one.
inline unsigned meet_block(int line, int vote)
{
    Block &b = *self->block;
    const unsigned turn = b.met[self->number]++ % 2;
    b.lines[turn][self->number] = line, b.votes[turn][self->number] = vote;
    b.gate.wait(b.threads.size(), true);
    const int first = b.lines[turn][0];
    if (first != line) // each thread compares itself with the first
        fail("threads of a block meet at the barriers of lines %d and %d", line, first);
    ++self->collectives;
    return turn;
}

// A barrier of the block, which tells every thread whether one of them voted for it.
inline int vote_block(int line, int vote)
{
    int any = 0;
    for (const int other : self->block->votes[meet_block(line, vote)])
        any |= other;
    return any;
}

inline void sync_block(int line) { meet_block(line, 0); }

#ifdef EMULATOR_COUNT
inline void note(int kind, std::uintptr_t address, unsigned bytes, int site)
{
    Log &log = self->block->log;
    auto &[epoch, counts] = log.seen[self->number];
    if (epoch != self->collectives) {
        epoch = self->collectives;
        counts.clear();
    }
    auto found = counts.begin();
    while (found != counts.end() && found->first != site)
        ++found;
    if (found == counts.end())
        found = counts.insert(found, {site, 0});
    log.accesses[kind].push_back({self->number / 32, site, epoch, found->second++, address, bytes});
}
#endif

// -------------------------------------------------------------------------------------------------- running a block

using Body = std::function<void()>;

#ifdef EMULATOR_THREADS

inline void give_up() // the others may wait for this one for ever
{
    std::fprintf(stderr, "emulator: %s\n", failure.text.c_str());
    std::_Exit(70);
}

class Runner {
  public:
    void run(Block &block, const Body &body)
    {
        std::vector<std::thread> threads;
        for (Thread &t : block.threads)
            threads.emplace_back([&] {
                self = &t;
                body();
            });
        for (auto &t : threads)
            t.join();
    }
};

#else

constexpr std::size_t STACK = 128 << 10;

class Runner { // fibers that live as long as their runner, one a CUDA thread, and are given block after block
  public:
    void run(Block &block, const Body &body)
    {
        block_ = &block, body_ = &body, left_ = block.threads.size();
        running = this;
        while (fibers_.size() < left_)
            fibers_.push_back(std::make_unique<Fiber>());
        for (std::size_t n = 0; n < left_; ++n)
            fibers_[n]->finished = false, fibers_[n]->changes = nullptr;
        current_ = 0;
        if (!_setjmp(home_))
            enter();
    }

    void wait_for(const unsigned &generation)
    {
        fibers_[current_]->changes = &generation, fibers_[current_]->seen = generation;
        if (!_setjmp(fibers_[current_]->place))
            switch_();
    }

    [[noreturn]] void leave() { _longjmp(home_, 1); } // the grid ends here, and with it this runner

    static thread_local Runner *running;

  private:
    struct Fiber {
        std::unique_ptr<char[]> stack{new char[STACK]};
        jmp_buf place;
        bool started = false, finished = false;
        const unsigned *changes = nullptr; // what it waits for, and what that was
        unsigned seen = 0;

        bool ready() const { return !finished && !(changes && *changes == seen); }
    };

    [[noreturn]] void enter() // the current fiber, where it left off
    {
        Fiber &fiber = *fibers_[current_];
        self = &block_->threads[current_];
        if (fiber.started)
            _longjmp(fiber.place, 1);
        fiber.started = true;
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = fiber.stack.get();
        context.uc_stack.ss_size = STACK;
        context.uc_link = nullptr;
        makecontext(&context, [] { running->live(); }, 0);
        setcontext(&context);
        std::abort();
    }

    [[noreturn]] void live()
    {
        for (;;) {
            (*body_)();
            Fiber &fiber = *fibers_[current_];
            fiber.finished = true;
            if (--left_ == 0) {
                if (!_setjmp(fiber.place))
                    _longjmp(home_, 1);
            } else if (!_setjmp(fiber.place))
                switch_();
        }
    }

    [[noreturn]] void switch_() // to the next one that has not to wait
    {
        const std::size_t count = block_->threads.size();
        std::size_t next = current_;
        for (std::size_t n = 0; n < count; ++n) {
            next = next + 1 == count ? 0 : next + 1;
            if (fibers_[next]->ready()) {
                current_ = next;
                enter();
            }
        }
        fail("deadlock: every thread that is left waits at a barrier");
    }

    std::vector<std::unique_ptr<Fiber>> fibers_;
    Block *block_ = nullptr;
    const Body *body_ = nullptr;
    std::size_t current_ = 0, left_ = 0;
    jmp_buf home_;
};

inline thread_local Runner *Runner::running = nullptr;
inline void wait_for(const unsigned &generation) { Runner::running->wait_for(generation); }
inline void give_up() { Runner::running->leave(); }

#endif

// Runs a grid; the empty text, or the first failure.
inline std::string run_grid(dim3 grid, dim3 block, const Body &body)
{
    failure.text.clear(), failure.happened = false;
    traffic[LOADS] = traffic[STORES] = {};
    std::atomic<unsigned long long> next{0};
    const unsigned long long blocks = (unsigned long long)grid.x * grid.y * grid.z;
    const auto work = [&] {
        Runner runner;
        for (unsigned long long n; (n = next++) < blocks && !failure.happened;) {
            Block b({(unsigned)(n % grid.x), (unsigned)(n / grid.x % grid.y), (unsigned)(n / grid.x / grid.y)}, block, grid);
            runner.run(b, body);
            account(b.log);
        }
    };
#ifdef EMULATOR_THREADS
    work();
#else
    std::vector<std::thread> workers;
    for (unsigned n = 0; n < std::max(1u, std::thread::hardware_concurrency()); ++n)
        workers.emplace_back(work);
    for (auto &worker : workers)
        worker.join();
#endif
    return failure.text;
}

} // namespace emulator
