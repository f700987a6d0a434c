#!/usr/bin/env python3
"""Makes the goldens of this folder and compares lorashard with transformers; see README.md.

    make.py [CASE ...]                      (re)make all cases, or these
    make.py --check-export BASE ADAPTER SCORES.json [--tolerance X]
    make.py --smollm2 FILE.gguf TEXT ... --out FILE.json [--hf DIR]
"""

import argparse
import json
import os
import shutil
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import warnings  # noqa: E402

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import checks  # noqa: E402
import oracle  # noqa: E402
from cases import CASES, MODULES  # noqa: E402


def versions():
    return dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)


def module_rows(case, adapted):
    """One row per adapter: what the C tests need to build it."""
    rows = []
    layers = 1 + max(int(k.split(".")[1]) for k in adapted.factors)
    for layer in range(layers):
        for module in MODULES:
            key = f"layers.{layer}.{module}.A"
            if key in adapted.factors:
                r, alpha = oracle.rank_alpha(case, module)
                rows.append(dict(layer=layer, module=module, r=r, alpha=alpha, scale=oracle.scale_of(case, module)))
    return rows


def single_precision_error(name, case, folder, ids, labels, reference):
    """How far transformers in float32 is from float64: what a tolerance can be measured by."""
    logits64, grads64, losses64, norms64 = reference
    adapted = oracle.Adapted(name, case, folder, torch.float32)
    _, logits, grads = oracle.first_step(adapted, ids, labels)
    losses, norms = oracle.curve(adapted, ids, labels)
    return dict(logits=(logits.double() - logits64).abs().max().item(), grads=oracle.compare(grads64, grads),
                losses=max(abs(a - b) for a, b in zip(losses, losses64)),
                grad_norms=max(abs(a - b) for a, b in zip(norms, norms64)))


def make_case(name):
    case, folder = CASES[name], os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    oracle.make_base(name, case, folder)
    ids, labels = oracle.batch(name, case.config["vocab_size"])
    with oracle.Float64():
        adapted = oracle.Adapted(name, case, folder, torch.float64)
        loss, logits, grads = oracle.first_step(adapted, ids, labels)
        slope_error = oracle.check_slope(oracle.Adapted(name, case, folder, torch.float64), ids, labels, grads)
        tensors = dict(ids=ids.float(), labels=labels.float(), logits=logits.float())
        for key, factor in adapted.factors.items():
            tensors[key] = factor.detach().float().clone()
            tensors["grad." + key] = grads[key].float()
        rows, keys = module_rows(case, adapted), adapted.peft_keys()
        if case.save_adapter:
            save_adapter(adapted, folder)
        losses, norms = oracle.curve(adapted, ids, labels)
    tensors = {k: v.detach().to(torch.float32).contiguous() for k, v in tensors.items()}
    save_file(tensors, f"{folder}/golden.safetensors", metadata={"format": "pt"})
    error = single_precision_error(name, case, folder, ids, labels, (logits, grads, losses, norms))
    oracle.write_json(f"{folder}/golden.json", dict(
        case=name, family=case.family, seq_len=oracle.SEQ_LEN, rows=oracle.ROWS, n_vocab=case.config["vocab_size"],
        ids=ids.tolist(), labels=labels.tolist(), n_targets=int((labels >= 0).sum()), r=case.r, alpha=case.alpha,
        rslora=case.rslora, modules=rows, loss=loss, losses=losses, grad_norms=norms,
        optimizer=oracle.ADAMW | dict(clip_norm=oracle.CLIP_NORM), single_precision_error=error, peft_keys=keys,
        versions=versions()))
    for root, _, files in os.walk(folder):
        for file in files:
            os.chmod(os.path.join(root, file), 0o644)
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(folder) for f in files)
    print(f"{name:18} {size / 1e3:6.0f} kB  logits std {logits.std().item():.2f}  loss {losses[0]:.4f} -> "
          f"{losses[-1]:.4f}  norm {norms[0]:.3f}  f32 error: " +
          " ".join(f"{k} {v:.1e}" for k, v in error.items()) + f"  slope {slope_error:.0e}", flush=True)


def save_adapter(adapted, folder):
    """PEFT's own folder, in float32."""
    target = f"{folder}/adapter"
    adapted.model.save_pretrained(target)
    path = f"{target}/adapter_model.safetensors"
    save_file({k: v.to(torch.float32) for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    os.remove(f"{target}/README.md")
    with open(f"{target}/adapter_config.json") as file:
        config = json.load(file)
    config["base_model_name_or_path"] = ""
    config["target_modules"] = sorted(config["target_modules"])
    oracle.write_json(f"{target}/adapter_config.json", config)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--check-export", nargs=3, metavar=("BASE", "ADAPTER", "SCORES"))
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--smollm2", nargs="+", metavar=("GGUF", "TEXT"))
    parser.add_argument("--out")
    parser.add_argument("--hf", metavar="DIR")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.check_export:
        checks.check_export(*args.check_export, args.tolerance)
        return
    if args.smollm2:
        if not args.out:
            parser.error("--smollm2 needs --out")
        result = checks.score_texts(args.smollm2[0], args.smollm2[1:], args.hf)
        oracle.write_json(args.out, result | dict(versions=versions()))
        return
    for name in args.cases or CASES:
        make_case(name)


if __name__ == "__main__":
    main()
