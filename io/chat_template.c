/*
 * chat_template.c: conversations as the common chat templates write them.
 *
 * Templates are Jinja programs; this file does not run them. It knows five
 * forms, recognises a tokenizer's template by the strings that mark a form, and
 * takes from its text what varies: BOS, a default system turn, line ends.
 *
 * Text between two special markers is encoded as one piece, as it is when a
 * rendered template is encoded, except that a target begins a new piece: the
 * mask's edge is exact and the prompt's ids are those of generation. So ids
 * differ from a jointly encoded text only where an assistant's content begins
 * with white space that the split would join to the line end before it.
 * Special tokens' text inside a content is plain characters.
 */
#include "io/chat_template.h"

#include <stdlib.h>
#include <string.h>

#include "io/tokenizer_internal.h"

static const char *const template_names[] = {"none", "chatml", "llama2", "llama3", "zephyr", "alpaca"};
#define N_TEMPLATES ((int)(sizeof template_names / sizeof template_names[0]))

static bool has(const char *text, const char *part) { return strstr(text, part) != NULL; }

/* The form a template's text belongs to; CHAT_NONE if it is none of ours. */
static enum chat_template recognise(const char *text) {
  if (has(text, "<|im_start|>") && has(text, "<|im_end|>")) return CHAT_CHATML;
  if (has(text, "<|start_header_id|>") && has(text, "<|eot_id|>")) return CHAT_LLAMA3;
  if (has(text, "[INST]") && has(text, "<<SYS>>")) return CHAT_LLAMA2;
  bool ends_by_eos = has(text, "eos_token") || has(text, "</s>");
  if (has(text, "<|user|>") && has(text, "<|assistant|>") && ends_by_eos && !has(text, "<|end|>")) return CHAT_ZEPHYR;
  if (has(text, "### Instruction:") && has(text, "### Response:") && !has(text, "<|EOT|>")) return CHAT_ALPACA;
  return CHAT_NONE;
}

enum status chat_template_choose(const char *name, const struct tokenizer *tokenizer, enum chat_template *template_p) {
  const char *text = tokenizer ? tokenizer_chat_template(tokenizer) : NULL;
  if (strcmp(name, "auto") != 0) {
    for (int i = 0; i < N_TEMPLATES; i++)
      if (strcmp(name, template_names[i]) == 0) {
        *template_p = (enum chat_template)i;
        return STATUS_OK;
      }
    return status_set(STATUS_USAGE,
                      "chat template \"%s\": not one of auto, none, chatml, llama2, llama3, zephyr, alpaca", name);
  }
  enum chat_template found = text ? recognise(text) : CHAT_NONE;
  if (text && found == CHAT_NONE)
    return status_set(STATUS_DATA,
                      "%s: its chat template is none of chatml, llama2, llama3, zephyr, alpaca; set data.chat_template "
                      "to the one that comes closest",
                      tokenizer->path);
  *template_p = found;
  return STATUS_OK;
}

/* ---- ids and mask ---- */

struct builder {
  const struct tokenizer *tokenizer;
  const char *own; /* the tokenizer's template if it is of the chosen form, else NULL */
  struct token_list *ids, *mask;
  int64_t n_ids, n_mask;   /* their lengths before */
  struct text_buffer text; /* not encoded yet */
  bool target;             /* of that text */
  enum text_place place;   /* of that text */
};

static enum status fill_mask(struct builder *b, bool target) {
  while (b->mask->n - b->n_mask < b->ids->n - b->n_ids) TRY(token_list_push(b->mask, target));
  return STATUS_OK;
}

static enum status flush(struct builder *b) {
  if (b->text.n == 0) return STATUS_OK;
  TRY(tokenizer_encode_text(b->tokenizer, b->text.data, b->text.n, false, b->place, b->ids));
  b->text.n = 0;
  b->place = TEXT_CONTINUES;
  return fill_mask(b, b->target);
}

