/*
 * table.c: the GPU's row of operations.
 */
#include "model/cuda/cuda_internal.h"

const struct ops cuda_ops = {
    .name = "cuda",
    .linear_forward = cuda_linear_forward,
    .linear_backward = cuda_linear_backward,
    .linear_activation_forward = cuda_linear_activation_forward,
    .lowrank_forward = cuda_lowrank_forward,
    .lowrank_backward = cuda_lowrank_backward,
    .lowrank_project_forward = cuda_lowrank_project_forward,
    .lowrank_expand_forward = cuda_lowrank_expand_forward,
    .lowrank_expand_backward = cuda_lowrank_expand_backward,
    .lowrank_project_backward = cuda_lowrank_project_backward,
    .norm_forward = cuda_norm_forward,
    .norm_apply = cuda_norm_apply,
    .norm_backward = cuda_norm_backward,
    .head_norm_forward = cuda_head_norm_forward,
    .head_norm_backward = cuda_head_norm_backward,
    .rotary = cuda_rotary,
    .attention_forward = cuda_attention_forward,
    .attention_backward = cuda_attention_backward,
    .activation_forward = cuda_activation_forward,
    .activation_backward = cuda_activation_backward,
    .embedding = cuda_embedding,
    .add_rows = cuda_add_rows,
    .add = cuda_add,
    .zero = cuda_zero,
    .cast = cuda_cast,
    .gather_rows = cuda_gather_rows,
    .scatter_rows = cuda_scatter_rows,
    .xent_max = cuda_xent_max,
    .xent_sum = cuda_xent_sum,
    .xent_backward = cuda_xent_backward,
    .adamw = cuda_adamw,
    .sum_squares = cuda_sum_squares,
};
