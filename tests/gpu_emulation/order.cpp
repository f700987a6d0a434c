/*
 * order.cpp: finds accesses to one buffer that nothing orders, by vector clocks:
 * an operation happens after another if its clock has reached the other's number.
 */
#include <algorithm>

#include "emulation.h"

namespace emulation {

static clock_vector host;
static history global;

clock_vector &host_clock() { return host; }
history &global_history() { return global; }

void clock_join(clock_vector &clock, const clock_vector &other) {
  if (clock.size() < other.size()) clock.resize(other.size());
  for (size_t i = 0; i < other.size(); i++) clock[i] = std::max(clock[i], other[i]);
}

static bool reached(const clock_vector &clock, size_t timeline, uint64_t number) {
  return timeline < clock.size() && clock[timeline] >= number;
}

void history_add(history &history, const clock_vector &clock, size_t timeline, const std::string &operation,
                 const std::vector<access> &accesses) {
  if (accesses.empty()) return;
  auto &entries = history.entries;
  size_t kept = 0;
  for (size_t i = 0; i < entries.size(); i++) {
    struct history::entry &entry = entries[i];
    if (reached(host, entry.timeline, entry.number)) continue; /* before all that is still to come */
    bool replaced = false;
    for (const access &access : accesses) {
      if (access.begin >= entry.access.end || entry.access.begin >= access.end) continue;
      if ((access.write || entry.access.write) && !reached(clock, entry.timeline, entry.number)) {
        fail("%s and %s, on different streams, use the memory at %p, and nothing orders them", entry.operation.c_str(),
             operation.c_str(), (void *)std::max(access.begin, entry.access.begin));
      }
      /* Whoever comes after the new access comes after the old one, too. */
      replaced = replaced || (reached(clock, entry.timeline, entry.number) && access.begin <= entry.access.begin &&
                              access.end >= entry.access.end && access.write >= entry.access.write);
    }
    if (replaced) continue;
    if (kept != i) entries[kept] = std::move(entry);
    kept++;
  }
  entries.resize(kept);
  for (const access &access : accesses) entries.push_back({access, timeline, clock[timeline], operation});
}

void history_forget(history &history, uintptr_t begin, uintptr_t end) {
  auto inside = [=](const struct history::entry &e) { return e.access.begin < end && begin < e.access.end; };
  history.entries.erase(std::remove_if(history.entries.begin(), history.entries.end(), inside), history.entries.end());
}

}  // namespace emulation
