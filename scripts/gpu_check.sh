#!/usr/bin/env bash
# Checks and measures DCLS on this machine's NVIDIA GPU, without network.
#
#   scripts/gpu_check.sh [--steps NAME ...] [--minutes 30] [--commit HASH] [--upstream FOLDER]
#                        [--output FOLDER] [--work FOLDER] [--dry-run]
#
# --steps     the steps to run, by name or pattern (default: all)
#               build         builds DCLS for this GPU
#               dcls          dcls check: values, determinism, a graph, times beside torch's
#               pytest-NAME   the tests for a GPU, each file in a process of its own
#               ctest         the C++ tests; they need no GPU
#               bench-NAME    the benchmarks
#               memcheck, racecheck, synccheck, initcheck
#                             compute-sanitizer over the tests marked "sanitizer"
# --minutes   time for all of them; a step that takes too long is ended, and the next one begins
# --commit    the commit of these files, where git cannot tell; or set $DCLS_COMMIT
# --upstream  a folder filled by pip install --target FOLDER --no-deps dcls==0.1.1, to compare with
# --output    where the results go (default: benchmarks/results)
# --work      where it builds and keeps its logs (default: build/gpu-check)
# --dry-run   prints the commands of the steps and runs nothing; needs no GPU
#
# Where a command may take ten minutes at most, three commands do everything:
#
#   scripts/gpu_check.sh --minutes 9 --steps build dcls 'pytest-*' ctest
#   scripts/gpu_check.sh --minutes 9 --steps 'bench-*'
#   scripts/gpu_check.sh --minutes 9 --steps '*check'
#
# The later ones use the build of the first, and add to its report if the commit is known.
#
# It needs nvcc of CUDA 12.0 or newer, cmake, ctest, ninja, timeout, tar, and python3 (or $PYTHON)
# with a CUDA build of torch, pip, scikit-build-core, pybind11, pytest and hypothesis; for the
# "check" steps also compute-sanitizer. It installs nothing outside of --work.
#
# Results: a JSON file for each benchmark, gpu-check-GPU.json with the result of each step, and
# gpu-check.tar.gz, which holds these and the logs. All are written anew after each step.
#
# Exit status: 0 if all chosen steps passed, 1 if one did not, 2 if something is missing or an option
# is wrong; then nothing was run.
set -euo pipefail

stop() {
  printf 'gpu_check: %s. Nothing was run.\n' "$1" >&2
  exit 2
}

# ---- options

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
output=$root/benchmarks/results
work=$root/build/gpu-check
minutes=30 upstream='' dry='' patterns=()
command="scripts/gpu_check.sh${*:+ $*}"
while (($#)); do
  option=$1
  shift
  case $option in
    --help | -h)
      sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    --dry-run) dry=yes ;;
    --steps)
      while (($#)) && [[ $1 != --* ]]; do
        patterns+=("$1")
        shift
      done
      ;;
    --minutes | --commit | --upstream | --output | --work)
      (($#)) || stop "$option takes a value"
      case $option in
        --minutes) minutes=$1 ;;
        --commit) export DCLS_COMMIT=$1 ;;
        --upstream) upstream=$(realpath -e "$1" 2>/dev/null) || stop "there is no folder $1" ;;
        --output) output=$(realpath -m "$1") ;;
        --work) work=$(realpath -m "$1") ;;
      esac
      shift
      ;;
    *) stop "there is no option $option; see --help" ;;
  esac
done
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || stop "--minutes takes a number, not $minutes"
cd "$root"

# ---- the machine

