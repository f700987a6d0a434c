#include "io/sample.h"

#include <stdio.h>
#include <stdlib.h>

/* The prompts of Stanford Alpaca, with and without an input. */
#define ALPACA_WITH_INPUT                                                                                       \
  "Below is an instruction that describes a task, paired with an input that provides further context. Write a " \
  "response that appropriately completes the request.\n\n### Instruction:\n"
#define ALPACA_WITHOUT_INPUT                                                                                          \
  "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### " \
  "Instruction:\n"
#define ALPACA_INPUT    "\n\n### Input:\n"
#define ALPACA_RESPONSE "\n\n### Response:\n"

enum status sample_encoder_init(const struct tokenizer *tokenizer, struct sample_encoder *encoder) {
  int32_t eos = tokenizer_eos(tokenizer);
  if (eos < 0)
    return status_set(STATUS_DATA, "the tokenizer names no end-of-text token; set eos_token in tokenizer_config.json");
  encoder->tokenizer = tokenizer;
  encoder->chat = CHAT_NONE;
  encoder->bos = tokenizer_adds_bos(tokenizer) ? tokenizer_bos(tokenizer) : -1;
  encoder->eos = eos;
  return STATUS_OK;
}

enum status sample_push(int32_t id, int32_t target, struct token_list *ids, struct token_list *mask) {
  TRY(token_list_push(ids, id));
  return token_list_push(mask, target);
}

static enum status push_text(const struct sample_encoder *encoder, struct text_span text, int32_t target,
                             struct token_list *ids, struct token_list *mask) {
  int64_t before = ids->n;
  TRY(tokenizer_encode(encoder->tokenizer, text.text, text.length, false, false, ids));
  for (int64_t i = before; i < ids->n; i++) TRY(token_list_push(mask, target));
  return STATUS_OK;
}

enum status sample_encode_text(const struct sample_encoder *encoder, struct text_span text, struct token_list *ids,
                               struct token_list *mask) {
  return push_text(encoder, text, 1, ids, mask);
}

/* Put texts together; the result's text is malloc'ed, the caller's. */
static enum status concatenate(const struct text_span *parts, int n, struct text_span *whole) {
  char *text = NULL;
  size_t length = 0;
  FILE *stream = open_memstream(&text, &length);
  if (!stream) return status_set(STATUS_SYSTEM, "no memory for a prompt");
  for (int i = 0; i < n; i++) fwrite(parts[i].text, 1, parts[i].length, stream);
  bool failed = ferror(stream) != 0;
  if (fclose(stream) != 0 || failed) {
    free(text);
    return status_set(STATUS_SYSTEM, "no memory for a prompt");
  }
  *whole = (struct text_span){text, length};
  return STATUS_OK;
}

#define LITERAL(text) \
  { text, sizeof text - 1 }

static enum status push_alpaca_prompt(const struct sample_encoder *encoder, const struct record *record,
                                      struct token_list *ids, struct token_list *mask) {
  const struct text_span with[] = {LITERAL(ALPACA_WITH_INPUT), record->prompt, LITERAL(ALPACA_INPUT), record->input,
                                   LITERAL(ALPACA_RESPONSE)};
  const struct text_span without[] = {LITERAL(ALPACA_WITHOUT_INPUT), record->prompt, LITERAL(ALPACA_RESPONSE)};
  struct text_span prompt = {0};
  TRY(record->input.length ? concatenate(with, 5, &prompt) : concatenate(without, 3, &prompt));
  enum status status = push_text(encoder, prompt, 0, ids, mask);
  free((char *)prompt.text);
  return status;
}

/* " target": the paper's code puts a space in front. */
static enum status push_e2e_target(const struct sample_encoder *encoder, const struct record *record,
                                   struct token_list *ids, struct token_list *mask) {
  const struct text_span parts[] = {LITERAL(" "), record->completion};
  struct text_span target = {0};
  TRY(concatenate(parts, 2, &target));
  enum status status = push_text(encoder, target, 1, ids, mask);
  free((char *)target.text);
  return status;
}

enum status sample_encode(const struct sample_encoder *encoder, const struct record *record, struct token_list *ids,
                          struct token_list *mask) {
  if (record->format == RECORD_MESSAGES)
    return chat_template_apply(encoder->chat, encoder->tokenizer, record->messages, record->n_messages, false, ids,
                               mask);
  if (encoder->bos >= 0) TRY(sample_push(encoder->bos, 0, ids, mask));
  switch (record->format) {
    case RECORD_PROMPT_COMPLETION:
      TRY(push_text(encoder, record->prompt, 0, ids, mask));
      TRY(push_text(encoder, record->completion, 1, ids, mask));
      break;
    case RECORD_ALPACA:
      TRY(push_alpaca_prompt(encoder, record, ids, mask));
      TRY(push_text(encoder, record->completion, 1, ids, mask));
      break;
    case RECORD_E2E:
      TRY(push_text(encoder, record->prompt, 0, ids, mask));
      TRY(sample_push(encoder->eos, 0, ids, mask));
      TRY(push_e2e_target(encoder, record, ids, mask));
      break;
    default:
      TRY(push_text(encoder, record->completion, 1, ids, mask));
  }
  return sample_push(encoder->eos, 1, ids, mask);
}