static enum status put_text(struct builder *b, const char *text, size_t n, bool target) {
  if (target != b->target) TRY(flush(b));
  b->target = target;
  return text_append(&b->text, text, n);
}

static enum status put(struct builder *b, const char *text) { return put_text(b, text, strlen(text), false); }

static enum status put_id(struct builder *b, int32_t id, bool target) {
  TRY(flush(b));
  TRY(token_list_push(b->ids, id));
  b->place = TEXT_AFTER_TOKEN;
  return fill_mask(b, target);
}

/* A marker that must be a token of its own. */
static enum status put_marker(struct builder *b, const char *marker, bool target) {
  int32_t id = tokenizer_find(b->tokenizer, marker);
  if (id < 0)
    return status_set(STATUS_USAGE, "%s: the tokenizer has no token %s; choose another chat template",
                      b->tokenizer->path, marker);
  return put_id(b, id, target);
}

/* A marker that is text unless the tokenizer made a special token of it. */
static enum status put_word(struct builder *b, const char *marker) {
  int32_t id = tokenizer_find(b->tokenizer, marker);
  const struct added_token *token = id < 0 ? NULL : tokenizer_added_by_id(b->tokenizer, id);
  return token && token->special ? put_id(b, id, false) : put(b, marker);
}

static enum status put_eos(struct builder *b, bool target) {
  if (b->tokenizer->eos < 0)
    return status_set(STATUS_USAGE, "%s: the tokenizer names no eos token, which this chat template needs",
                      b->tokenizer->path);
  return put_id(b, b->tokenizer->eos, target);
}

static enum status put_bos(struct builder *b) {
  return b->tokenizer->bos >= 0 ? put_id(b, b->tokenizer->bos, false) : STATUS_OK;
}

/* BOS where the tokenizer's own template writes it; for a form chosen by name,
 * where the tokenizer adds it to other texts or the form demands it. */
static bool wants_bos(const struct builder *b, bool form_has_bos) {
  if (b->own) return has(b->own, "bos_token");
  return form_has_bos || tokenizer_adds_bos(b->tokenizer);
}

/* ---- contents ---- */

struct span {
  const char *text;
  size_t n;
};

/* What Python's str.strip() takes away. */
static bool is_python_space(uint32_t cp) { return unicode_is_space(cp) || (cp >= 0x1C && cp <= 0x1F); }

static struct span trim(const char *text) {
  size_t n = strlen(text), start = 0, end = 0;
  for (size_t i = 0; i < n;) {
    uint32_t cp;
    size_t length = utf8_next(text + i, n - i, &cp);
    bool space = is_python_space(cp);
    if (!space) end = i + length;
    i += length;
    if (space && end == 0) start = i;
  }
  return (struct span){text + start, end > start ? end - start : 0};
}

static bool is_role(const struct chat_message *message, const char *role) { return strcmp(message->role, role) == 0; }

static enum status check_roles(const struct chat_message *messages, int n) {
  for (int i = 0; i < n; i++) {
    const struct chat_message *m = &messages[i];
    if (!is_role(m, "system") && !is_role(m, "user") && !is_role(m, "assistant"))
      return status_set(STATUS_DATA, "message %d: role \"%.40s\" is none of system, user, assistant", i + 1, m->role);
  }
  return STATUS_OK;
}

/* For forms that have no place for anything but [system] (user assistant)*. */
static enum status check_turns(const struct chat_message *messages, int n) {
  int first = n > 0 && is_role(&messages[0], "system");
  for (int i = first; i < n; i++)
    if (!is_role(&messages[i], (i - first) % 2 ? "assistant" : "user"))
      return status_set(STATUS_DATA, "message %d: this chat template needs user and assistant in turn", i + 1);
  return STATUS_OK;
}

/* Append the text of a Jinja string literal's inside, escapes resolved. */
static enum status unescape(const char *text, size_t n, struct text_buffer *out) {
  for (size_t i = 0; i < n; i++) {
    char c = text[i];
    if (c == '\\' && i + 1 < n) {
      c = text[++i];
      c = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
    }
    TRY(text_append(out, &c, 1));
  }
  return STATUS_OK;
}

