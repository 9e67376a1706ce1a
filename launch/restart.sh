# shellcheck shell=bash
# Sourced by tpu.sh and slurm.sbatch: what follows when all processes of a run have ended.

# Statuses that would come again: an error of the program, input that cannot be used, a disk that is full or closed, no
# program, Ctrl-C. Any other but 0 is a process that was stopped (143), lost another (75) or died: the run goes on where
# it was saved when all processes get the same command again.
final=(1 2 74 126 127 130)

is_final() {
  local each
  for each in "${final[@]}"; do
    if [ "$1" = "$each" ]; then return 0; fi
  done
  return 1
}

# verdict STATUS...: prints done, stop STATUS or again STATUS for the statuses of all processes.
verdict() {
  local each worst=0
  for each; do
    if is_final "$each"; then
      printf 'stop %s\n' "$each"
      return
    fi
    if [ "$each" != 0 ]; then worst=$each; fi
  done
  if [ "$worst" = 0 ]; then printf 'done\n'; else printf 'again %s\n' "$worst"; fi
}

# Where only the highest status of several processes is known, as from srun, a final one has to outrank those of the
# processes that lost the one that failed: outrank STATUS prints 201, 202, 224, ... for it; outranked is the way back.
outrank() {
  if is_final "$1"; then printf '%s\n' $((200 + $1 % 50)); else printf '%s\n' "$1"; fi
}

outranked() {
  local each
  for each in "${final[@]}"; do
    if [ "$1" = $((200 + each % 50)) ]; then
      printf '%s\n' "$each"
      return
    fi
  done
  printf '%s\n' "$1"
}
