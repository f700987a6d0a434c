/*
 * table.c: the CPU's row of operations.
 */
#include "model/cpu/cpu_internal.h"

const struct ops cpu_ops = {
    .name = "cpu",
    .linear_forward = cpu_linear_forward,
    .linear_backward = cpu_linear_backward,
    .linear_activation_forward = cpu_linear_activation_forward,
    .lowrank_forward = cpu_lowrank_forward,
    .lowrank_backward = cpu_lowrank_backward,
    .lowrank_project_forward = cpu_lowrank_project_forward,
    .lowrank_expand_forward = cpu_lowrank_expand_forward,
    .lowrank_expand_backward = cpu_lowrank_expand_backward,
    .lowrank_project_backward = cpu_lowrank_project_backward,
    .norm_forward = cpu_norm_forward,
    .norm_apply = cpu_norm_apply,
    .norm_backward = cpu_norm_backward,
    .head_norm_forward = cpu_head_norm_forward,
    .head_norm_backward = cpu_head_norm_backward,
    .rotary = cpu_rotary,
    .attention_forward = cpu_attention_forward,
    .attention_backward = cpu_attention_backward,
    .activation_forward = cpu_activation_forward,
    .activation_backward = cpu_activation_backward,
    .embedding = cpu_embedding,
    .add_rows = cpu_add_rows,
    .add = cpu_add,
    .zero = cpu_zero,
    .cast = cpu_cast,
    .gather_rows = cpu_gather_rows,
    .scatter_rows = cpu_scatter_rows,
    .xent_max = cpu_xent_max,
    .xent_sum = cpu_xent_sum,
    .xent_backward = cpu_xent_backward,
    .adamw = cpu_adamw,
    .sum_squares = cpu_sum_squares,
};
