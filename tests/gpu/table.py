#!/usr/bin/env python3
"""table.py RESULTS.jsonl: the tables of the GPU benchmark (bench) in Markdown.

Lines: one of torch_rates.py ("torch-rates"), one for each run of lorashard ("lorashard", written by bench) and for each way of
peft_bench.py ("peft"), and one ("shape") that says what was trained.

Floating-point operations of a token are counted as 4 P + 12 L H E (S + 1) / 2: two passes over the P weights of the linears and
the head, forward and for the gradient of their inputs; attention's products over visible pairs, backward twice forward. Adapters and what
is computed again are not counted.
"""

import json
import sys

BAR = 50  # percent of the card's own matrix rate that lorashard should reach


def flops_per_token(s):
    q, kv = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"]
    weights = s["layers"] * (2 * s["d"] * q + 2 * s["d"] * kv + 3 * s["d"] * s["ffn"]) + s["vocab"] * s["d"]
    return 4 * weights + 12 * s["layers"] * q * (s["seq_len"] + 1) / 2


def gb(value):
    return f"{value / 1e9:.1f}" if value else ""


def name_of(run):
    if run["program"] == "lorashard":
        return f"lorashard{run.get('note', '')}"
    return f"PEFT, adapters {run['adapters']}, checkpointing {run['checkpointing']}"


def main():
    with open(sys.argv[1]) as file:
        lines = [json.loads(line) for line in file if line.strip()]
    shape = next(line for line in lines if line["program"] == "shape")
    rates = next((line for line in lines if line["program"] == "torch-rates"), None)
    runs = [line for line in lines if line["program"] in ("lorashard", "peft")]
    ours = next((run for run in runs if run["program"] == "lorashard" and "median" in run), None)
    tokens, operations = shape["rows"] * shape["seq_len"], flops_per_token(shape)
    print(f"{shape['layers']} layers of Llama-3-8B's 32 (random bf16 weights), LoRA r = {shape['r']} on all linears, "
          f"{shape['rows']} x {shape['seq_len']} tokens a step and GPU, {operations / 1e9:.2f} GFLOP a token. Medians of "
          f"{shape['steps']} steps after {shape['warmup']}.", end=" ")
    if shape["layers"] != 32:
        print("No figure is extrapolated to 32 layers: the head and the loss weigh "
              f"{32 / shape['layers']:.0f} times as much here.", end=" ")
    if rates:
        print(f"The card's own rates in the same session, by torch {rates['torch']}: {rates['matmul_tflops']:.0f} TFLOP/s (bf16 "
              f"products, 8192 x 8192), {rates['copy_gbps']:.0f} GB/s (copy).")
    else:
        print("The card's own rates were not measured: there is no torch with CUDA.")
    print("\n| program | s a step | tokens/s a GPU | TFLOP/s a GPU | of the card's own rate | lorashard's speed / this | "
          "peak of the card's memory, GB | last loss |")
    print("|---" * 8 + "|")
    for run in runs:
        if "median" not in run:
            print(f"| {name_of(run)} | {run.get('error', 'failed')} | | | | | | |")
            continue
        own = tokens / run.get("tp", 1)  # a GPU's share of the tokens
        rate = 1e-12 * operations * own / run["median"]
        share = f"{100 * rate / rates['matmul_tflops']:.0f} %" if rates else ""
        ratio = f"{run['median'] / ours['median']:.2f}" if ours and run["program"] == "peft" else ""
        print(f"| {name_of(run)} | {run['median']:.3f} | {own / run['median']:.0f} | {rate:.0f} | {share} | {ratio} | "
              f"{gb(run.get('peak_bytes'))} | {run['loss']:.4f} |")
    if ours and rates:
        share = 100e-12 * operations * tokens / ours["median"] / rates["matmul_tflops"]
        print(f"\nThe bar is {BAR} % of the card's own rate: {'reached' if share >= BAR else 'MISSED'} ({share:.1f} %).")
    print("\nMemory: for lorashard all that is in use on the card, as nvidia-smi sees it; for PEFT torch's tensors alone.")
    versions = next((run["versions"] for run in runs if "versions" in run), None)
    if versions:
        print("\n" + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")


if __name__ == "__main__":
    main()
