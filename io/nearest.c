#include "io/nearest.h"

#include <ctype.h>
#include <string.h>

#define NAME_MAX_BYTES 63

static int fold(char c) { return c == '-' ? '_' : tolower((unsigned char)c); }

static int least(int a, int b) { return a < b ? a : b; }

int nearest_distance(const char *a, const char *b) {
  int n = (int)strnlen(a, NAME_MAX_BYTES), m = (int)strnlen(b, NAME_MAX_BYTES);
  int rows[3][NAME_MAX_BYTES + 1];
  int *before = rows[0], *last = rows[1], *now = rows[2];
  for (int j = 0; j <= m; j++) last[j] = j;
  for (int i = 1; i <= n; i++) {
    now[0] = i;
    for (int j = 1; j <= m; j++) {
      int replace = last[j - 1] + (fold(a[i - 1]) != fold(b[j - 1]));
      now[j] = least(replace, least(last[j], now[j - 1]) + 1);
      if (i > 1 && j > 1 && fold(a[i - 1]) == fold(b[j - 2]) && fold(a[i - 2]) == fold(b[j - 1]))
        now[j] = least(now[j], before[j - 2] + 1);
    }
    int *oldest = before;
    before = last;
    last = now;
    now = oldest;
  }
  return last[m];
}

int nearest_name(const char *name, const char *const *names, int n) {
  int best = -1, best_distance = 0;
  for (int i = 0; i < n; i++) {
    int distance = nearest_distance(name, names[i]);
    if (best >= 0 && distance >= best_distance) continue;
    best = i;
    best_distance = distance;
  }
  return best;
}
