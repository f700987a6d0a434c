#!/usr/bin/env bash
# Files and variables of somebody else: nothing is written outside the output directory, nothing is executed, nothing
# is read through links inside of files. tests/io/test_checkpoint_refusals.c has hostile HDF5 files.
# cores: 1
. "$(dirname "$0")/harness.sh"

cat >job.yaml <<EOT
base: $stories
data: {train: [$FIXTURES/data/prompt_completion.jsonl], seq_len: 64}
train: {steps: 2, global_batch: 2}
lora: {r: 2, targets: [q]}
checkpoint: {every: 1, keep_last: 0}
output: run
EOT

# --- the program starts no other program ---

if command -v nm >/dev/null; then
  found=$(nm -D "$LORASHARD" | grep -Eo ' U (system|popen|exec[lv][a-z]*|posix_spawn[a-z]*|wordexp|fexecve)(@|$)')
  [ -z "$found" ] || fault "the program can start others: $found"
fi

# --- libraries where variables or the working directory point ---

mkdir plugins
cat >evil.c <<EOT
#include <fcntl.h>
__attribute__((constructor)) static void run(void) { creat("$work/executed", 0666); }
const void *H5PLget_plugin_info(void) { return 0; }
int H5PLget_plugin_type(void) { return 0; }
EOT
"${CC:-cc}" -shared -fPIC -o plugins/libevil.so evil.c || fault "the plug-in does not compile"
for name in liblorashard_cuda.so liblorashard_nccl.so; do cp plugins/libevil.so $name && cp plugins/libevil.so plugins/$name; done
launch=(env HDF5_PLUGIN_PATH="$work/plugins" HDF5_VOL_CONNECTOR=evil HDF5_DRIVER=evil LORASHARD_LOG=debug)
works 'saved ' train job.yaml
works 'step 2' gather run -o a.h5
# Beside the program is the only place for plug-ins: this one is found, or none, but not that of the working directory.
run doctor
run train job.yaml --overwrite --set device=cuda
launch
grep -Eq "lorashard_(cuda|nccl)" < <(strings -a "$LORASHARD" 2>/dev/null || cat "$LORASHARD") || fault "the plug-ins have other names now"
[ ! -e executed ] || fault 'a library was loaded from where a variable or the working directory has it'
checks=$((checks + 1))

# --- configurations ---

printf 'base: !!python/object/apply:os.system ["touch executed"]\n' >tag.yaml
refused 2 'tag.yaml:1: tags \(!\) are not supported' train tag.yaml
printf 'base: &a [*a]\n' >alias.yaml
refused 2 'alias.yaml:1: ' train alias.yaml
# shellcheck disable=SC2016
works 'saved ' train job.yaml --set 'output="$(touch executed)`touch executed`"'
[ ! -e executed ] && [ -d '$(touch executed)`touch executed`' ] || fault 'a text of the configuration was executed'

# --- names of files within files ---

cp -r "$golden/opt-post-norm" sharded && chmod -R u+w sharded
index=sharded/model.safetensors.index.json
for name in ../sharded/model-00002-of-00003.safetensors "$work/sharded/model-00002-of-00003.safetensors" ..; do
  sed -i.good "s|model-00002-of-00003.safetensors|$name|" $index
  refused 1 'index.json: .*' inspect sharded
  refused 1 'index.json: .*' merge --base sharded --adapter a.h5 -o merged
  mv $index.good $index
done
[ ! -e merged ] || fault 'a refused merge leaves its folder'

# --- links in an output directory that came from elsewhere ---

mkdir victim
victims() { for name in config metrics status latest lines; do echo "$name" >victim/$name; done; }
untouched() { # WHAT
  checks=$((checks + 1))
  for name in config metrics status latest lines; do
    [ "$(cat victim/$name 2>/dev/null)" = $name ] || fault "$1: victim/$name was changed"
  done
  [ "$(ls victim | wc -l)" -eq 5 ] || fault "$1: $(ls victim)"
}
victims
rm -rf run
works 'saved ' train job.yaml
plant() {
  ln -sf ../victim/config run/config.yaml
  ln -sf ../victim/config run/config.yaml.tmp
  ln -sf ../victim/status run/status.json
  ln -sf ../victim/status run/status.json.tmp
  ln -sf ../victim/latest run/latest.tmp
  ln -sf ../victim/lines run/metrics.jsonl.tmp
  ln -sfn ../victim run/step-000001.tmp
  ln -sfn ../victim run/step-000003.tmp
  ln -sfn ../victim run/step-000002.old.tmp
}
plant
works 'saved     run/step-000003' train job.yaml --resume --set train.steps=3
untouched 'a resumed run'
plant
works 'saved     run/step-000002' train job.yaml --overwrite
untouched 'a run that is replaced'
rm run/metrics.jsonl && ln -s ../victim/new run/metrics.jsonl
refused 1 'run/metrics.jsonl: cannot open' train job.yaml --resume --set train.steps=3
untouched 'metrics.jsonl'
rm run/metrics.jsonl
ln -s victim/lines b.h5.tmp
works 'step 2' gather run -o b.h5
untouched gather

# --- latest: a text that is compared, not a path that is followed ---

latest() { # WHAT PATTERN
  works 'resume    from run/step-000002' train job.yaml --resume
  grep -Eq "warning: run/latest: names \"$2\"; the newest whole step is 2" err || fault "latest is $1: $(said)"
}
echo ../../victim >run/latest && latest 'a path' '../../victim'
printf '\033[2J' >run/latest && latest 'a control sequence' '\?\[2J'
rm run/latest && mkdir run/latest && latest 'a folder' ''
rmdir run/latest && mkfifo run/latest && latest 'a pipe' ''
rm run/latest && ln -s ../victim/config run/latest && latest 'a link' ''
untouched latest

# --- a read-only output ---

mkdir locked
if mount -t tmpfs -o size=20M tmpfs locked 2>/dev/null; then
  mounts=("$work/locked")
  works 'saved ' train job.yaml --set output=locked/run
  mount -o remount,ro locked
  refused 1 'locked/run.*: Read-only file system' train job.yaml --set output=locked/run --resume --set train.steps=3
  refused 1 'locked/other.*: Read-only file system' train job.yaml --set output=locked/other
  refused 1 'locked/c.h5.*: Read-only file system' gather run -o locked/c.h5
  mount -o remount,rw locked
  works 'resume    from locked/run/step-000002' train job.yaml --set output=locked/run --resume --set train.steps=3
else
  echo 'no right to mount a file system; a read-only one is left out'
fi
finish