gpu=GPU architecture=native
if [[ ! $dry ]]; then
  # The programs of a toolkit that is not on the PATH, or not all of it.
  toolkit=${CUDA_HOME:-/usr/local/cuda}
  nvcc=$(command -v nvcc) && toolkit=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
  PATH=$PATH:$toolkit/bin:$toolkit/compute-sanitizer
  lacking=()
  for tool in nvidia-smi nvcc cmake ctest ninja timeout tar "$python"; do
    command -v "$tool" >/dev/null || lacking+=("$tool")
  done
  ((${#lacking[@]} == 0)) || stop "not found: ${lacking[*]}"
  # Says itself what is missing.
  facts=$("$python" scripts/gpu_report.py facts "$work" "$command") || exit 2
  read -r gpu architecture <<<"$facts"
fi

# ---- the steps

names=() reserves=() commands=()
declare -A expected

# add NAME SECONDS PATTERNS COMMAND...: a step. Earlier steps leave it so many seconds. It has passed
# if the command succeeds and each pattern, one a line, matches in its output.
add() {
  names+=("$1")
  reserves+=("$2")
  expected[$1]=$3
  commands+=("$(printf '%q ' "${@:4}")")
}

site=$work/site logs=$work/logs jobs=$(nproc)

add build 120 '' "$python" -m pip install -v --no-index --no-build-isolation --no-deps --no-compile \
  --disable-pip-version-check --target "$site" -C "build-dir=$work/wheel" \
  -C "build.tool-args=-j$jobs" -C cmake.define.DCLS_CUDA=ON \
  -C "cmake.define.DCLS_CUDA_ARCHITECTURES=$architecture" "$root"

add dcls 60 '' "$python" -m DCLS check --device cuda --output "$logs/dcls-check.json"

# That all were skipped is no success. Warnings of this machine's torch are no errors.
some_passed='\b[1-9][0-9]* passed'
pytest=("$python" -m pytest -v --tb=short -p no:cacheprovider -W default)

# The files with tests that take the device, or whose tests are all for a GPU.
# That of skips has the marker in the text of its own tests.
mapfile -t files < <(grep -rlE --include='test_*.py' --exclude=test_skips.py \
  '^def test_.*\bdevice\b|^    (.*, )?device[:,]|^ +pytest\.mark\.gpu,|^@pytest\.mark\.gpu$' tests |
  LC_ALL=C sort)
for file in "${files[@]}"; do
  name=${file#tests/} name=${name%.py} name=${name/test_/} name=pytest-${name//\//-}
  add "$name" 15 "$some_passed" \
    "${pytest[@]}" -o faulthandler_timeout=60 "--junitxml=$logs/$name.xml" -m gpu "$file"
done

# shellcheck disable=SC2016  # the inner shell expands these
build_and_test='cmake --preset dev -B "$0" && cmake --build "$0" --parallel "$1" && '
# shellcheck disable=SC2016
build_and_test+='ctest --test-dir "$0" --parallel "$1" --output-on-failure --output-junit "$2"'
add ctest 60 '100% tests passed' \
  bash -c "$build_and_test" "$work/ctest" "$jobs" "$logs/ctest.xml"

benchmarks=$("$python" scripts/gpu_report.py benchmarks)
while IFS=$'\t' read -r name file takes_upstream arguments; do
  more=(--repeats 3 --slow-repeats 2 --json "$output/$name-$gpu.json")
  [[ $upstream && $takes_upstream == True ]] && more+=(--upstream "$upstream")
  read -ra arguments <<<"$arguments"
  add "bench-$name" 30 '' "$python" "benchmarks/$file" --device cuda "${arguments[@]}" "${more[@]}"
done <<<"$benchmarks"

mapfile -t files < <(grep -rlE --include='test_*.py' '^@pytest\.mark\.sanitizer' tests | LC_ALL=C sort)
for tool in memcheck racecheck synccheck initcheck; do
  options=(--tool "$tool" --error-exitcode 9)
  # torch makes calls that may fail, and handles it.
  [[ $tool == memcheck ]] && options+=(--report-api-errors no --padding 256)
  # cuBLAS's kernels are slow here, and not ours. The other tools must see them: they initialise.
  [[ $tool =~ race|sync ]] && options+=(--kernel-regex kns=dcls)
  # Each tensor gets memory of its own, so that memcheck sees where it ends.
  add "$tool" 120 "$some_passed"$'\n''SUMMARY: 0 (errors|hazards)' \
    env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer "${options[@]}" \
    "${pytest[@]}" "--junitxml=$logs/$tool.xml" -m 'sanitizer and gpu' "${files[@]}"
done

# ---- the chosen steps

chosen=()
((${#patterns[@]})) || patterns=('*')
for pattern in "${patterns[@]}"; do
  found=''
  for i in "${!names[@]}"; do
    # shellcheck disable=SC2053  # it is a pattern
    [[ ${names[i]} == $pattern ]] && chosen[i]=$i found=yes
  done
  [[ $found ]] || stop "no step is called $pattern; there are ${names[*]}"
done

if [[ $dry ]]; then
  for i in "${chosen[@]}"; do printf '# %s\n%s\n' "${names[i]}" "${commands[i]}"; done
  exit 0
fi

for i in "${chosen[@]}"; do
  [[ ${names[i]} != *check ]] || command -v compute-sanitizer >/dev/null ||
    stop "not found: compute-sanitizer"
  # Step 0 is the build.
  [[ ${names[i]} == ctest || ${chosen[0]-} || -d $site ]] ||
    stop "there is no build in $work; run the step build first"
done

# ---- the run

mkdir -p "$logs" "$output"
export PATH=$site/bin:$PATH PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
declare -A status seconds note

# Writes the report and packs it with the logs.
save() {
  local name
  for name in "${names[@]}"; do
    printf '%s\t%s\t%s\t%s\n' "$name" "${status[$name]}" "${seconds[$name]}" "${note[$name]}"
  done >"$work/steps.tsv"
  "$python" scripts/gpu_report.py report "$work" "$output" >"$logs/report.txt"
  (cd "$output" && tar -czf "$work/pack" -C "$work" logs -C "$output" -- *"-$gpu.json")
  mv "$work/pack" "$output/gpu-check.tar.gz"
}

# run_step NAME LIMIT COMMAND...
run_step() {
  local name=$1 limit=$2 log=$logs/$1.log begin=$SECONDS code=0 pattern
  # Its group is its own, so that all of it can be ended. At SIGINT, pytest still reports.
  timeout --signal=INT --kill-after=8 "$limit" "${@:3}" >"$log" 2>&1 </dev/null &
  child=$!
  while kill -0 "$child" 2>/dev/null; do # a signal ends wait early
    code=0
    wait "$child" || code=$?
  done
  kill -KILL -- "-$child" 2>/dev/null || true # what it left running
  child=''
  status[$name]=failed
  seconds[$name]=$((SECONDS - begin))
  if [[ $stopped ]]; then
    note[$name]="cut short"
  elif ((code && SECONDS - begin >= limit)); then
    note[$name]="not done after $limit s"
  elif ((code)); then
    note[$name]="exit status $code"
  else
    status[$name]=passed note[$name]=''
    while read -r pattern; do
      [[ $pattern ]] || continue
      if ! grep -qE "$pattern" "$log"; then
        status[$name]=failed note[$name]="nothing in its output matches $pattern"
        break
      fi
      # The last line that tells how many.
      note[$name]=$(grep -E "$pattern" "$log" | tail -n 1 | tr -d '=\t')
    done <<<"${expected[$name]}"
  fi
  [[ ${status[$name]} == passed ]] && return
  # A compiler's first error is far above the last lines.
  { grep -m 12 -iE '\berror\b|^FAILED|^E  ' "$log" || true; echo ...; tail -n 25 "$log"; } |
    cut -c -300 | sed 's/^/    /'
}

for name in "${names[@]}"; do
  status[$name]="not reached" seconds[$name]=0 note[$name]=''
done
if [[ -f $work/steps.tsv ]]; then # of an earlier run, of the same commit on the same machine
  while IFS=$'\t' read -r name state time text; do
    status[$name]=$state seconds[$name]=$time note[$name]=$text
  done <"$work/steps.tsv"
fi
later=0
for i in "${chosen[@]}"; do
  name=${names[i]}
  status[$name]="not reached" seconds[$name]=0 note[$name]=''
  ((later += reserves[i])) || true
done

set -m # a group for each command, which does not ignore SIGINT
child='' stopped=''
trap 'stopped=yes; [[ ! $child ]] || kill -INT "$child"' INT TERM HUP
# Ten seconds are kept for ending the last step, and for the report.
deadline=$(awk -v minutes="$minutes" 'BEGIN { print int(60 * minutes) - 10 }')
for i in "${chosen[@]}"; do
  name=${names[i]} own=${reserves[i]} left=$((deadline - SECONDS))
  # All that the later steps do not need; if time is short, its share.
  limit=$((left - (later - own)))
  ((limit >= own)) || limit=$((left * own / later))
  ((later -= own)) || true
  if [[ $stopped ]]; then
    break
  elif [[ $name != build && $name != ctest && ! -d $site ]]; then
    status[$name]=skipped note[$name]="the build failed"
  elif ((limit < 1)); then
    note[$name]="no time was left"
  else
    echo "gpu_check: $name (at most $limit s)"
    status[$name]=failed note[$name]="cut short" # unless it gets further
    case $name in # nothing old may pass for its result
      build) rm -rf "$site" ;;
      dcls) rm -f "$logs/dcls-check.json" ;;
      bench-*) rm -f "$output/${name#bench-}-$gpu.json" ;;
    esac
    save # also what the step before it did
    eval "run_step $name $limit ${commands[i]}"
  fi
  echo "gpu_check: $name ${status[$name]} after ${seconds[$name]} s ${note[$name]}"
done
save
cat "$logs/report.txt"
for i in "${chosen[@]}"; do
  [[ ${status[${names[i]}]} == passed ]] || exit 1
done
