// Pages that `inflate` has left to binned sums, without the counts in between: out and saturated as calibrate.cu has
// them, to the bit.
//
// Layout   data, pages: out and pages of inflate.cu. The pages of pixel p are firsts[p] to firsts[p + 1] of the table;
//          facts (pixel, 3): whether it has definition levels, bytes of a value, and the highest value of its type.
// Mapping  A thread block takes a pixel at a time: pixel blockIdx.x, then every gridDim.x-th further. All its threads
//          read the heads of pages and runs alike; each thread then unpacks some indices, into a tile of whole bins
//          in shared memory; and a bin is summed by 1, 2, 4, ... or 32 lanes, in the order of calibrate.cu. Any grid
//          gives the same bits.
// Values   P of a dictionary's values is evaluated once, into a table in shared memory. Longer dictionaries, several of
//          them and pages without one take the polynomial for each read: the same bits.
// Status   A pixel ends with 0 and the end of its pages, or with what is wrong and the page: the numbers of
//          gpucal/backends/pagewise/bins.py, found in the same order. Its bins are then of no use. Whatever a page
//          says, nothing is read outside of data, and nothing is written outside of the pixel's bins.
// Bytes    A byte of a page is fetched once from memory; 8 bytes a bin are written.
// Work     A read takes two loads of words, two look-ups and a sum; beside them run heads and barriers.
// Needs    128 threads a block, 16.4 KB of shared memory, 74 to 80 registers by architecture
//          (tests/kernels/test_nvrtc.py).

#define THREADS 128
#define PIECE 508       // pairs of a bin that its lanes share out at a time, as in calibrate.cu
#define TILE (4 * PIECE) // pairs
#define TABLE 1024      // values of a dictionary that have P in shared memory
#define A_LANE 15       // pairs of a bin for one lane, at most, until all 32 lanes are used
#define BLOCKS 6        // such blocks on a multiprocessor: up to 80 registers
#define ALL 0xffffffffu
#define PADDING 16
#define LONGEST (1 << 28) // bytes of a page
#define ENTRIES (1 << 16)
#define NO_COUNT 0xffffffffu

enum { C1, C2, C3, C4, C5, DARK, DIVISOR, FLOOR, CONSTANTS };
enum { AT, SIZE, CODEC, PREFIX, TO, WANTED, KIND, ENCODING, VALUES, LEVELS, FIRST, CHECKSUM, COLUMNS };
enum { DICTIONARY = 2, DATA_2 = 3, PLAIN = 0, PLAIN_DICTIONARY = 2, RLE_DICTIONARY = 8 };
enum { DONE, LEVELS_WRONG, NULLS, WIDTH, RUN, COUNT, INDEX, RANGE, ROWS, DICTIONARY_GONE, SIZE_WRONG, ENCODED };

typedef unsigned char byte;

// 32 bits, from a bit on.
__device__ __forceinline__ unsigned window(const byte *data, long long bit)
{
    const unsigned *words = (const unsigned *)data + bit / 32;
    return __funnelshift_r(__ldg(words), __ldg(words + 1), bit % 32);
}

// What a column says of its values, and P in counts; every thread of the block has the same.
struct Column {
    const byte *data;
    const double *c, *table; // the pixel's constants; P of the dictionary's values
    double floor;
    unsigned low, limit; // the floor rounded up; the highest value of the type
    int width, entries;  // bytes of a value; values of the dictionary, -1 if there is none
    bool coded;          // one dictionary has all values: a tile holds its indices, otherwise counts
    long long words;     // the dictionary's first bit

    // A value at a bit, or NO_COUNT.
    __device__ __forceinline__ unsigned value(long long bit) const
    {
        const unsigned found = window(data, bit);
        return found > limit || (width == 8 && window(data, bit + 32)) ? NO_COUNT : found;
    }
    __device__ __forceinline__ unsigned entry(unsigned index) const { return value(words + 8ll * width * index); }

    // P of what a tile holds.
    __device__ __forceinline__ double electrons(unsigned read) const
    {
        return coded && entries <= TABLE ? table[read] : polynomial(coded ? entry(read) : read);
    }

    // P(n) without c0, as in calibrate.cu.
    __device__ __forceinline__ double polynomial(unsigned count) const
    {
        const double exact = __uint2double_rn(count), n = count < low ? floor : exact;
        double q = __fma_rn(n, c[C5], c[C4]);
        q = __fma_rn(n, q, c[C3]);
        q = __fma_rn(n, q, c[C2]);
        q = __fma_rn(n, q, c[C1]);
        return __dmul_rn(n, q);
    }
};

// A tile of reads in shared memory, and where in the column it is.
struct Tile {
    unsigned short *reads;
    int begin, end;    // its reads
    int pairs_per_bin, lanes, whole, used; // lanes that share a bin; bins of a tile, 0: a bin is longer; reads in bins
    double sum;        // this lane's

