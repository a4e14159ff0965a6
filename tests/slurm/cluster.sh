#!/usr/bin/env bash
# A real Slurm cluster of several nodes on one machine: each node is a set of Linux namespaces (network, pid, uts, mount,
# ipc) with an address, a hostname and a slurmd of its own. Needs root and Debian's slurmctld, slurmd, slurm-client, munge.
#
#   cluster.sh up N           start munged, slurmctld and nodes n1..nN; wait until all are idle
#   cluster.sh down           end everything that `up` started; nothing is left
#   cluster.sh exec nX CMD    run CMD inside a node
#   cluster.sh crash nX       power loss: the link goes first (no farewell leaves the node), then all its processes
#   cluster.sh slurmd-kill nX only slurmd dies
#   cluster.sh link nX down|up
#   cluster.sh start nX       bring a node, or only its slurmd, back
#
# FTS_DIR   state, logs and slurm.conf; at most 60 characters (unix sockets), on storage that all nodes see
# FTS_NET   first three bytes of the nodes' network; FTS_TAG  prefix of the names of namespaces and bridge
set -euo pipefail

SELF=$(readlink -f "${BASH_SOURCE[0]}")
D=${FTS_DIR:?} NET=${FTS_NET:?} TAG=${FTS_TAG:?}
CONF=$D/etc/slurm.conf
BARE=(env -i "PATH=$PATH" HOME="$HOME" LANG=C.UTF-8) # what daemons see of this environment

die() {
    echo "cluster.sh: $*" >&2
    exit 1
}

# ---- processes, by pid file and start time: a number alone may be another process by now
start_time() { awk '{sub(/^.*\) /, ""); print $20}' "/proc/$1/stat" 2>/dev/null || true; }
pid_of() {
    local pid time
    [[ -r $D/pid/$1 ]] && read -r pid time <"$D/pid/$1" && [[ -n $time && $(start_time "$pid") == "$time" ]] || return 1
    [[ $(awk '{sub(/^.*\) /, ""); print $1}' "/proc/$pid/stat") != Z ]] && echo "$pid"
}
daemon() { # NAME CMD...: detached, its output in log/NAME.out
    local name=$1
    shift
    setsid "$@" </dev/null >>"$D/log/$name.out" 2>&1 &
    echo "$! $(start_time $!)" >"$D/pid/$name"
}
stop() { # NAME SIGNAL: then KILL
    local pid i
    pid=$(pid_of "$1") || return 0
    kill "-$2" "$pid" 2>/dev/null || true
    for ((i = 0; i < 100; i++)); do pid_of "$1" >/dev/null || return 0; sleep 0.05; done
    kill -KILL "$pid" 2>/dev/null || true
}
nodes() { seq -f 'n%.0f' "$(cat "$D/count" 2>/dev/null || echo 0)"; }
init_of() { # the host's number of a node's PID 1
    local pid init
    pid=$(pid_of "$1") && init=$(awk '{print $1}' "/proc/$pid/task/$pid/children") && [[ -n $init ]] && echo "$init"
}
slurmd_of() {
    local init pid
    init=$(init_of "$1") || return 1
    for pid in $(cat "/proc/$init/task/$init/children"); do
        [[ $(cat "/proc/$pid/comm" 2>/dev/null) == slurmd ]] && echo "$pid" && return 0
    done
    return 1
}

