#!/usr/bin/env python3
"""One `lorashard train` run of the benchmark's shape; prints a JSON line with the keys of peft_bench.py.

--ranks 1 runs the program alone with two threads, --ranks 2 under mpirun with TP 2 and a thread a rank. Memory is
the sum of the ranks' largest resident sizes as the kernel counts them; start_to_first_step_seconds counts from the
start of the command to the first line of metrics.jsonl.
"""

import argparse
import glob
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

CONFIG = """\
base: {model}
output: {output}
device: cpu
data:
  train: [{ids}]
  format: tokens
  seq_len: {seq_len}
  packing: false
lora:
  r: {r}
  alpha: {alpha}
  targets: [{targets}]
train:
  steps: {steps}
  global_batch: {micro_batch}
  micro_batch: {micro_batch}
  lr: 1.0e-4
  schedule: constant
  warmup_steps: 0
  weight_decay: 0.01
  clip_norm: 1.0
  compute: {dtype}
parallel:
  tp: {ranks}
checkpoint:
  every: 0
"""


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lorashard", default="build/lorashard", help="the binary")
    parser.add_argument("--model", required=True, help="HF folder or GGUF file")
    parser.add_argument("--ids", required=True, help="Megatron .bin (inputs.py)")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--targets", choices=("q,v", "all"), default="q,v")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8, help="timed steps, after the warm-up")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=1)
    parser.add_argument("--as-rank", metavar="FILE", help=argparse.SUPPRESS)
    return parser.parse_known_args()


def as_rank(path, command):
    """Run one rank and write its largest resident size; this process's own does not count."""
    code = subprocess.call(command)
    with open(f"{path}.{os.environ.get('OMPI_COMM_WORLD_RANK', '0')}", "w") as file:
        file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
    return code


def run(command, environment, metrics, log):
    """Seconds from the start to the first step's line."""
    first = None
    start = time.perf_counter()
    with open(log, "w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if first is None and os.path.exists(metrics) and os.path.getsize(metrics) > 0:
                first = time.perf_counter() - start
            time.sleep(0.005 if first is None else 0.1)
    if process.returncode != 0 or first is None:
        with open(log) as output:
            sys.exit(f"{' '.join(command)}: exit {process.returncode}\n{output.read()[-2000:]}")
    return first


def main():
    args, rest = parse_rank() if "--as-rank" in sys.argv else parse()
    if args.as_rank:
        sys.exit(as_rank(args.as_rank, rest))
    if rest:
        sys.exit(f"unknown option {rest[0]}")
    with tempfile.TemporaryDirectory() as folder:
        values = vars(args) | dict(output=f"{folder}/out", steps=args.steps + args.warmup,
                                   model=os.path.abspath(args.model), ids=os.path.abspath(args.ids),
                                   targets=args.targets.replace(",", ", "))
        with open(f"{folder}/job.yaml", "w") as file:
            file.write(CONFIG.format(**values))
        command = [sys.executable, __file__, "--as-rank", f"{folder}/rss", os.path.abspath(args.lorashard), "train",
                   f"{folder}/job.yaml"]
        environment = os.environ | {"OMP_NUM_THREADS": str(2 // args.ranks)}
        if args.ranks > 1:
            environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
            command = ["mpirun", "-n", str(args.ranks)] + command
        metrics = f"{folder}/out/metrics.jsonl"
        first = run(command, environment, metrics, f"{folder}/log")
        with open(metrics) as file:
            steps = [json.loads(line) for line in file]
        peaks = [int(open(path).read()) for path in sorted(glob.glob(f"{folder}/rss.*"))]
    seconds = [step["step_seconds"] for step in steps]
    timed = seconds[args.warmup:]
    print(json.dumps({
        "program": f"lorashard-{args.ranks}",
        "tokens_per_second": args.micro_batch * args.seq_len / statistics.median(timed),
        "step_seconds": seconds,
        "peak_rss_bytes": sum(peaks),
        "start_to_first_step_seconds": first,
        "loss": steps[-1]["loss"],
        "settings": {k: v for k, v in vars(args).items() if k != "as_rank"},
    }))


def parse_rank():
    """--as-rank FILE COMMAND ...: the rest is another program's."""
    return argparse.Namespace(as_rank=sys.argv[2]), sys.argv[3:]


if __name__ == "__main__":
    main()
