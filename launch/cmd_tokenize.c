/* lorashard tokenize: the ids of a text, or the text of ids, as the base's tokenizer has them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/tokenizer.h"
#include "launch/cli.h"

static const struct cli_help help = {
    .usage = "tokenize --base BASE [--lines] [--decode] [--no-special] < TEXT",
    .summary = "Token ids of standard input, separated by spaces on one line.",
    .details =
        "Special tokens inside the text are recognised, and BOS or EOS are added where the tokenizer does so; with "
        "--no-special neither happens. With --decode the input is ids and the output text.\n\n"
        "example: echo -n 'Hello world' | lorashard tokenize --base models/gpt2",
};

struct arguments {
  const char *base;
  bool lines, decode, no_special, done;
};

static enum status parse(int argc, char **argv, struct arguments *a) {
  const struct cli_option options[] = {
      {.name = "base", .arg = "BASE", .doc = "folder with tokenizer.json, or a GGUF file", .value = &a->base},
      {.name = "lines", .doc = "each line on its own", .flag = &a->lines},
      {.name = "decode", .doc = "ids to text", .flag = &a->decode},
      {.name = "no-special",
       .doc = "add no special tokens, take those in the text as plain characters; --decode: leave them out",
       .flag = &a->no_special},
      {NULL},
  };
  int n;
  TRY(cli_parse(&help, options, argc, argv, NULL, 0, 0, &n, &a->done));
  if (!a->done && !a->base) return status_set(STATUS_USAGE, "give --base BASE");
  return STATUS_OK;
}

static enum status read_all(FILE *file, char **text_p, size_t *n_p) {
  size_t n = 0, capacity = 1 << 16;
  char *text = malloc(capacity + 1);
  while (text) {
    n += fread(text + n, 1, capacity - n, file);
    if (n < capacity) break;
    capacity *= 2;
    char *grown = realloc(text, capacity + 1);
    if (!grown) free(text);
    text = grown;
  }
  if (!text) return status_set(STATUS_SYSTEM, "out of memory for standard input");
  if (ferror(file)) {
    free(text);
    return status_set(STATUS_SYSTEM, "cannot read standard input: %s", strerror(errno));
  }
  text[n] = 0;
  *text_p = text;
  *n_p = n;
  return STATUS_OK;
}

static enum status print_ids(const struct tokenizer *tokenizer, const struct arguments *a, const char *text, size_t n) {
  struct token_list list = {0};
  enum status status = tokenizer_encode(tokenizer, text, n, !a->no_special, !a->no_special, &list);
  for (int64_t i = 0; status == STATUS_OK && i < list.n; i++) printf(i ? " %d" : "%d", list.ids[i]);
  if (status == STATUS_OK) printf("\n");
  token_list_free(&list);
  return status;
}

/* The text of the ids alone; a line end follows only with --lines. */
static enum status print_text(const struct tokenizer *tokenizer, const struct arguments *a, const char *text,
                              size_t n) {
  struct token_list list = {0};
  enum status status = STATUS_OK;
  char *decoded = NULL;
  size_t length;
  for (const char *at = text + strspn(text, ", \t\r\n"); at < text + n;) {
    char *end;
    errno = 0;
    long id = strtol(at, &end, 10);
    if (end == at || errno || id < 0 || id > INT32_MAX) {
      status = status_set(STATUS_USAGE, "standard input: '%.*s' is not a token id; give whole numbers from 0",
                          (int)strcspn(at, ", \t\r\n"), at);
      goto out;
    }
    TRY_OUT(token_list_push(&list, (int32_t)id));
    at = end + strspn(end, ", \t\r\n");
  }
  TRY_OUT(tokenizer_decode(tokenizer, list.ids, list.n, a->no_special, &decoded, &length));
  fwrite(decoded, 1, length, stdout);
  if (a->lines) printf("\n");
out:
  free(decoded);
  token_list_free(&list);
  return status;
}

static enum status run(const struct tokenizer *tokenizer, const struct arguments *a, char *text, size_t n) {
  enum status (*print)(const struct tokenizer *, const struct arguments *, const char *, size_t) =
      a->decode ? print_text : print_ids;
  if (!a->lines) return print(tokenizer, a, text, n);
  for (size_t start = 0; start < n;) {
    char *line_end = memchr(text + start, '\n', n - start);
    size_t length = line_end ? (size_t)(line_end - text) - start : n - start;
    text[start + length] = 0;
    TRY(print(tokenizer, a, text + start, length));
    start += length + 1;
  }
  return STATUS_OK;
}

enum status cmd_tokenize(int argc, char **argv) {
  struct arguments a = {0};
  struct tokenizer *tokenizer = NULL;
  char *text = NULL;
  size_t n = 0;
  enum status status = STATUS_OK;
  TRY(parse(argc, argv, &a));
  if (a.done) return STATUS_OK;
  TRY(tokenizer_open(a.base, &tokenizer));
  if (!tokenizer) return status_set(STATUS_USAGE, "%s has no tokenizer", a.base);
  TRY_OUT(read_all(stdin, &text, &n));
  status = run(tokenizer, &a, text, n);
  if (status == STATUS_OK && fflush(stdout) != 0)
    status = status_set(STATUS_SYSTEM, "cannot write to standard output: %s", strerror(errno));
out:
  free(text);
  tokenizer_close(&tokenizer);
  return status;
}