# ---- configuration
configure() {
    local i track=linuxproc probe=/sys/fs/cgroup/freezer/$TAG-probe
    # with the freezer, as on real clusters, signals but KILL reach the tasks alone and nothing outlives a step
    if mkdir "$probe" 2>/dev/null && rmdir "$probe"; then track=cgroup; fi
    echo "$track" >"$D/etc/proctrack"
    cat >"$D/etc/cgroup.conf" <<EOT
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainCores=no
ConstrainRAMSpace=no
ConstrainSwapSpace=no
ConstrainDevices=no
EOT
    cat >"$CONF" <<EOT
ClusterName=$TAG
SlurmctldHost=ctl($NET.1)
CommunicationParameters=NoCtldInAddrAny
SlurmctldPort=17817
SlurmdPort=17818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits (default 120 s; below 5 counts as 120)
AuthInfo=socket=$D/munge/socket,cred_expire=5
StateSaveLocation=$D/ctl
SlurmdSpoolDir=$D/nodes/%n
SlurmctldPidFile=$D/ctl/slurmctld.pid
SlurmdPidFile=$D/nodes/%n/slurmd.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
ProctrackType=proctrack/$track
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.log
# nodes claim more than the machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
# real clusters: 300 and 30; what is not waited for to its end may be long, for slow machines
SlurmdTimeout=${FTS_SLURMD_TIMEOUT:-30}
KillWait=${FTS_KILL_WAIT:-120}
SlurmctldTimeout=60
MessageTimeout=30
TCPTimeout=10
BatchStartTimeout=120
UnkillableStepTimeout=120
MinJobAge=3600
# another range for each cluster: on one machine they share the tree of cgroups
FirstJobId=$((${NET##*.} * 100000 + $(date +%s) % 90000 + 1000))
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
EnforcePartLimits=ALL
EOT
    printf '127.0.0.1 localhost\n%s ctl\n' "$NET.1" >"$D/etc/hosts"
    for i in $(seq "$1"); do
        echo "NodeName=n$i NodeAddr=$NET.$((10 + i)) CPUs=64 RealMemory=256000 State=UNKNOWN" >>"$CONF"
        echo "$NET.$((10 + i)) n$i" >>"$D/etc/hosts"
    done
    cat >>"$CONF" <<EOT
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=off
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=requeue GraceTime=${FTS_GRACE:-120}
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=off
PartitionName=pair Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=off
PartitionName=closed Nodes=ALL AllowAccounts=physics State=UP PriorityTier=5 PreemptMode=off
EOT
}

# ---- nodes
network_of() { # nX: a network namespace with eth0 on the bridge
    local number=${1#n} space=$TAG-$1
    ip netns list | grep -qw "$space" || ip netns add "$space"
    if ! ip -n "$space" link show eth0 >/dev/null 2>&1; then
        ip link add "${TAG}v$number" type veth peer name eth0 netns "$space"
        ip link set "${TAG}v$number" master "${TAG}br"
        ip -n "$space" addr add "$NET.$((10 + number))/24" dev eth0
    fi
    ip link set "${TAG}v$number" up
    ip -n "$space" link set lo up
    ip -n "$space" link set eth0 up
}
start_node() {
    local init
    mkdir -p "$D/nodes/$1"
    network_of "$1"
    if init=$(init_of "$1"); then
        slurmd_of "$1" >/dev/null || nsenter -t "$init" -a -- "${BARE[@]}" setsid -f slurmd -D -f "$CONF" -N "$1" \
            </dev/null >>"$D/log/$1.out" 2>&1
        return
    fi
    # not `ip netns exec`: it mounts /sys anew, and the cgroups are gone
    daemon "$1" nsenter --net="/run/netns/$TAG-$1" unshare --uts --mount --ipc --pid --fork --kill-child=KILL \
        --mount-proc bash "$SELF" _node "$1"
}
be_node() { # PID 1 of a node
    hostname "$1"
    mount --make-rprivate /
    mount --bind "$D/etc/hosts" /etc/hosts
    mount -t tmpfs -o size=1g,mode=1777 shm /dev/shm
    mkdir -p "$D/scratch"
    mount -t tmpfs -o size=8m,mode=1777 scratch "$D/scratch" # each node's own local disk
    "${BARE[@]}" slurmd -D -f "$CONF" -N "$1" &
    trap : TERM INT HUP USR1 USR2
    while :; do wait -n 2>/dev/null || sleep 0.2; done # reaps orphans; the node lives on without its slurmd
}
be_controller() { # listens on the address of its own hostname only
    hostname ctl
    mount --make-rprivate /
    mount --bind "$D/etc/hosts" /etc/hosts
    exec "${BARE[@]}" slurmctld -D -f "$CONF"
}
stop_node() {
    local init
    if init=$(init_of "$1"); then kill -KILL "$init"; fi # and the kernel ends all others of the namespace
    stop "$1" KILL
}

# ---- commands
up() {
    local node i
    ((EUID == 0)) || die "must be root"
    ((${#D} <= 60)) || die "FTS_DIR is too long for unix sockets: $D"
    mkdir -p "$D"/{etc,log,pid,munge,ctl,nodes}
    chmod 755 "$D" "$D/munge"
    echo "$1" >"$D/count"
    configure "$1"
    ip link add "${TAG}br" type bridge
    ip addr add "$NET.1/24" dev "${TAG}br"
    ip link set "${TAG}br" up
    (umask 077 && head -c 1024 /dev/urandom >"$D/munge/key")
    daemon munged munged --foreground --force --key-file="$D/munge/key" --socket="$D/munge/socket" \
        --pid-file="$D/munge/pid" --seed-file="$D/munge/seed" --log-file="$D/log/munged.log" --num-threads=2
    for ((i = 0; i < 100; i++)); do [[ -S $D/munge/socket ]] && break; sleep 0.05; done
    daemon slurmctld unshare --uts --mount bash "$SELF" _controller
    for ((i = 0; i < 100; i++)); do scontrol ping 2>/dev/null | grep -q ' UP' && break; sleep 0.1; done
    for node in $(nodes); do start_node "$node"; done
    for ((i = 0; i < 300; i++)); do
        [[ $(sinfo -h -N -p main -o %T | grep -c idle) == "$1" ]] && return 0
        sleep 0.1
    done
    tail -n 5 "$D"/log/* >&2
    die "not all nodes came up"
}
down() {
    local node
    for node in $(nodes); do stop_node "$node"; done
    stop slurmctld TERM
    stop munged TERM
    for node in $(nodes); do
        ip link del "${TAG}v${node#n}" 2>/dev/null || true
        ip netns del "$TAG-$node" 2>/dev/null || true
        find "/sys/fs/cgroup/freezer/slurm_$node" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
    ip link del "${TAG}br" 2>/dev/null || true
}

export SLURM_CONF=$CONF FTS_DIR FTS_NET FTS_TAG
case ${1:?up, down, exec, crash, slurmd-kill, link or start} in
    up | down) "$@" ;;
    _node) be_node "$2" ;;
    _controller) be_controller ;;
    exec)
        init=$(init_of "$2") || die "$2 is not running"
        shift 2
        exec nsenter -t "$init" -a --wd="$PWD" -- "$@"
        ;;
    crash)
        ip link set "${TAG}v${2#n}" down
        stop_node "$2"
        ;;
    slurmd-kill) kill -KILL "$(slurmd_of "$2")" ;;
    link) ip link set "${TAG}v${2#n}" "$3" ;;
    start) start_node "$2" ;;
    *) die "unknown command $1" ;;
esac