/* ---- ChatML ---- */

/* The system turn that the template itself carries: what stands between
 * "<|im_start|>system\n" and "<|im_end|>" inside one string literal. */
static struct span default_system(const char *own) {
  static const char head[] = "<|im_start|>system";
  for (const char *at = own; at && (at = strstr(at, head));) {
    at += sizeof head - 1;
    size_t line_end = at[0] == '\n' ? 1 : at[0] == '\\' && at[1] == 'n' ? 2 : 0;
    const char *start = at + line_end, *end = strstr(start, "<|im_end|>");
    if (!line_end || !end) continue;
    bool one_literal = true;
    for (const char *p = start; p < end; p++) {
      if (*p == '\\' && p + 1 < end)
        p++;
      else if (*p == '\'' || *p == '"' || *p == '{')
        one_literal = false;
    }
    if (one_literal && end > start) return (struct span){start, (size_t)(end - start)};
  }
  return (struct span){NULL, 0};
}

static enum status chatml_system(struct builder *b) {
  struct span text = b->own ? default_system(b->own) : (struct span){NULL, 0};
  struct text_buffer plain = {0};
  if (!text.text) return STATUS_OK;
  enum status status = STATUS_OK;
  TRY_OUT(put_marker(b, "<|im_start|>", false));
  TRY_OUT(put(b, "system\n"));
  TRY_OUT(unescape(text.text, text.n, &plain));
  TRY_OUT(put_text(b, plain.data, plain.n, false));
  TRY_OUT(put_marker(b, "<|im_end|>", false));
  status = put(b, "\n");
out:
  text_free(&plain);
  return status;
}

/* Qwen3: earlier answers lose their reasoning; the last one has a think block,
 * if need be an empty one. */
static enum status thinking_content(struct builder *b, const char *content, bool is_last) {
  const char *end = NULL;
  for (const char *at = content; (at = strstr(at, "</think>")); at += 8) end = at;
  const char *answer = end ? end + 8 : content;
  if (end || is_last)
    while (*answer == '\n') answer++;
  if (is_last) {
    const char *start = content, *stop = end ? strstr(content, "</think>") : content;
    for (const char *at = content; (at = strstr(at, "<think>")) && at < stop; at += 7) start = at + 7;
    while (start < stop && *start == '\n') start++;
    while (stop > start && stop[-1] == '\n') stop--;
    TRY(put_text(b, "<think>\n", 8, true));
    TRY(put_text(b, start, (size_t)(stop - start), true));
    TRY(put_text(b, "\n</think>\n\n", 11, true));
  }
  return put_text(b, answer, strlen(answer), true);
}

static enum status apply_chatml(struct builder *b, const struct chat_message *messages, int n, bool open) {
  bool thinks = b->own && has(b->own, "</think>") && has(b->own, "reasoning_content");
  if (wants_bos(b, false)) TRY(put_bos(b));
  if (n > 0 && !is_role(&messages[0], "system")) TRY(chatml_system(b));
  for (int i = 0; i < n; i++) {
    bool target = is_role(&messages[i], "assistant");
    TRY(put_marker(b, "<|im_start|>", false));
    TRY(put(b, messages[i].role));
    TRY(put(b, "\n"));
    if (target && thinks)
      TRY(thinking_content(b, messages[i].content, i == n - 1));
    else
      TRY(put_text(b, messages[i].content, strlen(messages[i].content), target));
    TRY(put_marker(b, "<|im_end|>", target));
    TRY(put(b, "\n"));
  }
  if (!open) return STATUS_OK;
  TRY(put_marker(b, "<|im_start|>", false));
  return put(b, "assistant\n");
}

/* ---- Llama 3 ---- */

static enum status llama3_header(struct builder *b, const char *role) {
  TRY(put_marker(b, "<|start_header_id|>", false));
  TRY(put(b, role));
  TRY(put_marker(b, "<|end_header_id|>", false));
  return put(b, "\n\n");
}

