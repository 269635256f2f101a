// What loads and stores touch: distinct bytes, and the 32-byte sectors in which a device fetches them.
#pragma once

#include <cstdint>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

namespace emulator {

// What the loads or stores of a launch touched. "By load": each warp instruction for itself; "by block": what a thread
// block touched in all, as if its cache kept everything. Used are distinct bytes, fetched whole 32-byte sectors.
struct Traffic {
    unsigned long long instructions = 0, used_by_load = 0, fetched_by_load = 0, used_by_block = 0, fetched_by_block = 0;
};

enum { LOADS, STORES };
inline Traffic traffic[2];
inline std::mutex traffic_mutex;

constexpr std::uintptr_t SECTOR = 32;

struct Access {
    int warp, site;
    unsigned epoch, occurrence; // lanes that execute an instruction together agree in all four
    std::uintptr_t address;
    unsigned bytes;
};

struct Log { // of one block
    std::vector<Access> accesses[2];
    std::vector<std::pair<unsigned, std::vector<std::pair<int, unsigned>>>> seen; // by thread: epoch, (site, count)
};

inline void account(const Log &log)
{
    for (int kind : {LOADS, STORES}) {
        if (log.accesses[kind].empty())
            continue;
        std::set<std::uintptr_t> bytes, sectors;
        using Key = std::pair<std::pair<int, int>, std::pair<unsigned, unsigned>>;
        std::set<std::pair<Key, std::uintptr_t>> bytes_by_load, sectors_by_load;
        std::set<Key> instructions;
        for (const Access &a : log.accesses[kind]) {
            const Key key{{a.warp, a.site}, {a.epoch, a.occurrence}};
            instructions.insert(key);
            for (std::uintptr_t byte = a.address; byte < a.address + a.bytes; ++byte) {
                bytes.insert(byte), sectors.insert(byte / SECTOR);
                bytes_by_load.insert({key, byte}), sectors_by_load.insert({key, byte / SECTOR});
            }
        }
        std::lock_guard<std::mutex> lock(traffic_mutex);
        traffic[kind].instructions += instructions.size();
        traffic[kind].used_by_load += bytes_by_load.size();
        traffic[kind].fetched_by_load += SECTOR * sectors_by_load.size();
        traffic[kind].used_by_block += bytes.size();
        traffic[kind].fetched_by_block += SECTOR * sectors.size();
    }
}

} // namespace emulator
