#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/dataset.h"

#define T 4096 /* positions a row where nothing is to be cut */

static struct tokenizer *tokenizer;
static char folder[] = "/tmp/lorashard-test-dataset-XXXXXX";

static int group_setup(void **state) {
  (void)state;
  if (!mkdtemp(folder)) return -1;
  return tokenizer_open(FIXTURES "/stories260K", &tokenizer) == STATUS_OK && tokenizer ? 0 : -1;
}

static int group_teardown(void **state) {
  (void)state;
  char command[128];
  tokenizer_close(&tokenizer);
  snprintf(command, sizeof command, "rm -rf '%s'", folder);
  return system(command);
}

/* Path of a file in the test's folder; good until the next call but three. */
static const char *in_folder(const char *name) {
  static char paths[4][256];
  static int turn;
  char *path = paths[turn++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

static const char *write_file(const char *name, const void *data, size_t n) {
  const char *path = in_folder(name);
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, n, file), n);
  assert_int_equal(fclose(file), 0);
  return path;
}

static const char *write_text(const char *name, const char *text) { return write_file(name, text, strlen(text)); }

static struct dataset_options options_for(const char *const *file) {
  return (struct dataset_options){.files = file,
                                  .n_files = 1,
                                  .format = "auto",
                                  .chat_template = "auto",
                                  .seq_len = T,
                                  .tokenizer = tokenizer,
                                  .n_vocab = 512,
                                  .n_workers = 1};
}

static struct dataset *open_file(const char *path, int64_t seq_len, bool packing) {
  struct dataset_options options = options_for(&path);
  options.seq_len = seq_len;
  options.packing = packing;
  struct dataset *dataset = NULL;
  if (dataset_open(&options, &dataset) != STATUS_OK) fail_msg("%s", status_message());
  return dataset;
}

struct row {
  int32_t ids[T], labels[T], positions[T], starts[T];
  int n_docs;
  int64_t n;
};

static void get_row(const struct dataset *dataset, int64_t index, struct row *row) {
  dataset_row(dataset, index, row->ids, row->labels, row->positions, row->starts, &row->n_docs, &row->n);
  int64_t targets = 0;
  for (int64_t t = 0; t < row->n; t++) targets += row->labels[t] >= 0;
  assert_int_equal(targets, dataset_row_targets(dataset, index));
  assert_int_equal(row->n, dataset_row_tokens(dataset, index));
}

/* What a sample should be: ids, and from which one on they are targets. */
struct expected {
  struct token_list ids;
  int64_t first_target;
};

static void expect_id(struct expected *expected, int32_t id) {
  assert_int_equal(token_list_push(&expected->ids, id), STATUS_OK);
}

static void expect_text(struct expected *expected, const char *text) {
  assert_int_equal(tokenizer_encode(tokenizer, text, strlen(text), false, false, &expected->ids), STATUS_OK);
}

/* The row holds the sample alone; frees it. */
static void check_row(const struct dataset *dataset, int64_t index, struct expected *expected) {
  static struct row row;
  get_row(dataset, index, &row);
  const int64_t n = expected->ids.n - 1;
  assert_int_equal(row.n, n);
  assert_int_equal(row.n_docs, 1);
  assert_int_equal(row.starts[0], 0);
  for (int64_t t = 0; t < n; t++) {
    assert_int_equal(row.ids[t], expected->ids.ids[t]);
    assert_int_equal(row.labels[t], t + 1 >= expected->first_target ? expected->ids.ids[t + 1] : -1);
    assert_int_equal(row.positions[t], t);
  }
  token_list_free(&expected->ids);
}

static void test_prompt_completion(void **state) {
  (void)state;
  const char *path = write_text("pc.jsonl", "{\"prompt\": \"Once upon\", \"completion\": \" a time\\u0000 </s>\"}\n");
  struct dataset *dataset = open_file(path, T, false);
  struct expected expected = {0};
  expect_id(&expected, tokenizer_bos(tokenizer));
  expect_text(&expected, "Once upon");
  expected.first_target = expected.ids.n;
  /* User content: </s> is five characters, not the end token; NUL is a byte. */
  assert_int_equal(tokenizer_encode(tokenizer, " a time\0 </s>", 13, false, false, &expected.ids), STATUS_OK);
  for (int64_t i = 1; i < expected.ids.n; i++) assert_int_not_equal(expected.ids.ids[i], tokenizer_eos(tokenizer));
  expect_id(&expected, tokenizer_eos(tokenizer));
  check_row(dataset, 0, &expected);
  assert_int_equal(dataset_rows(dataset), 1);
  dataset_close(&dataset);
  assert_null(dataset);
}

