#include "io/yaml_tree.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <yaml.h>

struct reader {
  yaml_parser_t parser;
  const char *name;
  bool lines;
  int n_nodes;
};

enum status yaml_fault(const char *name, int line, const char *format, ...) {
  char text[768];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  if (line > 0) return status_set(STATUS_USAGE, "%s:%d: %s", name, line, text);
  return status_set(STATUS_USAGE, "%s: %s", name, text);
}

static int line_of(const struct reader *reader, yaml_mark_t mark) { return reader->lines ? (int)mark.line + 1 : 0; }

static enum status next_event(struct reader *reader, yaml_event_t *event) {
  if (yaml_parser_parse(&reader->parser, event)) return STATUS_OK;
  const yaml_parser_t *parser = &reader->parser;
  if (parser->error == YAML_MEMORY_ERROR)
    return status_set(STATUS_SYSTEM, "%s: no memory to parse the YAML text", reader->name);
  const char *problem = parser->problem ? parser->problem : "not YAML";
  /* A reader error (bytes that are not UTF-8) has an offset and no mark. */
  if (parser->error == YAML_READER_ERROR)
    return yaml_fault(reader->name, 0, "byte %zu: %s; save the file as UTF-8", parser->problem_offset, problem);
  return yaml_fault(reader->name, line_of(reader, parser->problem_mark), "not valid YAML: %s%s%s",
                    parser->context ? parser->context : "", parser->context ? ", " : "", problem);
}

static enum status refuse_extras(const struct reader *reader, const yaml_event_t *event) {
  const yaml_char_t *anchor = NULL, *tag = NULL;
  if (event->type == YAML_SCALAR_EVENT) {
    anchor = event->data.scalar.anchor;
    tag = event->data.scalar.tag;
  } else if (event->type == YAML_SEQUENCE_START_EVENT) {
    anchor = event->data.sequence_start.anchor;
    tag = event->data.sequence_start.tag;
  } else if (event->type == YAML_MAPPING_START_EVENT) {
    anchor = event->data.mapping_start.anchor;
    tag = event->data.mapping_start.tag;
  }
  int line = line_of(reader, event->start_mark);
  if (anchor || event->type == YAML_ALIAS_EVENT)
    return yaml_fault(reader->name, line, "anchors (&) and aliases (*) are not supported; write the value out");
  if (tag) return yaml_fault(reader->name, line, "tags (!) are not supported; leave the tag out");
  return STATUS_OK;
}

static enum status read_scalar(const struct reader *reader, const yaml_event_t *event, struct yaml_node *node) {
  const char *value = (const char *)event->data.scalar.value;
  size_t length = event->data.scalar.length;
  if (memchr(value, 0, length)) return yaml_fault(reader->name, node->line, "a value holds a zero byte");
  node->kind = YAML_NODE_SCALAR;
  node->plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
  node->text = strdup(value);
  if (!node->text) return status_set(STATUS_SYSTEM, "%s: no memory to parse the YAML text", reader->name);
  return STATUS_OK;
}

/* Key `n` of a map is a scalar and no other key has its text. */
static enum status check_key(const struct reader *reader, const struct yaml_node *map, int n) {
  const struct yaml_node *key = &map->items[2 * n];
  if (key->kind != YAML_NODE_SCALAR)
    return yaml_fault(reader->name, key->line, "a key must be a plain name, not a list or map");
  if (key->plain && strcmp(key->text, "<<") == 0)
    return yaml_fault(reader->name, key->line, "merge keys (<<) are not supported; write the keys out");
  if (n >= YAML_TREE_MAX_KEYS)
    return yaml_fault(reader->name, key->line, "more than %d keys in one map", YAML_TREE_MAX_KEYS);
  for (int i = 0; i < n; i++) {
    if (strcmp(map->items[2 * i].text, key->text) != 0) continue;
    if (reader->lines)
      return yaml_fault(reader->name, key->line, "key '%.200s' is here twice (first in line %d)", key->text,
                        map->items[2 * i].line);
    return yaml_fault(reader->name, 0, "key '%.200s' is here twice", key->text);
  }
  return STATUS_OK;
}

static enum status read_node(struct reader *reader, yaml_event_t *event, int depth, struct yaml_node *node);

