// Pages as a file stores them to what they hold: those not compressed, and zstd frames without sequences (RFC 8878).
//
// Layout   data are stored bytes, out is where pages go; both on 16-byte boundaries. pages is the table (page, COLUMNS)
//          of gpucal/inputs/parquet/layout.py, whose AT and TO count from the first byte of data and of out. 16 bytes
//          of any value have to follow the last page, in data and in out, as words are read whole.
// Mapping  A thread block is a warp, and takes a page at a time: page blockIdx.x, then every gridDim.x-th one. All
//          lanes read the headers alike, and copy together. One lane reads coded weights. Ballots put symbols in order,
//          and all lanes fill the table of codes. Each lane decodes a part of a stream. Any grid gives the same bytes.
// Status   A page's status is 0 (DONE), or the reason why only a whole zstd can take its frame; its bytes in out are of
//          no use then. Whatever a page says, nothing is read outside of data, or written outside of the page's place.
// Bytes    A lane decodes its part twice: to see where it ends, and to write it. So a stored byte is loaded twice, but
//          for the most part from a cache. A lane loads 16 bytes at a time while it decodes, and writes 16 at a time.
// Work     A symbol takes a look-up in shared memory and some ten operations, each of which waits for the one before.
//          A lane looks at its stream once for four symbols. Wrong guesses cost about 50 symbols a page.
// Needs    32 threads a block, 6 KB of shared memory, 64 to 80 registers by architecture
//          (tests/kernels/test_nvrtc.py).

#define ALL 0xffffffffu
#define PADDING 16
#define LONGEST (1 << 28) // a page of as many bytes is left to the host: bits of a page are counted by 31 bits
#define MAGIC 0xFD2FB528u
#define MOST (1 << 17)    // bytes a block of a frame holds
#define DEEPEST 11        // bits of a symbol
#define MOST_WEIGHT 12
#define MOST_LOG 6        // bits of a state, of those that weights are coded by
#define CHUNK_BITS 7      // the logarithm of the bits of a stream that are loaded together
#define ROW 128           // bytes of the ring's rows: each has a word of every lane, of its stream

enum { AT, SIZE, CODEC, PREFIX, TO, WANTED, KIND, ENCODING, VALUES, LEVELS, FIRST, CHECKSUM, COLUMNS };
enum { STORED = 0, ZSTD = 6 };
enum { DONE, HEADER, SIZES, BLOCK, LITERALS, TREE, STREAMS, SEQUENCES, TREELESS, OTHER };

typedef unsigned char byte;

__device__ __forceinline__ int highest(unsigned word) { return 31 - __clz(word); }

__device__ __forceinline__ unsigned word(const byte *in, int at)
{
    return __ldg(in + at) | __ldg(in + at + 1) << 8 | __ldg(in + at + 2) << 16 | (unsigned)__ldg(in + at + 3) << 24;
}

// At least 16 bits, from a bit on.
__device__ __forceinline__ unsigned bits(const byte *in, int bit)
{
    return (__ldg(in + bit / 8) | __ldg(in + bit / 8 + 1) << 8 | __ldg(in + bit / 8 + 2) << 16) >> bit % 8;
}

// Copies size bytes, or repeats one (step 0). Words of out that are filled are written whole. All lanes take part.
__device__ void copy(byte *out, const byte *in, int step, int size)
{
    const int lane = threadIdx.x, odd = min(size, (int)(-(size_t)out % 4));
    if (lane < odd)
        out[lane] = __ldg(in + lane * step);
    out += odd, in += odd * step, size -= odd;
    const unsigned *words = (const unsigned *)(in - (size_t)in % 4), shift = (size_t)in % 4 * 8;
#pragma unroll 2
    for (int k = lane; k < size / 4; k += 32)
        ((unsigned *)out)[k] =
            step ? __funnelshift_r(__ldg(words + k), __ldg(words + k + 1), shift) : 0x01010101u * __ldg(in);
    const int last = size / 4 * 4 + lane;
    if (last < size)
        out[last] = __ldg(in + last * step);
}