static void test_text_lines(void **state) {
  (void)state;
  struct dataset *dataset =
      open_file(write_text("text.jsonl", "{\"text\": \"A cat sat.\"}\n{\"text\": \"Two\"}"), T, false);
  struct expected expected = {.first_target = 1};
  expect_id(&expected, tokenizer_bos(tokenizer));
  expect_text(&expected, "A cat sat.");
  expect_id(&expected, tokenizer_eos(tokenizer));
  check_row(dataset, 0, &expected);
  assert_int_equal(dataset_rows(dataset), 2);
  dataset_close(&dataset);
}

static void test_alpaca(void **state) {
  (void)state;
  const char *path = write_text("alpaca.jsonl",
                                "{\"instruction\": \"Add.\", \"input\": \"1 2\", \"output\": \"3\"}\n"
                                "{\"instruction\": \"Hi\", \"input\": \"\", \"output\": \"Ho\"}\n"
                                "{\"instruction\": \"Hi\", \"output\": \"Ho\"}\n");
  static const char *const prompts[] = {
      "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
      "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### "
      "Response:\n",
      "Below is an instruction that describes a task. Write a response that appropriately completes the "
      "request.\n\n### Instruction:\nHi\n\n### Response:\n"};
  struct dataset *dataset = open_file(path, T, false);
  for (int row = 0; row < 3; row++) {
    struct expected expected = {0};
    expect_id(&expected, tokenizer_bos(tokenizer));
    expect_text(&expected, prompts[row > 0]);
    expected.first_target = expected.ids.n;
    expect_text(&expected, row == 0 ? "3" : "Ho");
    expect_id(&expected, tokenizer_eos(tokenizer));
    check_row(dataset, row, &expected);
  }
  dataset_close(&dataset);
}

/* As the LoRA paper's code: input, end token, " target", end token; the last two
 * are learnt. */
static void test_e2e(void **state) {
  (void)state;
  struct dataset *dataset = open_file(SOURCE_DIR "/launch/data/e2e-train.txt", T, false);
  assert_int_equal(dataset_counts(dataset)->documents, 900);
  assert_int_equal(dataset_counts(dataset)->rows, 900);
  struct expected expected = {0};
  expect_id(&expected, tokenizer_bos(tokenizer));
  expect_text(&expected, "name : Alimentum | area : city centre | family friendly : no");
  expect_id(&expected, tokenizer_eos(tokenizer));
  expected.first_target = expected.ids.n;
  expect_text(&expected, " There is a place in the city centre , Alimentum , that is not family - friendly .");
  expect_id(&expected, tokenizer_eos(tokenizer));
  check_row(dataset, 0, &expected);
  dataset_close(&dataset);
  dataset = open_file(SOURCE_DIR "/launch/data/e2e-eval.txt", T, false);
  assert_int_equal(dataset_counts(dataset)->documents, 60);
  dataset_close(&dataset);
}

static void test_messages(void **state) {
  (void)state;
  const char *path = write_text("chat.jsonl",
                                "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", "
                                "\"content\": \"Hello\"}]}\n{\"conversations\": [{\"from\": \"human\", \"value\": "
                                "\"Hi\"}, {\"from\": \"gpt\", \"value\": \"Hello\"}]}\n");
  struct dataset_options options = options_for(&path);
  struct dataset *dataset = NULL;
  options.chat_template = "none";
  assert_int_equal(dataset_open(&options, &dataset), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "set data.chat_template"));
  options.chat_template = "zephyr";
  assert_int_equal(dataset_open(&options, &dataset), STATUS_OK);

  enum chat_template chat;
  const struct chat_message messages[] = {{"user", "Hi"}, {"assistant", "Hello"}};
  struct token_list ids = {0}, mask = {0};
  assert_int_equal(chat_template_choose("zephyr", tokenizer, &chat), STATUS_OK);
  assert_int_equal(chat_template_apply(chat, tokenizer, messages, 2, false, &ids, &mask), STATUS_OK);
  assert_int_equal(dataset_rows(dataset), 2);
  static struct row row;
  for (int r = 0; r < 2; r++) {
    get_row(dataset, r, &row);
    assert_int_equal(row.n, ids.n - 1);
    for (int64_t t = 0; t < row.n; t++) {
      assert_int_equal(row.ids[t], ids.ids[t]);
      assert_int_equal(row.labels[t], mask.ids[t + 1] ? ids.ids[t + 1] : -1);
    }
  }
  token_list_free(&ids);
  token_list_free(&mask);
  dataset_close(&dataset);
}