    __device__ __forceinline__ void next()
    {
        const int bin_left = pairs_per_bin - begin / 2 % pairs_per_bin;
        end = whole ? min(begin + 2 * whole * pairs_per_bin, used) : begin + 2 * min(TILE, bin_left);
    }

    // Sums the bins of a tile that is filled. All threads of the block take part.
    __device__ __forceinline__ void add(const Column &column, const double *tau_s, double *out)
    {
        const int group = threadIdx.x / lanes, groups = THREADS / lanes, member = threadIdx.x % lanes;
        const int pairs = (end - begin) / 2, length = whole ? pairs_per_bin : pairs, bins = pairs / length;
        __syncthreads(); // the tile is filled
        for (int bin = group; bin - group < bins; bin += groups) { // as many turns for every lane
            const unsigned short *its = reads + 2 * bin * length;
            for (int piece = 0; bin < bins && piece < length; piece += PIECE)
                for (int pair = piece + member; pair < min(piece + PIECE, length); pair += lanes)
                    sum = __dadd_rn(
                        sum, __dsub_rn(column.electrons(its[2 * pair + 1]), column.electrons(its[2 * pair])));
            if (end / 2 % pairs_per_bin)
                break; // the bin goes on in the next tile
            for (int step = lanes / 2; step > 0; step /= 2)
                sum = __dadd_rn(sum, __shfl_down_sync(ALL, sum, step, lanes));
            const int number = begin / 2 / pairs_per_bin + bin;
            const double *c = column.c;
            if (member == 0 && bin < bins)
                out[number] = __ddiv_rn(__fma_rn(-c[DARK], __ldg(tau_s + number), sum), c[DIVISOR]);
            sum = 0.0;
        }
        __syncthreads(); // the tile is used
        begin = end;
    }
};

