// Pages that `inflate` has left to binned sums, without the counts in between: out and saturated as calibrate.cu has
// them, to the bit.
//
// Layout   data, pages: out and pages of inflate.cu. The pages of pixel p are firsts[p] to firsts[p + 1] of the table;
//          facts (pixel, 3): whether it has definition levels, bytes of a value, and the highest value of its type.
// Mapping  A thread block takes a pixel at a time: pixel blockIdx.x, then every gridDim.x-th further. All its threads
//          read the heads of pages and runs alike; each thread then unpacks some indices, two at a time if they lie
//          so, into a tile of whole bins in shared memory; and a bin is summed by 1, 2, 4, ... or 32 lanes, in the
//          order of calibrate.cu. Any grid gives the same bits.
// Values   P of a dictionary's values is evaluated once, into a table in shared memory. Longer dictionaries, several of
//          them and pages without one take the polynomial for each read: the same bits.
// Status   A pixel ends with 0 and the end of its pages, or with what is wrong and the page: the numbers of
//          gpucal/backends/pagewise/bins.py, found in the same order. Its bins are then of no use. Whatever a page
//          says, nothing is read outside of data, and nothing is written outside of the pixel's bins.
// Bytes    A byte of a page is fetched once from memory; 8 bytes a bin are written.
// Work     A pair takes two loads of words, a store and a load of its indices, two look-ups and a sum: 26 instructions
//          on an H100. A thread has four pairs under way at once. Beside them run heads, barriers and sums of lanes.
// Needs    128 threads a block, 16.4 KB of shared memory, 64 to 80 registers by architecture
//          (tests/kernels/test_nvrtc.py).

#define THREADS 128
#define PIECE 508       // pairs of a bin that its lanes share out at a time, as in calibrate.cu
#define TILE (4 * PIECE) // pairs
#define TABLE_BITS 10   // of an index
#define TABLE (1 << TABLE_BITS) // values of a dictionary that have P in shared memory
#define A_LANE 15       // pairs of a bin for one lane, at most, until all 32 lanes are used
#define BLOCKS (__CUDA_ARCH__ < 750 ? 5 : 8) // on a multiprocessor: up to 64 registers. A V100 has room for 5
#define TURNS 4         // loads, or look-ups, that a thread has under way at once
#define ALL 0xffffffffu
#define PADDING 16
#define LONGEST (1 << 28) // bytes of a page
#define ENTRIES (1 << 16)
#define NO_COUNT 0xffffffffu

enum { C1, C2, C3, C4, C5, DARK, DIVISOR, FLOOR, CONSTANTS };
enum { AT, SIZE, CODEC, PREFIX, TO, WANTED, KIND, ENCODING, VALUES, LEVELS, FIRST, CHECKSUM, COLUMNS };
enum { DICTIONARY = 2, DATA_2 = 3, PLAIN = 0, PLAIN_DICTIONARY = 2, RLE_DICTIONARY = 8 };
enum { DONE, LEVELS_WRONG, NULLS, WIDTH, RUN, COUNT, INDEX, RANGE, ROWS, DICTIONARY_GONE, SIZE_WRONG, ENCODED };
enum { HIT = 1, SPECIAL = 2 }; // seen: a read is saturated; a value of the dictionary is, or is no count

typedef unsigned char byte;

// 32 bits, from a bit behind a word on.
__device__ __forceinline__ unsigned window(const byte *word, unsigned bit)
{
    const unsigned *words = (const unsigned *)word + bit / 32;
    return __funnelshift_r(__ldg(words), __ldg(words + 1), bit % 32);
}

// What a column says of its values, and P in counts; every thread of the block has the same.
struct Column {
    const double *c, *table; // the pixel's constants; P of the dictionary's values
    unsigned limit;          // the highest value of the type
    int width, entries;      // bytes of a value; values of the dictionary, -1 if there is none
    bool coded;              // one dictionary has all values: a tile holds its indices, otherwise counts
    const byte *word;        // in which the dictionary begins
    unsigned begin;          // its first bit