static void test_fixtures(void **state) {
  (void)state;
  static const char *const names[] = {"alpaca", "prompt_completion", "messages"};
  for (int i = 0; i < 3; i++) {
    char path[512];
    snprintf(path, sizeof path, "%s/data/%s.jsonl", FIXTURES, names[i]);
    const char *file = path;
    struct dataset_options options = options_for(&file);
    options.chat_template = "zephyr";
    options.packing = true;
    struct dataset *dataset = NULL;
    assert_int_equal(dataset_open(&options, &dataset), STATUS_OK);
    assert_int_equal(dataset_counts(dataset)->documents, 40);
    assert_int_equal(dataset_counts(dataset)->truncated, 0);
    assert_true(dataset_rows(dataset) < 40);
    dataset_close(&dataset);
  }
}

/* Writes `lines` of text; returns its path. */
static const char *write_story(const char *name, int lines, bool json) {
  const char *path = in_folder(name);
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  for (int i = 0; i < lines; i++) {
    if (json)
      fprintf(file, "{\"prompt\": \"Number %d\", \"completion\": \"%.*s\"}\n", i, i * 7 % 120,
              "One day a little girl named Lily found a needle in her room. She knew it was difficult to play with it, "
              "because it was sharp.");
    else
      fprintf(file, "%sOne day number %d was very big.\n", i % 5 ? "" : "\n", i);
  }
  assert_int_equal(fclose(file), 0);
  return path;
}

/* Plain text over several chunks: consecutive pieces overlap by one id, all is
 * learnt, BOS first, EOS last. */
static void test_stream(void **state) {
  (void)state;
  struct dataset *dataset = open_file(write_story("story.txt", 45000, false), 1000, true);
  static struct row row;
  const int64_t n_rows = dataset_rows(dataset);
  int64_t tokens = 0, ends = 0;
  int32_t next = tokenizer_bos(tokenizer);
  assert_true(n_rows > 400);
  for (int64_t r = 0; r < n_rows; r++) {
    get_row(dataset, r, &row);
    assert_int_equal(row.n_docs, 1);
    assert_true(row.n == 1000 || r == n_rows - 1);
    assert_int_equal(row.ids[0], next);
    for (int64_t t = 0; t < row.n; t++) {
      assert_true(row.labels[t] >= 0);
      ends += row.labels[t] == tokenizer_eos(tokenizer);
    }
    for (int64_t t = 0; t + 1 < row.n; t++) assert_int_equal(row.labels[t], row.ids[t + 1]);
    next = row.labels[row.n - 1];
    tokens += row.n;
  }
  assert_int_equal(next, tokenizer_eos(tokenizer));
  assert_int_equal(ends, 1);
  assert_int_equal(tokens, dataset_counts(dataset)->tokens);
  assert_int_equal(tokens, dataset_counts(dataset)->targets);
  assert_int_equal(dataset_counts(dataset)->documents, 1);
  dataset_close(&dataset);
}

static void test_stream_small(void **state) {
  (void)state;
  struct dataset *dataset = open_file(write_text("a.txt", "\xef\xbb\xbfOne.\r\nTwo || 2\r\n"), T, false);
  struct expected expected = {.first_target = 1};
  expect_id(&expected, tokenizer_bos(tokenizer));
  expect_text(&expected, "One.\nTwo || 2\n");
  expect_id(&expected, tokenizer_eos(tokenizer));
  check_row(dataset, 0, &expected);
  dataset_close(&dataset);
}

static void test_line_ends(void **state) {
  (void)state;
  struct dataset *plain = open_file(write_text("p.jsonl", "{\"text\": \"One\"}\n{\"text\": \"Two\"}\n"), T, false);
  struct dataset *other = open_file(
      write_text("q.jsonl", "\xef\xbb\xbf\r\n \t\n{\"text\": \"One\"}\r\n\n\n{\"text\": \"Two\"} \r\n\r\n"), T, false);
  struct dataset *swapped = open_file(write_text("r.jsonl", "{\"text\": \"Two\"}\n{\"text\": \"One\"}\n"), T, false);
  assert_string_equal(dataset_digest(plain), dataset_digest(other));
  assert_string_not_equal(dataset_digest(plain), dataset_digest(swapped));
  assert_int_equal(strlen(dataset_digest(plain)), 32);
  dataset_close(&plain);
  dataset_close(&other);
  dataset_close(&swapped);
}