// Weights coded by two states in turn (RFC 8878, 4.1.1 and 4.2.1.2), by one lane. Returns how many; 0: not sound.
__device__ int coded_weights(const byte *in, int stop, byte *weights, unsigned short *work)
{
    unsigned short *states = work, *counts = work + (1 << MOST_LOG); // counts are one more, as they may be -1
    const int log = (__ldg(in) & 15) + 5, size = 1 << log;
    if (log > MOST_LOG)
        return 0;
    int bit = 4, left = size + 1, threshold = size, width = log + 1, symbols = 0;
    bool again = false;
    while (left > 1) {
        if (symbols > MOST_WEIGHT || bit > 8 * stop)
            return 0;
        const int next = bits(in, bit);
        if (again) { // how many symbols more do not occur
            for (int k = 0; k < (next & 3); ++k)
                counts[symbols++] = 1;
            again = (next & 3) == 3;
            bit += 2;
            continue;
        }
        const int few = 2 * threshold - 1 - left;
        int count = next & (threshold - 1);
        if (count >= few) {
            count = next & (2 * threshold - 1);
            count -= count >= threshold ? few : 0;
            ++bit;
        }
        bit += width - 1;
        left -= count ? count - 1 : 1;
        counts[symbols++] = count;
        again = count == 1;
        while (left < threshold)
            threshold >>= 1, --width;
    }
    if (bit > 8 * stop || symbols > MOST_WEIGHT + 1)
        return 0;

    int top = size - 1, place = 0;
    for (int s = 0; s < symbols; ++s)
        if (!counts[s]) // the least likely ones have one state each, at the end
            states[top--] = s;
    for (int s = 0; s < symbols; ++s)
        for (int k = 1; k < counts[s]; ++k) {
            states[place] = s;
            do
                place = (place + (size >> 1) + (size >> 3) + 3) & (size - 1);
            while (place > top);
        }
    for (int k = 0; k < size; ++k) { // next state * 256 + bits to read * 16 + symbol
        const int s = states[k], following = counts[s] ? counts[s] - 1 : 1, more = log - highest(following);
        counts[s] = following + 2;
        states[k] = ((following << more) - size) << 8 | more << 4 | s;
    }

    const int first = (bit + 7) / 8 * 8, mark = __ldg(in + stop - 1);
    bit = 8 * (stop - 1) + highest(mark) - 2 * log;
    if (first >= 8 * stop || !mark || bit < first)
        return 0;
    int state = bits(in, bit + log) & (size - 1), other = bits(in, bit) & (size - 1);
    unsigned ahead = 0; // the next bits, highest first
    for (int n = 0; n < 254;) {
        if (n % 4 == 0) // four weights take 24 bits at most; what is before them is the frame's
            ahead = __funnelshift_r(word(in, bit / 8 - 4), __ldg(in + bit / 8), bit % 8);
        const int entry = states[state], more = entry >> 4 & 15;
        weights[n++] = entry & 15;
        if (bit - more < first) {
            weights[n++] = states[other] & 15;
            return n;
        }
        bit -= more;
        state = other, other = (entry >> 8) + __funnelshift_l(ahead, 0, more), ahead <<= more;
    }
    return 0;
}

// Reads a tree into a table of 2^depth entries, symbol * 256 + bits of it. Returns where it ends; -1: not sound.
__device__ int tree(const byte *in, int at, int stop, unsigned short *table, byte *weights, int &depth)
{
    const int lane = threadIdx.x;
    if (at >= stop)
        return -1;
    const int head = __ldg(in + at++);
    int n = head - 127; // weights of four bits each
    const int end = at + (n > 0 ? (n + 1) / 2 : head);
    if (end > stop || (n <= 0 && head < 2))
        return -1;
    __syncwarp(); // all lanes have used the last tree
    if (n > 0)
        for (int k = lane; k < n; k += 32)
            weights[k] = __ldg(in + at + k / 2) >> (k % 2 ? 0 : 4) & 15;
    else
        n = __shfl_sync(ALL, lane ? 0 : coded_weights(in + at, head, weights, table), 0);
    __syncwarp(); // weights are there, and the work on them is done
    unsigned total = 0;
    for (int k = lane; k < n; k += 32)
        total += weights[k] > MOST_WEIGHT ? 1u << 20 : 1u << weights[k] >> 1;
    for (int step = 16; step > 0; step /= 2)
        total += __shfl_xor_sync(ALL, total, step);
    if (total == 0 || total >= 1u << DEEPEST)
        return -1;
    depth = highest(total) + 1;
    const unsigned rest = (1u << depth) - total; // the last symbol's, whose weight is not written
    if (rest & (rest - 1))
        return -1;

    byte *sorted = weights + 256;
    int rank = 0, entry = 0;
#pragma unroll 1
    for (int weight = 1; weight <= depth; ++weight) { // the longest codes come first
        const int first = rank;
#pragma unroll 1
        for (int begin = 0; begin <= n; begin += 32) {
            const int k = begin + lane;
            const bool its = k < n ? weights[k] == weight : k == n && 1u << weight >> 1 == rest;
            const unsigned all = __ballot_sync(ALL, its);
            if (its)
                sorted[rank + __popc(all & ((1u << lane) - 1))] = k;
            rank += __popc(all);
        }
        if (weight == 1 && (rank < 2 || rank % 2))
            return -1;
        __syncwarp(); // they are in order
        const int entries = (rank - first) << (weight - 1);
        for (int k = lane; k < entries; k += 32)
            table[entry + k] = sorted[first + (k >> (weight - 1))] << 8 | (depth + 1 - weight);
        entry += entries;
    }
    return end;
}

