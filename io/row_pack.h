/*
 * row_pack.h: which documents share a row.
 */
#ifndef LORASHARD_IO_ROW_PACK_H
#define LORASHARD_IO_ROW_PACK_H

#include <stdbool.h>
#include <stdint.h>

#include "io/status.h"

struct row_table {
  int64_t n_rows;
  int64_t *first;     /* [n_rows + 1]: into documents */
  int64_t *documents; /* [n]: document numbers row by row, rising within a row */
};

/* Put n documents of need[i] positions each (1 <= need[i] <= seq_len) into rows
 * of seq_len. Without `packing` one a row. With it, in order, each into the first
 * of at most 64 open rows that has room; if there is none a new row is opened and
 * the fullest open one closed. Rows are numbered as they are opened. The result
 * depends on the arguments alone; the caller's, for row_table_free. */
enum status row_pack(const int32_t *need, int64_t n, int64_t seq_len, bool packing, struct row_table *table);
void row_table_free(struct row_table *table);

#endif
