#include "io/schema.h"

#include <stdio.h>
#include <string.h>

#include "io/config.h"
#include "io/nearest.h"

#define AT(field)          offsetof(struct config, field)
#define OVERRIDE_AT(field) offsetof(struct lora_override, field)
#define ROWS(rows)         ((int)(sizeof rows / sizeof rows[0]))

/* The largest whole number that a double holds exactly is far above these. */
#define MAX_STEPS 1e12

static const char *const formats[] = {"auto", "text", "prompt_completion", "messages", "alpaca", "e2e", "tokens", NULL};
static const char *const chat_templates[] = {"auto", "none", "chatml", "llama2", "llama3", "zephyr", "alpaca", NULL};
static const char *const devices[] = {"auto", "cpu", "cuda", NULL};
static const char *const collectives[] = {"auto", "nccl", "mpi", NULL};
static const char *const inits[] = {"kaiming", "gaussian", NULL};
static const char *const schedules[] = {"linear", "cosine", "constant", NULL};
static const char *const computes[] = {"f32", "bf16", NULL};
static const char *const base_dtypes[] = {"keep", "f32", "bf16", "fp8", "int8", "nf4", NULL};
static const char *const recomputes[] = {"none", "selective", "full", NULL};

/* A section's rows stand together; the printed configuration follows this order. */
const struct schema_row schema_rows[] = {
    {.name = "base",
     .type = SCHEMA_TEXT,
     .default_text = "''",
     .doc = "The frozen model: a Hugging Face folder, a .gguf file, or synthetic:NAME for made-up weights",
     .offset = AT(base),
     .also = "model"},
    {.name = "data.train",
     .type = SCHEMA_FILES,
     .default_text = "[]",
     .doc = "Files to train on (.jsonl, .txt, .bin with .idx)",
     .offset = AT(data.train),
     .also = "dataset"},
    {.name = "data.eval",
     .type = SCHEMA_FILES,
     .default_text = "[]",
     .doc = "Files whose loss is reported and never trained on",
     .offset = AT(data.eval),
     .also = "validation"},
    {.name = "data.format",
     .type = SCHEMA_TEXT,
     .default_text = "auto",
     .choices = formats,
     .doc = "What a record holds; auto looks at its fields",
     .offset = AT(data.format)},
    {.name = "data.seq_len",
     .type = SCHEMA_INT,
     .default_text = "512",
     .low = 1,
     .high = 1048576,
     .unit = "tokens",
     .doc = "Positions in a row; longer documents are cut",
     .offset = AT(data.seq_len),
     .also = "max_length"},
    {.name = "data.packing",
     .type = SCHEMA_BOOL,
     .default_text = "true",
     .doc = "Put several documents into a row; they do not see each other",
     .offset = AT(data.packing)},
    {.name = "data.chat_template",
     .type = SCHEMA_TEXT,
     .default_text = "auto",
     .choices = chat_templates,
     .doc = "How messages become text; auto recognises the tokenizer's own template",
     .offset = AT(data.chat_template)},
    {.name = "lora.r",
     .type = SCHEMA_INT,
     .default_text = "8",
     .low = 1,
     .high = 65536,
     .doc = "Rank of the adapters",
     .offset = AT(lora.r),
     .also = "rank"},
    {.name = "lora.alpha",
     .type = SCHEMA_REAL,
     .default_text = "16",
     .low = 0,
     .low_open = true,
     .high = 1e9,
     .doc = "Numerator of the scale alpha / r",
     .offset = AT(lora.alpha),
     .also = "lora_alpha"},
    {.name = "lora.dropout",
     .type = SCHEMA_REAL,
     .default_text = "0",
     .low = 0,
     .high = 1,
     .high_open = true,
     .doc = "Probability that an element of an adapter's input is dropped in training",
     .offset = AT(lora.dropout),
     .also = "lora_dropout"},
    {.name = "lora.targets",
     .type = SCHEMA_TARGETS,
     .default_text = "[q, v]",
     .doc = "Linears that get an adapter: q k v o gate up down (fc1 and fc2 mean up and down), or all",
     .offset = AT(lora.targets),
     .also = "target_modules"},
    {.name = "lora.layers",
     .type = SCHEMA_LAYERS,
     .default_text = "all",
     .doc = "Layers that get adapters, from 0: all, a number, a range \"4-11\", or a list of these",
     .offset = AT(lora.layers),
     .also = "layers_to_transform"},
    {.name = "lora.rslora",
     .type = SCHEMA_BOOL,
     .default_text = "false",
     .doc = "Scale by alpha / sqrt(r) instead of alpha / r",
     .offset = AT(lora.rslora),
     .also = "use_rslora"},
    {.name = "lora.init",
     .type = SCHEMA_CHOICE,
     .default_text = "kaiming",
     .choices = inits,
     .doc = "Start of A: kaiming is uniform within 1/sqrt(inputs), gaussian has standard deviation 1/r; B starts at 0",
     .offset = AT(lora.init)},
    {.name = "lora.overrides",
     .type = SCHEMA_OVERRIDES,
     .default_text = "[]",
     .doc = "Other ranks or scales for some modules and layers, or none there (off: true); later ones win",
     .offset = AT(lora.overrides)},
    {.name = "lora.adapter",
     .type = SCHEMA_TEXT,
     .default_text = "''",
     .doc = "Start from this adapter (gathered file, step directory or PEFT folder) instead of a fresh one",
     .offset = AT(lora.adapter)},
    {.name = "train.steps",
     .type = SCHEMA_INT,
     .default_text = "0",
     .low = 0,
     .high = MAX_STEPS,
     .unit = "steps",
     .doc = "Length of the run; 0: train.epochs decides",
     .offset = AT(train.steps),
     .also = "max_steps"},
    {.name = "train.epochs",
     .type = SCHEMA_REAL,
     .default_text = "1",
     .low = 0,
     .high = 1e6,
     .doc = "Length of the run in passes over data.train; not together with train.steps",
     .offset = AT(train.epochs),
     .also = "num_train_epochs"},
    {.name = "train.global_batch",
     .type = SCHEMA_INT,
     .default_text = "8",
     .low = 1,
     .high = 1048576,
     .unit = "rows",
     .doc = "Rows of one step over all ranks; need not be a multiple of anything",
     .offset = AT(train.global_batch),
     .also = "batch_size"},
    {.name = "train.micro_batch",
     .type = SCHEMA_INT,
     .default_text = "1",
     .low = 1,
     .high = 65536,
     .unit = "rows",
     .doc =
         "Rows that go through the model at once (without tensor parallelism never more than about 1024 tokens: more "
         "would only take memory); changes speed and memory, not the result",
     .offset = AT(train.micro_batch),
     .also = "per_device_train_batch_size"},
    {.name = "train.lr",
     .type = SCHEMA_REAL,
     .default_text = "2e-4",
     .low = 0,
     .high = 1000,
     .doc = "Peak learning rate",
     .offset = AT(train.lr),
     .also = "learning_rate"},
    {.name = "train.schedule",
     .type = SCHEMA_CHOICE,
     .default_text = "linear",
     .choices = schedules,
     .doc = "Learning rate after the warm-up: linear and cosine fall to 0 at the end",
     .offset = AT(train.schedule),
     .also = "lr_scheduler_type"},
    {.name = "train.warmup_steps",
     .type = SCHEMA_INT,
     .default_text = "0",
     .low = 0,
     .high = MAX_STEPS,
     .unit = "steps",
     .doc = "Steps over which the learning rate rises from 0",
     .offset = AT(train.warmup_steps)},
    {.name = "train.weight_decay",
     .type = SCHEMA_REAL,
     .default_text = "0",
     .low = 0,
     .high = 1000,
     .doc = "AdamW's decoupled weight decay",
     .offset = AT(train.weight_decay)},
    {.name = "train.betas",
     .type = SCHEMA_REAL_PAIR,
     .default_text = "[0.9, 0.999]",
     .low = 0,
     .high = 1,
     .high_open = true,
     .doc = "AdamW's decay rates of the first and second moment",
     .offset = AT(train.betas),
     .also = "adam_beta1"},
    {.name = "train.eps",
     .type = SCHEMA_REAL,
     .default_text = "1e-8",
     .low = 0,
     .low_open = true,
     .high = 1,
     .doc = "AdamW's epsilon",
     .offset = AT(train.eps),
     .also = "adam_epsilon"},
    {.name = "train.clip_norm",
     .type = SCHEMA_REAL,
     .default_text = "1",
     .low = 0,
     .high = 1e9,
     .doc = "Largest norm of the whole gradient; 0: no clipping",
     .offset = AT(train.clip_norm),
     .also = "max_grad_norm"},
    {.name = "train.seed",
     .type = SCHEMA_SEED,
     .default_text = "0",
     .doc = "Decides initial adapters, dropout and sample order, whatever the layout",
     .offset = AT(train.seed)},
    {.name = "train.compute",
     .type = SCHEMA_CHOICE,
     .default_text = "f32",
     .choices = computes,
     .doc = "Number type of the matrix products; sums, adapters and optimizer are f32 always",
     .offset = AT(train.compute),
     .also = "precision"},
    {.name = "train.base_dtype",
     .type = SCHEMA_CHOICE,
     .default_text = "keep",
     .choices = base_dtypes,
     .doc = "Number type of the frozen weights in memory; keep: as in the file; fp8, int8, nf4: 8, 8 or 4 bits for the "
            "layers' linears",
     .offset = AT(train.base_dtype)},
    {.name = "train.recompute",
     .type = SCHEMA_CHOICE,
     .default_text = "none",
     .choices = recomputes,
     .doc = "What backward computes again to save memory; selective: the ffn's widest activations; full: whole layers",
     .offset = AT(train.recompute)},
    {.name = "train.skip_nan",
     .type = SCHEMA_BOOL,
     .default_text = "false",
     .doc = "Skip a step whose gradient is not finite instead of stopping",
     .offset = AT(train.skip_nan)},
    {.name = "train.check_every",
     .type = SCHEMA_INT,
     .default_text = "0",
     .low = 0,
     .high = MAX_STEPS,
     .unit = "steps",
     .doc =
         "Steps between comparisons of the parameters that several ranks hold, to the bit: faulty memory, processors "
         "and networks show; 0: never",
     .offset = AT(train.check_every)},
    {.name = "train.tf32",
     .type = SCHEMA_BOOL,
     .default_text = "false",
     .doc = "On GPUs, f32 products may round their inputs to TF32: faster, about 3 digits",
     .offset = AT(train.tf32)},
    {.name = "train.graphs",
     .type = SCHEMA_BOOL,
     .default_text = "false",
     .doc = "On GPUs, repeat micro-batches of equal shape as CUDA graphs (not with pipeline stages)",
     .offset = AT(train.graphs)},
    {.name = "parallel.tp",
     .type = SCHEMA_INT,
     .default_text = "1",
     .low = 1,
     .high = 65536,
     .unit = "ranks",
     .doc = "Ranks that share the layers of a stage; ranks / (tp x pp) copies of the model share the batch",
     .offset = AT(parallel.tp),
     .also = "tensor_parallel_size"},
    {.name = "parallel.pp",
     .type = SCHEMA_INT,
     .default_text = "1",
     .low = 1,
     .high = 65536,
     .unit = "stages",
     .doc = "Pipeline stages: ranks that hold different layers of one copy of the model",
     .offset = AT(parallel.pp),
     .also = "pipeline_parallel_size"},
    {.name = "parallel.sequence",
     .type = SCHEMA_BOOL,
     .default_text = "false",
     .doc = "Split the tokens over parallel.tp between the linears: activations take 1 / tp of the memory",
     .offset = AT(parallel.sequence),
     .also = "sequence_parallel"},
    {.name = "checkpoint.every",
     .type = SCHEMA_INT,
     .default_text = "0",
     .low = 0,
     .high = MAX_STEPS,
     .unit = "steps",
     .doc = "Steps between checkpoints; 0: only at the end",
     .offset = AT(checkpoint.every),
     .also = "save_steps"},
    {.name = "checkpoint.keep_last",
     .type = SCHEMA_INT,
     .default_text = "2",
     .low = 0,
     .high = 1e6,
     .doc = "Checkpoints kept, the newest; 0: all",
     .offset = AT(checkpoint.keep_last),
     .also = "save_total_limit"},
    {.name = "eval.every",
     .type = SCHEMA_INT,
     .default_text = "0",
     .low = 0,
     .high = MAX_STEPS,
     .unit = "steps",
     .doc = "Steps between evaluations on data.eval; 0: only at the end",
     .offset = AT(eval.every),
     .also = "eval_steps"},
    {.name = "dist.timeout_s",
     .type = SCHEMA_REAL,
     .default_text = "600",
     .low = 0,
     .low_open = true,
     .high = 1e7,
     .unit = "seconds",
     .doc = "A job ends when ranks have waited this long for each other",
     .offset = AT(dist.timeout_s)},
    {.name = "dist.collectives",
     .type = SCHEMA_CHOICE,
     .default_text = "auto",
     .choices = collectives,
     .doc = "How GPU memory travels; auto: NCCL where it can be used, else MPI over pinned host buffers",
     .offset = AT(dist.collectives)},
    {.name = "dist.share_gpus",
     .type = SCHEMA_BOOL,
     .default_text = "false",
     .doc = "Let several ranks compute on one GPU, for tests: slow, and without NCCL",
     .offset = AT(dist.share_gpus)},
    {.name = "output",
     .type = SCHEMA_TEXT,
     .default_text = "''",
     .doc = "Folder for checkpoints and metrics.jsonl; training needs it",
     .offset = AT(output),
     .also = "output_dir"},
    {.name = "device",
     .type = SCHEMA_TEXT,
     .default_text = "auto",
     .choices = devices,
     .doc = "Where to compute",
     .offset = AT(device)},
};
const int schema_n_rows = ROWS(schema_rows);
_Static_assert(ROWS(schema_rows) <= SCHEMA_MAX_ROWS, "raise SCHEMA_MAX_ROWS");