// Decodes from the bit below top on, until a symbol ends at stop or below it, and moves top there. Returns how many
// symbols there were, and puts them to out if it WRITES.
//
// A lane has four chunks of its stream in a column of the ring, and loads others while it decodes 16 symbols, which
// take 176 bits at most: one chunk if there is room for it, two if there is room for both. So 209 bits are there at
// least when 16 symbols begin, and behind the last ones. The loop of them is not unrolled, as compilers would put the
// loads behind it.
template <bool WRITES>
__device__ __forceinline__ int decode(const uint4 *chunks, int first, int &top, int stop, int depth,
                                      const unsigned short *table, byte *ring, byte *out)
{
    int chunk = ((top - 1) >> CHUNK_BITS) - 3, n = 0; // chunk is the last one in the ring
    const auto load = [&](int k, bool wanted) { return wanted && k >= first ? __ldg(chunks + k) : uint4{0, 0, 0, 0}; };
    const auto keep = [&](int k, uint4 four) {
        unsigned *words = (unsigned *)(ring + (k & 3) * 4 * ROW);
        words[0] = four.x, words[ROW / 4] = four.y, words[ROW / 2] = four.z, words[ROW / 4 * 3] = four.w;
    };
    // The word of the next bits, or the k-th one after it. A row has 128 bytes for 32 bits, so 4 bytes for one.
    const auto ahead = [&](int k) { return *(const unsigned *)(ring + ((4 * (top - 1) - k * ROW) & (15 * ROW))); };
    const auto one = [&]() {
        const unsigned entry = table[__funnelshift_l(ahead(1), ahead(0), -top & 31) >> (32 - depth)];
        if (WRITES)
            out[n] = entry >> 8;
        top -= entry & 31, ++n;
    };
    const auto four = [&]() {
        const int shift = -top & 31;
        unsigned high = __funnelshift_l(ahead(1), ahead(0), shift), low = __funnelshift_l(ahead(2), ahead(1), shift);
        unsigned bits = 0, made = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const unsigned entry = table[high >> (32 - depth)]; // its last five bits are the code's length
            high = __funnelshift_l(low, high, entry), low = __funnelshift_l(0, low, entry);
            bits += entry, made = __byte_perm(made, entry, 0x5321);
        }
        top -= bits & 255, n += 4;
        return made;
    };
    for (int k = 0; k < 4; ++k)
        keep(chunk + k, load(chunk + k, true));
    while (WRITES && top > stop && (size_t)(out + n) % 16)
        one();
#pragma unroll 1
    while (top - stop > 15 * DEEPEST) {
        const int now = (top - 1) >> CHUNK_BITS;
        const bool room = now < chunk + 3, more = now < chunk + 2;
        const uint4 next = load(chunk - 1, room), other = load(chunk - 2, more);
        uint4 made{};
#pragma unroll 1
        for (int k = 0; k < 4; ++k)
            made.x = made.y, made.y = made.z, made.z = made.w, made.w = four();
        if (WRITES)
            *(uint4 *)(out + n - 16) = made;
        if (room)
            keep(--chunk, next);
        if (more)
            keep(--chunk, other);
    }
