/*
 * Adapter checkpoints: what must not be published, written or believed: shards
 * that do not make a whole, a full disk, files made to harm.
 */
#include <errno.h>
#include <hdf5.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checkpoint_world.h"
#include "io/durable.h"
#include "io/log.h"

/* Publish what the given change makes of two shards. */
static enum status publish_changed(struct world *w,
                                   void (*change)(struct checkpoint_array parts[N_ARRAYS], int shard)) {
  char directory[256];
  w->header.step = 100;
  expect_ok(checkpoint_begin(w->output, 100, directory, sizeof directory));
  for (int t = 0; t < 2; t++) {
    struct checkpoint_array parts[N_ARRAYS];
    world_shard_arrays(w, t, 2, parts);
    change(parts, t);
    expect_ok(checkpoint_write_shard(directory, t ? "shard-00001.h5" : "shard-00000.h5", &w->header, w->modules,
                                     N_MODULES, parts, N_ARRAYS));
    for (int i = 0; i < N_ARRAYS; i++) free(parts[i].data);
  }
  enum status status = checkpoint_publish(w->output, 100, &w->header, w->modules, N_MODULES, "", 0);
  assert_int_not_equal(access(world_path(w, "out/step-000100"), F_OK), 0);
  return status;
}

static void make_gap(struct checkpoint_array parts[N_ARRAYS], int shard) {
  if (shard == 1) parts[1].part_rows -= 1;
}
static void make_overlap(struct checkpoint_array parts[N_ARRAYS], int shard) {
  if (shard == 0) parts[1].part_rows = parts[1].rows / 3 + 1;
  if (shard == 0) parts[1].data = realloc(parts[1].data, 4096);
}
static void drop_part(struct checkpoint_array parts[N_ARRAYS], int shard) {
  if (shard == 1) parts[4].part_rows = 0;
}
static void drop_array(struct checkpoint_array parts[N_ARRAYS], int shard) {
  (void)shard;
  parts[5].part_rows = 0;
}
static void other_size(struct checkpoint_array parts[N_ARRAYS], int shard) {
  if (shard == 1) parts[1].rows += 1;
}

static void test_gaps_and_overlaps(void **state) {
  struct world *w = *state;
  expect_refused(publish_changed(w, make_gap), STATUS_DATA, "layers/0/q/B: 4 of 192 elements are in no shard",
                 "shard-00000.h5");
  expect_refused(publish_changed(w, make_overlap), STATUS_DATA, "layers/0/q/B", "shard-00000.h5 and shard-00001.h5");
  expect_refused(publish_changed(w, drop_part), STATUS_DATA, "layers/2/o/A", "in no shard");
  expect_refused(publish_changed(w, drop_array), STATUS_DATA, "layers/2/o/B is in none", "shard-00001.h5");
  expect_refused(publish_changed(w, other_size), STATUS_DATA, "layers/0/q/B", "disagree");
  char directory[256];
  expect_ok(checkpoint_begin(w->output, 100, directory, sizeof directory));
  expect_refused(checkpoint_publish(w->output, 100, &w->header, w->modules, N_MODULES, "", 0), STATUS_DATA, "no shard-",
                 NULL);
}

/* In a child with a limit on file size every kind of writing fails cleanly. */
static int write_within(struct world *w, rlim_t limit) {
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    struct rlimit size = {limit, limit};
    char directory[256];
    int code = 0;
    signal(SIGXFSZ, SIG_IGN);
    w->header.step = 300;
    if (checkpoint_begin(w->output, 300, directory, sizeof directory) != STATUS_OK) _exit(10);
    if (setrlimit(RLIMIT_FSIZE, &size) != 0) _exit(11);
    enum status status =
        checkpoint_write_shard(directory, "shard-00000.h5", &w->header, w->modules, N_MODULES, w->arrays, N_ARRAYS);
    if (status != STATUS_SYSTEM) code = 12;
    if (!strstr(status_message(), "shard-00000.h5")) code = 13;
    if (world_count_entries(directory, "shard") != 0) code = 14;
    exit(code); /* runs HDF5's own exit code too: it must not hang or crash */
  }
  int result;
  assert_int_equal(waitpid(child, &result, 0), child);
  return WIFEXITED(result) ? WEXITSTATUS(result) : 100 + WTERMSIG(result);
}

/* The same on a file system of 64 KiB of its own, where the reservation of the
 * space already fails. 77: no permission to mount. */
