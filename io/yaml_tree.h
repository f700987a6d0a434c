/*
 * yaml_tree.h: a small YAML document as a tree with line numbers. Anchors,
 * aliases, tags, merge keys and further documents are refused; size, nesting
 * and the number of nodes are bounded.
 */
#ifndef LORASHARD_IO_YAML_TREE_H
#define LORASHARD_IO_YAML_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "io/status.h"

#define YAML_TREE_MAX_BYTES (256 * 1024)
#define YAML_TREE_MAX_DEPTH 16
#define YAML_TREE_MAX_NODES 20000
#define YAML_TREE_MAX_KEYS  256 /* in one map */

enum yaml_node_kind { YAML_NODE_SCALAR, YAML_NODE_LIST, YAML_NODE_MAP };

struct yaml_node {
  enum yaml_node_kind kind;
  int line;                /* from 1; 0 where lines mean nothing */
  bool plain;              /* a scalar without quotes: it may be a number, a bool, null */
  char *text;              /* a scalar's, no zero byte inside; else NULL; owned */
  struct yaml_node *items; /* list: n items; map: n pairs, key 2i, value 2i + 1; owned */
  int n;
};

/* Parse one document. Keys are scalars, no key twice in a map. An empty text is
 * a plain scalar "". `name` stands for the text in messages; with `lines` the
 * line follows it. *root is to be freed with yaml_tree_free also after a
 * failure. Errors: STATUS_USAGE, STATUS_SYSTEM (memory). */
enum status yaml_tree_parse(const char *text, size_t length, const char *name, bool lines, struct yaml_node *root);
void yaml_tree_free(struct yaml_node *root);

/* The text of a file for yaml_tree_parse, which says so if it is too long; malloc'ed, the caller's. A pipe will do.
 * `what` stands for its contents in messages: "the configuration". Errors: STATUS_USAGE, STATUS_SYSTEM (memory). */
enum status yaml_read_text(const char *path, const char *what, char **text_p, size_t *length_p);

/* STATUS_USAGE with "name:line: message", without ":line" if that is 0. */
enum status yaml_fault(const char *name, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* A scalar that YAML 1.1 takes for nothing, for true (1) or false (0; -1: for
 * neither), for a number. Quoted scalars are none of these. */
bool yaml_is_null(const struct yaml_node *node);
int yaml_bool(const struct yaml_node *node);
bool yaml_is_integer(const struct yaml_node *node);
bool yaml_is_number(const struct yaml_node *node);

/* Write text as a double-quoted scalar that parses back to the same bytes. */
void yaml_quote(FILE *out, const char *text);

#endif