#pragma unroll 1
    while (top - stop > 3 * DEEPEST) {
        const unsigned made = four();
        if (WRITES)
            *(unsigned *)(out + n - 4) = made;
    }
#pragma unroll 1
    while (top > stop)
        one();
    return n;
}

// Decodes one stream, or four at the same time, each of a quarter of the symbols. A stream is read from its end to its
// beginning, and has to hold exactly so many symbols.
//
// Each lane has a part of a stream, as many bits as the others. It does not know where in it the first symbol begins,
// and guesses: at its first bit. A walk from a wrong bit soon meets the right one, so that most lanes still end right.
// Then each lane starts where the lane before it ended. Where that is not its old start, it goes on from both in turn
// until they meet, which tells how many symbols more or less there are. If they do not meet, the lane's end is another
// one, and the next lane has to start again. One lane more of a stream is right after each round, from the first on.
__device__ bool streams(const byte *in, int size, bool in_four, int depth, const unsigned short *table, byte *ring,
                        byte *out, int n)
{
    const int lane = threadIdx.x, quarter = in_four ? (n + 3) / 4 : n, parts = in_four ? 8 : 32;
    const int stream = lane / parts, part = lane % parts;
    int begin = 0, its = size;
    if (in_four) {
        if (size < 10 || 3 * quarter > n || n < 6)
            return false;
        const int one = bits(in, 0) & 0xffff, two = bits(in, 16) & 0xffff, three = bits(in, 32) & 0xffff;
        const int last = size - 6 - one - two - three;
        if (!one || !two || !three || last <= 0)
            return false;
        begin = 6 + (stream > 0 ? one : 0) + (stream > 1 ? two : 0) + (stream > 2 ? three : 0);
        its = stream == 0 ? one : stream == 1 ? two : stream == 2 ? three : last;
    }
    const unsigned mark = its > 0 ? __ldg(in + begin + its - 1) : 0;
    if (!__all_sync(ALL, mark && n > 0))
        return false;

    // Bits, words and chunks count from a boundary of 16 bytes. What is before a stream's first chunk counts as zeros.
    const int before = (size_t)in % 16, first = (before + begin) / 16, lowest = 8 * (before + begin);
    const unsigned *words = (const unsigned *)(in - before);
    const uint4 *chunks = (const uint4 *)words;
    // Where all codes have one length, or multiples of one, the longest is a multiple of it: these guesses are right.
    const int whole = 8 * (its - 1) + highest(mark), its_part = (whole / parts / depth + 1) * depth;
    int start = lowest + max(whole - part * its_part, 0), end = start;
    const int stop = max(start - its_part, lowest);
    __syncwarp(); // the table is there, and what was in the ring is used
    ring += 4 * lane;
    int symbols = decode<false>(chunks, first, end, stop, depth, table, ring, out);

    const auto load = [&](int k) { return k >= 4 * first ? __ldg(words + k) : 0u; };
    bool changed;
    do {
        const int right = __shfl_up_sync(ALL, end, 1);
        int old = start, other = part ? right : start;
        start = other;
        while (old != other && max(old, other) > stop) {
            const int top = max(old, other), k = (top - 1) >> 5;
            const int code = table[__funnelshift_l(load(k - 1), load(k), -top & 31) >> (32 - depth)] & 31;
            symbols += old == top ? -1 : 1;
            old -= old == top ? code : 0, other -= other == top ? code : 0;
        }
        changed = old != other && other != end;
        end = changed ? other : end;
    } while (__any_sync(ALL, changed));

    int place = symbols; // the part's end among the stream's symbols
    for (int step = 1; step < parts; step *= 2) {
        const int there = __shfl_up_sync(ALL, place, step);
        place += part >= step ? there : 0;
    }
    const bool sound = place == min(quarter, n - stream * quarter) && end == lowest;
    if (!__all_sync(ALL, part < parts - 1 || sound))
        return false;
    decode<true>(chunks, first, start, stop, depth, table, ring, out + stream * quarter + place - symbols);
    return true;
}