const struct schema_row schema_override_rows[] = {
    {.name = "modules",
     .type = SCHEMA_MODULES,
     .default_text = "all",
     .doc = "Linears the rule is for, as in lora.targets",
     .offset = OVERRIDE_AT(modules),
     .also = "targets"},
    {.name = "layers",
     .type = SCHEMA_LAYERS,
     .default_text = "all",
     .doc = "Layers the rule is for, as in lora.layers",
     .offset = OVERRIDE_AT(layers)},
    {.name = "r",
     .type = SCHEMA_INT,
     .default_text = "lora.r",
     .low = 1,
     .high = 65536,
     .doc = "Rank there",
     .offset = OVERRIDE_AT(r),
     .also = "rank"},
    {.name = "alpha",
     .type = SCHEMA_REAL,
     .default_text = "lora.alpha",
     .low = 0,
     .low_open = true,
     .high = 1e9,
     .doc = "Numerator of the scale there",
     .offset = OVERRIDE_AT(alpha),
     .also = "lora_alpha"},
    {.name = "off",
     .type = SCHEMA_BOOL,
     .default_text = "false",
     .doc = "No adapter there",
     .offset = OVERRIDE_AT(off)},
};
const int schema_n_override_rows = ROWS(schema_override_rows);

const struct schema_row *schema_find(const struct schema_row *rows, int n, const char *name) {
  for (int i = 0; i < n; i++)
    if (strcmp(rows[i].name, name) == 0) return &rows[i];
  return NULL;
}

