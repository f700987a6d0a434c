/*
 * gguf_model.h: a GGUF file of arch llama, qwen2 or qwen3 seen as a Hugging
 * Face model: its facts, and what its tensors are called there.
 */
#ifndef LORASHARD_IO_GGUF_MODEL_H
#define LORASHARD_IO_GGUF_MODEL_H

#include <stddef.h>

#include "io/gguf.h"
#include "io/model_facts.h"

/* Facts from the keys and from which tensors are there (biases, tied head,
 * rope_freqs). Reads rope_freqs.weight, nothing else. Errors: STATUS_USAGE
 * (another architecture, experts, an unknown scaling: named), STATUS_DATA. */
enum status gguf_model_facts(const struct gguf *gguf, struct model_facts *facts);

/* The Hugging Face name of a tensor: "blk.0.attn_q.weight" becomes
 * "model.layers.0.self_attn.q_proj.weight"; a name that is not known is copied.
 * hf_name holds at least 128 bytes; tensor names in a file have at most 64. */
void gguf_model_name(const char *name, char *hf_name, size_t size);

/* Heads within which the converter re-ordered a tensor's rows, 0 if it did not:
 * q and k of arch llama, weights and biases. */
int64_t gguf_model_permuted_heads(const char *name, const struct model_facts *facts);

/* The row of the file that holds row `row` of Hugging Face's order. */
static inline int64_t gguf_model_row(int64_t row, int64_t head_dim) {
  int64_t head = row / head_dim, inside = row % head_dim, half = head_dim / 2;
  return head * head_dim + inside % half * 2 + inside / half;
}

#endif
