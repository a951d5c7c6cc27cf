#!/usr/bin/env bash
# A SLURM cluster of one node on the loopback interface, for tests: real daemons, no systemd, nothing outside one folder.
#
#   scripts/slurm.sh install    Debian's packages slurm-wlm and munge (needs root and apt-get)
#   scripts/slurm.sh start      starts munged, slurmctld and slurmd, and waits until the node is idle
#   scripts/slurm.sh env        prints what a shell needs: eval "$(scripts/slurm.sh env)"; sinfo
#   scripts/slurm.sh status     prints nodes and jobs; exit code 1 where the cluster does not run
#   scripts/slurm.sh stop       cancels all jobs and stops the daemons
#
# The node has two CPUs and two GPUs by name only. Partitions: main (the default) and urgent, whose jobs requeue those of main.
# KDBENCH_SLURM: folder of configuration, logs and state; KDBENCH_SLURM_PORT: the first of two ports.
set -euo pipefail

folder="${KDBENCH_SLURM:-${TMPDIR:-/tmp}/kdbench-slurm-$(id -u)}"
port="${KDBENCH_SLURM_PORT:-17817}"
export SLURM_CONF="$folder/slurm.conf"
export PATH="$PATH:/usr/sbin:/sbin"

fail() {
    echo "scripts/slurm.sh: $*" >&2
    exit 1
}

check_installed() {
    local missing=()
    for program in munged mungekey slurmctld slurmd sbatch srun; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    [ ${#missing[@]} -eq 0 ] || fail "${missing[*]}: not installed; run as root: scripts/slurm.sh install"
}

install_packages() {
    if (check_installed) 2>/dev/null; then
        return
    fi
    command -v apt-get >/dev/null || fail "no apt-get here; install SLURM and munge with the package manager of this system"
    [ "$(id -u)" -eq 0 ] || fail "installing needs root: apt-get install --no-install-recommends slurm-wlm munge"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
    check_installed
}

# Process id of a daemon of this folder, or nothing where it does not run.
pid_of() {
    local file="$folder/$1.pid"
    if [ -s "$file" ] && [ "$(cat "/proc/$(cat "$file")/comm" 2>/dev/null)" = "$1" ]; then
        cat "$file"
    fi
}

write_configuration() {
    local user memory
    user="$(id -un)"
    memory="$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)"
    mkdir -p "$folder"/{munge,state,spool,log}
    chmod 0755 "$folder" "$folder"/{munge,state,spool,log}
    [ -s "$folder/munge.key" ] || mungekey --create --keyfile "$folder/munge.key"
    chmod 0600 "$folder/munge.key"
    cat >"$folder/slurm.conf" <<END
ClusterName=kdbench
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CryptoType=crypto/munge
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
# No control groups: they need systemd or a writable hierarchy. proctrack/linuxproc of SLURM 22.05 crashes at times, while it
# signals a step that ends.
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SwitchType=switch/none
# CPUs are shared out, whatever the machine has.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
# Time limits are exact, and what is requeued starts again soon.
OverTimeLimit=0
KillWait=10
MinJobAge=300
InactiveLimit=0
MessageTimeout=10
SlurmctldTimeout=30
SlurmdTimeout=60
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=100000
PriorityType=priority/basic
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=node1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 CPUs=2 RealMemory=$memory Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=node1 Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE State=UP
PartitionName=urgent Nodes=node1 MaxTime=INFINITE DefaultTime=60 PriorityTier=10 State=UP
END
    printf "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n" >"$folder/gres.conf"
}

start_daemon() {
    [ -z "$(pid_of "$1")" ] || return 0
    "$@" || fail "$1 did not start; its log is in $folder/log"
}

start() {
    check_installed
    write_configuration
    if [ -z "$(pid_of munged)" ]; then
        munged --force --key-file="$folder/munge.key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
            --seed-file="$folder/munge/seed" --log-file="$folder/log/munged.log" 2>"$folder/log/munged.err" ||
            fail "munged did not start: $(tail -n 1 "$folder/log/munged.err")"
    fi
    start_daemon slurmctld
    start_daemon slurmd -N node1
    for _ in $(seq 120); do
        case "$(timeout 5 sinfo --noheader --nodes node1 --partition main --format %T 2>/dev/null)" in
        idle | mixed | allocated) return ;;
        down* | drain*) scontrol update nodename=node1 state=resume 2>/dev/null || true ;;
        esac
        sleep 0.5
    done
    fail "the node is not idle after a minute: $(sinfo --noheader --Node --long 2>&1 | tail -n 1); logs are in $folder/log"
}

stop() {
    if [ -n "$(pid_of slurmctld)" ]; then
        timeout 10 scancel --quiet --user "$(id -un)" 2>/dev/null || true
        for _ in $(seq 30); do
            [ -n "$(timeout 5 squeue --noheader 2>/dev/null)" ] || break
            sleep 0.5
        done
    fi
    for daemon in slurmd slurmctld munged; do
        pid="$(pid_of "$daemon")"
        [ -n "$pid" ] || continue
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 40); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.25
        done
        kill -9 "$pid" 2>/dev/null || true
    done
}

status() {
    local stopped=()
    for daemon in munged slurmctld slurmd; do
        [ -n "$(pid_of "$daemon")" ] || stopped+=("$daemon")
    done
    [ ${#stopped[@]} -eq 0 ] || fail "${stopped[*]}: not running; scripts/slurm.sh start"
    timeout 10 sinfo --Node --long
    timeout 10 squeue --array
}

case "${1:-}" in
install) install_packages ;;
start) start ;;
stop) stop ;;
status) status ;;
env)
    printf 'export SLURM_CONF=%q\n' "$SLURM_CONF"
    ;;
*)
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "$0"
    exit 2
    ;;
esac
