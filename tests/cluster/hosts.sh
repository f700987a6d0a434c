# shellcheck shell=bash
# Sourced by checks.sh in network, mount, UTS and process namespaces of its own: makes the hosts node-01 to node-04.
# Each has a network, host name, process numbers, shared memory, temporary files, home and sshd of its own. Two networks
# join them, as on many clusters: one for ssh and mpirun's daemons, where this script stands too as host "login", and one for
# the messages of the ranks. Files are shared. Addresses and ports collide with nothing: nobody else is on these networks.
# shellcheck disable=SC2034  # used by who sources this
hosts=(node-01 node-02 node-03 node-04)
control_net=10.77.1.0/24
data_net=10.77.2.0/24
net=/run/cluster

make_networks() {
  local network
  hostname login
  ip link set lo up
  for network in control data; do ip link add $network type bridge && ip link set $network up || return; done
  ip addr add 10.77.1.100/24 dev control
  {
    echo "127.0.0.1 localhost"
    echo "10.77.1.100 login"
    for network in 1 2 3 4; do echo "10.77.1.$network node-0$network"; done
  } >$net/etc-hosts
  mount --bind $net/etc-hosts /etc/hosts
}

make_host() { # NUMBER
  local host=node-0$1 network
  mkdir -p $net/"$host"/{tmp,home}
  # What root's shell does when it starts is not to be done by the test, and killed with it.
  awk -F: -v OFS=: -v home="$net/$host/home" '$3 == 0 { $6 = home; $7 = "/bin/sh" } { print }' /etc/passwd >$net/"$host"/passwd
  ip netns add "$host" && ip -n "$host" link set lo up || return
  for network in control data; do
    ip link add $network-"$1" type veth peer name $network netns "$host" &&
      ip link set $network-"$1" master $network up && ip -n "$host" link set $network up || return
  done
  ip -n "$host" addr add 10.77.1."$1"/24 dev control
  ip -n "$host" addr add 10.77.2."$1"/24 dev data
  ssh-keygen -q -t ed25519 -N '' -f $net/"$host"/key
  # Nobody reaches it from outside; root's keys, agent and known hosts are left alone.
  cat >$net/"$host"/sshd_config <<END
ListenAddress 10.77.1.$1
HostKey $net/$host/key
AuthorizedKeysFile $net/key.pub
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
PidFile none
SetEnv TMPDIR=$net/$host/tmp
END
  # The shell stays the first process, which takes on what daemons leave behind.
  ip netns exec "$host" unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc bash -c \
    "hostname $host; mount -t tmpfs tmpfs /dev/shm; mount --bind $net/$host/passwd /etc/passwd
    $(command -v sshd) -D -e -f $net/$host/sshd_config; :" \
    >$net/"$host"/log 2>&1 &
}

# Fails with what went wrong on standard error.
make_hosts() {
  local n
  mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /dev/shm && mkdir -p /run/sshd /run/netns $net/tmp || return
  export TMPDIR=$net/tmp
  ssh-keygen -q -t ed25519 -N '' -f $net/key && make_networks || return
  for n in 1 2 3 4; do make_host $n || return; done
  for n in 1 2 3 4; do
    await 40 answers node-0$n || {
      cat $net/node-0$n/log >&2
      return 1
    }
  done
}
answers() { (: <"/dev/tcp/$1/22") 2>/dev/null; }

# await SECONDS COMMAND...: true once the command is.
await() {
  local ends=$((SECONDS + $1 + 1))
  shift
  until "$@"; do
    [ $SECONDS -lt $ends ] || return 1
    sleep 0.02
  done
}

# link data|control HOST up|down: its cable in the switch.
link() { ip link set "$1-${2#node-0}" "$3"; }

# slow_down HOST ARGUMENTS OF tc...: what it sends on the data network.
slow_down() { ip netns exec "$1" tc qdisc add dev data root "${@:2}"; }
speed_up() { ip netns exec "$1" tc qdisc del dev data root; }

# process HOST NAME: the numbers, as this script sees them, of the processes there with this name.
process() {
  local pids
  pids=$(ip netns pids "$1" | paste -sd,)
  [ -z "$pids" ] || ps -o pid=,comm= -p "$pids" | awk -v name="$2" '$2 == name { print $1 }'
}

# over HOST... -- PROGRAM ARGUMENTS...: mpirun as in cluster-configs/README.md, one rank a host or $per_host, by
# a hostfile. What a cluster does not need: the key, root, and that the hosts' ranks here share the cores of one
# machine. A lost host is found sooner than the README's values do, for the time that the test takes.
per_host=1
over() {
  local hostfile
  hostfile=$(mktemp "$net/hosts.XXXXXX")
  while [ "$1" != -- ]; do
    echo "$1 slots=$per_host" >>"$hostfile"
    shift
  done
  shift
  "${MPIRUN%% *}" --hostfile "$hostfile" --map-by ppr:$per_host:node --bind-to none \
    --mca oob_tcp_if_include $control_net --mca btl_tcp_if_include $data_net \
    --mca oob_tcp_keepalive_time 3 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 3 \
    -x OMP_WAIT_POLICY ${OMP_NUM_THREADS+-x OMP_NUM_THREADS} \
    --allow-run-as-root --mca mpi_yield_when_idle 1 --mca plm_rsh_args "-i $net/key -o StrictHostKeyChecking=no \
-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o IdentitiesOnly=yes -F none" "$@"
}
