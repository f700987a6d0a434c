#!/usr/bin/env python3
"""The steps of docs/performance.md beside what `lorashard plan` predicts for them: the table in docs/scaling.md.

    python3 docs/scaling/performance.py build/lorashard

Rates of products are those that page measured with the matrix library; memory bandwidth and the link are assumed. Two
ranks have half a machine each. The same program gives the same table."""
import json
import os
import subprocess
import sys
import tempfile

BANDWIDTH, LINK, LATENCY = 20e9, 4e9, 2e-6  # bytes/s, bytes/s, s: assumed
# model, its name, adapters on, type, FLOP/s of both cores (measured), tokens/s with 1 x 2 threads and tp 2 (measured)
CASES = [
    ("gpt2", "GPT-2-124M, q and v", "[q, v]", "f32", 216e9, (377, 372)),
    ("smollm2-135m", "SmolLM2-135M, all linears", "all", "f32", 215e9, (310, 264)),
    ("gpt2", "GPT-2-124M, q and v", "[q, v]", "bf16", 375e9, (593, 676)),
    ("smollm2-135m", "SmolLM2-135M, all linears", "all", "bf16", 399e9, (532, 412)),
]


def cluster(ranks, dtype, rate):
    """The machine of that page, cut into equal ranks, as a cluster file."""
    link = f"{{alpha: {LATENCY:g}, beta: {LINK:g}}}"
    return (f"name: 2 cores of an AMD EPYC, {ranks} rank(s)\n"
            f"nodes: 1\n"
            f"device:\n"
            f"  {{kind: cpu, per_node: {ranks}, memory: {16e9 / ranks:g}, bandwidth: {BANDWIDTH / ranks:g},\n"
            f"   {dtype}: {{achieved: {rate / ranks:g}}}}}\n"
            f"node: {{all_reduce: {link}, all_gather: {link}, point_to_point: {link}}}\n")


def predict(program, path, model, targets, dtype, ranks):
    settings = [f"lora.targets={targets}", "lora.r=8", f"train.compute={dtype}", "data.seq_len=512",
                "train.global_batch=4", "train.micro_batch=4"]
    flags = [part for setting in settings for part in ("--set", setting)]
    plan = subprocess.run([program, "plan", "--model", f"synthetic:{model},dtype={dtype}", "--cluster", path,
                           "--layout", f"tp={ranks}", "--json", *flags], check=True, capture_output=True, text=True)
    return json.loads(plan.stdout)["layouts"][0]["time"]["tokens_per_s"]


def main():
    program = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "build/lorashard")
    if not os.access(program, os.X_OK):
        sys.exit(f"{program}: no such program; build it, or name it: {sys.argv[0]} PROGRAM")
    print("| tokens/s | type | ranks | measured | predicted | error |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "cluster.yaml")
        for model, name, targets, dtype, rate, measured in CASES:
            for ranks, text in ((1, "1 x 2 threads"), (2, "tp 2")):
                with open(path, "w", encoding="utf-8") as file:
                    file.write(cluster(ranks, dtype, rate))
                predicted, real = predict(program, path, model, targets, dtype, ranks), measured[ranks - 1]
                error = 100 * (predicted / real - 1)
                print(f"| {name} | {dtype} | {text} | {real} | {predicted:.0f} | {error:+.0f} % |")


if __name__ == "__main__":
    main()