/* Each packed document is one of the unpacked rows, each once, with positions
 * from 0 and no target at its end that belongs to the next. */
static void test_packing(void **state) {
  (void)state;
  const char *path = write_story("pack.jsonl", 200, true);
  struct dataset *apart = open_file(path, 256, false), *packed = open_file(path, 256, true);
  static struct row row, single;
  bool seen[200] = {false};
  assert_int_equal(dataset_rows(apart), 200);
  for (int64_t r = 0; r < dataset_rows(packed); r++) {
    get_row(packed, r, &row);
    for (int d = 0; d < row.n_docs; d++) {
      int64_t begin = row.starts[d], end = d + 1 < row.n_docs ? row.starts[d + 1] : row.n;
      int found = -1;
      for (int i = 0; i < 200 && found < 0; i++) {
        get_row(apart, i, &single);
        size_t bytes = (size_t)(end - begin) * 4;
        if (!seen[i] && single.n == end - begin && !memcmp(single.ids, row.ids + begin, bytes) &&
            !memcmp(single.labels, row.labels + begin, bytes) &&
            !memcmp(single.positions, row.positions + begin, bytes))
          found = i;
      }
      assert_true(found >= 0);
      seen[found] = true;
    }
    for (int64_t t = row.n; t < 256; t++) assert_true(row.ids[t] == 0 && row.labels[t] == -1 && row.positions[t] == 0);
  }
  for (int i = 0; i < 200; i++) assert_true(seen[i]);
  assert_int_equal(dataset_counts(packed)->targets, dataset_counts(apart)->targets);
  assert_int_equal(dataset_counts(packed)->tokens, dataset_counts(apart)->tokens);
  /* At least 90 % full: first fit does better than half always, here 97 %. */
  assert_true((double)dataset_counts(packed)->tokens / (256.0 * (double)dataset_rows(packed)) > 0.9);
  dataset_close(&apart);
  dataset_close(&packed);
}

/* Three over-long prompts among eight; one sample cut inside its completion. */
static void test_cut(void **state) {
  (void)state;
  const char *path = in_folder("cut.jsonl");
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  for (int i = 0; i < 8; i++) {
    fprintf(file, "{\"prompt\": \"Go\", \"completion\": \"");
    if (i == 6) fprintf(file, "%0200d", 0);
    fprintf(file, " end\"}\n");
    if (i % 3 == 0) fprintf(file, "{\"prompt\": \"%0200d\", \"completion\": \"x\"}\n", 0);
  }
  assert_int_equal(fclose(file), 0);
  struct dataset *dataset = open_file(path, 32, false);
  const struct dataset_counts *counts = dataset_counts(dataset);
  assert_int_equal(counts->documents, 11);
  assert_int_equal(counts->truncated, 4);
  assert_int_equal(counts->without_target, 3);
  assert_int_equal(counts->rows, 8);
  struct row row;
  get_row(dataset, 6, &row);
  assert_int_equal(row.n, 32);
  assert_true(row.labels[31] >= 0 && row.labels[31] != tokenizer_eos(tokenizer));
  dataset_close(&dataset);

  const char *long_only = write_text("long.jsonl", "{\"prompt\": \"A long prompt\", \"completion\": \"x\"}\n");
  struct dataset_options options = options_for(&long_only);
  options.seq_len = 2;
  assert_int_equal(dataset_open(&options, &dataset), STATUS_DATA);
  assert_non_null(strstr(status_message(), "none of 1 samples has a target (1 are longer"));
  assert_null(dataset);
}

static void check_error(const char *path, const char *format, enum status code, const char *message) {
  struct dataset_options options = options_for(&path);
  struct dataset *dataset = NULL;
  options.format = format;
  enum status status = dataset_open(&options, &dataset);
  if (status != code || !strstr(status_message(), message))
    fail_msg("expected %d with \"%s\", got %d: %s", code, message, status, status_message());
  assert_null(dataset);
}