/* Items of a list or keys and values of a map up to the end event. */
static enum status read_items(struct reader *reader, int depth, struct yaml_node *node) {
  yaml_event_type_t end = node->kind == YAML_NODE_MAP ? YAML_MAPPING_END_EVENT : YAML_SEQUENCE_END_EVENT;
  int capacity = 0, used = 0;
  for (;;) {
    yaml_event_t event;
    TRY(next_event(reader, &event));
    if (event.type == end) {
      yaml_event_delete(&event);
      return STATUS_OK;
    }
    if (used == capacity) {
      int more = capacity ? 2 * capacity : 8;
      struct yaml_node *items = realloc(node->items, (size_t)more * sizeof *items);
      if (!items) {
        yaml_event_delete(&event);
        return status_set(STATUS_SYSTEM, "%s: no memory to parse the YAML text", reader->name);
      }
      memset(items + capacity, 0, (size_t)(more - capacity) * sizeof *items);
      node->items = items;
      capacity = more;
    }
    bool is_key = node->kind == YAML_NODE_MAP && used % 2 == 0;
    /* A key counts as soon as it is begun, so that yaml_tree_free finds it. */
    if (node->kind == YAML_NODE_LIST || is_key) node->n++;
    enum status status = read_node(reader, &event, depth + 1, &node->items[used]);
    yaml_event_delete(&event);
    TRY(status);
    if (is_key) TRY(check_key(reader, node, used / 2));
    used++;
  }
}

static enum status read_node(struct reader *reader, yaml_event_t *event, int depth, struct yaml_node *node) {
  TRY(refuse_extras(reader, event));
  node->line = line_of(reader, event->start_mark);
  if (++reader->n_nodes > YAML_TREE_MAX_NODES)
    return yaml_fault(reader->name, node->line, "more than %d values", YAML_TREE_MAX_NODES);
  if (event->type == YAML_SCALAR_EVENT) return read_scalar(reader, event, node);
  if (depth >= YAML_TREE_MAX_DEPTH)
    return yaml_fault(reader->name, node->line, "nested more than %d deep", YAML_TREE_MAX_DEPTH);
  node->kind = event->type == YAML_MAPPING_START_EVENT ? YAML_NODE_MAP : YAML_NODE_LIST;
  return read_items(reader, depth, node);
}

/* The events around the one document: stream start, document start, (the
 * node), document end, stream end. */
static enum status read_stream(struct reader *reader, struct yaml_node *root) {
  bool found = false;
  for (;;) {
    yaml_event_t event;
    TRY(next_event(reader, &event));
    enum status status = STATUS_OK;
    bool end = event.type == YAML_STREAM_END_EVENT;
    bool frame = end || event.type == YAML_STREAM_START_EVENT || event.type == YAML_DOCUMENT_START_EVENT ||
                 event.type == YAML_DOCUMENT_END_EVENT;
    if (event.type == YAML_DOCUMENT_START_EVENT && found)
      status = yaml_fault(reader->name, line_of(reader, event.start_mark),
                          "a second document begins here; one file holds one configuration");
    if (!frame) {
      status = read_node(reader, &event, 0, root);
      found = true;
    }
    yaml_event_delete(&event);
    TRY(status);
    if (end) break;
  }
  if (found) return STATUS_OK;
  root->kind = YAML_NODE_SCALAR;
  root->plain = true;
  root->text = strdup("");
  return root->text ? STATUS_OK : status_set(STATUS_SYSTEM, "%s: no memory to parse the YAML text", reader->name);
}

enum status yaml_tree_parse(const char *text, size_t length, const char *name, bool lines, struct yaml_node *root) {
  memset(root, 0, sizeof *root);
  if (length > YAML_TREE_MAX_BYTES)
    return yaml_fault(name, 0, "larger than %d KiB; this is no configuration", YAML_TREE_MAX_BYTES / 1024);
  struct reader reader = {.name = name, .lines = lines};
  if (!yaml_parser_initialize(&reader.parser))
    return status_set(STATUS_SYSTEM, "%s: no memory to parse the YAML text", name);
  /* Fixed, so that a UTF-16 mark does not switch the decoder. */
  yaml_parser_set_encoding(&reader.parser, YAML_UTF8_ENCODING);
  yaml_parser_set_input_string(&reader.parser, (const unsigned char *)text, length);
  enum status status = read_stream(&reader, root);
  yaml_parser_delete(&reader.parser);
  return status;
}