    // A value at a bit, or NO_COUNT.
    __device__ __forceinline__ unsigned value(const byte *word, unsigned bit) const
    {
        const unsigned found = window(word, bit);
        return found > limit || (width == 8 && window(word, bit + 32)) ? NO_COUNT : found;
    }
    __device__ __forceinline__ unsigned entry(unsigned index) const { return value(word, begin + 8 * width * index); }

    __device__ __forceinline__ bool tabled() const { return coded && entries <= TABLE; }

    // P of what a tile holds, if it is not in the table.
    __device__ __forceinline__ double electrons(unsigned read) const { return polynomial(coded ? entry(read) : read); }

    // P(n) without c0, as in calibrate.cu.
    __device__ __forceinline__ double polynomial(unsigned count) const
    {
        const double floor = c[FLOOR], exact = __uint2double_rn(count);
        const double n = count < __double2uint_ru(floor) ? floor : exact;
        double q = __fma_rn(n, c[C5], c[C4]);
        q = __fma_rn(n, q, c[C3]);
        q = __fma_rn(n, q, c[C2]);
        q = __fma_rn(n, q, c[C1]);
        return __dmul_rn(n, q);
    }
};

// The reads of a pair, in one word.
struct alignas(4) Pair {
    unsigned short start, end;
};

// A tile of reads in shared memory, and where in the column it is.
struct Tile {
    Pair *pairs;
    int begin, end;    // its reads
    int bin;           // its first one
    int pairs_per_bin, n_bins;
    int share, whole;  // 1 << share lanes share a bin; bins of a full tile, 0: a bin is longer
    double sum;        // this lane's

    __device__ __forceinline__ int bins() const { return whole ? min(whole, n_bins - bin) : 1; }

    __device__ __forceinline__ void next()
    {
        end = min(2 * pairs_per_bin * (bin + bins()), begin + 2 * TILE);
    }

    // Adds pairs that are looked up at once; unless all are before stop, the last one stands for what is not.
    __device__ __forceinline__ void add_some(bool all, const Column &column, const Pair *its, int pair, int stop)
    {
        double differences[TURNS];
#pragma unroll
        for (int k = 0; k < TURNS; ++k) {
            const Pair reads = its[all ? pair + (k << share) : min(pair + (k << share), stop - 1)];
            differences[k] = __dsub_rn(column.table[reads.end], column.table[reads.start]);
        }
#pragma unroll
        for (int k = 0; k < TURNS; ++k) // 0.0 changes no sum, as none is -0.0
            sum = __dadd_rn(sum, all || pair + (k << share) < stop ? differences[k] : 0.0);
    }

    // Adds the pairs of a bin, or of what the tile has of it, that are this lane's.
    __device__ __forceinline__ void add(const Column &column, const Pair *its, int length, int member)
    {
        for (int piece = 0; piece < length; piece += PIECE) {
            const int stop = min(piece + PIECE, length);
            int pair = piece + member;
            if (column.tabled()) {
                for (; pair - member + (TURNS << share) <= stop; pair += TURNS << share)
                    add_some(true, column, its, pair, stop);
                for (; pair < stop; pair += TURNS << share)
                    add_some(false, column, its, pair, stop);
            }
            for (; pair < stop; pair += 1 << share)
                sum = __dadd_rn(sum, __dsub_rn(column.electrons(its[pair].end), column.electrons(its[pair].start)));
        }
    }

    // Sums the bins of a tile that is filled. All threads of the block take part.
    __device__ __forceinline__ void close(const Column &column, const double *tau_s, double *out)
    {
        const int group = threadIdx.x >> share, groups = THREADS >> share, member = threadIdx.x & ((1 << share) - 1);
        const int bins = this->bins(), length = whole ? pairs_per_bin : (end - begin) / 2;
        const bool ends = end == 2 * pairs_per_bin * (bin + bins); // otherwise the bin goes on in the next tile
        __syncthreads(); // the tile is filled
        for (int k = group; k - group < bins; k += groups) { // as many turns for every lane
            if (k < bins)
                add(column, pairs + k * length, length, member);
            if (!ends)
                break;
            for (int step = 1 << share >> 1; step > 0; step /= 2)
                sum = __dadd_rn(sum, __shfl_down_sync(ALL, sum, step, 1 << share));
            const double *c = column.c;
            if (member == 0 && k < bins)
                out[bin + k] = __ddiv_rn(__fma_rn(-c[DARK], __ldg(tau_s + bin + k), sum), c[DIVISOR]);
            sum = 0.0;
        }
        __syncthreads(); // the tile is used
        begin = end;
        bin += ends ? bins : 0;
    }
};

