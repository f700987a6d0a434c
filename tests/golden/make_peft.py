#!/usr/bin/env python3
"""PEFT's own adapter folders on tiny random models, for tests/io/test_peft.c.

    make_peft.py                       write tests/fixtures/peft/{gpt2,llama,neox}/
    make_peft.py check CASE FOLDER     load FOLDER (an export) with PEFT onto the same base and compare its
                                       logits with those of the case's own adapter

A case holds config.json of the base; adapter_config.json and adapter_model.safetensors as PEFT saved them;
delta.safetensors with what each adapted linear adds to its weight, [out, in], as PEFT computes it; and
expected.json: for each adapted path its r and scale, and the keys and shapes that PEFT would save if all its
modules had one common rank ("uniform", rank in "uniform_r")."""

import json
import os
import shutil
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is made here

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures", "peft")

BASES = {
    "gpt2": ("gpt2", dict(vocab_size=29, n_positions=32, n_embd=16, n_layer=2, n_head=4)),
    "llama": ("llama", dict(vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
                            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32)),
    "neox": ("gpt_neox", dict(vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                              num_attention_heads=4, max_position_embeddings=32, rotary_pct=0.5)),
}

ADAPTERS = {
    # both c_proj, regular expressions as keys, rsLoRA with r and alpha that differ
    "gpt2": dict(r=4, lora_alpha=6, use_rslora=True, target_modules=["c_attn", "c_proj", "c_fc"],
                 fan_in_fan_out=True, rank_pattern={"mlp.c_fc": 2, r"h\.1\.attn\.c_proj": 3},
                 alpha_pattern={r"attn\.c_attn": 5, r"h\.[01]\.mlp\.c_proj": 7}),
    # a part of the layers, all seven linears
    "llama": dict(r=3, lora_alpha=12, layers_to_transform=[0, 2],
                  target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                  rank_pattern={r"layers\.2\.mlp\.(up|down)_proj": 5, "q_proj": 1},
                  alpha_pattern={"model.layers.0.self_attn.v_proj": 3}),
    # targets as one regular expression
    "neox": dict(r=4, lora_alpha=16, target_modules=r"gpt_neox\.layers\.\d+\.(attention|mlp)\.(query_key_value|dense\w*)"),
}


def base_model(case):
    kind, sizes = BASES[case]
    torch.manual_seed(sum(case.encode()))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def lora_modules(model):
    return {name.removeprefix("base_model.model."): module for name, module in model.named_modules()
            if hasattr(module, "lora_A") and len(module.lora_A)}


def adapted(case, **changes):
    settings = {**ADAPTERS[case], **changes}
    model = get_peft_model(base_model(case), LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(7)
    with torch.no_grad():
        for module in lora_modules(model).values():
            module.lora_A["default"].weight.normal_()
            module.lora_B["default"].weight.normal_()
    return model.eval()


def logits(model):
    ids = torch.arange(48).reshape(2, 24) * 7 % 29
    with torch.no_grad():
        return model.double()(input_ids=ids).logits


def uniform_keys(case, r):
    """What PEFT saves with one rank everywhere."""
    from peft import get_peft_model_state_dict
    model = adapted(case, r=r, rank_pattern={}, alpha_pattern={})
    return {key: list(value.shape) for key, value in sorted(get_peft_model_state_dict(model).items())}


def make(case):
    folder = os.path.join(HERE, case)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    model = adapted(case)
    model.peft_config["default"].base_model_name_or_path = "tiny-" + case
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    model.base_model.model.config.to_json_file(os.path.join(folder, "config.json"), use_diff=False)
    modules = lora_modules(model)
    deltas = {}
    for path, module in modules.items():
        delta = module.get_delta_weight("default")
        deltas[path] = (delta.T if module.fan_in_fan_out else delta).detach().contiguous()
    save_file(deltas, os.path.join(folder, "delta.safetensors"), metadata={"format": "pt"})
    largest = 3 * 5
    expected = {
        "modules": {path: {"r": module.r["default"], "scale": module.scaling["default"]}
                    for path, module in modules.items()},
        "uniform_r": largest,
        "uniform": uniform_keys(case, largest),
    }
    with open(os.path.join(folder, "expected.json"), "w") as file:
        json.dump(expected, file, indent=1)
        file.write("\n")
    size = sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))
    print(f"{case}: {len(modules)} modules, {size} bytes")


def check(case, folder):
    plain = logits(base_model(case))
    own = logits(PeftModel.from_pretrained(base_model(case), os.path.join(HERE, case)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns about keys that it does not find
        exported = PeftModel.from_pretrained(base_model(case), folder)
    theirs = logits(exported)
    scale = own.abs().max()
    print(f"{case}: largest logit {scale:.3g}, adapter changes {(own - plain).abs().max():.3g}, "
          f"export differs by {(own - theirs).abs().max():.3g}")
    # Computed in f64. One rounding of B to f32, where its scale was folded, moves these logits by 2e-6.
    return (own - theirs).abs().max() <= 1e-5 * scale and (own - plain).abs().max() > 1e-2 * scale


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        sys.exit(0 if check(sys.argv[2], sys.argv[3]) else 1)
    for name in BASES:
        make(name)