/* Up to the end of the literal or its line. */
static struct span literal_after(const char *text, const char *head) {
  const char *at = strstr(text, head);
  if (!at) return (struct span){NULL, 0};
  at += strlen(head);
  return (struct span){at, strcspn(at, "\\\"'\n")};
}

/* Llama 3.1 and later open with a system turn that holds dates; today's is the
 * template's own fallback, so that ids do not depend on the day. */
static enum status llama3_dates(struct builder *b, bool *dated) {
  struct span cut = b->own ? literal_after(b->own, "Cutting Knowledge Date: ") : (struct span){NULL, 0};
  *dated = cut.text != NULL;
  if (!*dated) return STATUS_OK;
  struct span today = literal_after(b->own, "date_string = \"");
  if (!today.text)
    return status_set(STATUS_DATA, "%s: the chat template has a date, but no date_string of its own",
                      b->tokenizer->path);
  TRY(llama3_header(b, "system"));
  TRY(put(b, "Cutting Knowledge Date: "));
  TRY(put_text(b, cut.text, cut.n, false));
  TRY(put(b, "\nToday Date: "));
  TRY(put_text(b, today.text, today.n, false));
  return put(b, "\n\n");
}

static enum status apply_llama3(struct builder *b, const struct chat_message *messages, int n, bool open) {
  if (wants_bos(b, true)) TRY(put_bos(b));
  bool dated;
  TRY(llama3_dates(b, &dated));
  if (dated && (n == 0 || !is_role(&messages[0], "system"))) TRY(put_marker(b, "<|eot_id|>", false));
  for (int i = 0; i < n; i++) {
    bool target = is_role(&messages[i], "assistant");
    struct span content = trim(messages[i].content);
    if (i > 0 || !dated || !is_role(&messages[0], "system")) TRY(llama3_header(b, messages[i].role));
    TRY(put_text(b, content.text, content.n, target));
    TRY(put_marker(b, "<|eot_id|>", target));
  }
  return open ? llama3_header(b, "assistant") : STATUS_OK;
}

/* ---- Llama 2 ---- */

static enum status llama2_user(struct builder *b, const char *system, const char *content) {
  struct text_buffer text = {0};
  enum status status = STATUS_OK;
  if (system) {
    TRY_OUT(text_append(&text, "<<SYS>>\n", 8));
    TRY_OUT(text_append(&text, system, strlen(system)));
    TRY_OUT(text_append(&text, "\n<</SYS>>\n\n", 11));
  }
  TRY_OUT(text_append(&text, content, strlen(content) + 1));
  struct span trimmed = trim(text.data);
  TRY_OUT(put(b, "[INST] "));
  TRY_OUT(put_text(b, trimmed.text, trimmed.n, false));
  status = put(b, " [/INST]");
out:
  text_free(&text);
  return status;
}

/* The published template writes BOS before each user turn and a space before
 * EOS; a variant may do neither. */
static enum status apply_llama2(struct builder *b, const struct chat_message *messages, int n) {
  TRY(check_turns(messages, n));
  bool each = !b->own || has(b->own, "bos_token + '[INST]");
  bool space_before_eos = !b->own || has(b->own, "' ' + eos_token");
  bool bos = wants_bos(b, true);
  int first = n > 0 && is_role(&messages[0], "system");
  for (int i = first; i < n; i++) {
    if (is_role(&messages[i], "user")) {
      if (bos && (each || i == first)) TRY(put_bos(b));
      TRY(llama2_user(b, first && i == 1 ? messages[0].content : NULL, messages[i].content));
      continue;
    }
    struct span answer = trim(messages[i].content);
    TRY(put_text(b, " ", 1, true));
    TRY(put_text(b, answer.text, answer.n, true));
    if (space_before_eos) TRY(put_text(b, " ", 1, true));
    TRY(put_eos(b, true));
  }
  return STATUS_OK;
}

/* ---- Zephyr ---- */