static void test_errors(void **state) {
  (void)state;
  static const struct {
    const char *text, *message;
  } cases[] = {
      {"{\"text\": \"a\"}\n\n{\"text\": \n", "bad.jsonl:3: not valid JSON"},
      {"[1]\n", "bad.jsonl:1: not a JSON object"},
      {"{\"txt\": 1}\n", "bad.jsonl:1: no known keys"},
      {"{\"prompt\": \"a\"}\n", "bad.jsonl:1: key 'completion' is missing"},
      {"{\"prompt\": \"a\", \"completion\": 3}\n", "bad.jsonl:1: the value of 'completion' is not a string"},
      {"{\"text\": \"a\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}\n",
       "bad.jsonl:2: a prompt_completion record in a file of text records"},
      {"{\"text\": \"a\"}\n{\"other\": \"a\"}\n", "bad.jsonl:2: key 'text' is missing"},
      {"{\"text\": \"\xff\"}\n", "bad.jsonl:1: not valid JSON"},
      {"\n\n", "bad.jsonl: no samples"},
      {"", "bad.jsonl: no samples"},
      {"\xff\xfe{", "bad.jsonl: is UTF-16"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    check_error(write_text("bad.jsonl", cases[i].text), "auto", STATUS_DATA, cases[i].message);
  check_error(write_file("bad.jsonl", "{\"text\": \"a\"}\n\0\0\n", 17), "auto", STATUS_DATA,
              "bad.jsonl:2: holds a NUL byte");
  check_error(write_text("bad.txt", "a||b\n\nc|d\n"), "e2e", STATUS_DATA, "bad.txt:3: holds '||' 0 times");
  check_error(write_text("bad.txt", ""), "auto", STATUS_DATA, "bad.txt: no samples");
  check_error(in_folder("none.jsonl"), "auto", STATUS_USAGE, "none.jsonl: cannot open");
  check_error(write_text("bad.csv", "a"), "auto", STATUS_USAGE, "bad.csv: unknown ending");
  check_error(write_text("bad.txt", "a"), "alpaca", STATUS_USAGE, "data.format is alpaca");
  check_error(write_text("bad.txt", "a"), "xml", STATUS_USAGE, "unknown format 'xml'");

  const char *path = write_text("t.jsonl", "{\"text\": \"a\"}\n");
  struct dataset_options options = options_for(&path);
  struct dataset *dataset = NULL;
  options.tokenizer = NULL;
  assert_int_equal(dataset_open(&options, &dataset), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "t.jsonl: the base has no tokenizer; use .bin data"));
  options = options_for(&path);
  options.n_vocab = 2;
  assert_int_equal(dataset_open(&options, &dataset), STATUS_DATA);
  assert_non_null(strstr(status_message(), "outside the base's vocabulary of 2"));
}

/* One worker of several, as a thread. */
struct worker {
  pthread_barrier_t *barrier;
  const char *path, *cache_dir;
  int worker, n_workers;
  enum status status;
  char digest[33], message[256];
};

static enum status wait_for_all(void *context, uint64_t key) {
  (void)key;
  pthread_barrier_wait(context);
  return STATUS_OK;
}

static void *run_worker(void *context) {
  struct worker *worker = context;
  struct dataset_options options = options_for(&worker->path);
  struct dataset *dataset = NULL;
  options.seq_len = 256;
  options.packing = true;
  options.cache_dir = worker->cache_dir;
  options.worker = worker->worker;
  options.n_workers = worker->n_workers;
  options.meet = wait_for_all;
  options.meet_context = worker->barrier;
  worker->status = dataset_open(&options, &dataset);
  snprintf(worker->message, sizeof worker->message, "%s", status_message());
  if (worker->status == STATUS_OK) memcpy(worker->digest, dataset_digest(dataset), sizeof worker->digest);
  dataset_close(&dataset);
  return NULL;
}

static void run_workers(const char *path, const char *cache_dir, int n, struct worker *workers) {
  pthread_barrier_t barrier;
  pthread_t threads[8];
  assert_int_equal(pthread_barrier_init(&barrier, NULL, (unsigned)n), 0);
  for (int i = 0; i < n; i++) {
    workers[i] =
        (struct worker){.barrier = &barrier, .path = path, .cache_dir = cache_dir, .worker = i, .n_workers = n};
    assert_int_equal(pthread_create(&threads[i], NULL, run_worker, &workers[i]), 0);
  }
  for (int i = 0; i < n; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
  pthread_barrier_destroy(&barrier);
}

/* Path of a chunk in the only key's folder of a cache. */
static void find_chunk(const char *cache_dir, int number, char *path, size_t size) {
  char command[512];
  snprintf(command, sizeof command, "ls -d '%s'/*/chunk-%05d.tok", cache_dir, number);
  FILE *pipe = popen(command, "r");
  assert_non_null(pipe);
  assert_non_null(fgets(path, (int)size, pipe));
  path[strcspn(path, "\n")] = '\0';
  assert_int_equal(pclose(pipe), 0);
}

static ino_t inode(const char *path) {
  struct stat info;
  assert_int_equal(stat(path, &info), 0);
  return info.st_ino;
}

/* Any number of workers, cached or not, sees the same rows; good chunks are kept,
 * damaged ones made again. */
static void test_cache(void **state) {
  (void)state;
  char path[256], cache[256], chunk[512], kept[512];
  snprintf(path, sizeof path, "%s", write_story("big.jsonl", 24000, true));
  snprintf(cache, sizeof cache, "%s", in_folder("deep/cache"));
  struct dataset *dataset = open_file(path, 256, true);
  struct worker workers[3];
  run_workers(path, cache, 3, workers);
  for (int i = 0; i < 3; i++) assert_string_equal(workers[i].digest, dataset_digest(dataset));

  find_chunk(cache, 0, kept, sizeof kept);
  find_chunk(cache, 1, chunk, sizeof chunk);
  struct stat before;
  assert_int_equal(stat(chunk, &before), 0);
  for (int damage = 0; damage < 3; damage++) {
    /* A link keeps the old inode from being given out again. */
    const char *link_path = in_folder("old");
    unlink(link_path);
    assert_int_equal(link(chunk, link_path), 0);
    const ino_t first = inode(kept), second = inode(chunk);
    if (damage == 1) assert_int_equal(truncate(chunk, before.st_size - 4), 0);
    if (damage == 2) {
      FILE *file = fopen(chunk, "r+b");
      assert_non_null(file);
      assert_int_equal(fseek(file, before.st_size / 2, SEEK_SET), 0);
      int byte = fgetc(file);
      assert_int_equal(fseek(file, before.st_size / 2, SEEK_SET), 0);
      fputc(byte ^ 1, file);
      assert_int_equal(fclose(file), 0);
    }
    run_workers(path, cache, 2, workers);
    for (int i = 0; i < 2; i++) assert_string_equal(workers[i].digest, dataset_digest(dataset));
    assert_int_equal(inode(kept), first);
    assert_int_equal(inode(chunk) == second, damage == 0);
    assert_int_equal(stat(chunk, &before), 0);
  }
  dataset_close(&dataset);
}

/* A worker that fails comes to the barrier all the same and says why; the others
 * are told that it did. */
static void test_worker_fails(void **state) {
  (void)state;
  char path[256], cache[256];
  snprintf(path, sizeof path, "%s", write_story("torn.jsonl", 24000, true));
  snprintf(cache, sizeof cache, "%s", in_folder("torn-cache"));
  FILE *file = fopen(path, "r+b");
  assert_non_null(file);
  assert_int_equal(fseek(file, 3 << 19, SEEK_SET), 0); /* in the second chunk */
  fputs("\n{\n", file);
  assert_int_equal(fclose(file), 0);
  struct worker workers[2];
  run_workers(path, cache, 2, workers);
  assert_int_equal(workers[0].status, STATUS_PEER);
  assert_non_null(strstr(workers[0].message, "token chunk 1 is not in"));
  assert_int_equal(workers[1].status, STATUS_DATA);
  assert_non_null(strstr(workers[1].message, "not valid JSON"));
  /* The line is the one that was torn. */
  long line = strtol(strstr(workers[1].message, ".jsonl:") + 7, NULL, 10);
  char command[600], text[32];
  snprintf(command, sizeof command, "head -c %d '%s' | wc -l", 3 << 19, path);
  FILE *pipe = popen(command, "r");
  assert_non_null(pipe);
  assert_non_null(fgets(text, sizeof text, pipe));
  pclose(pipe);
  assert_int_equal(line, strtol(text, NULL, 10) + 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_prompt_completion),
      cmocka_unit_test(test_text_lines),
      cmocka_unit_test(test_alpaca),
      cmocka_unit_test(test_e2e),
      cmocka_unit_test(test_messages),
      cmocka_unit_test(test_fixtures),
      cmocka_unit_test(test_stream),
      cmocka_unit_test(test_stream_small),
      cmocka_unit_test(test_line_ends),
      cmocka_unit_test(test_packing),
      cmocka_unit_test(test_cut),
      cmocka_unit_test(test_errors),
      cmocka_unit_test(test_cache),
      cmocka_unit_test(test_worker_fails),
  };
  return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