// Inflates a frame of so many bytes. All lanes take every turn alike.
__device__ int frame(const byte *in, int stop, byte *out, int wanted, unsigned short *table, byte *ring)
{
    if (stop < 9)
        return SIZES;
    const int descriptor = __ldg(in + 4), width = 1 << (descriptor >> 6);
    // one segment; no reserved or unused bit, checksum or dictionary
    if (word(in, 0) != MAGIC || (descriptor & 0x3f) != 0x20)
        return HEADER;
    int at = 5 + width, to = 0, depth = 0;
    if (stop < at + 3)
        return SIZES;
    const unsigned content = word(in, 5) & (width == 1 ? 0xffu : width == 2 ? 0xffffu : ~0u);
    if (content + (width == 2 ? 256 : 0) != (unsigned)wanted || (width == 8 && word(in, 9)))
        return SIZES;
    for (bool last = false; !last;) {
        if (stop - at < 3)
            return SIZES;
        const unsigned head = word(in, at);
        int kind = head >> 1 & 3, size = head >> 3 & 0x1fffff, stored = kind == 1 ? 1 : size;
        last = head & 1, at += 3;
        if (kind == 3 || size > MOST)
            return BLOCK;
        if (stored > stop - at)
            return SIZES;
        const int behind = at + stored;
        bool four = false;
        if (kind == 2) { // nothing but literals, and no sequences
            if (size < 3 || size > wanted)
                return BLOCK;
            const unsigned long long said = word(in, at) | (unsigned long long)__ldg(in + at + 4) << 32;
            const int form = said >> 2 & 3, field = form == 3 ? 18 : form == 2 ? 14 : 10;
            kind = said & 3, four = form > 0;
            if (kind < 2) { // as they are, or one byte repeated
                size = form % 2 == 0 ? said >> 3 & 0x1f : form == 1 ? said >> 4 & 0xfff : said >> 4 & 0xfffff;
                stored = kind ? 1 : size;
                at += form % 2 == 0 ? 1 : form == 1 ? 2 : 3;
            } else {
                size = said >> 4 & ((1 << field) - 1), stored = said >> (4 + field) & ((1 << field) - 1);
                at += (4 + 2 * field + 7) / 8;
            }
            if (size > min(wanted - to, MOST) || at + stored >= behind)
                return LITERALS;
            if (at + stored + 1 != behind || __ldg(in + at + stored))
                return SEQUENCES;
        }
        if (kind < 2) {
            if (size > wanted - to)
                return SIZES;
            copy(out + to, in + at, 1 - kind, size);
        } else {
            const int after = at + stored;
            if (kind == 2)
                at = tree(in, at, after, table, ring, depth);
            if (at < 0)
                return TREE;
            if (!depth)
                return TREELESS;
            if (!streams(in + at, after - at, four, depth, table, ring, out + to, size))
                return STREAMS;
        }
        to += size, at = behind;
    }
    return at == stop && to == wanted ? DONE : SIZES;
}

extern "C" __global__ void __launch_bounds__(32)
inflate(const byte *__restrict__ data, long long n_data, const long long *__restrict__ pages, int n_pages,
        byte *__restrict__ out, long long n_out, int *__restrict__ status)
{
    __shared__ unsigned short table[1 << DEEPEST];
    __shared__ uint4 words[ROW]; // the ring; before, a tree's weights and its symbols in their order
    byte *ring = (byte *)words;
    for (int page = blockIdx.x; page < n_pages; page += gridDim.x) {
        const long long *facts = pages + (long long)page * COLUMNS;
        const long long at = __ldg(facts + AT), size = __ldg(facts + SIZE), codec = __ldg(facts + CODEC);
        const long long prefix = __ldg(facts + PREFIX), to = __ldg(facts + TO), wanted = __ldg(facts + WANTED);
        // each number by itself, as a sum may overflow 64 bits
        bool outside = at < 0 || to < 0 || prefix < 0 || size < prefix || wanted < prefix;
        outside |= size >= LONGEST || wanted >= LONGEST || (codec == STORED && size != wanted);
        outside |= size > n_data - PADDING || at > n_data - PADDING - size;
        outside |= wanted > n_out - PADDING || to > n_out - PADDING - wanted;
        int became = SIZES;
        if (!outside) {
            copy(out + to, data + at, 1, codec == STORED ? size : prefix);
            became = codec == STORED ? DONE : OTHER;
            if (codec == ZSTD)
                became = frame(data + at + prefix, size - prefix, out + to + prefix, wanted - prefix, table, ring);
        }
        if (threadIdx.x == 0)
            status[page] = became;
    }
}