bool schema_is_section(const char *name) {
  size_t length = strlen(name);
  for (int i = 0; i < schema_n_rows; i++)
    if (strncmp(schema_rows[i].name, name, length) == 0 && schema_rows[i].name[length] == '.') return true;
  return false;
}

static const char *last_part(const char *name) {
  const char *dot = strrchr(name, '.');
  return dot ? dot + 1 : name;
}

/* A key in the wrong section, or by another program's name, is nearer than a
 * key that merely looks alike: compare last parts, add 1 for another section. */
static int row_distance(const struct schema_row *row, const char *name) {
  int best = nearest_distance(name, row->name);
  const char *last = last_part(name), *row_last = last_part(row->name);
  size_t section = (size_t)(row_last - row->name);
  bool elsewhere = (size_t)(last - name) != section || strncmp(name, row->name, section) != 0;
  int by_last = nearest_distance(last, row_last) + elsewhere;
  if (by_last < best) best = by_last;
  if (!row->also) return best;
  int by_also = nearest_distance(last, row->also) + elsewhere;
  return by_also < best ? by_also : best;
}

const struct schema_row *schema_nearest(const struct schema_row *rows, int n, const char *name) {
  const struct schema_row *best = &rows[0];
  for (int i = 1; i < n; i++)
    if (row_distance(&rows[i], name) < row_distance(best, name)) best = &rows[i];
  return best;
}