static int write_on_full_tmpfs(struct world *w) {
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    if (mkdir(w->output, 0777) != 0) _exit(10);
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", w->output, "tmpfs", 0, "size=64k") != 0)
      _exit(77);
    enum status status =
        checkpoint_write_shard(w->output, "shard-00000.h5", &w->header, w->modules, N_MODULES, w->arrays, N_ARRAYS);
    if (status != STATUS_SYSTEM || !strstr(status_message(), "No space left")) exit(12);
    exit(world_count_entries(w->output, "shard") == 0 ? 0 : 14);
  }
  int result;
  assert_int_equal(waitpid(child, &result, 0), child);
  return WIFEXITED(result) ? WEXITSTATUS(result) : 100 + WTERMSIG(result);
}

static void test_full_file_system(void **state) {
  int code = write_on_full_tmpfs(*state);
  if (code == 77) skip();
  assert_int_equal(code, 0);
}

static void test_full_disk(void **state) {
  struct world *w = *state;
  char path[256];
  int64_t step;
  world_publish_step(w, 200, 1, 0);
  off_t size = world_file_size(world_path(w, "out/step-000200/shard-00000.h5"));
  for (int i = 1; i < 20; i++) assert_int_equal(write_within(w, (rlim_t)(size * i / 20)), 0);
  for (int i = 1; i < 10; i++) assert_int_equal(write_within(w, (rlim_t)(size - 1 - 600 * (i - 1))), 0);
  expect_ok(checkpoint_find_latest(w->output, path, sizeof path, &step));
  assert_int_equal(step, 200);
  world_check_content(w, path, true);
}

/* A hostile adapter.h5: a good one, with one thing put in. */
enum hostile {
  EXTERNAL_LINK,
  SOFT_LINK,
  EXTERNAL_STORAGE,
  VIRTUAL_ABSOLUTE,
  VIRTUAL_PARENT,
  HUGE_EXTENT,
  WRONG_TYPE,
  DEFLATE,
  CYCLE,
  TEXT_CONTROL
};

static void put_attributes(hid_t dataset, int64_t rows, int64_t cols) {
  hid_t space = H5Screate(H5S_SCALAR);
  int64_t zero = 0;
  const char *const names[4] = {"rows", "cols", "row", "col"};
  const int64_t *const values[4] = {&rows, &cols, &zero, &zero};
  for (int i = 0; i < 4; i++) {
    hid_t attribute = H5Acreate2(dataset, names[i], H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Awrite(attribute, H5T_NATIVE_INT64, values[i]) >= 0);
    H5Aclose(attribute);
  }
  H5Sclose(space);
}

static void put_dataset(hid_t file, enum hostile what, int64_t rows, int64_t cols) {
  hsize_t size[2] = {(hsize_t)rows, (hsize_t)cols}, chunk[2] = {1, 1};
  hid_t space = H5Screate_simple(2, size, NULL), list = H5Pcreate(H5P_DATASET_CREATE);
  if (what == EXTERNAL_STORAGE) assert_true(H5Pset_external(list, "/etc/passwd", 0, H5F_UNLIMITED) >= 0);
  if (what == VIRTUAL_ABSOLUTE)
    assert_true(H5Pset_virtual(list, space, "/etc/shard-0.h5", "/layers/0/q/X", space) >= 0);
  if (what == VIRTUAL_PARENT) assert_true(H5Pset_virtual(list, space, "../shard-0.h5", "/layers/0/q/X", space) >= 0);
  if (what == DEFLATE || what == HUGE_EXTENT) assert_true(H5Pset_chunk(list, 2, chunk) >= 0);
  if (what == DEFLATE) assert_true(H5Pset_deflate(list, 9) >= 0);
  hid_t dataset = H5Dcreate2(file, "layers/0/q/X", what == WRONG_TYPE ? H5T_IEEE_F64LE : H5T_IEEE_F32LE, space,
                             H5P_DEFAULT, list, H5P_DEFAULT);
  assert_true(dataset >= 0);
  put_attributes(dataset, rows, cols);
  H5Dclose(dataset);
  H5Pclose(list);
  H5Sclose(space);
}

