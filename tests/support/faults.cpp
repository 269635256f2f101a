// Preloaded into a run: fails a chosen one of its system calls on files under a folder.
//
// fault_arm(folder, at, error, how) begins to count calls on paths under the folder and on files opened there, in any
// thread. The call of number `at`, from 1, fails with `error`; `how` is one of the names below.

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

namespace {

enum How : long {
    ONCE,    // that one of all calls but those that read
    READ,    // that one of those
    FULL,    // that one of those that take space, and all after it: a full disk
    LOCKED,  // that one of those that change anything, and all after it: a disk that is read-only from then on
    SHORT,   // that one of the writes is one of half the bytes, and says so
    HANG,    // that one of all but those that read takes `error` seconds, and succeeds
    KILL,    // that one of all but those that read is not made: the process is killed
};

enum Kind { READS, HOLDS, CHANGES, TAKES };  // HOLDS: locks, and closes what was written; TAKES: changes, and takes space for it

char folder[4096];
size_t length;
long chosen, wanted, how;
std::atomic<bool> armed{false};
std::atomic<long> calls{0}, failed{0};
char what[4400];
std::atomic<int> ours[65536];  // files opened under the folder: 1 for reading, 2 for writing

template <class Function>
Function real(const char *name) {
    return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

bool under(const char *path) {
    return path && !strncmp(path, folder, length) && (path[length] == '/' || path[length] == 0);
}

int under(int file) { return file >= 0 && file < 65536 ? ours[file].load() : 0; }

bool is_chosen(const char *name, const char *path, int file, Kind kind) {
    const bool counts = how == READ     ? kind == READS
                        : how == FULL   ? kind == TAKES
                        : how == LOCKED ? kind >= CHANGES
                        : how == SHORT  ? !strcmp(name, "write")
                                        : kind != READS;
    if (!counts) return false;
    const long number = ++calls;
    if (number < chosen || (number > chosen && how != FULL && how != LOCKED)) return false;
    if (!failed++) {
        char link[32], found[4096] = "";
        if (!path) {
            snprintf(link, sizeof link, "/proc/self/fd/%d", file);
            const ssize_t n = readlink(link, found, sizeof found - 1);
            found[n < 0 ? 0 : n] = 0;
            path = found;
        }
        snprintf(what, sizeof what, "%s %s", name, strlen(path) > length ? path + length + 1 : ".");
    }
    return true;
}

// Whether a call is to fail; errno is set then.
bool fails(const char *name, const char *path, int file, Kind kind) {
    const int before = errno;
    if (!armed || !(path ? under(path) : under(file)) || !is_chosen(name, path, file, kind) || how == SHORT) {
        errno = before;
        return false;
    }
    if (how == HANG) {
        const timespec time{wanted, 0};
        timespec left = time;
        while (nanosleep(&left, &left)) {
        }
        errno = before;
        return false;
    }
    if (how == KILL) kill(getpid(), SIGKILL);
    errno = static_cast<int>(wanted);
    return true;
}

int opened(int file, const char *path, int flags) {
    if (file >= 0 && file < 65536) ours[file] = !armed || !under(path) ? 0 : flags & (O_WRONLY | O_RDWR) ? 2 : 1;
    return file;
}

Kind kind_of(int flags) { return flags & O_CREAT ? TAKES : flags & (O_WRONLY | O_RDWR | O_TRUNC) ? CHANGES : READS; }

mode_t mode_of(int flags, va_list rest) {
    return flags & (O_CREAT | O_TMPFILE) ? static_cast<mode_t>(va_arg(rest, int)) : 0;
}

// A write that is to be short is one of half its length, and of all of it where that is nothing.
size_t shortened(int file, size_t size) {
    return armed && how == SHORT && under(file) && is_chosen("write", nullptr, file, TAKES) && size > 1 ? size / 2 : size;
}

}  // namespace

extern "C" {

void fault_arm(const char *path, long at, long error, long mode) {
    length = strlen(strncpy(folder, path, sizeof folder - 1));
    chosen = at, wanted = error, how = mode;
    calls = failed = 0;
    what[0] = 0;
    armed = true;
}

void fault_disarm() { armed = false; }
int fault_calls() { return static_cast<int>(calls); }
int fault_failed() { return static_cast<int>(failed); }
const char *fault_what() { return what; }

#define OPEN(name)                                                         \
    int name(const char *path, int flags, ...) {                           \
        va_list rest;                                                      \
        va_start(rest, flags);                                             \
        const mode_t mode = mode_of(flags, rest);                          \
        va_end(rest);                                                      \
        if (fails("open", path, -1, kind_of(flags))) return -1;            \
        static auto next = real<int (*)(const char *, int, ...)>(#name);   \
        return opened(next(path, flags, mode), path, flags);               \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                            \
    int name(int at, const char *path, int flags, ...) {                        \
        va_list rest;                                                           \
        va_start(rest, flags);                                                  \
        const mode_t mode = mode_of(flags, rest);                               \
        va_end(rest);                                                           \
        if (fails("open", path, -1, kind_of(flags))) return -1;                 \
        static auto next = real<int (*)(int, const char *, int, ...)>(#name);   \
        return opened(next(at, path, flags, mode), path, flags);                \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int file) {
    static auto next = real<int (*)(int)>("close");
    const bool wrong = fails("close", nullptr, file, under(file) == 2 ? HOLDS : READS);
    const int error = errno;  // the file is closed all the same, as by the kernel
    if (file >= 0 && file < 65536) ours[file] = 0;
    const int result = next(file);
    if (wrong) errno = error;
    return wrong ? -1 : result;
}

// The rest are alike: a result, the arguments, the path or file they are about, and what failing returns.
#define ON(result, wrong, name, kind, path, file, parameters, ...)      \
    result name parameters {                                            \
        if (fails(#name, path, file, kind)) return wrong;               \
        static auto next = real<result(*) parameters>(#name);           \
        return next(__VA_ARGS__);                                       \
    }

ssize_t write(int file, const void *data, size_t size) {
    if (fails("write", nullptr, file, TAKES)) return -1;
    static auto next = real<ssize_t (*)(int, const void *, size_t)>("write");
    return next(file, data, shortened(file, size));
}
ON(ssize_t, -1, writev, TAKES, nullptr, file, (int file, const iovec *parts, int n), file, parts, n)
ON(ssize_t, -1, pwrite, TAKES, nullptr, file, (int file, const void *data, size_t n, off_t at), file, data, n, at)
ON(ssize_t, -1, pwrite64, TAKES, nullptr, file, (int file, const void *data, size_t n, off64_t at), file, data, n, at)
ON(ssize_t, -1, read, READS, nullptr, file, (int file, void *data, size_t n), file, data, n)
ON(int, -1, fsync, TAKES, nullptr, file, (int file), file)
ON(int, -1, fdatasync, TAKES, nullptr, file, (int file), file)
ON(int, -1, ftruncate, CHANGES, nullptr, file, (int file, off_t size), file, size)
ON(int, -1, ftruncate64, CHANGES, nullptr, file, (int file, off64_t size), file, size)
ON(int, -1, flock, HOLDS, nullptr, file, (int file, int operation), file, operation)
ON(int, -1, rename, CHANGES, to, -1, (const char *from, const char *to), from, to)
ON(int, -1, renameat, CHANGES, to, -1, (int from_at, const char *from, int to_at, const char *to), from_at, from, to_at, to)
ON(int, -1, unlink, CHANGES, path, -1, (const char *path), path)
ON(int, -1, unlinkat, CHANGES, path, -1, (int at, const char *path, int flags), at, path, flags)
ON(int, -1, rmdir, CHANGES, path, -1, (const char *path), path)
ON(int, -1, mkdir, TAKES, path, -1, (const char *path, mode_t mode), path, mode)
ON(int, -1, mkdirat, TAKES, path, -1, (int at, const char *path, mode_t mode), at, path, mode)
ON(DIR *, nullptr, opendir, READS, path, -1, (const char *path), path)
}