// The head of a run, and where it ends; 0 if it is not there or has more than four bytes.
__device__ __forceinline__ unsigned head(const byte *page, int &at, int stop)
{
    const unsigned bytes = window(page, 8u * at);
    unsigned found = 0;
    for (int k = 0; at < stop && k < 4; ++k) {
        const unsigned next = bytes >> 8 * k & 255;
        ++at, found |= (next & 127) << 7 * k;
        if (next < 128)
            return found;
    }
    return 0;
}

// Checks that definition levels are all 1, and as many as there are values. All threads of the block take part.
__device__ int check_levels(const byte *page, int at, int stop, int left)
{
    while (left > 0) {
        const unsigned run = head(page, at, stop);
        const int count = run >> 1, many = run & 1 ? min(8 * count, left) : count;
        if (run & 1 ? count > stop - at || 8 * count - left >= 8 : at >= stop || count > left)
            return LEVELS_WRONG;
        bool null = false;
        if (run & 1) { // in groups of eight, of which the last may hold more than there are
            for (int k = threadIdx.x; k < (many + 7) / 8; k += THREADS) {
                const int ones = (1 << min(many - 8 * k, 8)) - 1;
                null |= (__ldg(page + at + k) & ones) != ones;
            }
            at += count;
        } else {
            const int level = __ldg(page + at++);
            if (level > 1)
                return LEVELS_WRONG;
            null = level == 0;
        }
        if (__syncthreads_or(null))
            return NULLS;
        if (!count)
            return LEVELS_WRONG;
        left -= many;
    }
    return at == stop ? DONE : LEVELS_WRONG;
}

// What is left of a run: step bits from bit + k * step on, plus what is repeated. Or of a page without a dictionary:
// values of so many bits.
struct Run {
    unsigned bit, step, repeated;
    int count;
};

// Reads the head of a run, and moves behind the run; returns a status.
__device__ __forceinline__ int next_run(const byte *page, int &at, int stop, int bits, int left, Run &run)
{
    const unsigned found = head(page, at, stop), size = found >> 1;
    if (!size)
        return RUN;
    run = {8u * at, (unsigned)bits, 0, 0};
    const bool same = !(found & 1); // otherwise groups of eight, of which the last may hold more than there are
    if (same && size > (unsigned)left)
        return COUNT;
    const unsigned bytes = same ? (bits + 7) / 8 : size * bits;
    if (bytes > (unsigned)(stop - at))
        return RUN;
    at += bytes;
    if (same)
        run = {run.bit, 0, window(page, run.bit) & ((1u << 8 * bytes) - 1), (int)size};
    else
        run.count = min(8 * (int)size, left);
    return !same && 8 * (int)size - run.count >= 8 ? COUNT : DONE;
}

// Unpacks pairs that are loaded at once; unless all are before the n-th, the first one stands for what is not. Returns
// the highest index.
__device__ __forceinline__ int unpack_some(bool all, const unsigned *words, unsigned shift, unsigned step, int k, int n,
                                           Pair *pairs)
{
    unsigned found[TURNS], most = 0;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const unsigned *its = words + (all || k + turn * THREADS < n ? turn * (THREADS / 16) * step : 0);
        found[turn] = __funnelshift_r(__ldg(its), __ldg(its + 1), shift);
    }
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const unsigned mask = (1u << step) - 1, start = found[turn] & mask, end = found[turn] >> step & mask;
        most = max(most, max(start, end));
        if (all || k + turn * THREADS < n)
            pairs[k + turn * THREADS] = {(unsigned short)start, (unsigned short)end};
    }
    return most;
}