static bool has_range(const struct schema_row *row) { return row->low != 0 || row->high != 0; }

void schema_range(const struct schema_row *row, char *text, size_t size) {
  text[0] = 0;
  if (!has_range(row)) return;
  if (row->low == row->high)
    snprintf(text, size, "only %.15g", row->low);
  else
    snprintf(text, size, "%s%.15g %s %.15g", row->low_open ? "above " : "", row->low,
             row->high_open ? "to below" : "to", row->high);
}

bool schema_holds(const struct schema_row *row, double value) {
  if (!has_range(row)) return true;
  bool low = row->low_open ? value > row->low : value >= row->low;
  bool high = row->high_open ? value < row->high : value <= row->high;
  return low && high;
}

const char *schema_type_name(const struct schema_row *row) {
  static const char *const names[] = {
      [SCHEMA_TEXT] = "text",
      [SCHEMA_CHOICE] = "word",
      [SCHEMA_INT] = "whole number",
      [SCHEMA_SEED] = "whole number",
      [SCHEMA_REAL] = "number",
      [SCHEMA_REAL_PAIR] = "two numbers",
      [SCHEMA_BOOL] = "true or false",
      [SCHEMA_FILES] = "list of files",
      [SCHEMA_TARGETS] = "list of modules",
      [SCHEMA_MODULES] = "list of modules",
      [SCHEMA_LAYERS] = "layers",
      [SCHEMA_OVERRIDES] = "list of maps",
  };
  return row->choices ? "word" : names[row->type];
}