// The head of a run, and where it ends; 0 if it is not there or has more than four bytes.
__device__ __forceinline__ unsigned head(const byte *page, int &at, int stop)
{
    unsigned found = 0;
    for (int shift = 0; at < stop && shift < 28; shift += 7) {
        const unsigned next = __ldg(page + at++);
        found |= (next & 127) << shift;
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

// Indices of one run: (32 bits from bit + k * step on) & mask, plus what is repeated.
struct Run {
    long long bit;
    unsigned step, mask, repeated;
    int count;
};

// Reads the head of a run, and moves behind the run; returns a status.
__device__ __forceinline__ int next_run(const byte *data, long long page, int &at, int stop, int bits, int left,
                                        Run &run)
{
    const unsigned found = head(data + page, at, stop), size = found >> 1;
    if (!size)
        return RUN;
    run = {8 * (page + at), (unsigned)bits, (1u << bits) - 1, 0, 0};
    if (found & 1) { // groups of eight, of which the last may hold more than there are
        if (size * bits > (unsigned)(stop - at))
            return RUN;
        run.count = min(8 * (int)size, left);
        at += size * bits;
        return 8 * (int)size - run.count >= 8 ? COUNT : DONE;
    }
    if (size > (unsigned)left)
        return COUNT;
    const int bytes = (bits + 7) / 8;
    if (bytes > stop - at)
        return RUN;
    run.count = size;
    run.repeated = window(data, run.bit) & ((1u << 8 * bytes) - 1);
    run.mask = run.step = 0;
    at += bytes;
    return DONE;
}

// pixels, tau_s, saturation, out: as of calibrate.cu. saturated: (n_pixels), set to 0 or 1. status: (n_pixels, 2).
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
bins(const byte *__restrict__ data, long long n_data, const long long *__restrict__ pages,
     const int *__restrict__ firsts, const long long *__restrict__ facts, int n_rows, int n_pixels, int n_bins,
     int pairs_per_bin, const double *__restrict__ pixels, const double *__restrict__ tau_s, unsigned saturation,
     double *__restrict__ out, unsigned *__restrict__ saturated, int *__restrict__ status)
{
    __shared__ unsigned short reads[2 * TILE];
    __shared__ double table[TABLE], c[CONSTANTS];
    const int thread = threadIdx.x;

    int lanes = 1; // lanes that share a bin
    while (lanes < 32 && lanes * A_LANE < pairs_per_bin)
        lanes *= 2;
    int whole = TILE / pairs_per_bin; // bins of a tile
    if (whole > THREADS / lanes)
        whole -= whole % (THREADS / lanes);
    const int used = 2 * pairs_per_bin * n_bins;

    for (int pixel = blockIdx.x; pixel < n_pixels; pixel += gridDim.x) {
        if (thread < CONSTANTS)
            c[thread] = __ldg(pixels + (long long)pixel * CONSTANTS + thread);
        __syncthreads(); // constants are there
        const int first = __ldg(firsts + pixel), last = __ldg(firsts + pixel + 1);
        const bool optional = __ldg(facts + 3 * pixel);
        const int width = __ldg(facts + 3 * pixel + 1);
        const unsigned limit = __ldg(facts + 3 * pixel + 2);
        Column column{data, c, table, c[FLOOR], __double2uint_ru(c[FLOOR]), limit, width, -1, true, 0};
        Tile tile{reads, 0, 0, pairs_per_bin, lanes, whole, used, 0.0};

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
        bool above = false, bright = false, hit = false;
        while (page < last && !became) {
            const long long *its = pages + (long long)page * COLUMNS;
            const long long to = __ldg(its + TO), count = __ldg(its + VALUES);
            const int stop = __ldg(its + WANTED), kind = __ldg(its + KIND), encoding = __ldg(its + ENCODING);
            if (__ldg(its + FIRST))
                column.entries = -1;
            if (kind == DICTIONARY) {
                became = count * width != stop ? SIZE_WRONG : count > ENTRIES ? WIDTH : DONE;
                if (became)
                    break;
                column.entries = count, column.words = 8 * to;
                bool no_count = false, high = false;
                for (int k = thread; k < count; k += THREADS) {
                    const unsigned n = column.entry(k);
                    no_count |= n == NO_COUNT;
                    high |= n != NO_COUNT && n >= saturation;
                    if (column.coded && count <= TABLE)
                        table[k] = column.polynomial(n);
                }
                above = __syncthreads_or(no_count); // those may be there if nothing uses them
                bright = __syncthreads_or(high);
                ++page;
                continue;
            }
            became = count < 0 || count > n_rows - row ? ROWS : DONE;
            int at = 0;
            if (optional && !became) {
                long long levels = __ldg(its + LEVELS);
                if (kind != DATA_2) // their size comes first
                    levels = stop < 4 ? -1 : window(data, 8 * to), at = 4;
                became = LEVELS_WRONG;
                if (levels >= 0 && levels <= stop - at)
                    became = check_levels(data + to, at, at + levels, count);
                at += levels;
            }
            if (became)
                break;
            const bool plain = encoding == PLAIN;
            int bits = 0; // of an index
            if (plain)
                became = count * width != stop - at ? SIZE_WRONG : DONE;
            else if (encoding != RLE_DICTIONARY && encoding != PLAIN_DICTIONARY)
                became = ENCODED;
            else if (column.entries < 0)
                became = DICTIONARY_GONE;
            else if (at < stop)
                bits = __ldg(data + to + at++), became = bits > 16 ? WIDTH : DONE;
            else
                became = count ? RUN : DONE;

            const bool looked_up = plain || above || bright || !column.coded; // counts have to be looked at
            unsigned most = 0;                                                // the highest index
            bool wrong = false;
            Run run{8 * (to + at), 8u * width, ~0u, 0, (int)count}; // of all values of a page without a dictionary
            for (int left = count; left > 0 && !became; left -= run.count) {
                if (!plain)
                    became = next_run(data, to, at, stop, bits, left, run);
                for (int done = 0; done < run.count && !became;) {
                    if (row == tile.end && row < used)
                        tile.next();
                    const bool kept = row < used;
                    const int n = kept ? min(run.count - done, tile.end - row) : run.count - done;
                    for (int k = thread; k < n; k += THREADS) {
                        const long long bit = run.bit + (long long)(done + k) * run.step;
                        unsigned read = (window(data, bit) & run.mask) + run.repeated, value = read;
                        if (!plain) {
                            most = max(most, read);
                            read = min(read, (unsigned)max(column.entries - 1, 0));
                        }
                        if (looked_up) {
                            value = plain ? column.value(bit) : column.entry(read);
                            wrong |= value == NO_COUNT;
                            hit |= kept && value >= saturation;
                        }
                        if (kept)
                            reads[row - tile.begin + k] = column.coded ? read : value;
                    }
                    row += n, done += n;
                    if (row == tile.end)
                        tile.add(column, tau_s, out + (long long)pixel * n_bins);
                }
            }
            if (!became && !plain && at != stop)
                became = COUNT;
            if (!became && __syncthreads_or(count && !plain && (int)most >= column.entries))
                became = INDEX;
            if (!became && __syncthreads_or(wrong))
                became = RANGE;
            page += !became;
        }
        if (!became && row != n_rows)
            became = ROWS, --page;
        const bool saturates = __syncthreads_or(hit);
        if (thread == 0) {
            saturated[pixel] = saturates && !became;
            status[2 * pixel] = became, status[2 * pixel + 1] = page;
        }
    }
}
