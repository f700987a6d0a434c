#!/usr/bin/env python3
"""table.py RESULTS.jsonl: the markdown tables of docs/performance.md from the lines that `run` collected.

Each line is one run: a result of peft_bench.py, lorashard_bench.py or bench_library with "case" [model, targets,
dtype] added. Values are medians over the repeats, ratios are lorashard's over PEFT's (more tokens/s, less memory, less
time is better). The share of the library is the time that the matrix library alone needs for the products of one
step, of the time that lorashard (1 rank) needs for the step.
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


def share_of_library(programs):
    """Seconds of one step's products by the library alone / seconds of lorashard's step."""
    if "library" not in programs or "lorashard-1" not in programs:
        return ""
    library = statistics.median(r["products_seconds"] for r in programs["library"])
    step = statistics.median(statistics.median(r["step_seconds"][r["settings"]["warmup"]:])
                             for r in programs["lorashard-1"])
    return f"{100 * library / step:.0f} %"


def print_table(title, key, unit, form, cases):
    with_share = key == "tokens_per_second"
    columns = ["model", "adapters on", "type", *(NAMES[p] for p in PROGRAMS), "1 rank / default", "1 rank / tuned",
               "TP 2 / tuned", *["share of the library"] * with_share, "runs", "largest spread"]
    print(f"### {title}\n")
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for case, programs in cases.items():
        values = {p: [r[key] for r in programs[p]] for p in PROGRAMS if p in programs}
        median = {p: statistics.median(v) / unit for p, v in values.items()}
        cells = [form.format(median[p]) if p in median else "" for p in PROGRAMS]
        for ours, theirs in (("lorashard-1", "peft-default"), ("lorashard-1", "peft-tuned"),
                             ("lorashard-2", "peft-tuned")):
            both = ours in median and theirs in median
            cells.append(f"{median[ours] / median[theirs]:.2f}" if both else "")
        if with_share:
            cells.append(share_of_library(programs))
            values["library"] = [r["products_seconds"] for r in programs.get("library", ())]
        runs = min(len(r) for r in programs.values())
        cells += [str(runs), f"{max(spread(v) for v in values.values() if v):.0f} %"]
        print("| " + " | ".join([*case, *cells]) + " |")
    print()


def main():
    cases = collections.defaultdict(lambda: collections.defaultdict(list))
    with open(sys.argv[1]) as file:
        for line in file:
            result = json.loads(line)
            cases[tuple(result["case"])][result["program"]].append(result)
    for metric in METRICS:
        print_table(*metric, cases)


if __name__ == "__main__":
    main()
