// The formula over a block of pixels, one pass over the raw counts:
//
//     out[p, b] = ( sum over the bin's pairs of [ P(n_end) - P(n_start) ]  -  dark * tau[b] ) / divisor
//
// Layout   counts (pixel, frame) uint16. Rows are padded to a pitch of a multiple of 64 counts (128 bytes), so every
//          row starts on a 16-byte load; the padding is never used. Frames 2i and 2i+1 are the start and end reads of
//          pair i: one aligned 32-bit word. out is (pixel, bin).
// Mapping  A thread block works on one pixel at a time: pixel blockIdx.y, then every gridDim.y-th further. Its warps
//          and the other blocks of the same blockIdx.y share that pixel's bins, in runs. Any grid gives the same bits.
// A run    As many whole bins as fit 508 pairs; a longer bin comes in pieces. The warp copies a run to shared memory by
//          16-byte loads, 512 contiguous bytes each, four in flight at once. Then 1, 2, 4, ... or 32 lanes sum a bin:
//          the fewest that leave at most 15 pairs a lane, so 2 lanes at 30 pairs a bin, and 32 at 360.
// Bytes    Each count is fetched once (2 bytes). 64 bytes of constants are fetched for a warp and pixel, and 8 bytes of
//          tau a bin; 8 bytes a bin are written. For an Ariel observation, both detectors, this makes 478 MB of counts,
//          22 MB of constants and tau, mostly from the cache, and 15 MB written (benchmarks/kernels.py counts them).
// Work     A pair takes 14 double-precision operations: 2 conversions, 2 * (4 fused multiply-adds and a product), a
//          difference and a sum. The two values of a difference are rounded first, so equal reads differ by exactly 0.
// Needs    128 threads a block, 8.5 KB of shared memory, 55 to 64 registers by architecture (tests/kernels/test_nvrtc.py).

#define WARPS 4     // warps in a thread block
#define LOADS 4     // loads of 16 bytes a lane, for one stage
#define STAGE 508   // pairs that a warp stages at a time: LOADS hold these and up to 3 more before the first one
#define A_LANE 15   // pairs of a bin for one lane, at most, until all 32 lanes are used; 32 times as many fit a stage
#define BLOCKS 8    // such blocks on a multiprocessor: up to 64 registers. Without this bound ptxas spills on sm_100.
#define ALL 0xffffffffu

// A pixel's constants: c1 ... c5 of P in raw counts (c0 cancels in a pair), dark, divisor, and the floor on the count.
enum { C1, C2, C3, C4, C5, DARK, DIVISOR, FLOOR, CONSTANTS };

// P(n) without c0. Counts below `low`, the floor rounded up, are raised to the floor.
__device__ __forceinline__ double electrons(unsigned count, unsigned low, double floor, const double *c)
{
    const double exact = __uint2double_rn(count), n = count < low ? floor : exact;
    double q = __fma_rn(n, c[C5], c[C4]);
    q = __fma_rn(n, q, c[C3]);
    q = __fma_rn(n, q, c[C2]);
    q = __fma_rn(n, q, c[C1]);
    return __dmul_rn(n, q);
}

// pixels: (n_pixels, CONSTANTS). saturated: (n_pixels), zeroed; 1 where a count inside a bin is >= saturation.
extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
calibrate(const unsigned short *__restrict__ counts, long long pitch, int n_pixels, int n_bins, int pairs_per_bin,
          const double *__restrict__ pixels, const double *__restrict__ tau_s, unsigned saturation,
          double *__restrict__ out, unsigned *__restrict__ saturated)
{
    __shared__ uint4 stages[WARPS][LOADS * 32];
    __shared__ double constants[WARPS][CONSTANTS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned *staged = (const unsigned *)stages[warp];
    const double *c = constants[warp];

    int lanes = 1; // lanes that share a bin
    while (lanes < 32 && lanes * A_LANE < pairs_per_bin)
        lanes *= 2;
    const int groups = 32 / lanes, group = lane / lanes, member = lane % lanes;
    const int rounds = STAGE / groups / pairs_per_bin; // 0 if a bin is longer than a stage: then the warp sums one bin
    const int run = rounds ? rounds * groups : groups; // bins

    for (int pixel = blockIdx.y; pixel < n_pixels; pixel += gridDim.y) {
        __syncwarp(); // all lanes have used the last pixel's constants
        if (lane < CONSTANTS)
            constants[warp][lane] = __ldg(pixels + (long long)pixel * CONSTANTS + lane);
        __syncwarp();
        const double floor = c[FLOOR];
        const unsigned low = __double2uint_ru(floor); // 0 for a floor of 0 or less
        const uint4 *row = (const uint4 *)(counts + pixel * pitch);
        unsigned highest = 0;

        const long long stride = (long long)gridDim.x * WARPS * run;
        for (long long next = ((long long)blockIdx.x * WARPS + warp) * run; next < n_bins; next += stride) {
            const int first = next, bins = min(run, n_bins - first), pairs = bins * pairs_per_bin;
            double sum = 0.0;
            for (int done = 0; done < pairs; done += STAGE) { // more than once only for a bin longer than a stage
                const int begin = first * pairs_per_bin + done, here = min(STAGE, pairs - done), skip = begin % 4;
                uint4 words[LOADS] = {};
#pragma unroll
                for (int k = 0; k < LOADS; ++k)
                    if (4 * (32 * k + lane) < skip + here)
                        words[k] = __ldg(row + begin / 4 + 32 * k + lane);
                __syncwarp(); // all lanes have used the last stage
#pragma unroll
                for (int k = 0; k < LOADS; ++k)
                    stages[warp][32 * k + lane] = words[k];
                __syncwarp();

                for (int bin = group; bin - group < bins; bin += groups) { // as many turns for every lane
                    const int from = min(bin * pairs_per_bin, here), to = min(from + pairs_per_bin, here);
                    for (int pair = from + member; pair < to; pair += lanes) {
                        const unsigned reads = staged[skip + pair], start = reads & 0xffff, end = reads >> 16;
                        highest = max(highest, max(start, end));
                        sum = __dadd_rn(sum, __dsub_rn(electrons(end, low, floor, c), electrons(start, low, floor, c)));
                    }
                    if (done + STAGE < pairs)
                        break; // the bin goes on in the next stage
                    for (int step = lanes / 2; step > 0; step /= 2)
                        sum = __dadd_rn(sum, __shfl_down_sync(ALL, sum, step, lanes));
                    if (member == 0 && bin < bins)
                        out[(long long)pixel * n_bins + first + bin] =
                            __ddiv_rn(__fma_rn(-c[DARK], __ldg(tau_s + first + bin), sum), c[DIVISOR]);
                    sum = 0.0;
                }
            }
        }
        if (__any_sync(ALL, highest >= saturation) && lane == 0)
            atomicOr(saturated + pixel, 1u);
    }
}
