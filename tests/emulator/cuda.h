// What a CUDA source finds in scope, for g++: qualifiers, vector types, intrinsics, barriers, shuffles, votes, atomics.
// Only what kernels have needed so far; a name that is missing is a compile error, never a guess.
#pragma once

#include "machine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static EMULATOR_SHARED

using emulator::dim3;
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) double2 { double x, y; };

#define threadIdx (emulator::self->index)
#define blockIdx (emulator::self->block_index)
#define blockDim (emulator::self->block_size)
#define gridDim (emulator::self->grid_size)
constexpr int warpSize = 32;

using std::max;
using std::min;

// Every intrinsic that names its rounding is one operation, rounded once; -ffp-contract=off keeps it that way.
inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __uint2double_rn(unsigned n) { return n; }
// To an integer, after rounding: out of range saturates; NaN becomes the number of the highest bit alone (PTX ISA, cvt).
template <class T> T emulator_to_integer(double rounded)
{
    if (std::isnan(rounded))
        return T(std::make_unsigned_t<T>(1) << (8 * sizeof(T) - 1));
    if (rounded < double(std::numeric_limits<T>::min()))
        return std::numeric_limits<T>::min();
    return rounded >= std::ldexp(1.0, std::numeric_limits<T>::digits) ? std::numeric_limits<T>::max() : T(rounded);
}

inline int __clz(int word) { return word ? __builtin_clz((unsigned)word) : 32; }
inline int __popc(unsigned word) { return __builtin_popcount(word); }
// The upper word of both shifted to the left, the lower one of both shifted to the right, by 0 to 31 bits.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by)
{
    return by & 31 ? high << (by & 31) | low >> (32 - (by & 31)) : high;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by)
{
    return by & 31 ? low >> (by & 31) | high << (32 - (by & 31)) : low;
}
// The lower three bits of each of the selector's last four digits name a byte of both words. Others do not count.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector)
{
    unsigned made = 0;
    for (int k = 0; k < 4; ++k) {
        const unsigned digit = selector >> 4 * k & 7;
        made |= ((digit & 4 ? high : low) >> 8 * (digit & 3) & 255) << 8 * k;
    }
    return made;
}

inline unsigned __double2uint_ru(double x) { return emulator_to_integer<unsigned>(std::ceil(x)); }

// A macro, so that each load in the source has a name (its line) in the sector counts.
#define __ldg(pointer) emulator::load(pointer, __LINE__)

#define __syncthreads() emulator::sync_block(__LINE__)
#define __syncthreads_or(predicate) emulator::vote_block(__LINE__, (predicate) != 0)

inline void __syncwarp(unsigned mask = emulator::ALL_LANES) { emulator::exchange(mask, 0, "__syncwarp", true); }

// A source lane outside the segment leaves a lane its own value, as on the device.
template <class T> T emulator_shuffle(unsigned mask, T value, int from, bool inside, const char *name)
{
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
    unsigned long long bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    const emulator::Lanes *lanes = emulator::exchange(mask, bits, name);
    if (inside && !(mask >> from & 1))
        emulator::fail("%s reads lane %d, which is not in the mask %08x", name, from, mask);
    bits = lanes[inside ? from : emulator::self->lane].load(std::memory_order_relaxed);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32)
{
    const int first = emulator::self->lane & ~(width - 1);
    return emulator_shuffle(mask, value, first + (source & (width - 1)), true, "__shfl_sync");
}

template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    const int from = emulator::self->lane - (int)(delta % 32);
    return emulator_shuffle(mask, value, from, from >= (emulator::self->lane & ~(width - 1)), "__shfl_up_sync");
}

template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    const int from = emulator::self->lane + (int)(delta % 32);
    return emulator_shuffle(mask, value, from, from <= (emulator::self->lane | (width - 1)), "__shfl_down_sync");
}

template <class T> T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32)
{
    const int from = emulator::self->lane ^ (flip & 31);
    return emulator_shuffle(mask, value, from, from <= (emulator::self->lane | (width - 1)), "__shfl_xor_sync");
}

inline unsigned emulator_votes(unsigned mask, int predicate, const char *name)
{
    const emulator::Lanes *lanes = emulator::exchange(mask, predicate != 0, name);
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane)
        votes |= (mask >> lane & 1) && lanes[lane] ? 1u << lane : 0u;
    return votes;
}

inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulator_votes(mask, predicate, "__ballot_sync"); }
inline int __any_sync(unsigned mask, int predicate) { return emulator_votes(mask, predicate, "__any_sync") != 0; }
inline int __all_sync(unsigned mask, int predicate)
{
    return emulator_votes(mask, predicate, "__all_sync") == (mask & emulator::self->warp->lanes);
}

inline unsigned atomicOr(unsigned *address, unsigned value) { return __atomic_fetch_or(address, value, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned *address, unsigned value) { return __atomic_fetch_add(address, value, __ATOMIC_RELAXED); }

inline double atomicAdd(double *address, double value)
{
    double old, sum;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do
        sum = old + value;
    while (!__atomic_compare_exchange(address, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
