#!/usr/bin/env bash
# A simulation's runs divided among the tasks of a Slurm array: docs/simulation.md, "Beyond one machine".
#
#   sbatch --array=0-7 deploy/simulation-array.sh fleet.toml /shared/out
#
# When all tasks are done, anywhere where the folder is seen:
#
#   starling simulate fleet.toml --merge /shared/out/* --report fleet.html
#
# A task that failed alone is done again with SHARDS, for then Slurm does not know how many there are:
#
#   SHARDS=8 sbatch --array=3 deploy/simulation-array.sh fleet.toml /shared/out
#SBATCH --job-name=simulation
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=24:00:00
set -euo pipefail
scenario=${1:?usage: sbatch --array=0-7 simulation-array.sh SCENARIO FOLDER}
folder=${2:?usage: sbatch --array=0-7 simulation-array.sh SCENARIO FOLDER}
shard=${SLURM_ARRAY_TASK_ID:?this is a task of an array: sbatch --array=0-7}
shards=${SHARDS:-${SLURM_ARRAY_TASK_COUNT:?this is a task of an array: sbatch --array=0-7}}
# A run goes all over its memory: huge pages are found sooner.
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
mkdir -p "$folder"
exec starling simulate "$scenario" --shard "$shard/$shards" --parquet "$folder/$shard"