enum status yaml_read_text(const char *path, const char *what, char **text_p, size_t *length_p) {
  FILE *file = fopen(path, "rb");
  if (!file) return status_set(STATUS_USAGE, "%s: cannot open %s: %s", path, what, strerror(errno));
  size_t size = YAML_TREE_MAX_BYTES + 1;
  char *text = malloc(size);
  if (!text) {
    fclose(file);
    return status_set(STATUS_SYSTEM, "%s: no memory to read %s", path, what);
  }
  errno = 0;
  size_t length = fread(text, 1, size, file);
  int error = ferror(file) ? errno : 0;
  fclose(file);
  if (error) {
    free(text);
    return status_set(STATUS_USAGE, "%s: cannot read %s: %s", path, what, strerror(error));
  }
  *text_p = text;
  *length_p = length;
  return STATUS_OK;
}

void yaml_tree_free(struct yaml_node *root) {
  if (!root) return;
  int used = root->kind == YAML_NODE_MAP ? 2 * root->n : root->n;
  for (int i = 0; i < used; i++) yaml_tree_free(&root->items[i]);
  free(root->items);
  free(root->text);
  memset(root, 0, sizeof *root);
}

bool yaml_is_null(const struct yaml_node *node) {
  if (node->kind != YAML_NODE_SCALAR || !node->plain) return false;
  return !*node->text || strcmp(node->text, "~") == 0 || strcasecmp(node->text, "null") == 0;
}

int yaml_bool(const struct yaml_node *node) {
  static const char *const words[] = {"false", "true", "no", "yes", "off", "on"};
  if (node->kind != YAML_NODE_SCALAR || !node->plain) return -1;
  for (int i = 0; i < 6; i++)
    if (strcasecmp(node->text, words[i]) == 0) return i % 2;
  return -1;
}

static const char *skip_digits(const char *at) {
  while (isdigit((unsigned char)*at)) at++;
  return at;
}

bool yaml_is_integer(const struct yaml_node *node) {
  if (node->kind != YAML_NODE_SCALAR || !node->plain) return false;
  const char *at = node->text;
  if (*at == '-' || *at == '+') at++;
  const char *end = skip_digits(at);
  return end > at && !*end;
}

/* YAML 1.1 wants a dot and a signed exponent ("1.0e-4"); people write 1e-4. */
bool yaml_is_number(const struct yaml_node *node) {
  if (node->kind != YAML_NODE_SCALAR || !node->plain) return false;
  const char *at = node->text;
  if (*at == '-' || *at == '+') at++;
  const char *end = skip_digits(at);
  int digits = (int)(end - at);
  at = end;
  if (*at == '.') {
    end = skip_digits(++at);
    digits += (int)(end - at);
    at = end;
  }
  if (digits == 0) return false;
  if (*at == 'e' || *at == 'E') {
    at++;
    if (*at == '-' || *at == '+') at++;
    end = skip_digits(at);
    if (end == at) return false;
    at = end;
  }
  return !*at;
}

/* Code point at *at and its length; bytes that are no UTF-8 stand for
 * themselves. */
static uint32_t decode(const unsigned char *at, int *length) {
  static const uint32_t marks[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
  int n = at[0] < 0x80 ? 1 : at[0] >= 0xf0 ? 4 : at[0] >= 0xe0 ? 3 : at[0] >= 0xc0 ? 2 : 1;
  uint32_t code = n == 1 ? at[0] : at[0] & marks[n];
  for (int i = 1; i < n; i++) {
    if ((at[i] & 0xc0) != 0x80) {
      n = 1;
      code = at[0];
      break;
    }
    code = code << 6 | (at[i] & 0x3f);
  }
  *length = n;
  return code;
}

void yaml_quote(FILE *out, const char *text) {
  fputc('"', out);
  for (const unsigned char *at = (const unsigned char *)text; *at;) {
    int length;
    uint32_t code = decode(at, &length);
    /* Control characters, YAML's own line breaks and what a reader refuses. */
    bool escape = code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x2028 || code == 0x2029 || code == 0xfeff ||
                  code == 0xfffe || code == 0xffff;
    if (code == '"' || code == '\\')
      fprintf(out, "\\%c", (int)code);
    else if (escape)
      fprintf(out, "\\u%04x", (unsigned)code);
    else
      fwrite(at, 1, (size_t)length, out);
    at += length;
  }
  fputc('"', out);
}
