#!/usr/bin/env bash
# A SLURM of one node with two cores, in a folder of its own, for tests/cluster/test_slurm.py.
#
#   tests/cluster/slurm.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf
#   tests/cluster/slurm.sh stop FOLDER
#
# Needs Linux, root (slurmd starts jobs as other users), and Debian's packages slurm-wlm and munge:
#   apt-get install slurm-wlm munge
# Nothing outside FOLDER is written, and only processes that it started are ended.
set -euo pipefail

folder=$(realpath -m "$2")
socket=$folder/munge.socket

start() {
    for program in munged slurmctld slurmd; do
        command -v "$program" >/dev/null || { echo "slurm.sh: no $program; apt-get install slurm-wlm munge" >&2; exit 1; }
    done
    [ "$(id -u)" = 0 ] || { echo "slurm.sh: slurmd needs root" >&2; exit 1; }
    mkdir -p "$folder"/{state,spool,log}
    chmod 755 "$folder"
    # munged wants a socket that others can reach through folders that only their owner can write.
    head -c 1024 /dev/urandom >"$folder/munge.key"
    chmod 400 "$folder/munge.key"
    munged --force --key-file="$folder/munge.key" --socket="$socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/log/munged.log" --seed-file="$folder/munged.seed"
    local host
    host=$(hostname -s)
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired; 120 seconds by default.
AuthInfo=socket=$socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
SchedulerParameters=batch_sched_delay=1,sched_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF"
    for _ in $(seq 60); do
        if sinfo --noheader --format=%T 2>/dev/null | grep -q '^idle$'; then
            sinfo
            return
        fi
        sleep 0.5
    done
    echo "slurm.sh: the node did not become idle within 30 s; see $folder/log" >&2
    stop
    exit 1
}

stop() {
    for name in slurmd slurmctld munged; do
        if [ -s "$folder/$name.pid" ]; then
            kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
        fi
    done
}

case $1 in
    start) start ;;
    stop) stop ;;
    *) echo "usage: slurm.sh start|stop FOLDER" >&2; exit 2 ;;
esac
