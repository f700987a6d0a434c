"""The golden cases: one tiny random model each, with the adapters it carries.

A case is small on purpose (the folder has a size budget), but has an odd vocabulary, widths that do not divide and
the feature that its name says. Random numbers depend on the case's name only.
"""

from dataclasses import dataclass, field

# Path of each adapted linear below a layer, as transformers names it. q, k, v of "fused" lie in one linear.
PATHS = {
    "gpt2": dict(fused="attn.c_attn", o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"),
    "opt": dict(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.out_proj",
                up="fc1", down="fc2"),
    "bloom": dict(fused="self_attention.query_key_value", o="self_attention.dense", up="mlp.dense_h_to_4h",
                  down="mlp.dense_4h_to_h"),
    "gpt_neox": dict(fused="attention.query_key_value", o="attention.dense", up="mlp.dense_h_to_4h",
                     down="mlp.dense_4h_to_h"),
    "gptj": dict(q="attn.q_proj", k="attn.k_proj", v="attn.v_proj", o="attn.out_proj", up="mlp.fc_in",
                 down="mlp.fc_out"),
}
for name in ("llama", "mistral", "qwen2", "qwen3"):
    PATHS[name] = dict(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.o_proj",
                       gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj")

# Where the layers are in the causal-language-model class.
LAYERS = {"gpt2": "transformer.h", "bloom": "transformer.h", "gptj": "transformer.h", "gpt_neox": "gpt_neox.layers",
          "opt": "model.decoder.layers"}

MODULES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass
class Case:
    family: str
    config: dict
    dtype: str = "bf16"  # of the stored weights
    shards: int = 1      # files of the stored weights
    r: int = 4
    alpha: float = 8
    rslora: bool = False
    overrides: dict = field(default_factory=dict)  # module -> (r, alpha)
    targets: tuple = MODULES
    peft_fused: bool = False   # PEFT's own adapter on the fused linear instead of separate q, k, v
    save_adapter: bool = False  # keep PEFT's own folder as well


def llama_like(hidden=32, heads=4, kv=2, ffn=62, vocab=67, layers=2, **more):
    return dict(hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv, intermediate_size=ffn,
                vocab_size=vocab, num_hidden_layers=layers, max_position_embeddings=64) | more


NEOX = dict(hidden_size=32, num_attention_heads=2, intermediate_size=100, vocab_size=61, num_hidden_layers=2,
            max_position_embeddings=64, rotary_pct=0.25)
OPT = dict(vocab_size=71, hidden_size=32, ffn_dim=100, num_hidden_layers=2, num_attention_heads=4,
           max_position_embeddings=64, dropout=0.0)
GPT2 = dict(vocab_size=97, n_positions=64, n_embd=64, n_layer=2, n_head=4, n_inner=100, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0)

CASES = {
    "gpt2": Case("gpt2", GPT2),
    "llama": Case("llama", llama_like(
        hidden=64, ffn=172, vocab=97, rope_parameters=dict(
            rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=32))),
    "gpt2-seven-heads": Case("gpt2", GPT2 | dict(vocab_size=71, n_embd=56, n_head=7, n_inner=86), dtype="f16"),
    "gpt2-peft": Case("gpt2", GPT2 | dict(vocab_size=67, n_embd=32, n_inner=86), dtype="f32", peft_fused=True,
                      targets=("q", "k", "v"), save_adapter=True),
    "opt": Case("opt", OPT, dtype="f16"),
    "opt-post-norm": Case("opt", OPT | dict(do_layer_norm_before=False, word_embed_proj_dim=20), shards=3),
    "bloom": Case("bloom", dict(vocab_size=67, hidden_size=40, n_layer=2, n_head=5)),
    "neox": Case("gpt_neox", NEOX | dict(hidden_act="gelu")),
    "neox-sequential": Case("gpt_neox", NEOX | dict(hidden_act="gelu_fast", use_parallel_residual=False),
                            dtype="f16", alpha=4, rslora=True),
    "gptj": Case("gptj", dict(vocab_size=67, n_positions=64, n_embd=32, n_layer=2, n_head=4, n_inner=100,
                              rotary_dim=4)),
    "llama-uneven": Case("llama", llama_like(
        hidden=48, heads=6, vocab=67, kv=3, ffn=86, rms_norm_eps=1e-5), dtype="f16"),
    "llama-tied-bias": Case("llama", llama_like(tie_word_embeddings=True, attention_bias=True,
                                                mlp_bias=True), dtype="f16"),
    "llama-yarn": Case("llama", llama_like(rope_parameters=dict(
        rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16))),
    "mistral": Case("mistral", llama_like(sliding_window=7, rope_theta=1e6), alpha=4, rslora=True),
    "qwen2": Case("qwen2", llama_like(layers=3, vocab=61), dtype="f16",
                  overrides=dict(q=(2, 8), o=(8, 8), down=(3, 5)), save_adapter=True),
    "qwen3": Case("qwen3", llama_like(head_dim=16, vocab=59)),
}
