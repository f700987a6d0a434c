/*
 * chat_template.h: role-marked messages to token ids with a loss mask.
 */
#ifndef LORASHARD_IO_CHAT_TEMPLATE_H
#define LORASHARD_IO_CHAT_TEMPLATE_H

#include "io/tokenizer.h"

enum chat_template { CHAT_NONE, CHAT_CHATML, CHAT_LLAMA2, CHAT_LLAMA3, CHAT_ZEPHYR, CHAT_ALPACA };

struct chat_message {
  const char *role; /* "system", "user", "assistant" */
  const char *content;
};

/* Choose by name ("auto", "none", "chatml", "llama2", "llama3", "zephyr",
 * "alpaca"); auto recognises the tokenizer's own template, CHAT_NONE if it has
 * none, and refuses an unknown one with the list of known ones. */
enum status chat_template_choose(const char *name, const struct tokenizer *tokenizer, enum chat_template *template_p);

/* Append the ids of a conversation and, per id, 1 where it is a target
 * (assistant content and the token that ends the turn) else 0. Content is
 * encoded without special-token parsing. With `open_assistant`, the header of a
 * last assistant turn is appended for generation. BOS once at most. */
enum status chat_template_apply(enum chat_template chat, const struct tokenizer *tokenizer,
                                const struct chat_message *messages, int n_messages, bool open_assistant,
                                struct token_list *ids, struct token_list *mask);

#endif
