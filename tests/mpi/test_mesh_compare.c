/* ranks: 2 4 */
/* All ranks hear the same of inputs that differ: which input, which ranks, and on which hosts. */
#include "dist/mesh_compare.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "golden_case.h"

#define INPUTS 3

static char host[80]; /* of all ranks here */

static struct mesh_input inputs[INPUTS] = {{"program version", 1, "install the same build on every host"},
                                           {"configuration", 2, "give every rank the same file"},
                                           {"base", 3, NULL}};

static void expect(const struct mesh *mesh, const char *format, int first, int second) {
  char want[512], message[512];
  enum status status = mesh_compare(mesh, inputs, INPUTS);
  golden_check(status == STATUS_USAGE, "a difference is no error: %d", status);
  snprintf(message, sizeof message, "%s", status_message());
  snprintf(want, sizeof want, format, first, host, second, host);
  golden_check(strcmp(message, want) == 0, "the message: %s\nshould be: %s", message, want);
}

static void check_hash(void) {
  /* The published values of FNV-1a. */
  golden_check(mesh_hash(0, "", 0) == 0xcbf29ce484222325, "the hash of nothing");
  golden_check(mesh_hash(0, "foobar", 6) == 0x85944171f73967e8, "the hash of foobar");
  golden_check(mesh_hash(mesh_hash(0, "foo", 3), "bar", 3) == 0x85944171f73967e8, "the hash in two steps");
}

int main(void) {
  int world, rank;
  struct mesh *mesh;
  golden_must(mesh_start(&world, &rank));
  golden_must(mesh_create(1, 1, &mesh));
  check_hash();
  snprintf(host, sizeof host, "%s", mesh_host(rank));
  golden_check(*host && !*mesh_host(-1) && !*mesh_host(world), "hosts: '%s'", host);
  golden_must(mesh_compare(mesh, inputs, INPUTS));
  golden_must(mesh_compare(mesh, NULL, 0));

  const int last = world - 1;
  if (rank == last) inputs[1].hash++;
  expect(mesh, "rank %d (host %s) has another configuration than rank %d (host %s): give every rank the same file",
         last, 0);
  if (rank == last) inputs[2].hash++; /* the first difference is told */
  expect(mesh, "rank %d (host %s) has another configuration than rank %d (host %s): give every rank the same file",
         last, 0);
  if (rank == last) inputs[1].hash--;
  expect(mesh, "rank %d (host %s) has another base than rank %d (host %s)", last, 0);
  if (rank == last) inputs[2].hash--;
  golden_must(mesh_compare(mesh, inputs, INPUTS));

  if (world > 2) {
    if (rank == 0) inputs[0].hash++; /* what most have is right */
    expect(mesh,
           "rank %d (host %s) has another program version than rank %d (host %s): install the same build on every host",
           0, 1);
    if (rank == 0) inputs[0].hash--;
    if (rank == 1) inputs[2].hash = 77; /* two ranks, neither like the other */
    if (rank == 2) inputs[2].hash = 78;
    enum status status = mesh_compare(mesh, inputs, INPUTS);
    char want[512];
    snprintf(want, sizeof want, "rank 1 (host %s), rank 2 (host %s) have another base than rank 0 (host %s)", host,
             host, host);
    golden_check(status == STATUS_USAGE && strcmp(status_message(), want) == 0, "the message: %s", status_message());
    inputs[2].hash = 3;
  }
  golden_check(mesh_compare(mesh, inputs, rank == last ? INPUTS - 1 : INPUTS) == STATUS_USAGE,
               "another number of inputs is no error");
  if (rank == 0) printf("%d ranks: good\n", world);
  mesh_destroy(&mesh);
  mesh_stop();
  return 0;
}