static void make_hostile(struct world *w, const char *path, enum hostile what) {
  expect_ok(checkpoint_write_file(path, &w->header, w->modules, 1, NULL, w->arrays, 2));
  hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_libver_bounds(access, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
  hid_t file = H5Fopen(path, H5F_ACC_RDWR, access);
  assert_true(file >= 0);
  hid_t root = H5Gopen2(file, "/", H5P_DEFAULT);
  switch (what) {
    case EXTERNAL_LINK:
      assert_true(H5Lcreate_external("/etc/other.h5", "/x", root, "layers/1", H5P_DEFAULT, H5P_DEFAULT) >= 0);
      break;
    case SOFT_LINK:
      assert_true(H5Lcreate_soft("/layers/0", root, "layers/1", H5P_DEFAULT, H5P_DEFAULT) >= 0);
      break;
    case CYCLE:
      assert_true(H5Lcreate_hard(root, "/", root, "layers/loop", H5P_DEFAULT, H5P_DEFAULT) >= 0);
      assert_true(H5Lcreate_hard(root, "/", root, "layers/loop2", H5P_DEFAULT, H5P_DEFAULT) >= 0);
      break;
    case TEXT_CONTROL: {
      hid_t attribute = H5Aopen(root, "base_family", H5P_DEFAULT), type = H5Aget_type(attribute);
      assert_true(H5Awrite(attribute, type, "\033[2J") >= 0);
      H5Tclose(type);
      H5Aclose(attribute);
      break;
    }
    case HUGE_EXTENT:
      put_dataset(root, what, INT64_C(1) << 20, INT64_C(1) << 18);
      break;
    default:
      put_dataset(root, what, 4, 4);
      break;
  }
  H5Gclose(root);
  H5Fclose(file);
  H5Pclose(access);
}

static void test_hostile(void **state) {
  struct world *w = *state;
  static const struct {
    enum hostile what;
    const char *word;
  } cases[] = {{EXTERNAL_LINK, "an external link is refused"},
               {SOFT_LINK, "a soft link is refused"},
               {EXTERNAL_STORAGE, "external storage is refused"},
               {VIRTUAL_ABSOLUTE, "virtual source \"/etc/shard-0.h5\" is refused"},
               {VIRTUAL_PARENT, "virtual source \"../shard-0.h5\" is refused"},
               {HUGE_EXTENT, "claims 1099511627776 bytes that the file does not hold"},
               {WRONG_TYPE, "layers/0/q/X: type is neither"},
               {DEFLATE, "layers/0/q/X: filter 1 is not supported"},
               {CYCLE, "too deeply"},
               {TEXT_CONTROL, "base_family has control characters"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const char *path = world_path(w, "hostile.h5");
    struct checkpoint *checkpoint = NULL;
    make_hostile(w, path, cases[i].what);
    expect_refused(checkpoint_open(path, &checkpoint), STATUS_DATA, "hostile.h5", cases[i].word);
    assert_null(checkpoint);
  }
}

/* Every dataset with numbers or text of its own is checksummed. */
static herr_t check_filter(hid_t object, const char *name, const H5O_info_t *info, void *n_p) {
  if (info->type != H5O_TYPE_DATASET) return 0;
  hid_t dataset = H5Dopen2(object, name, H5P_DEFAULT), list = H5Dget_create_plist(dataset);
  unsigned flags, configuration;
  size_t n_values = 0;
  if (H5Pget_nfilters(list) != 1 ||
      H5Pget_filter2(list, 0, &flags, &n_values, NULL, 0, NULL, &configuration) != H5Z_FILTER_FLETCHER32)
    fail_msg("%s has no Fletcher32", name);
  ++*(int *)n_p;
  H5Pclose(list);
  H5Dclose(dataset);
  return 0;
}

static void test_checksums(void **state) {
  struct world *w = *state;
  static const char *const files[] = {"out/step-000100/shard-00000.h5", "adapter.h5"};
  world_publish_step(w, 100, 1, 0);
  expect_ok(checkpoint_gather(world_path(w, "out/step-000100"), world_path(w, "adapter.h5"), true, DTYPE_F32));
  for (int i = 0; i < 2; i++) {
    int n = 0;
    hid_t file = H5Fopen(world_path(w, files[i]), H5F_ACC_RDONLY, H5P_DEFAULT);
    assert_true(file >= 0);
    assert_true(H5Ovisit(file, H5_INDEX_NAME, H5_ITER_INC, check_filter, &n) >= 0);
    assert_int_equal(n, N_ARRAYS + i); /* and the configuration */
    H5Fclose(file);
  }
}

/* Nothing is loaded from where the environment or a file says. */
static void test_no_plugins(void **state) {
  struct world *w = *state;
  unsigned mask = 0xff;
  world_write_whole(w, world_path(w, "adapter.h5"));
  world_check_content(w, world_path(w, "adapter.h5"), true);
  assert_true(H5PLget_loading_state(&mask) >= 0);
  assert_int_equal(mask, 0);
  assert_string_equal(getenv("HDF5_PLUGIN_PRELOAD"), "::");
  assert_null(getenv("HDF5_VOL_CONNECTOR"));
  assert_null(getenv("HDF5_DRIVER"));
}

static void make_link(const char *to, const char *path) {
  assert_true(unlink(path) == 0 || errno == ENOENT);
  assert_int_equal(symlink(to, path), 0);
}

/* Links that somebody left in the output directory lead nowhere. */
static void test_links(void **state) {
  struct world *w = *state;
  struct world_file {
    const char *name, *to;
  } links[] = {{"out/step-000100.tmp", "../other"},
               {"out/step-000200.old.tmp", "../other"},
               {"out/latest.tmp", "../other/keep"}};
  world_publish_step(w, 50, 1, 0);
  assert_int_equal(mkdir(world_path(w, "other"), 0777), 0);
  expect_ok(durable_write(world_path(w, "other/keep"), "x", 1));
  for (size_t i = 0; i < sizeof links / sizeof links[0]; i++) make_link(links[i].to, world_path(w, links[i].name));
  world_publish_step(w, 100, 1, 0);
  make_link("../other", world_path(w, "out/step-000060")); /* pruned */
  make_link("../other/keep", world_path(w, "out/latest"));
  make_link("other/keep", world_path(w, "gathered.h5.tmp"));
  world_publish_step(w, 200, 1, 1);
  expect_ok(checkpoint_gather(world_path(w, "out/step-000200"), world_path(w, "gathered.h5"), false, DTYPE_F32));
  assert_int_equal(world_file_size(world_path(w, "other/keep")), 1);
  assert_int_equal(world_count_entries(w->output, "step-"), 1);
  size_t size;
  char *latest = world_slurp(world_path(w, "out/latest"), &size);
  assert_memory_equal(latest, "step-000200\n", size);
  free(latest);
}

static void test_wrong_requests(void **state) {
  struct world *w = *state;
  struct checkpoint *checkpoint = NULL;
  expect_refused(checkpoint_open(world_path(w, "nothing.h5"), &checkpoint), STATUS_USAGE, "nothing.h5", "no such");
  world_write_whole(w, world_path(w, "adapter.h5"));
  expect_ok(checkpoint_open(world_path(w, "adapter.h5"), &checkpoint));
  struct checkpoint_array array = w->arrays[0];
  array.rows = array.part_rows = 5;
  expect_refused(checkpoint_read(checkpoint, &array), STATUS_DATA, "layers/0/q/A is [4, 32], not [5, 32]", NULL);
  array = w->arrays[0];
  array.col = 1;
  expect_refused(checkpoint_read(checkpoint, &array), STATUS_USAGE, "outside", NULL);
  strcpy(array.name, "C");
  expect_refused(checkpoint_read(checkpoint, &array), STATUS_DATA, "layers/0/q/C", NULL);
  checkpoint_close(&checkpoint);
  array = w->arrays[0];
  array.part_cols = 31;
  expect_refused(checkpoint_write_file(world_path(w, "x.h5"), &w->header, w->modules, N_MODULES, "", &array, 1),
                 STATUS_USAGE, "not whole", NULL);
  struct checkpoint_header other = w->header;
  other.step = 1;
  expect_refused(checkpoint_publish(w->output, 100, &other, w->modules, N_MODULES, "", 0), STATUS_USAGE, "step", NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_gaps_and_overlaps, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_full_file_system, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_full_disk, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_hostile, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_checksums, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_no_plugins, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_links, world_setup, world_teardown),
      cmocka_unit_test_setup_teardown(test_wrong_requests, world_setup, world_teardown),
  };
  /* test_no_plugins, before the first call of HDF5 */
  setenv("HDF5_VOL_CONNECTOR", "evil", 1);
  setenv("HDF5_DRIVER", "evil", 1);
  setenv("HDF5_PLUGIN_PATH", "/tmp", 1);
  log_setup(0, 1, LOG_ERROR); /* warnings about broken steps are expected */
  return cmocka_run_group_tests(tests, NULL, NULL);
}
