#!/bin/sh
# Keeps one container running across its own reboots (systemd-nspawn ends with 133 when the guest asks
# for one) until the file `stop` appears. Arguments: run folder, then the command. The folder's `cgroups`
# lists the control groups to join; `scope` names the systemd scope the command makes, if it makes one,
# and that must be gone before it can be made again.
# Each process writes its PID and start time before it becomes what it is.
set -u
run=$1
shift
echo "$$ $(cut -d' ' -f22 /proc/$$/stat)" >"$run/supervisor.pid"
while [ ! -e "$run/stop" ]; do
  sh -c '
    run=$1
    shift
    echo "$$ $(cut -d" " -f22 /proc/$$/stat)" >"$run/host.pid"
    while read -r group; do echo $$ >"$group/cgroup.procs"; done <"$run/cgroups"
    exec "$@"
  ' sh "$run" "$@"
  [ $? -eq 133 ] || exit 0
  while [ -e "$run/scope" ] && [ "$(systemctl show --property=LoadState --value "$(cat "$run/scope")")" = loaded ]; do
    sleep 0.1
  done
done
