/*
 * sample.h: records to token ids with a flag per id that says whether it is
 * something to learn.
 *
 * Prompt and completion are encoded separately and joined, so that the edge of
 * the mask is exact. User content never yields special tokens.
 */
#ifndef LORASHARD_IO_SAMPLE_H
#define LORASHARD_IO_SAMPLE_H

#include "io/record.h"
#include "io/tokenizer.h"

struct sample_encoder {
  const struct tokenizer *tokenizer;
  enum chat_template chat; /* for messages */
  int32_t bos;             /* put in front of every sample; -1: none */
  int32_t eos;             /* ends every sample but conversations */
};

/* Take the special ids from the tokenizer; one without an end-of-text id is
 * STATUS_DATA. The chat template is the caller's to choose. */
enum status sample_encoder_init(const struct tokenizer *tokenizer, struct sample_encoder *encoder);

/* Append the ids of a record to `ids` and 1 (target) or 0 for each to `mask`.
 * text: all are targets but a BOS. prompt_completion, alpaca: prompt +
 * completion + EOS, the last two targets. e2e, as the LoRA paper's code: input +
 * EOS + " target" + EOS, the last two targets. messages: chat_template_apply. */
enum status sample_encode(const struct sample_encoder *encoder, const struct record *record, struct token_list *ids,
                          struct token_list *mask);

/* Append a piece of plain text, all targets. */
enum status sample_encode_text(const struct sample_encoder *encoder, struct text_span text, struct token_list *ids,
                               struct token_list *mask);

/* Append one id. */
enum status sample_push(int32_t id, int32_t target, struct token_list *ids, struct token_list *mask);

#endif
