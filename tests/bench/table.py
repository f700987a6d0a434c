#!/usr/bin/env python3
"""table.py RESULTS.jsonl: the markdown tables of docs/performance.md from the lines that `run` collected.

Each line is one run: a result of peft_bench.py or lorashard_bench.py with "case" [model, targets, dtype] added.
Values are medians over the repeats, ratios are lorashard's over PEFT's (more tokens/s, less memory, less time is
better).
"""

import collections
import json
import statistics
import sys

PROGRAMS = ("lorashard-1", "lorashard-2", "peft-default", "peft-tuned")
NAMES = {"lorashard-1": "lorashard, 1 rank x 2 threads", "lorashard-2": "lorashard, TP 2",
         "peft-default": "PEFT, default", "peft-tuned": "PEFT, tuned"}
METRICS = (("tokens/s", "tokens_per_second", 1, "{:.0f}"), ("peak memory, MiB", "peak_rss_bytes", 2**20, "{:.0f}"),
           ("start to first step, s", "start_to_first_step_seconds", 1, "{:.1f}"))


def spread(values):
    """Largest distance from the median, in percent of it."""
    middle = statistics.median(values)
    return 100 * max(abs(v - middle) for v in values) / middle


def main():
    cases = collections.defaultdict(lambda: collections.defaultdict(list))
    with open(sys.argv[1]) as file:
        for line in file:
            result = json.loads(line)
            cases[tuple(result["case"])][result["program"]].append(result)
    for title, key, unit, form in METRICS:
        print(f"### {title}\n")
        print("| model | adapters on | type | " + " | ".join(NAMES[p] for p in PROGRAMS) +
              " | 1 rank / default | 1 rank / tuned | TP 2 / tuned | runs | largest spread |")
        print("|---" * (len(PROGRAMS) + 8) + "|")
        for case, programs in cases.items():
            median = {p: statistics.median(r[key] for r in runs) / unit for p, runs in programs.items()}
            cells = [form.format(median[p]) if p in median else "" for p in PROGRAMS]
            for ours, theirs in (("lorashard-1", "peft-default"), ("lorashard-1", "peft-tuned"),
                                 ("lorashard-2", "peft-tuned")):
                both = ours in median and theirs in median
                cells.append(f"{median[ours] / median[theirs]:.2f}" if both else "")
            runs = min(len(r) for r in programs.values())
            largest = max(spread([r[key] for r in results]) for results in programs.values())
            print("| " + " | ".join([*case, *cells, str(runs), f"{largest:.0f} %"]) + " |")
        print()


if __name__ == "__main__":
    main()