/* Whether the template puts a line end after its last `part`: as an escape, or
 * as the line end that follows the expression. */
static bool line_after(const char *own, const char *part) {
  const char *last = NULL;
  for (const char *at = own; (at = strstr(at, part)); at += strlen(part)) last = at + strlen(part);
  if (!last) return true;
  last += strspn(last, " +'\"");
  if (strncmp(last, "\\n", 2) == 0) return true;
  last += strspn(last, " -}");
  return *last == '\n' && last[-1] == '}';
}

static enum status apply_zephyr(struct builder *b, const struct chat_message *messages, int n, bool open) {
  bool line_after_eos = !b->own || line_after(b->own, "eos_token");
  if (wants_bos(b, false)) TRY(put_bos(b));
  for (int i = 0; i < n; i++) {
    bool target = is_role(&messages[i], "assistant");
    TRY(put_word(b, target ? "<|assistant|>" : is_role(&messages[i], "user") ? "<|user|>" : "<|system|>"));
    TRY(put(b, "\n"));
    TRY(put_text(b, messages[i].content, strlen(messages[i].content), target));
    TRY(put_eos(b, target));
    if (line_after_eos) TRY(put(b, "\n"));
  }
  if (!open) return STATUS_OK;
  TRY(put_word(b, "<|assistant|>"));
  return !b->own || line_after(b->own, "<|assistant|>") ? put(b, "\n") : STATUS_OK;
}

/* ---- Alpaca ---- */

/* A system message takes the place of the usual preamble. */
static enum status apply_alpaca(struct builder *b, const struct chat_message *messages, int n) {
  TRY(check_turns(messages, n));
  int first = n > 0 && is_role(&messages[0], "system");
  if (wants_bos(b, false)) TRY(put_bos(b));
  TRY(put(b, first ? messages[0].content
                   : "Below is an instruction that describes a task. Write a response that appropriately completes "
                     "the request."));
  TRY(put(b, "\n\n"));
  for (int i = first; i < n; i++) {
    if (is_role(&messages[i], "user")) {
      TRY(put(b, "### Instruction:\n"));
      TRY(put(b, messages[i].content));
      TRY(put(b, "\n\n### Response:\n"));
      continue;
    }
    TRY(put_text(b, messages[i].content, strlen(messages[i].content), true));
    TRY(put_eos(b, true));
  }
  return STATUS_OK;
}

static enum status apply(struct builder *b, enum chat_template chat, const struct chat_message *messages, int n,
                         bool open) {
  TRY(check_roles(messages, n));
  switch (chat) {
    case CHAT_NONE:
      return status_set(STATUS_USAGE, "messages need a chat template: choose one by name");
    case CHAT_CHATML:
      return apply_chatml(b, messages, n, open);
    case CHAT_LLAMA3:
      return apply_llama3(b, messages, n, open);
    case CHAT_ZEPHYR:
      return apply_zephyr(b, messages, n, open);
    /* In these two a user turn ends with the assistant's header. */
    case CHAT_LLAMA2:
      return apply_llama2(b, messages, n);
    case CHAT_ALPACA:
      return apply_alpaca(b, messages, n);
  }
  return STATUS_OK;
}

enum status chat_template_apply(enum chat_template chat, const struct tokenizer *tokenizer,
                                const struct chat_message *messages, int n_messages, bool open_assistant,
                                struct token_list *ids, struct token_list *mask) {
  const char *text = tokenizer_chat_template(tokenizer);
  struct builder builder = {.tokenizer = tokenizer, .ids = ids, .mask = mask, .n_ids = ids->n, .n_mask = mask->n};
  if (text && recognise(text) == chat) builder.own = text;
  enum status status = apply(&builder, chat, messages, n_messages, open_assistant);
  if (status == STATUS_OK) status = flush(&builder);
  text_free(&builder.text);
  if (status != STATUS_OK) {
    ids->n = builder.n_ids;
    mask->n = builder.n_mask;
  }
  return status;
}
