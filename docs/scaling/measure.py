#!/usr/bin/env python3
"""Small runs on this machine beside what `lorashard plan` predicts for them, to measured.json.

    python3 docs/scaling/measure.py build/lorashard [--steps 7]

For each number of ranks `lorashard probe` measures the machine with as many ranks, before the runs and after them; the
prediction is made from the mean of both. A run's time is the median of its steps without the first two. Nothing else
should run meanwhile."""
import argparse
import datetime
import json
import os
import random
import re
import statistics
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = "synthetic:smollm2-135m,layers=4"
SEQ, ROWS, MICRO = 256, 4, 1
LAYOUTS = [  # ranks, settings
    (1, []),
    (2, ["parallel.tp=2"]),
    (2, ["parallel.tp=2", "parallel.sequence=true"]),
    (2, ["parallel.pp=2"]),
    (2, []),
    (2, ["parallel.tp=2", "train.recompute=full"]),
    (4, ["parallel.tp=4"]),
    (4, ["parallel.tp=2", "parallel.pp=2"]),
    (4, ["parallel.pp=4"]),
    (4, []),
]


def tokens(path):
    """64 documents of a whole row each: every row is full."""
    chooser = random.Random(1)
    documents = [[chooser.randrange(1000) for _ in range(SEQ)] for _ in range(64)]
    with open(path + ".bin", "wb") as file:
        for document in documents:
            file.write(struct.pack(f"<{SEQ}H", *document))
    n = len(documents)
    with open(path + ".idx", "wb") as file:
        file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, n, n + 1))
        file.write(struct.pack(f"<{n}i", *[SEQ] * n) + struct.pack(f"<{n}q", *[2 * SEQ * i for i in range(n)]))
        file.write(struct.pack(f"<{n + 1}q", *range(n + 1)))


class Machine:
    def __init__(self, program, folder, quick):
        self.program, self.folder, self.cores = program, folder, len(os.sched_getaffinity(0))
        self.quick = ["--quick"] if quick else []

    def run(self, ranks, *arguments):
        environment = dict(os.environ, OMP_NUM_THREADS=str(max(1, self.cores // ranks)), LORASHARD_LOG="warn")
        command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
        if os.geteuid() == 0:
            command.append("--allow-run-as-root")
        subprocess.run([*command, self.program, *arguments], env=environment, cwd=self.folder, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def probe(self, ranks, name):
        self.run(ranks, "probe", "-o", name, "--overwrite", *self.quick)
        return os.path.join(self.folder, name)


def lines_of(path):
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


def mean_cluster(first, second, path):
    """A cluster file whose numbers are the means of two, which probe wrote: a key a line, in one order."""
    a, b = lines_of(first), lines_of(second)
    if [line.split(":")[0] for line in a] != [line.split(":")[0] for line in b]:
        sys.exit(f"{os.path.basename(first)} and {os.path.basename(second)} have different keys: they are not of one "
                 "machine with the same ranks, or a rate of one was not measured; start again")
    with open(path, "w", encoding="utf-8") as out:
        for one, two in zip(a, b):
            x, y = (re.match(r"(\s*(?:achieved|bandwidth|alpha|beta): )(\S+)(.*)", line) for line in (one, two))
            out.write(f"{x[1]}{(float(x[2]) + float(y[2])) / 2:g}{x[3]}\n" if x and y else f"{one}\n")
    return path


def steps(folder):
    with open(os.path.join(folder, "out", "metrics.jsonl"), encoding="utf-8") as file:
        return [row["step_seconds"] for row in map(json.loads, file) if "step_seconds" in row]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--output", default=os.path.join(HERE, "measured.json"))
    parser.add_argument("--quick", action="store_true", help="short probes: to try this script")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(os.path.abspath(options.program), folder, options.quick)
        tokens(os.path.join(folder, "full"))
        with open(os.path.join(folder, "run.yaml"), "w", encoding="utf-8") as file:
            file.write(f"base: {MODEL}\ndata: {{train: [full.bin], format: tokens, seq_len: {SEQ}, packing: true}}\n"
                       f"lora: {{r: 8, targets: all}}\noutput: out\n"
                       f"train: {{steps: {options.steps}, global_batch: {ROWS}, micro_batch: {MICRO}}}\n")
        for ranks in sorted({ranks for ranks, _ in LAYOUTS}):
            before, results = machine.probe(ranks, "before.yaml"), []
            for settings in (settings for n, settings in LAYOUTS if n == ranks):
                flags = [part for setting in settings for part in ("--set", setting)]
                machine.run(ranks, "train", "run.yaml", "--overwrite", *flags)
                results.append((settings, flags, steps(folder)))
            cluster = mean_cluster(before, machine.probe(ranks, "after.yaml"), os.path.join(folder, "cluster.yaml"))
            for settings, flags, times in results:
                plan = subprocess.run([machine.program, "plan", "--config", "run.yaml", "--cluster", cluster, "--ranks",
                                       str(ranks), "--layout", "config", "--json", *flags], cwd=folder, check=True,
                                      capture_output=True, text=True)
                predicted = json.loads(plan.stdout)["layouts"][0]
                measured = statistics.median(times[2:])
                rows.append({"ranks": ranks, "settings": settings, "layout": predicted["layout"],
                             "predicted_s": predicted["time"]["step_s"], "measured_s": measured,
                             "fastest_s": min(times[2:]), "slowest_s": max(times[2:]),
                             "error": predicted["time"]["step_s"] / measured - 1, "machine_cores": machine.cores})
                print(f"{ranks} ranks, {' '.join(settings) or 'replicas'}: measured {measured:.3f} s "
                      f"({min(times[2:]):.3f} to {max(times[2:]):.3f}), predicted {rows[-1]['predicted_s']:.3f} s, "
                      f"{100 * rows[-1]['error']:+.0f} %", flush=True)
    with open(options.output, "w", encoding="utf-8") as file:
        json.dump({"date": datetime.date.today().isoformat(), "model": MODEL, "seq_len": SEQ, "rows_of_a_step": ROWS,
                   "micro_batch": MICRO, "load": os.getloadavg()[2], "rows": rows}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