// Unpacks n pairs of a run of indices that differ; returns the highest index of this thread.
__device__ __forceinline__ int unpack(const byte *page, const Run &run, int n, Pair *pairs)
{
    int most = -1, k = threadIdx.x; // a turn of all threads takes whole words, so a thread's shift stays
    const unsigned bit = run.bit + 2 * k * run.step;
    const unsigned *words = (const unsigned *)page + bit / 32;
    for (; k - (int)threadIdx.x + TURNS * THREADS <= n; k += TURNS * THREADS, words += TURNS * THREADS / 16 * run.step)
        most = max(most, unpack_some(true, words, bit % 32, run.step, k, n, pairs));
    if (k < n)
        most = max(most, unpack_some(false, words, bit % 32, run.step, k, n, pairs));
    return most;
}

// pixels, tau_s, saturation, out: as of calibrate.cu. saturated: (n_pixels), set to 0 or 1. status: (n_pixels, 2).
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
bins(const byte *__restrict__ data, long long n_data, const long long *__restrict__ pages,
     const int *__restrict__ firsts, const long long *__restrict__ facts, int n_rows, int n_pixels, int n_bins,
     int pairs_per_bin, const double *__restrict__ pixels, const double *__restrict__ tau_s, unsigned saturation,
     double *__restrict__ out, unsigned *__restrict__ saturated, int *__restrict__ status)
{
    __shared__ Pair pairs[TILE];
    __shared__ double table[TABLE], c[CONSTANTS];
    const int thread = threadIdx.x;

    int share = 0; // 1 << share lanes, that is
    while (share < 5 && A_LANE << share < pairs_per_bin)
        ++share;
    int whole = TILE / pairs_per_bin; // bins of a tile
    if (whole > (THREADS >> share))
        whole -= whole % (THREADS >> share);
    const int used = 2 * pairs_per_bin * n_bins;

    for (int pixel = blockIdx.x; pixel < n_pixels; pixel += gridDim.x) {
        if (thread < CONSTANTS)
            c[thread] = __ldg(pixels + (long long)pixel * CONSTANTS + thread);
        __syncthreads(); // constants are there
        const int first = __ldg(firsts + pixel), last = __ldg(firsts + pixel + 1);
        const int width = __ldg(facts + 3 * pixel + 1);
        const unsigned limit = __ldg(facts + 3 * pixel + 2);
        Column column{c, table, limit, width, -1, true, data, 0};
        Tile tile{pairs, 0, 0, 0, pairs_per_bin, n_bins, share, whole, 0.0};

        int became = DONE, page = first, dictionaries = 0;
        for (int k = first; k < last && !became; ++k) {
            const long long *its = pages + (long long)k * COLUMNS;
            const long long to = __ldg(its + TO), wanted = __ldg(its + WANTED);
            const bool dictionary = __ldg(its + KIND) == DICTIONARY;
            if (to < 0 || wanted < 0 || wanted >= LONGEST || to > n_data - PADDING - wanted)
                became = SIZE_WRONG, page = k;
            dictionaries += dictionary;
            column.coded &= dictionary || __ldg(its + ENCODING) != PLAIN;
        }
        column.coded &= dictionaries == 1;

        int row = 0; // values so far
        unsigned seen = 0;
        while (page < __ldg(firsts + pixel + 1) && !became) {
            const long long *its = pages + (long long)page * COLUMNS;
            const long long to = __ldg(its + TO), values = __ldg(its + VALUES);
            const byte *word = data + to / 4 * 4; // in which the page begins
            int at = to % 4, stop = at + (int)__ldg(its + WANTED);
            const int kind = __ldg(its + KIND), encoding = __ldg(its + ENCODING);
            if (__ldg(its + FIRST))
                column.entries = -1;
            if (kind == DICTIONARY) {
                became = values * width != stop - at ? SIZE_WRONG : values > ENTRIES ? WIDTH : DONE;
                if (became)
                    break;
                column.entries = values, column.word = word, column.begin = 8 * at;
                bool no_count = false, high = false;
                for (int k = thread; k < column.entries; k += THREADS) {
                    const unsigned n = column.entry(k);
                    no_count |= n == NO_COUNT;
                    high |= n != NO_COUNT && n >= saturation;
                    if (column.tabled())
                        table[k] = column.polynomial(n);
                }
                seen = (seen & HIT) | (__syncthreads_or(no_count) ? SPECIAL : 0); // maybe nothing uses it
                seen |= __syncthreads_or(high) ? SPECIAL : 0;
                ++page;
                continue;
            }
            became = values < 0 || values > n_rows - row ? ROWS : DONE;
            const int count = values;
            if (__ldg(facts + 3 * pixel) && !became) {
                long long levels = __ldg(its + LEVELS);
                if (kind != DATA_2) { // their size comes first
                    levels = stop - at < 4 ? -1ll : window(word, 8u * at);
                    at += 4;
                }
                became = LEVELS_WRONG;
                if (levels >= 0 && levels <= stop - at)
                    became = check_levels(word, at, at + levels, count);
                at += levels;
            }
            if (became)
                break;
            const bool plain = encoding == PLAIN;
            int bits = 0; // of an index
            if (plain)
                became = values * width != stop - at ? SIZE_WRONG : DONE;
            else if (encoding != RLE_DICTIONARY && encoding != PLAIN_DICTIONARY)
                became = ENCODED;
            else if (column.entries < 0)
                became = DICTIONARY_GONE;
            else if (at < stop)
                bits = __ldg(word + at++), became = bits > 16 ? WIDTH : DONE;
            else
                became = count ? RUN : DONE;

            const bool looked_up = plain || seen & SPECIAL || !column.coded; // counts have to be looked at
            int most = -1;                                                    // the highest index
            bool wrong = false;
            Run run{8u * at, 8u * width, 0, plain ? count : 0}; // of all values of a page without a dictionary
            const int end = row + count;
            while (row < end && !became) {
                if (!run.count && (became = next_run(word, at, stop, bits, end - row, run)))
                    break;
                if (row == tile.end && row < used)
                    tile.next();
                const bool kept = row < used;
                const int n = kept ? min(run.count, tile.end - row) : run.count, place = row - tile.begin;
                // Indices that are within the table anyway are unpacked by twos, if they lie so.
                const bool by_twos = kept && !looked_up && run.step - 1 < TABLE_BITS && place % 2 == 0;
                if (by_twos)
                    most = max(most, unpack(word, run, n / 2, pairs + place / 2));
                for (int k = (by_twos ? n / 2 * 2 : 0) + thread; k < n; k += THREADS) {
                    const unsigned bit = run.bit + k * run.step;
                    unsigned read;
                    if (plain)
                        read = column.value(word, bit);
                    else {
                        read = (window(word, bit) & ((1u << run.step) - 1)) + run.repeated;
                        most = max(most, (int)read);
                        read = min(read, (unsigned)max(column.entries - 1, 0));
                    }
                    const unsigned value = looked_up && !plain ? column.entry(read) : read;
                    wrong |= looked_up && value == NO_COUNT;
                    seen |= looked_up && kept && value >= saturation ? HIT : 0;
                    if (kept)
                        ((unsigned short *)pairs)[place + k] = column.coded ? read : value;
                }
                row += n, run.count -= n, run.bit += n * run.step;
                if (row == tile.end)
                    tile.close(column, tau_s, out + (long long)pixel * n_bins);
            }
            if (!became && !plain && at != stop)
                became = COUNT;
            if (!became && __syncthreads_or(!plain && most >= column.entries))
                became = INDEX;
            if (!became && __syncthreads_or(wrong))
                became = RANGE;
            page += !became;
        }
        if (!became && row != n_rows)
            became = ROWS, --page;
        const bool saturates = __syncthreads_or(seen & HIT);
        if (thread == 0) {
            saturated[pixel] = saturates && !became;
            status[2 * pixel] = became, status[2 * pixel + 1] = page;
        }
    }
}
